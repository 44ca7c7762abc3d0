// SPDX-License-Identifier: GPL-2.0

//! A migration in a thread of its own, with the proxy that it needs.

use std::fs::{
    self,
    DirBuilder, //
};
use std::os::unix::fs::{
    chown,
    DirBuilderExt,
    PermissionsExt, //
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
    Mutex,
    MutexGuard,
    PoisonError, //
};
use std::thread::{
    self,
    JoinHandle, //
};
use std::time::Duration;

use ring::rand::{
    SecureRandom,
    SystemRandom, //
};
use serde::Serialize;

use crate::net::{
    listen_unix,
    Address, //
};
use crate::proxy::{
    self,
    send, //
};
use crate::qmp::Client;

use super::{
    drive,
    Error,
    Migration,
    Monitors,
    Outcome,
    Pace,
    Plan,
    Proxy,
    Resume,
    Watcher, //
};

/// What [`start`] needs to know.
pub struct Options {
    /// The source's monitor.
    pub from: Address,
    /// The destination's monitor, if it can be reached from here.
    pub to: Option<Address>,
    /// Where a destination that was started with `-incoming defer` should listen: what
    /// `migrate-incoming` takes, such as `unix:/run/vm/incoming.sock`.
    pub incoming: Option<String>,
    /// How the proxy sends what comes by the given input.
    pub send: Box<dyn FnOnce(send::Input) -> send::Options + Send>,
    /// For how long the guest may stand still.
    pub downtime: Duration,
    /// Bytes per second of the network between the proxies, if known.
    pub link_rate: Option<u64>,
    /// Whether the guest is started at the destination.
    pub resume: Resume,
    /// After how long the migration is cancelled.
    pub timeout: Option<Duration>,
}

/// A migration that goes on. Dropping it cancels it and waits for its end.
pub struct Handle {
    shared: Arc<Shared>,
    progress: Arc<proxy::Progress>,
    thread: Option<JoinHandle<Result<Report, Error>>>,
}

/// What the thread and the handle share.
#[derive(Default)]
struct Shared {
    cancelled: AtomicBool,
    forced: AtomicBool,
    refused: AtomicBool,
    migration: Mutex<Migration>,
}

/// A migration at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// What the proxy has done.
    pub proxy: proxy::Snapshot,
    /// What the source says.
    pub migration: Migration,
}

/// A migration that is over.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What came of it.
    pub outcome: Outcome,
    /// What the proxy did.
    pub proxy: proxy::Report,
    /// Why it did not come to its end.
    pub proxy_error: Option<String>,
}

/// Begins a migration.
///
/// # Errors
///
/// [`Error::Qmp`]: a monitor does not answer; [`Error::Net`], [`Error::Call`]: the socket for the
/// source cannot be made; [`Error::Proxy`]: the proxy does not start.
pub fn start(options: Options) -> Result<Handle, Error> {
    let mut monitors = Monitors {
        source: Client::connect(&options.from)?,
        destination: options.to.as_ref().map(Client::connect).transpose()?,
    };
    let place = Meeting::new(monitors.source.user())?;
    let listener = listen_unix(&place.socket)?;
    place.admit(monitors.source.user())?;
    let plan = Plan {
        uri: format!("unix:{}", place.socket.display()),
        incoming: options.incoming,
        downtime: options.downtime,
        link_rate: options.link_rate,
        resume: options.resume,
        timeout: options.timeout,
        pace: Pace::default(),
    };
    let input = send::Input::Listener(listener, place.socket.clone());
    let mut sending = (options.send)(input);
    // It is switched on before QEMU hears of the proxy.
    sending.return_path_is_on = true;
    let proxy = send::start(sending).map_err(Error::Proxy)?;
    let progress = proxy.progress();
    let shared = Arc::new(Shared::default());
    let watcher = shared.clone();
    let work = move || {
        let result = drive(&mut monitors, &plan, &proxy, &*watcher);
        drop(place);
        finish(result, proxy)
    };
    let thread = thread::Builder::new()
        .name("migrate".to_owned())
        .spawn(work);
    let thread = thread.map_err(|source| Error::call("start a thread", source))?;
    Ok(Handle {
        shared,
        progress,
        thread: Some(thread),
    })
}

/// Waits for the proxy, and puts everything together.
fn finish(result: Result<Outcome, Error>, proxy: proxy::Handle) -> Result<Report, Error> {
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(error) => {
            proxy.cancel();
            // It was never used, so there is nothing to tell about it.
            let _cancelled = proxy.wait();
            return Err(error);
        }
    };
    let (report, verdict) = proxy.end();
    Ok(Report {
        outcome,
        proxy: report,
        proxy_error: verdict.err().map(|error| chain(&error)),
    })
}

/// An error with all its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

impl Handle {
    /// How far it is.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            proxy: self.progress.snapshot(),
            migration: self.shared.migration().clone(),
        }
    }

    /// Cancels it, unless the guest is being handed over already. [`Handle::wait`] says which.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it should be cancelled, and cannot be now: the guest is being handed over.
    pub fn refused(&self) -> bool {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Cancels it even then. Which side has the guest is not certain afterwards.
    pub fn force(&self) {
        self.shared.forced.store(true, Ordering::Relaxed);
        self.cancel();
    }

    /// Whether [`Handle::wait`] would return at once.
    pub fn finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the end.
    ///
    /// # Errors
    ///
    /// Why it did not begin: the guest is where it was.
    ///
    /// # Panics
    ///
    /// If the thread panicked.
    pub fn wait(mut self) -> Result<Report, Error> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            // PANIC: only this function and `drop` take the thread, and both own the handle.
            None => unreachable!("a handle is waited for once"),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.cancel();
            // Its panic was printed, and there is nobody to tell its result to.
            let _result = thread.join();
        }
    }
}

impl Shared {
    /// The last that the source said.
    fn migration(&self) -> MutexGuard<'_, Migration> {
        self.migration
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher for Shared {
    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn forced(&self) -> bool {
        self.forced.load(Ordering::Relaxed)
    }

    fn cannot_cancel(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    fn update(&self, migration: &Migration) {
        *self.migration() = migration.clone();
    }
}

impl Proxy for proxy::Handle {
    fn finished(&self) -> bool {
        proxy::Handle::finished(self)
    }

    fn handed_over(&self) -> bool {
        proxy::Handle::handed_over(self)
    }

    fn cancel(&self) {
        proxy::Handle::cancel(self);
    }

    fn cancel_early(&self) -> bool {
        proxy::Handle::cancel_early(self)
    }

    fn set_round(&self, round: u64) {
        self.progress().set_round(round);
    }
}

/// A directory with the socket at which the source finds the proxy; removed in the end.
struct Meeting {
    dir: PathBuf,
    socket: PathBuf,
}

impl Meeting {
    /// Makes the directory. If the source runs as somebody else (`user`), that one may pass
    /// through it, but not look into it.
    fn new(user: Option<u32>) -> Result<Self, Error> {
        let mut random = [0; 8];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| Error::call("get random numbers", std::io::ErrorKind::Other.into()))?;
        let name = format!("twinpage-{:016x}", u64::from_ne_bytes(random));
        let dir = base().join(name);
        let action = || format!("make the directory {}", dir.display());
        let mode = if foreign(user).is_some() {
            0o711
        } else {
            0o700
        };
        DirBuilder::new()
            .mode(mode)
            .create(&dir)
            .and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(mode)))
            .map_err(|source| Error::call(action(), source))?;
        let socket = dir.join("source.sock");
        Ok(Self { dir, socket })
    }

    /// Lets the source connect to the socket.
    fn admit(&self, user: Option<u32>) -> Result<(), Error> {
        let Some(user) = foreign(user) else {
            return Ok(());
        };
        chown(&self.socket, Some(user), None)
            .map_err(|source| Error::call(format!("give the socket to user {user}"), source))
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        // The proxy may have removed the socket; a directory left over harms nobody.
        let _gone = fs::remove_file(&self.socket);
        let _left = fs::remove_dir(&self.dir);
    }
}

/// Where directories for sockets go.
fn base() -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let run = Path::new("/run");
    match own {
        _ if is_root() && run.is_dir() => run.to_owned(),
        Some(dir) if dir.is_dir() => dir,
        _ => std::env::temp_dir(),
    }
}

/// The user of the source's QEMU, if it is another one and this one can give files away.
fn foreign(user: Option<u32>) -> Option<u32> {
    user.filter(|user| *user != 0 && is_root())
}

/// Whether this process may give files away.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
