// SPDX-License-Identifier: GPL-2.0

//! The course of a migration.

use std::thread;
use std::time::Instant;

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
/// listen now.
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
        late: false,
        last: Migration::default(),
        notes: Vec::new(),
        stopped: None,
    };
    let ending = course.watch(&mut monitors.source);
    let guest = course.settle(monitors, &ending, &mut fit);
    fit.notes.append(&mut course.notes);
    fit.notes.extend(settings.restore(&mut monitors.source));
    Ok(Outcome {
        ending,
        guest,
        migration: course.last,
        notes: fit.notes,
        stopped: course.stopped,
    })
}

/// Makes the destination listen, if it waits for that.
fn prepare_destination(monitors: &mut Monitors, plan: &Plan, fit: &mut Fit) -> Result<(), Error> {
    let (Some(client), Some(found)) = (&mut monitors.destination, &fit.destination) else {
        return Ok(());
    };
    fit.notes.extend(settings::destination(client, found));
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
    /// Whether the guest may have been handed over.
    late: bool,
    /// The last that the source said.
    last: Migration,
    /// What the user should know.
    notes: Vec<String>,
    /// Why the guest does not run at the destination although it should.
    stopped: Option<String>,
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
    fn watch(&mut self, source: &mut qmp::Client) -> Ending {
        loop {
            match Migration::query(source) {
                Ok(migration) => self.last = migration,
                // A QEMU that is busy may be late with an answer. What state it is in then nobody
                // knows: a command would be done when all is written, and both sides would run.
                Err(qmp::Error::Slow { .. }) if !self.overdue() => {
                    self.cancel_if_wanted(None);
                    continue;
                }
                Err(error) => {
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
                let _refused = source.execute("migrate-continue", state);
            }
            self.cancel_if_wanted(Some(source));
            if self.overdue() {
                self.break_off();
                let reason = format!(
                    "the source does not end its migration ({})",
                    self.last.status.name()
                );
                return Ending::Failed { reason };
            }
            thread::sleep(self.plan.pace.poll);
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

    /// Waits for the destination's end, and says who has the guest.
    fn settle(&mut self, monitors: &mut Monitors, ending: &Ending, fit: &mut Fit) -> Guest {
        if *ending != Ending::Completed {
            self.break_off();
        }
        // The source may not have answered since.
        self.late |= self.proxy.handed_over();
        // A destination that never got everything cannot start the guest. It may wait for ever.
        let patience = match self.late || *ending == Ending::Completed {
            true => self.plan.pace.settle,
            false => self.plan.pace.settle.min(self.plan.pace.notice),
        };
        let deadline = Instant::now() + patience;
        let (source, mut destination) = loop {
            let source = Side::ask(Some(&mut monitors.source));
            let destination = Side::ask(monitors.destination.as_mut());
            let settled = match (&source, &destination) {
                // It loads the rest, or has not seen yet that nothing more comes.
                (_, Side::Empty(_)) => false,
                // It stops its guest to give it away, or starts it again.
                (Side::Stands(state), _) => state != "finish-migrate",
                _ => true,
            };
            if settled || Instant::now() >= deadline {
                break (source, destination);
            }
            thread::sleep(self.plan.pace.poll);
        };
        let mut refused = None;
        if self.may_resume(&source, &destination, ending, fit.source.running) {
            (destination, refused) = resume(monitors);
        }
        let mut guest = Guest::judge(&source, &destination, ending);
        if let (Side::Stands(state), Place::Destination) = (&destination, guest.place) {
            let waits = state == "paused" || state == "prelaunch";
            if fit.source.running && !(waits && self.plan.resume == Resume::Leave) {
                self.stopped = Some(refused.unwrap_or_else(|| format!("its state is {state}")));
            }
        }
        let unasked = matches!(destination, Side::Unasked | Side::Mute(_));
        if self.late && unasked && guest.place == Place::Source {
            // The source starts its guest again if the last answer of the destination is lost.
            guest.place = Place::Unknown;
            guest.running = None;
        }
        guest
    }

    /// Whether the guest shall be started at the destination.
    fn may_resume(&self, source: &Side, destination: &Side, ending: &Ending, ran: bool) -> bool {
        let gone = matches!(source, Side::Empty(state) if state == "postmigrate");
        let stands = matches!(destination, Side::Stands(state)
            if state == "paused" || state == "prelaunch");
        let completed = *ending == Ending::Completed;
        self.plan.resume == Resume::Start && completed && ran && gone && stands
    }
}

/// Starts the guest at the destination; gives its state then, and why it could not be told to.
fn resume(monitors: &mut Monitors) -> (Side, Option<String>) {
    let told = monitors.destination.as_mut();
    let told = told.and_then(|client| client.execute("cont", Value::Null).err());
    let state = Side::ask(monitors.destination.as_mut());
    (state, told.map(|error| error.to_string()))
}
