// SPDX-License-Identifier: GPL-2.0

//! The two directions of a connection to QEMU.
//!
//! A unix socket as a rule. With `exec:` QEMU writes into the standard input of the helper and
//! reads the return path from its standard output; those may be pipes, which cannot be shut down
//! from another thread: there a failed session ends by the end of the process.

use std::fs::File;
use std::io::{
    self,
    IoSlice,
    Read,
    Write, //
};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{
    Arc,
    Mutex,
    MutexGuard,
    PoisonError, //
};
use std::time::{
    Duration,
    Instant, //
};

use rustix::event::{
    poll,
    PollFd,
    PollFlags,
    Timespec, //
};

use crate::net::socket::connect_unix;

/// Between two tries to connect.
const RETRY: Duration = Duration::from_millis(20);

/// Where the stream comes from, or the return path.
pub enum QemuReader {
    /// One half of a socket.
    Socket(UnixStream),
    /// A pipe.
    Pipe(File),
}

/// Where the return path goes, or the stream.
pub enum QemuWriter {
    /// One half of a socket.
    Socket(UnixStream),
    /// A pipe, until it was closed.
    Pipe(Option<File>),
}

/// What QEMU says, counted.
pub struct Counted {
    reader: QemuReader,
    inflow: Arc<Inflow>,
}

/// How much QEMU has said, as others than the reader may ask.
pub struct Inflow {
    /// What was read.
    read: Mutex<u64>,
    /// Where the rest waits; a pipe is not looked into.
    socket: Option<Arc<UnixStream>>,
}

/// Breaks the connection, from any thread; clones share it.
#[derive(Clone)]
pub struct QemuCloser(Option<Arc<UnixStream>>);

/// A connection in its parts.
pub struct Qemu {
    /// What QEMU says.
    pub reader: QemuReader,
    /// What QEMU hears.
    pub writer: QemuWriter,
    /// Breaks it.
    pub closer: QemuCloser,
}

impl Qemu {
    /// The parts of a socket.
    ///
    /// # Errors
    ///
    /// There are no more file descriptors.
    pub fn socket(socket: UnixStream) -> io::Result<Self> {
        Ok(Self {
            reader: QemuReader::Socket(socket.try_clone()?),
            closer: QemuCloser(Some(Arc::new(socket.try_clone()?))),
            writer: QemuWriter::Socket(socket),
        })
    }

    /// The parts of a pair of pipes.
    pub fn pipes(input: OwnedFd, output: OwnedFd) -> Self {
        Self {
            reader: QemuReader::Pipe(input.into()),
            writer: QemuWriter::Pipe(Some(output.into())),
            closer: QemuCloser(None),
        }
    }

    /// Connects to the socket of a QEMU that may not listen yet, trying for `wait`.
    ///
    /// # Errors
    ///
    /// The last try's, or `stopped` said so.
    pub fn connect(path: &Path, wait: Duration, stopped: impl Fn() -> bool) -> io::Result<Self> {
        let end = Instant::now() + wait;
        loop {
            match connect_unix(path) {
                Ok(socket) => return Self::socket(socket),
                Err(error) if Instant::now() >= end || stopped() => return Err(error),
                Err(error) => match error.kind() {
                    io::ErrorKind::NotFound
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::WouldBlock => std::thread::sleep(RETRY),
                    _ => return Err(error),
                },
            }
        }
    }
}

impl Counted {
    /// Counts what `reader` reads of the connection that `closer` breaks.
    pub fn new(reader: QemuReader, closer: &QemuCloser) -> Self {
        let inflow = Inflow {
            read: Mutex::default(),
            socket: closer.0.clone(),
        };
        Self {
            reader,
            inflow: Arc::new(inflow),
        }
    }

    /// Its count.
    pub fn inflow(&self) -> Arc<Inflow> {
        Arc::clone(&self.inflow)
    }
}

impl Inflow {
    /// Bytes that QEMU has written, read or not.
    pub fn written(&self) -> u64 {
        let read = self.lock();
        let waiting = self.socket.as_ref().map(rustix::io::ioctl_fionread);
        *read + waiting.and_then(Result::ok).unwrap_or(0)
    }

    /// The count, also after a panic elsewhere: it is a number.
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QemuCloser {
    /// Breaks both directions. Bytes on their way may be lost, which is the point.
    pub fn close(&self) {
        if let Some(socket) = &self.0 {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Whether QEMU has closed both directions, even if its last bytes were not read yet.
    pub fn hung_up(&self) -> bool {
        let Some(socket) = &self.0 else {
            return false;
        };
        let mut state = [PollFd::new(&**socket, PollFlags::empty())];
        let polled = poll(&mut state, Some(&Timespec::default()));
        polled.is_ok()
            && state[0]
                .revents()
                .intersects(PollFlags::HUP | PollFlags::ERR)
    }
}

impl QemuWriter {
    /// Tells QEMU that nothing more comes; the other direction stays.
    pub fn finish(&mut self) {
        match self {
            Self::Socket(socket) => {
                // QEMU may have closed it first.
                let _ = socket.shutdown(Shutdown::Write);
            }
            Self::Pipe(pipe) => *pipe = None,
        }
    }
}

impl Read for QemuReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let result = match self {
                Self::Socket(socket) => socket.read(into),
                Self::Pipe(pipe) => pipe.read(into),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                result => return result,
            }
        }
    }
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // Whoever asks for the count does not wait for QEMU: there is something to read, or its end.
        if let Some(socket) = &self.inflow.socket {
            let mut state = [PollFd::new(&**socket, PollFlags::IN)];
            rustix::io::retry_on_intr(|| poll(&mut state, None))?;
        }
        let mut read = self.inflow.lock();
        let got = self.reader.read(into)?;
        *read += got as u64;
        Ok(got)
    }
}

impl Write for QemuWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.write(bytes),
            Self::Pipe(Some(pipe)) => pipe.write(bytes),
            Self::Pipe(None) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.write_vectored(parts),
            Self::Pipe(Some(pipe)) => pipe.write_vectored(parts),
            Self::Pipe(None) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn closing_wakes_a_reader_and_breaks_the_peer() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let Qemu {
            mut reader,
            mut writer,
            closer,
        } = Qemu::socket(ours).unwrap();
        let waiter = thread::spawn(move || reader.read(&mut [0; 8]).unwrap());
        thread::sleep(Duration::from_millis(20));
        closer.close();
        assert_eq!(waiter.join().unwrap(), 0);
        assert!(writer.write(b"x").is_err());
        assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn a_qemu_that_accepts_nobody_is_given_up_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let full = std::os::unix::net::UnixListener::bind(&path).unwrap();
        rustix::net::listen(&full, 0).unwrap();
        let _waits = UnixStream::connect(&path).unwrap();
        let start = Instant::now();
        let limit = Duration::from_millis(100);
        assert!(Qemu::connect(&path, limit, || false).is_err());
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_full_close_is_seen_behind_unread_bytes() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let qemu = Qemu::socket(ours).unwrap();
        theirs.write_all(b"abc").unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        assert!(!qemu.closer.hung_up());
        drop(theirs);
        assert!(qemu.closer.hung_up());
    }

    #[test]
    fn what_waits_in_a_socket_was_written_too() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let qemu = Qemu::socket(ours).unwrap();
        let mut counted = Counted::new(qemu.reader, &qemu.closer);
        let inflow = counted.inflow();
        let reader = thread::spawn(move || {
            counted.read_exact(&mut [0; 3]).unwrap();
            counted
        });
        // Nobody who asks waits for what does not come.
        assert_eq!(inflow.written(), 0);
        theirs.write_all(b"abcdefgh").unwrap();
        let _counted = reader.join().unwrap();
        assert_eq!(inflow.written(), 8);
    }

    #[test]
    fn finishing_leaves_the_other_direction_open() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut qemu = Qemu::socket(ours).unwrap();
        qemu.writer.finish();
        assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0);
        theirs.write_all(b"abc").unwrap();
        let mut got = [0; 3];
        qemu.reader.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"abc");
    }

    #[test]
    fn connecting_waits_for_a_late_listener() {
        let path = std::env::temp_dir().join(format!("tw-qemu-{}", std::process::id()));
        let there = path.clone();
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            std::os::unix::net::UnixListener::bind(there).unwrap()
        });
        assert!(Qemu::connect(&path, Duration::from_secs(5), || false).is_ok());
        drop(late.join().unwrap());
        std::fs::remove_file(&path).unwrap();
        assert!(Qemu::connect(&path, Duration::from_millis(50), || false).is_err());
        assert!(Qemu::connect(&path, Duration::from_secs(5), || true).is_err());
    }
}
