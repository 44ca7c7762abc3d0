// SPDX-License-Identifier: GPL-2.0

//! What thread, device, sysfs and debugfs have in common.

use super::{
    export::Export,
    state::{
        Departed,
        State,
        SWEEP_COPIES, //
    },
};
use crate::{
    engine::{
        index::{
            Progress,
            UnmergeState,
            Unmerged, //
        },
        unmerge::Patience,
        world::{
            Away,
            GuestId, //
        }, //
    },
    sys::{
        debugfs::Dir,
        ksym::Symbols,
        vm::Vm, //
    },
};
use kernel::{
    alloc::KVec,
    current,
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        CondVar,
        Mutex, //
    },
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// What thread, device, sysfs and debugfs have in common.
///
/// Lock order: `exports`, then `state`; `alarm` alone. Nothing that can sleep on a guest or on
/// userspace is done under `state`, except trylocks of a guest's mmap lock.
#[pin_data]
pub(crate) struct Shared {
    pub(crate) symbols: Symbols,
    #[pin]
    pub(crate) state: Mutex<State>,
    #[pin]
    exports: Mutex<KVec<Export>>,
    debugfs: Arc<Dir>,
    #[pin]
    alarm: Mutex<Alarm>,
    #[pin]
    rung: CondVar,
}

/// Why the scanner should not rest.
#[derive(Default)]
struct Alarm {
    rung: bool,
    stop: bool,
}

/// How long an unmerge waits before it tries again what was busy. A guest that faults in a lot of
/// memory has its mmap lock taken for long.
const BUSY_MS: i64 = 1;

/// How far giving pages back got.
#[derive(Default)]
pub(crate) struct Returned {
    /// Pages that got their own copy.
    pub(crate) unmerged: u64,
    /// Pages that still map a merged one.
    pub(crate) remaining: u64,
}

impl Shared {
    /// Nothing attached, nothing running.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(symbols: Symbols) -> Result<Arc<Self>> {
        let state = State::new()?;
        let debugfs = Arc::new(Dir::new(c"twinpage"), GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                symbols,
                state <- new_mutex!(state, "twinpage_state"),
                debugfs,
                exports <- new_mutex!(KVec::new(), "twinpage_exports"),
                alarm <- new_mutex!(Alarm::default(), "twinpage_alarm"),
                rung <- new_condvar!("twinpage_rung"),
            }),
            GFP_KERNEL,
        )
    }

    /// Rests for up to `ms` milliseconds, or until [`ring`](Self::ring); says if it was rung.
    pub(crate) fn rest(&self, ms: u32) -> bool {
        let mut alarm = self.alarm.lock();
        if !alarm.rung && !alarm.stop {
            // A rest that ends early does no harm, so why it ended does not matter.
            let _ = self
                .rung
                .wait_interruptible_timeout(&mut alarm, msecs_to_jiffies(ms));
        }
        core::mem::take(&mut alarm.rung)
    }

    /// Ends the scanner's rest.
    pub(crate) fn ring(&self) {
        self.alarm.lock().rung = true;
        self.rung.notify_all();
    }

    /// Makes the scanner end.
    pub(crate) fn stop(&self) {
        self.alarm.lock().stop = true;
        self.rung.notify_all();
    }

    /// Shall the scanner end?
    pub(crate) fn is_stopped(&self) -> bool {
        self.alarm.lock().stop
    }

    /// Attaches a VM to the domain of that number and shows it in debugfs.
    ///
    /// # Errors
    ///
    /// `EEXIST`, `ENOMEM`, `ENOSPC`; `EBUSY`, another guest has a part of its memory; what
    /// [`unmerge`](Self::unmerge) fails with, if not all that the VM shares with another domain can
    /// come apart. Then it is not attached.
    pub(crate) fn attach(self: &Arc<Self>, vm: Vm, domain: u64) -> Result<GuestId> {
        let id = self.state.lock().attach(vm, domain)?;
        if let Err(error) = self.arrive(id).and_then(|()| self.export(id)) {
            // It may have ended by itself meanwhile.
            let _ = self.detach(id);
            return Err(error);
        }
        self.state.lock().release(id);
        self.ring();
        Ok(id)
    }

    /// Asks for a guest's memslots and tells its index all of it.
    ///
    /// # Errors
    ///
    /// As [`State::refresh`].
    pub(crate) fn refresh(&self, id: GuestId) -> Result {
        // The guard must not live on in the loop's body.
        while self.state.lock().refresh(id)? == Progress::More {}
        Ok(())
    }

    /// Gives pages of a new guest that map copies of another domain, or of an earlier load, their
    /// own: until then it is held, and afterwards no other domain has a frame of its memory.
    fn arrive(&self, id: GuestId) -> Result {
        match self.refresh(id) {
            // It has ended by itself, and takes its pages along.
            Err(error) if error == ENOENT => return Ok(()),
            listed => listed?,
        };
        self.walk(id, State::give_up_orphans).1
    }

    /// Shows a guest in debugfs.
    fn export(self: &Arc<Self>, id: GuestId) -> Result {
        let export = Export::new(&self.debugfs, self.clone(), id)?;
        let mut exports = self.exports.lock();
        exports.reserve(1, GFP_KERNEL)?;
        // A guest that departed before this was not shown yet, and is not to be; one that departs
        // later waits for `exports` to be taken back.
        if self.state.lock().guest(id).is_some() {
            exports.push(export, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Detaches a guest; its merged pages stay as they are.
    ///
    /// # Errors
    ///
    /// `ENOENT`.
    pub(crate) fn detach(&self, id: GuestId) -> Result {
        self.state.lock().begin_leave(id)?;
        while self.state.lock().guest(id).is_some() {
            self.depart(id);
        }
        Ok(())
    }

    /// One step of detaching.
    pub(crate) fn depart(&self, id: GuestId) {
        let departed = self.state.lock().leave(id);
        if let Some(departed) = departed {
            self.unexport(&departed);
        }
    }

    /// How many pages of a guest are merged.
    ///
    /// # Errors
    ///
    /// `ENOENT`.
    pub(crate) fn merged(&self, id: GuestId) -> Result<Returned> {
        let mut state = self.state.lock();
        state.guest(id).ok_or(ENOENT)?;
        Ok(Returned {
            unmerged: 0,
            remaining: state.merged(id),
        })
    }

    /// Removes a departed guest's files. Waits for those who read them, so under no lock.
    fn unexport(&self, departed: &Departed) {
        let export = {
            let mut exports = self.exports.lock();
            let at = exports
                .iter()
                .position(|export| export.id() == departed.id());
            at.and_then(|at| exports.remove(at).ok())
        };
        drop(export);
    }

    /// Lets go of everything, before the module goes: gives pages their own copies back if that is
    /// asked for, else leaves them merged.
    pub(crate) fn close(&self) {
        if self.state.lock().knobs.unmerge_on_exit {
            if let Err(error) = self.unmerge_all() {
                pr_warn!("Pages stay merged at unload: {error:?}\n");
            }
        }
        // Each holds a reference to `self`.
        let exports = core::mem::take(&mut *self.exports.lock());
        drop(exports);
    }

    /// Gives every merged page of a guest its own copy back.
    ///
    /// # Errors
    ///
    /// With how far it got: `ENOMEM`, free memory would fall under the floor; `EINTR`, a signal;
    /// `EBUSY`, pages stayed busy for too long.
    pub(crate) fn unmerge(&self, id: GuestId) -> (Returned, Result) {
        let (unmerged, result) = self.walk(id, State::unmerge);
        let remaining = self.state.lock().merged(id);
        let returned = Returned {
            unmerged,
            remaining,
        };
        (returned, result)
    }

    /// Takes `step` after step over a guest's blocks, until no page is busy; says how many pages
    /// got their own copy. Errors are those of [`unmerge`](Self::unmerge).
    fn walk(
        &self,
        id: GuestId,
        step: impl Fn(&mut State, GuestId, &mut u64) -> Result<Unmerged, Away>,
    ) -> (u64, Result) {
        let mut pages = 0_u64;
        let mut cursor = 0;
        let mut busy = 0_u64;
        let mut is_short = false;
        let mut patience = Patience::default();
        let mut before = Instant::<Monotonic>::now();
        let result = loop {
            if current!().signal_pending() {
                break Err(EINTR);
            }
            let done = step(&mut self.state.lock(), id, &mut cursor);
            let now = Instant::now();
            let goes_on = patience.spend(&done, (now - before).as_nanos().unsigned_abs());
            before = now;
            match done {
                Ok(done) => {
                    pages += u64::from(done.unmerged);
                    busy += u64::from(done.busy);
                    is_short &= done.unmerged == 0;
                    match done.state {
                        UnmergeState::More if goes_on => continue,
                        // Once after each page that was given back: what others free meanwhile
                        // may be of no use to this guest.
                        UnmergeState::NoMemory if goes_on && !is_short => {
                            is_short = true;
                            self.sweep();
                            continue;
                        }
                        UnmergeState::NoMemory => break Err(ENOMEM),
                        UnmergeState::Done if busy == 0 => break Ok(()),
                        UnmergeState::Done => {
                            (cursor, busy) = (0, 0);
                            patience.begin_again();
                        }
                        UnmergeState::More => {}
                    }
                }
                Err(Away::Busy) => {}
                Err(Away::Gone) => break Ok(()),
            }
            if !goes_on {
                break Err(EBUSY);
            }
            fsleep(Delta::from_millis(BUSY_MS));
        };
        if pages > 0 {
            self.state.lock().sweep_soon(id);
        }
        (pages, result)
    }

    /// Frees copies that nobody maps any more.
    fn sweep(&self) {
        self.state.lock().sweep_anew();
        while !self.state.lock().sweep(SWEEP_COPIES).done {}
    }

    /// As [`unmerge`](Self::unmerge), and keeps the guest from merging again if that succeeds, as
    /// it is to be detached next.
    ///
    /// # Errors
    ///
    /// `ENOENT`. With how far it got: those of [`unmerge`](Self::unmerge); `EBUSY`, somebody else
    /// attaches or detaches it.
    pub(crate) fn unmerge_to_leave(&self, id: GuestId) -> Result<(Returned, Result)> {
        let held = self.state.lock().hold(id);
        if held.is_err() {
            return Ok((self.merged(id)?, held));
        }
        let (returned, result) = self.unmerge(id);
        if result.is_err() {
            self.state.lock().release(id);
        }
        Ok((returned, result))
    }

    /// Gives every merged page of every guest its own copy back.
    ///
    /// # Errors
    ///
    /// As [`unmerge`](Self::unmerge), for the first guest of which some stay merged. The others'
    /// are given back all the same, unless there was a signal.
    pub(crate) fn unmerge_all(&self) -> Result {
        let mut id = GuestId(0);
        let mut result = Ok(());
        loop {
            // The guard must not live on in the loop's body.
            let next = self.state.lock().guest_after(id);
            let Some(next) = next else {
                return result;
            };
            id = next;
            let unmerged = self.unmerge(id).1;
            if unmerged == Err(EINTR) {
                return unmerged;
            }
            result = result.and(unmerged);
        }
    }
}
