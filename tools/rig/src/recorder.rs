// SPDX-License-Identifier: GPL-2.0

//! What passes between two QEMUs, kept.

use std::fs::File;
use std::io::{
    ErrorKind,
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
    Ordering, //
};
use std::sync::{
    Arc,
    Mutex, //
};
use std::thread::{
    self,
    JoinHandle, //
};
use std::time::{
    Duration,
    Instant, //
};

use crate::error::Error;

/// What passes at once.
const BUFFER: usize = 1 << 18;
/// How often it is looked whether the recorder is to end.
const TURN: Duration = Duration::from_millis(20);
/// How long a destination may take to listen.
const LISTEN: Duration = Duration::from_secs(30);

/// One recorded connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// What the source sent.
    pub stream: PathBuf,
    /// What the destination answered.
    pub answer: PathBuf,
}

/// Listens at a socket, passes each connection on to another one, and keeps what passes. Without a
/// destination it swallows what comes.
pub struct Recorder {
    /// Tells the threads to end.
    stop: Arc<AtomicBool>,
    /// Takes connections.
    accepter: Option<JoinHandle<()>>,
    /// Connections, in the order in which they came.
    shared: Arc<Mutex<Shared>>,
}

/// What the threads share.
#[derive(Default)]
struct Shared {
    /// What was recorded.
    recordings: Vec<Recording>,
    /// The threads of the connections.
    threads: Vec<JoinHandle<()>>,
    /// The first thing that went wrong.
    error: Option<Error>,
}

impl Recorder {
    /// Listens at `at` for connections that go on to `to`, and keeps them in `dir`.
    ///
    /// # Errors
    ///
    /// It cannot listen.
    pub fn start(at: &Path, to: Option<&Path>, dir: &Path) -> Result<Self, Error> {
        let failed = |what: &str| Error::io(format!("Cannot {what} {}", at.display()));
        let listener = UnixListener::bind(at).map_err(failed("listen at"))?;
        listener.set_nonblocking(true).map_err(failed("poll"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Mutex::new(Shared::default()));
        let route = Route {
            to: to.map(Into::into),
            dir: dir.into(),
            stop: Arc::clone(&stop),
            shared: Arc::clone(&shared),
        };
        let accepter = Some(thread::spawn(move || route.accept(&listener)));
        Ok(Self {
            stop,
            accepter,
            shared,
        })
    }

    /// Waits until all connections have ended, and gives what was recorded.
    ///
    /// # Errors
    ///
    /// Something could not be passed on or kept.
    pub fn finish(mut self, limit: Duration) -> Result<Vec<Recording>, Error> {
        let start = Instant::now();
        loop {
            let mut shared = lock(&self.shared);
            if shared.threads.iter().all(JoinHandle::is_finished) {
                break;
            }
            if start.elapsed() > limit {
                return Err(Error::TooLate {
                    what: "The end of the recorded connections".into(),
                    limit,
                    seen: format!("{:?}", shared.error.take()),
                });
            }
            drop(shared);
            thread::sleep(TURN);
        }
        self.end();
        let mut shared = lock(&self.shared);
        match shared.error.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut shared.recordings)),
        }
    }

    /// Ends the threads.
    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(accepter) = self.accepter.take() {
            // A panic there is told by the error that is missing here.
            let _: thread::Result<()> = accepter.join();
        }
        let threads = std::mem::take(&mut lock(&self.shared).threads);
        for thread in threads {
            let _: thread::Result<()> = thread.join();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where connections go.
struct Route {
    /// The destination.
    to: Option<PathBuf>,
    /// Where recordings are kept.
    dir: PathBuf,
    /// Tells the threads to end.
    stop: Arc<AtomicBool>,
    /// What was recorded.
    shared: Arc<Mutex<Shared>>,
}

impl Route {
    /// Takes connections until the recorder ends.
    fn accept(&self, listener: &UnixListener) {
        while !self.stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((source, _)) => {
                    if let Err(error) = self.connect(source) {
                        lock(&self.shared).error.get_or_insert(error);
                    }
                }
                Err(_) => thread::sleep(TURN / 4),
            }
        }
    }

    /// Connects `source` to the destination.
    fn connect(&self, source: UnixStream) -> Result<(), Error> {
        let mut shared = lock(&self.shared);
        let number = shared.recordings.len();
        let recording = Recording {
            stream: self.dir.join(format!("stream.{number}")),
            answer: self.dir.join(format!("answer.{number}")),
        };
        let failed = || Error::io("Cannot record a connection");
        let share = |socket: &UnixStream| {
            socket.set_nonblocking(false)?;
            socket.set_read_timeout(Some(TURN))?;
            socket.try_clone()
        };
        let back = share(&source).map_err(failed())?;
        let stream = File::create(&recording.stream).map_err(failed())?;
        let answer = File::create(&recording.answer).map_err(failed())?;
        let destination = self.to.as_deref().map(connect_late).transpose()?;
        if let Some(destination) = destination {
            let there = share(&destination).map_err(failed())?;
            shared.threads.push(self.pass(source, Some(there), stream));
            shared
                .threads
                .push(self.pass(destination, Some(back), answer));
        } else {
            shared.threads.push(self.pass(source, None, stream));
        }
        shared.recordings.push(recording);
        Ok(())
    }

    /// Passes on what `from` says, until it says no more.
    fn pass(
        &self,
        mut from: UnixStream,
        mut to: Option<UnixStream>,
        mut copy: File,
    ) -> JoinHandle<()> {
        let (stop, shared) = (Arc::clone(&self.stop), Arc::clone(&self.shared));
        thread::spawn(move || {
            let mut buffer = vec![0; BUFFER];
            while !stop.load(Ordering::Relaxed) {
                let read = match from.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => read,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Err(_) => break,
                };
                if let Err(error) = copy.write_all(&buffer[..read]) {
                    let error = Error::io("Cannot write a recording")(error);
                    lock(&shared).error.get_or_insert(error);
                }
                if let Some(to) = &mut to {
                    if to.write_all(&buffer[..read]).is_err() {
                        break;
                    }
                }
            }
            if let Some(to) = to {
                // The other side may have closed it already.
                let _ = to.shutdown(Shutdown::Write);
            }
        })
    }
}

/// Connects to a socket that may not be there yet.
fn connect_late(path: &Path) -> Result<UnixStream, Error> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(socket) => return Ok(socket),
            Err(_) if start.elapsed() < LISTEN => thread::sleep(TURN / 4),
            Err(source) => {
                let what = format!("Cannot connect to {}", path.display());
                return Err(Error::Io { what, source });
            }
        }
    }
}

/// Locks what is shared, also after a panic: it is whole at any time.
fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
