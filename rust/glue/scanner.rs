// SPDX-License-Identifier: GPL-2.0

//! The thread that does the work.
//!
//! It takes the mutex for one block of pages at a time, and rests as
//! [`policy`](crate::engine::policy) says.

use super::{
    shared::Shared,
    state::SWEEP_COPIES, //
};
use crate::{
    engine::{
        knobs::Run,
        policy::{
            Batch,
            Effort,
            Pace,
            Pacer, //
        }, //
    },
    sys::thread, //
};

/// The longest rest at once, milliseconds: how soon a VM that ends is let go of. With nothing to do
/// that is all of the rest.
const NOTICE_MS: u64 = 1000;

const NS_PER_MS: u64 = 1_000_000;

/// How much CPU time a scanner that is stopped takes between two rests to look for copies that
/// nobody maps any more: with [`NOTICE_MS`] at most 1 % of one processor.
const IDLE_NS: u64 = 10 * NS_PER_MS;

impl thread::Run for Shared {
    fn run(&self) {
        let mut clock = Clock::start();
        let mut pacer = Pacer::new();
        let mut full_scans = None;
        let mut rest_ms = 0;
        while !self.is_stopped() {
            thread::freeze_point();
            self.let_go();
            while self.state.lock().sweep_due() && !self.is_stopped() {
                thread::yield_now();
            }
            if rest_ms > 0 {
                let part = rest_ms.min(NOTICE_MS);
                // Whoever rings has new work, or other settings.
                let rung = self.rest(part as u32);
                rest_ms = if rung {
                    0
                } else {
                    rest_ms.saturating_sub(part)
                };
                continue;
            }
            rest_ms = match self.batch(&mut clock) {
                Some(done) => {
                    let knobs = self.state.lock().knobs;
                    let rest_ns = pacer.rest_ns(&knobs, done.pace, &done.batch);
                    rest_ns.div_ceil(NS_PER_MS).max(done.least_ms)
                }
                None => NOTICE_MS,
            };
            // Fresh pages sit in per-CPU batches that hold references, so each round starts by
            // draining them; not more often, as it bothers every CPU.
            let now = self.state.lock().full_scans();
            if full_scans.replace(now) != Some(now) {
                self.symbols.lru_drain();
            }
        }
    }

    fn stop(&self) {
        Shared::stop(self);
    }
}

/// What a batch has done.
struct Done {
    /// How urgent it was.
    pace: Pace,
    /// What was done.
    batch: Batch,
    /// The shortest rest after it, milliseconds.
    least_ms: u64,
}

impl Shared {
    /// Scans up to `pages_to_scan` pages, or until a guest is busy; `None` if there is nothing to
    /// scan.
    fn batch(&self, clock: &mut Clock) -> Option<Done> {
        // What guests that ended took since the last batch is nobody's, and has no rest.
        clock.lap();
        let began = clock.now;
        let knobs = self.state.lock().knobs;
        if knobs.run != Run::Merge {
            // Whoever starts it again wants to see it work.
            self.state.lock().effort = Effort::new();
            while !self.state.lock().sweep(SWEEP_COPIES).done && !self.is_stopped() {
                thread::yield_now();
                clock.lap();
                if clock.now.saturating_sub(began) >= IDLE_NS {
                    break;
                }
            }
            return None;
        }
        let mut batch = Batch::new(&knobs);
        let mut last = None;
        while !self.is_stopped() {
            let mut state = self.state.lock();
            // A writer to `run` waits for the mutex, and nothing may merge behind its back.
            if state.knobs.run != Run::Merge {
                break;
            }
            let worked = state.scan()?;
            state.charge(worked.guest, clock.lap());
            drop(state);
            thread::yield_now();
            let busy_ns = clock.now.saturating_sub(began);
            let is_over = batch.step(worked.present, busy_ns) || worked.busy;
            last = Some(worked);
            if is_over {
                break;
            }
        }
        last.map(|worked| Done {
            pace: worked.pace,
            batch,
            // Whoever holds its locks needs time to let go of them.
            least_ms: u64::from(worked.busy),
        })
    }

    /// Detaches guests whose VM has ended.
    fn let_go(&self) {
        loop {
            let ended = {
                let mut state = self.state.lock();
                state.notice_closed();
                state.ended()
            };
            match ended {
                Some(id) => self.depart(id),
                None => return,
            }
        }
    }
}

/// CPU time of the thread, as far as it was read.
struct Clock {
    now: u64,
}

impl Clock {
    fn start() -> Self {
        Self {
            now: thread::cpu_ns(),
        }
    }

    /// CPU time since the last call.
    fn lap(&mut self) -> u64 {
        let before = self.now;
        self.now = thread::cpu_ns();
        self.now.saturating_sub(before)
    }
}
