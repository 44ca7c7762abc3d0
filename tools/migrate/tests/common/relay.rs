// SPDX-License-Identifier: GPL-2.0

//! A relay between the two proxies that does harm.

use std::io::{
    Read,
    Write, //
};
use std::net::Shutdown;
use std::os::unix::net::{
    UnixListener,
    UnixStream, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::atomic::{
    AtomicBool,
    AtomicU64,
    Ordering, //
};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Which direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Sender to receiver.
    Forth,
    /// Receiver to sender.
    Back,
}

/// What is done to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// Nothing.
    None,
    /// The byte at this place is changed by this mask.
    Flip(Way, u64, u8),
    /// From this place on nothing more goes this way; the link stays up.
    Stall(Way, u64),
    /// At this place the link is cut.
    Cut(Way, u64),
}

/// A relay.
pub struct Relay {
    /// Where the sender connects.
    pub path: PathBuf,
    /// Bytes that went forth and back.
    pub bytes: [Arc<AtomicU64>; 2],
    /// Set to cut all links.
    pub cut: Arc<AtomicBool>,
}

impl Relay {
    /// A relay to `to`, on a socket in `dir`.
    pub fn start(dir: &Path, to: &str, harm: Harm) -> Self {
        let path = dir.join("relay.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let to = PathBuf::from(to.strip_prefix("unix:").unwrap());
        let bytes = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
        let cut = Arc::new(AtomicBool::new(false));
        let (counts, stop) = (bytes.clone(), Arc::clone(&cut));
        thread::spawn(move || {
            while let Ok((here, _)) = listener.accept() {
                let Ok(there) = UnixStream::connect(&to) else {
                    continue;
                };
                pass(&here, &there, harm, &counts, &stop);
            }
        });
        Self { path, bytes, cut }
    }
}

/// Starts the threads that pass bytes between the two.
fn pass(
    here: &UnixStream,
    there: &UnixStream,
    harm: Harm,
    counts: &[Arc<AtomicU64>; 2],
    stop: &Arc<AtomicBool>,
) {
    for (way, from, to) in [(Way::Forth, here, there), (Way::Back, there, here)] {
        let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        let count = Arc::clone(&counts[way as usize]);
        let stop = Arc::clone(stop);
        from.set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        thread::spawn(move || one_way(way, from, to, harm, &count, &stop));
    }
}

fn one_way(
    way: Way,
    mut from: UnixStream,
    mut to: UnixStream,
    harm: Harm,
    count: &AtomicU64,
    stop: &AtomicBool,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        if stop.load(Ordering::SeqCst) {
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
        let got = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        };
        let start = count.fetch_add(got as u64, Ordering::SeqCst);
        let inside = |at: u64| (start..start + got as u64).contains(&at);
        let mut bytes = &mut buffer[..got];
        match harm {
            Harm::Flip(on, at, mask) if on == way && inside(at) => {
                bytes[(at - start) as usize] ^= mask;
            }
            Harm::Stall(on, at) if on == way && at < start + got as u64 => {
                bytes = &mut bytes[..at.saturating_sub(start) as usize];
            }
            Harm::Cut(on, at) if on == way && at < start + got as u64 => {
                let _ = to.write_all(&bytes[..at.saturating_sub(start) as usize]);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
            _ => (),
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
