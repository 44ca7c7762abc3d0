// SPDX-License-Identifier: GPL-2.0

//! A link of a given rate between two ends on this machine: a forwarder of TCP connections.
//!
//! All connections through it share the rate of their direction, as those through one network card
//! do. Buffers are small, so that bytes wait at the sender and not in here.

use std::io::{
    self,
    Read,
    Write, //
};
use std::net::{
    Shutdown,
    SocketAddr,
    TcpListener,
    TcpStream, //
};
use std::sync::atomic::{
    AtomicBool,
    AtomicU64,
    Ordering, //
};
use std::sync::{
    Arc,
    Mutex, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use nix::sys::socket::{
    setsockopt,
    sockopt, //
};

/// Bytes passed on at once when nothing limits the rate.
const CHUNK: usize = 256 << 10;

/// What a direction may be ahead of its rate.
const AHEAD: Duration = Duration::from_millis(2);

/// Bytes that the kernel may hold for each socket of the forwarder.
const KERNEL_BUFFER: usize = 128 << 10;

/// How often a listener looks whether the link is gone.
const LOOK: Duration = Duration::from_millis(20);

/// One direction.
struct Lane {
    bytes_per_second: Option<u64>,
    free_at: Mutex<Instant>,
    passed: AtomicU64,
}

impl Lane {
    fn new(bytes_per_second: Option<u64>) -> Lane {
        Lane {
            bytes_per_second,
            free_at: Mutex::new(Instant::now()),
            passed: AtomicU64::new(0),
        }
    }

    /// How much may be passed on at once.
    fn chunk(&self) -> usize {
        self.bytes_per_second.map_or(CHUNK, |rate| {
            let ahead = rate as f64 * AHEAD.as_secs_f64();
            (ahead as usize).clamp(1500, CHUNK)
        })
    }

    /// Waits until so many bytes may pass, and counts them.
    fn pass(&self, bytes: usize) {
        self.passed.fetch_add(bytes as u64, Ordering::Relaxed);
        let Some(rate) = self.bytes_per_second else {
            return;
        };
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(|held| held.into_inner());
            let now = Instant::now();
            *free_at = (*free_at).max(now.checked_sub(AHEAD).unwrap_or(now)) + takes;
            *free_at
        };
        thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

/// A link; it ends when this is dropped.
pub struct Cable {
    address: SocketAddr,
    lanes: [Arc<Lane>; 2],
    gone: Arc<AtomicBool>,
}

impl Cable {
    /// Lays a link to whoever listens at `target`, with the same rate in both directions.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub fn lay(target: SocketAddr, bits_per_second: Option<u64>) -> io::Result<Cable> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        // What is accepted inherits it; set later, it would be too late for the window.
        setsockopt(&listener, sockopt::RcvBuf, &KERNEL_BUFFER)?;
        listener.set_nonblocking(true)?;
        let rate = bits_per_second.map(|bits| bits / 8);
        let cable = Cable {
            address: listener.local_addr()?,
            lanes: [Arc::new(Lane::new(rate)), Arc::new(Lane::new(rate))],
            gone: Arc::new(AtomicBool::new(false)),
        };
        let (lanes, gone) = (cable.lanes.clone(), cable.gone.clone());
        thread::spawn(move || {
            while !gone.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((near, _)) => drop(plug(near, target, &lanes)),
                    Err(_) => thread::sleep(LOOK),
                }
            }
        });
        Ok(cable)
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that went towards the target so far, and back.
    pub fn passed(&self) -> (u64, u64) {
        let [there, back] = &self.lanes;
        (
            there.passed.load(Ordering::Relaxed),
            back.passed.load(Ordering::Relaxed),
        )
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

/// Connects an accepted connection with the target; who finds nobody there sees it closed.
fn plug(near: TcpStream, target: SocketAddr, lanes: &[Arc<Lane>; 2]) -> io::Result<()> {
    near.set_nonblocking(false)?;
    let far = TcpStream::connect(target)?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        setsockopt(stream, sockopt::SndBuf, &KERNEL_BUFFER)?;
    }
    let pairs = [
        (near.try_clone()?, far.try_clone()?),
        (far, near), //
    ];
    for ((from, to), lane) in pairs.into_iter().zip(lanes.clone()) {
        thread::spawn(move || {
            if pump(&from, &to, &lane).is_err() {
                // One broken direction ends both, as a lost connection does.
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            }
        });
    }
    Ok(())
}

/// Passes bytes on until they end.
fn pump(mut from: &TcpStream, mut to: &TcpStream, lane: &Lane) -> io::Result<()> {
    let mut buffer = vec![0; lane.chunk()];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return to.shutdown(Shutdown::Write);
        }
        lane.pass(count);
        to.write_all(&buffer[..count])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
        });
        address
    }

    #[test]
    fn bytes_arrive_as_they_were_and_take_their_time() {
        let cable = Cable::lay(echo(), Some(80_000_000)).unwrap();
        let start = Instant::now();
        let mut stream = TcpStream::connect(cable.address()).unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        assert_eq!(back, sent);
        assert_eq!(cable.passed(), (1_000_000, 1_000_000));
        // 10 MB/s, one direction after the other.
        let seconds = start.elapsed().as_secs_f64();
        assert!((0.19..5.0).contains(&seconds), "{seconds} s");
    }

    #[test]
    fn who_connects_to_nobody_sees_the_end() {
        let nobody = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = nobody.local_addr().unwrap();
        drop(nobody);
        let cable = Cable::lay(address, None).unwrap();
        let mut stream = TcpStream::connect(cable.address()).unwrap();
        let mut byte = [0];
        assert!(matches!(stream.read(&mut byte), Ok(0) | Err(_)));
    }
}
