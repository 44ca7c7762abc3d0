// SPDX-License-Identifier: GPL-2.0

//! The course of a migration.

use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use serde_json::{
    json,
    Value, //
};

use crate::qmp;

use super::checks::{
    check,
    Fit, //
};
use super::guest::Side;
use super::settings::{
    self,
    Settings, //
};
use super::status::{
    Migration,
    Status, //
};
use super::{
    Ending,
    Error,
    Guest,
    Monitors,
    Outcome,
    Place,
    Plan,
    Proxy,
    Resume,
    Watcher, //
};

/// Migrates the guest of the source through `proxy`, and says what came of it.
///
/// # Errors
///
/// Why the migration did not begin; both sides are as they were, but for a destination that may
/// listen now, and may wait to be told to start the guest.
pub fn drive(
    monitors: &mut Monitors,
    plan: &Plan,
    proxy: &dyn Proxy,
    watcher: &dyn Watcher,
) -> Result<Outcome, Error> {
    let mut fit = check(monitors, plan)?;
    if watcher.cancelled() {
        return Err(Error::Cancelled);
    }
    prepare_destination(monitors, plan, &mut fit)?;
    let settings = Settings::apply(&mut monitors.source, plan, &fit.source)?;
    let held = hold(monitors, fit.source.running, &mut fit.notes);
    let begun = monitors.source.execute("migrate", json!({"uri": plan.uri}));
    // Any other error leaves open whether the migration began: the source will tell.
    if let Err(error @ qmp::Error::Refused { .. }) = begun {
        settings.restore(&mut monitors.source);
        return Err(error.into());
    }
    let mut course = Course {
        plan,
        proxy,
        watcher,
        begun: Instant::now(),
        cancelled: None,
        orphaned: None,
        held,
        late: false,
        dead: false,
        still: false,
        resumed: false,
        started: false,
        ran: fit.source.running,
        last: Migration::default(),
        notes: Vec::new(),
        stopped: None,
        start_ms: None,
    };
    let ending = course.watch(monitors);
    let guest = course.settle(monitors, &ending);
    fit.notes.append(&mut course.notes);
    fit.notes.extend(settings.restore(&mut monitors.source));
    Ok(Outcome {
        ending,
        guest,
        migration: course.last,
        notes: fit.notes,
        stopped: course.stopped,
        start_ms: course.start_ms,
    })
}

/// Tells the destination not to start the guest by itself; whether it will not. Notes why it may, if
/// the guest is `running`.
fn hold(monitors: &mut Monitors, running: bool, notes: &mut Vec<String>) -> bool {
    let Some(client) = &mut monitors.destination else {
        if running {
            let note = "no monitor of the destination was given: it starts the guest by itself, \
                        unless it was started with -S";
            notes.push(note.to_owned());
        }
        return false;
    };
    // QEMU: while it waits for a guest, this is what it will do with it.
    let held = client.execute("stop", Value::Null);
    if let Err(error) = &held {
        notes.push(format!(
            "the destination will start the guest by itself: {error}"
        ));
    }
    held.is_ok()
}

/// Makes the destination listen, if it waits for that.
fn prepare_destination(monitors: &mut Monitors, plan: &Plan, fit: &mut Fit) -> Result<(), Error> {
    let (Some(client), Some(found)) = (&mut monitors.destination, &fit.destination) else {
        return Ok(());
    };
    let notes = settings::destination(client, found, fit.source.running);
    fit.notes.extend(notes);
    let (Some(uri), false) = (&plan.incoming, found.listens) else {
        return Ok(());
    };
    match client.execute("migrate-incoming", json!({"uri": uri})) {
        Ok(_) => Ok(()),
        // A QEMU that does not tell that it listens.
        Err(qmp::Error::Refused { desc, .. }) if desc.contains("already been started") => {
            fit.notes
                .push(format!("the destination listens already: {desc}"));
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// A migration that goes on.
struct Course<'a> {
    plan: &'a Plan,
    proxy: &'a dyn Proxy,
    watcher: &'a dyn Watcher,
    begun: Instant,
    /// Since when it is being cancelled, and why.
    cancelled: Option<(Instant, Why)>,
    /// Since when the proxy's work is over and the source has not ended.
    orphaned: Option<Instant>,
    /// Whether the destination starts the guest only when it is told to.
    held: bool,
    /// Whether the guest may have been handed over.
    late: bool,
    /// Whether the source's process has ended without running the guest again.
    dead: bool,
    /// Whether the source has stopped the guest, and not started it again.
    still: bool,
    /// Whether it has started it again, and not stopped it since.
    resumed: bool,
    /// Whether the guest ran at the source, but for what the migration did to it.
    ran: bool,
    /// Whether it was started at the destination before the end.
    started: bool,
    /// The last that the source said.
    last: Migration,
    /// What the user should know.
    notes: Vec<String>,
    /// Why the guest does not run at the destination although it should.
    stopped: Option<String>,
    /// How long it took to start it there.
    start_ms: Option<u64>,
}

/// Why a migration is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// The user wants it.
    Asked,
    /// It took too long.
    Timeout,
    /// The proxy's work is over.
    Orphaned,
}

impl Course<'_> {
    /// Watches the source to the end.
    fn watch(&mut self, monitors: &mut Monitors) -> Ending {
        loop {
            match Migration::query(&mut monitors.source) {
                Ok(migration) => self.last = migration,
                // A QEMU that is busy may be late with an answer. What state it is in then nobody
                // knows: a command would be done when all is written, and both sides would run.
                Err(qmp::Error::Slow { .. }) if !self.overdue() => {
                    self.cancel_if_wanted(None);
                    continue;
                }
                Err(error) => {
                    self.dead = error.is_gone() && self.has_died(&mut monitors.source);
                    self.break_off();
                    let reason = error.to_string();
                    return Ending::Failed { reason };
                }
            }
            self.late |= self.last.status.is_late() || self.proxy.handed_over();
            self.proxy.set_round(self.last.rounds);
            self.watcher.update(&self.last);
            if let Some(ending) = self.ending() {
                return ending;
            }
            if self.last.status == Status::PreSwitchover {
                // The capability pause-before-switchover waits for somebody to say this.
                let state = json!({"state": "pre-switchover"});
                // If it is refused, the status has changed, and the next look shows to what.
                let _refused = monitors.source.execute("migrate-continue", state);
            }
            if self.last.status.has_left()
                && !self.started
                && self.may_start(&Side::ask_there(monitors))
            {
                self.start_early(monitors);
            }
            self.cancel_if_wanted(Some(&mut monitors.source));
            if self.overdue() {
                self.break_off();
                let reason = format!(
                    "the source does not end its migration ({})",
                    self.last.status.name()
                );
                return Ending::Failed { reason };
            }
            self.rest(&mut monitors.source);
        }
    }

    /// Whether the source, whose monitor is closed, has ended for sure, and has not run the guest again
    /// before: what the destination has would be too old then.
    fn has_died(&mut self, source: &mut qmp::Client) -> bool {
        let end = Instant::now() + self.plan.pace.notice;
        // The monitor is closed before the process has ended.
        while source.has_ended() == Some(false) && Instant::now() < end {
            thread::sleep(self.plan.pace.handover);
        }
        if source.has_ended() != Some(true) {
            return false;
        }
        while let Ok(Some(event)) = source.next_event(self.plan.pace.handover) {
            self.hear(&event.name);
        }
        !self.resumed
    }

    /// Starts a guest that has come to the destination in postcopy: the rest of its memory only comes
    /// as it runs.
    fn start_early(&mut self, monitors: &mut Monitors) {
        // The source says so before it has sent it, and runs it again if it cannot. What is there,
        // it has sent.
        let again = Migration::query(&mut monitors.source);
        if again.is_ok_and(|now| now.status.has_left()) {
            // If it is refused, the next look tries again.
            self.started = start(monitors).is_ok();
        }
    }

    /// Waits until it is time to ask the source again, which is soon once it has stopped the guest.
    fn rest(&mut self, source: &mut qmp::Client) {
        let stood = self.still;
        let mut limit = self.plan.pace.poll;
        if stood && !self.started {
            thread::sleep(self.plan.pace.handover);
            limit = Duration::ZERO;
        }
        loop {
            match source.next_event(limit) {
                Ok(Some(event)) => self.hear(&event.name),
                Ok(None) => break,
                // The next question shows what is wrong.
                Err(_) => {
                    thread::sleep(limit);
                    break;
                }
            }
            limit = Duration::ZERO;
        }
        if self.still && !stood {
            // It stands still as "finish-migrate" if the migration stopped it, and not somebody.
            self.ran &=
                !matches!(Side::ask(Some(source)), Side::Stands(state) if state == "paused");
        }
    }

    /// Takes note of an event of the source.
    fn hear(&mut self, event: &str) {
        match event {
            "STOP" => (self.still, self.resumed) = (true, false),
            "RESUME" => (self.still, self.resumed, self.ran) = (false, true, true),
            _ => {}
        }
    }

    /// How the migration ended, if the source says that it did.
    fn ending(&self) -> Option<Ending> {
        let reason = || match self.cancelled {
            Some((_, Why::Timeout)) => Some("it took longer than allowed".to_owned()),
            Some((_, Why::Orphaned)) => Some("the proxies lost each other".to_owned()),
            _ => None,
        };
        match &self.last.status {
            Status::Completed => Some(Ending::Completed),
            Status::Cancelled => Some(match reason() {
                Some(reason) => Ending::Failed { reason },
                None => Ending::Cancelled,
            }),
            // QEMU 10.0 says "failed" of some that were cancelled.
            Status::Failed if matches!(self.cancelled, Some((_, Why::Asked))) => {
                Some(Ending::Cancelled)
            }
            Status::Failed => {
                let said = self.last.error.clone();
                let reason = reason()
                    .or(said)
                    .unwrap_or("QEMU does not say why".to_owned());
                Some(Ending::Failed { reason })
            }
            _ => None,
        }
    }

    /// Cancels what shall not go on, as long as that is safe: breaks the proxy, and tells `source`
    /// if it answers.
    fn cancel_if_wanted(&mut self, source: Option<&mut qmp::Client>) {
        if self.proxy.finished() && self.orphaned.is_none() {
            self.orphaned = Some(Instant::now());
        }
        if self.cancelled.is_some() {
            return;
        }
        let lost = self
            .orphaned
            .is_some_and(|since| since.elapsed() >= self.plan.pace.notice);
        let timeout = self
            .plan
            .timeout
            .is_some_and(|limit| self.begun.elapsed() >= limit);
        let why = match (lost, timeout) {
            _ if self.watcher.cancelled() => Why::Asked,
            (true, _) => Why::Orphaned,
            (_, true) => Why::Timeout,
            _ => return,
        };
        // While the guest is handed over, a cancelled source starts its guest again although the
        // destination may have started it too. The end is near then, one way or the other. The
        // source may go on to that moment before it hears the command, so the proxy comes first:
        // it knows what has left for the destination, which may be much less than the source has
        // written. But in postcopy the source cannot start its guest again.
        if self.watcher.forced() {
            self.proxy.cancel();
            self.cancelled = Some((Instant::now(), why));
            return;
        }
        if self.last.status.is_postcopy() || !self.proxy.cancel_early() {
            self.watcher.cannot_cancel();
            return;
        }
        self.cancelled = Some((Instant::now(), why));
        if let Some(source) = source {
            // If it is refused, the migration has just ended, and the next look shows how.
            let _refused = source.execute("migrate_cancel", Value::Null);
        }
    }

    /// Breaks the proxy, but for one whose destination may have everything: that gets time to hear
    /// its answer, without which both sides could run.
    fn break_off(&mut self) {
        if self.proxy.cancel_early() || self.proxy.finished() {
            return;
        }
        let patience = self.plan.pace.end;
        let end = Instant::now() + patience;
        while !self.proxy.finished() && !self.watcher.forced() && Instant::now() < end {
            thread::sleep(self.plan.pace.poll);
        }
        let answer = match self.proxy.finished() {
            true => "the end of the connection was waited for",
            false => "no end of the connection came in time, and it was broken",
        };
        self.notes.push(format!(
            "the destination may have everything that it needs to run the guest: {answer}"
        ));
        self.proxy.cancel();
    }

    /// Whether the source had long enough to end.
    fn overdue(&self) -> bool {
        let long = |since: Instant| since.elapsed() >= self.plan.pace.end;
        self.cancelled.is_some_and(|(since, _)| long(since)) || self.orphaned.is_some_and(long)
    }

    /// Waits for the destination's end, starts the guest there if it is the only one, and says who
    /// has it.
    fn settle(&mut self, monitors: &mut Monitors, ending: &Ending) -> Guest {
        let ended = Instant::now();
        let completed = *ending == Ending::Completed;
        if !completed {
            self.break_off();
        }
        // The source may not have answered since.
        self.late |= self.proxy.handed_over();
        let (source, mut destination) = self.await_sides(monitors, completed);
        let gone = match &source {
            Side::Empty(state) => state == "postmigrate" && completed,
            Side::Gone(_) | Side::Mute(_) => completed || self.dead,
            _ => false,
        };
        let mut refused = None;
        if gone && self.may_start(&destination) {
            refused = start(monitors).err().map(|error| error.to_string());
            if refused.is_none() {
                self.start_ms = u64::try_from(ended.elapsed().as_millis()).ok();
            }
            destination = Side::ask_there(monitors);
        }
        let mut guest = Guest::judge(&source, &destination, ending);
        if let Side::Stands(state) = &destination {
            let refused = refused.unwrap_or_else(|| format!("its state is {state}"));
            self.weigh_copy(&mut guest, &source, completed, gone);
            let left = self.plan.resume == Resume::Leave && waits(&destination);
            if guest.place == Place::Destination && self.ran && !left {
                self.stopped = Some(refused);
            }
        }
        let unasked = matches!(destination, Side::Unasked | Side::Mute(_));
        if self.late && unasked && !self.held && guest.place == Place::Source {
            // The source starts its guest again if the last answer of the destination is lost.
            guest.doubt();
        }
        guest
    }

    /// Asks both sides until they have come to rest, or long enough.
    fn await_sides(&self, monitors: &mut Monitors, completed: bool) -> (Side, Side) {
        // A destination that never got everything cannot start the guest. It may wait for ever.
        let patience = match self.late || completed {
            true => self.plan.pace.settle,
            false => self.plan.pace.settle.min(self.plan.pace.notice),
        };
        let deadline = Instant::now() + patience;
        loop {
            let source = Side::ask(Some(&mut monitors.source));
            let destination = Side::ask_there(monitors);
            let settled = match (&source, &destination) {
                // It loads the rest, or has not seen yet that nothing more comes.
                (_, Side::Empty(_)) => false,
                // It stops its guest to give it away, or starts it again.
                (Side::Stands(state), _) => state != "finish-migrate",
                _ => true,
            };
            if settled || Instant::now() >= deadline {
                return (source, destination);
            }
            thread::sleep(self.plan.pace.handover);
        }
    }

    /// Says what a guest is worth that stands still at the destination. `gone`: the source cannot run
    /// it any more.
    fn weigh_copy(&mut self, guest: &mut Guest, source: &Side, completed: bool, gone: bool) {
        let failed = matches!(self.last.status, Status::Cancelled | Status::Failed);
        let note = match source {
            // It is too old then, also if the source ends.
            _ if *source == Side::Runs || failed || (self.resumed && !completed) => {
                if guest.place != Place::Source {
                    guest.doubt();
                }
                "the destination has a copy of the guest that stands still: end that QEMU, and never \
                 start the guest there"
            }
            // It may still give the guest away.
            Side::Stands(_) if !completed => return guest.doubt(),
            // It may run the guest all the same.
            Side::Gone(_) | Side::Mute(_) if !gone => {
                guest.doubt();
                "if the source's QEMU goes on, it may run the guest: end the destination's then. If it \
                 has ended with its monitor, start the guest at the destination (cont)"
            }
            _ => return,
        };
        self.notes.push(note.to_owned());
    }

    /// Whether the guest shall be started at the destination, if the source cannot run it any more.
    fn may_start(&self, destination: &Side) -> bool {
        self.plan.resume == Resume::Start && self.ran && waits(destination)
    }
}

/// Whether a guest stands still only since nobody has started it.
fn waits(side: &Side) -> bool {
    matches!(side, Side::Stands(state) if state == "paused" || state == "prelaunch")
}

/// Starts the guest at the destination.
fn start(monitors: &mut Monitors) -> Result<(), qmp::Error> {
    match &mut monitors.destination {
        Some(client) => client.execute("cont", Value::Null).map(drop),
        None => Ok(()),
    }
}
