// SPDX-License-Identifier: GPL-2.0

//! What whoever starts a proxy holds of it.

use std::sync::{
    Arc,
    Mutex,
    PoisonError, //
};
use std::thread::JoinHandle;

use crate::proxy::error::Error;
use crate::proxy::progress::{
    Phase,
    Progress,
    Report,
    SourceCount, //
};
use crate::proxy::session::Session;

/// Something to do before a session is over.
type Last = Box<dyn Fn() + Send + Sync>;
/// Tells what the sources of pages did.
type Count = Box<dyn Fn() -> Vec<SourceCount> + Send + Sync>;

/// A proxy at work. Dropping it cancels what it does.
pub struct Handle {
    /// Its session.
    session: Arc<Session>,
    /// Where it listens.
    address: String,
    /// The thread that takes connections.
    listener: Mutex<Option<JoinHandle<()>>>,
    /// Ends that thread.
    wake: Option<Last>,
    /// Counts of the sources.
    sources: Option<Count>,
}

impl Handle {
    /// A handle of `session`, whose connections `listener` takes at `address`.
    pub(crate) fn new(session: Arc<Session>, address: String, listener: JoinHandle<()>) -> Self {
        Self {
            session,
            address,
            listener: Mutex::new(Some(listener)),
            wake: None,
            sources: None,
        }
    }

    /// With `wake` called when no more connections shall be taken.
    pub(crate) fn waking(mut self, wake: impl Fn() + Send + Sync + 'static) -> Self {
        self.wake = Some(Box::new(wake));
        self
    }

    /// With `count` asked for what the sources of pages did.
    pub(crate) fn counting(
        mut self,
        count: impl Fn() -> Vec<SourceCount> + Send + Sync + 'static,
    ) -> Self {
        self.sources = Some(Box::new(count));
        self
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// Its counters, which go on.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.session.progress)
    }

    /// Breaks the connections to QEMU; the guest runs on at the source.
    pub fn cancel(&self) {
        self.session.stop.fail(Error::Cancelled);
    }

    /// As [`Handle::cancel`], unless the destination may have all that it needs to run the guest;
    /// says whether the connections are broken. It does not get what it still needs then.
    pub fn cancel_early(&self) -> bool {
        let early = || !self.handed_over();
        self.session.stop.fail_if(Error::Cancelled, early)
    }

    /// Whether the destination may have all that it needs to run the guest.
    pub fn handed_over(&self) -> bool {
        self.session.handed_over()
    }

    /// Whether [`Handle::wait`] would return at once.
    pub fn finished(&self) -> bool {
        self.session.finished()
    }

    /// Waits for the end.
    ///
    /// # Errors
    ///
    /// Why the migration did not come to its end. [`Error::Unsure`] is the only one after which
    /// the guest may run at the destination.
    pub fn wait(self) -> Result<Report, Error> {
        let (report, verdict) = self.end();
        verdict.map(|()| report)
    }

    /// As [`Handle::wait`], and says what was done even if that was not the end to come to.
    pub fn end(self) -> (Report, Result<(), Error>) {
        self.session.wait();
        self.end_listener();
        self.session.pool.finish();
        let verdict = self.verdict();
        if verdict.is_ok() {
            self.session.progress.enter(Phase::Ended);
        }
        (self.report(verdict.is_ok()), verdict)
    }

    /// Whether the migration, which is over, came to its end.
    fn verdict(&self) -> Result<(), Error> {
        if let Some(error) = self.session.stop.take() {
            return Err(self.judge(error));
        }
        let (destination, _) = self.session.destination();
        if destination != Some(0) {
            let stream_bytes = self.session.progress.snapshot().stream_bytes;
            return Err(self.judge(Error::Incomplete {
                stream_bytes,
                destination,
            }));
        }
        Ok(())
    }

    /// Says what is not certain after `error`.
    fn judge(&self, error: Error) -> Error {
        let (destination, _) = self.session.destination();
        let refused = matches!(destination, Some(status) if status != 0);
        if self.handed_over() && !refused {
            let cause = Box::new(error);
            return Error::Unsure { cause };
        }
        error
    }

    /// What was done.
    fn report(&self, completed: bool) -> Report {
        let session = &self.session;
        Report {
            totals: session.progress.snapshot(),
            completed,
            destination: session.destination().0,
            opaque: session.opaque(),
            sources: self.sources.as_ref().map_or_else(Vec::new, |count| count()),
            threads: session.roster.times(),
            peer: session.peer(),
        }
    }

    /// Ends the thread that takes connections.
    fn end_listener(&self) {
        if let Some(wake) = &self.wake {
            wake();
        }
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = listener.take() {
            // Its panic would have been an error of the session.
            let _ = listener.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.session.finished() {
            self.session.stop.fail(Error::Cancelled);
        }
        self.end_listener();
    }
}
