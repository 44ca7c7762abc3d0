// SPDX-License-Identifier: GPL-2.0

//! `twinpage detach`: takes VMs back from the module.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

use crate::cli::Detach;
use crate::clock::Pause;
use crate::console::Console;
use crate::device::{
    Copies,
    Detached,
    Device, //
};
use crate::error::Error;
use crate::host::Host;
use crate::module;
use crate::vm::{
    self,
    Id,
    Selection, //
};

use super::Failures;

/// Runs the command.
pub fn run(arguments: &Detach, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    let device = module::open(host)?;
    let copies = match arguments.unmerge {
        true => Copies::Unmerge,
        false => Copies::Keep,
    };
    // A signal then interrupts the module, which says how far it got.
    host.clock().catch_signals();
    let mut failures = Failures::default();
    let selection = arguments.target.selection();
    let mut stopped = false;
    for id in chosen(host, selection)? {
        stopped |= host.clock().pause(Duration::ZERO) == Pause::Interrupted;
        let result = match stopped {
            true => Err(Error::Interrupted(id)),
            false => detach(device.as_ref(), id, copies),
        };
        match result {
            // It has ended since: that is as good.
            Err(Error::NoSuchId(_)) if selection == Selection::All => continue,
            // The module may have had the signal before the clock.
            Err(Error::UnmergeStopped { ref source, .. }) => {
                stopped |= source.kind() == io::ErrorKind::Interrupted;
            }
            _ => (),
        }
        if let Some(detached) = failures.sort(result, console) {
            let shown = writeln!(console.out, "{}", sentence(id, copies, detached));
            failures.shown(
                shown
                    .and_then(|()| console.out.flush())
                    .map_err(Error::from),
            );
        }
    }
    failures.outcome(console)
}

/// The attachments that are meant. A single id needs no debugfs.
fn chosen(host: &Host, selection: Selection) -> Result<Vec<Id>, Error> {
    match selection {
        Selection::Id(id) => Ok(vec![id]),
        // What the module says of them may be missing; that they are attached is not.
        Selection::All => vm::ids(host),
        selection => {
            let vms = vm::select(host, selection)?;
            Ok(vms.iter().map(|vm| vm.stats.id).collect())
        }
    }
}

/// Detaches one VM.
fn detach(device: &dyn Device, id: Id, copies: Copies) -> Result<Detached, Error> {
    let (detached, result) = device.detach(id, copies);
    let Err(source) = result else {
        return Ok(detached);
    };
    let errno = source.raw_os_error().map(Errno::from_raw_os_error);
    Err(match errno {
        Some(Errno::NOENT) => Error::NoSuchId(id),
        Some(Errno::NOMEM | Errno::INTR | Errno::BUSY) => Error::UnmergeStopped {
            id,
            detached,
            source,
        },
        _ => Error::call(format!("detach VM {id}"), source),
    })
}

/// What happened to VM `id`.
fn sentence(id: Id, copies: Copies, detached: Detached) -> String {
    let Detached {
        unmerged,
        remaining,
    } = detached;
    match copies {
        Copies::Keep => format!("VM {id} detached: {remaining} pages stay merged"),
        Copies::Unmerge => {
            format!("VM {id} detached: {unmerged} pages unmerged, {remaining} stay merged")
        }
    }
}
