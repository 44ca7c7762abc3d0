// SPDX-License-Identifier: GPL-2.0

//! `twinpage store gc`: makes a store smaller.

use serde::Serialize;
use twinpage_store::{
    Collected,
    Limits,
    Mode,
    Store, //
};

use crate::cli::store::Gc;
use crate::console::{
    Console,
    Format, //
};
use crate::error::Error;
use crate::host::Host;
use crate::units::{
    Age,
    Size, //
};

use super::{
    Watcher,
    SCHEMA, //
};

/// Seconds in a day.
const DAY: u64 = 86_400;

/// What was removed, as JSON.
#[derive(Debug, Serialize)]
struct Removed {
    /// Version of the JSON.
    schema: u32,
    /// The counts.
    #[serde(flatten)]
    collected: Collected,
}

/// Runs the command.
pub fn run(arguments: &Gc, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    let limits = Limits {
        max_bytes: arguments.max_size.map(|size| size.0),
        max_unused_days: arguments.max_age.map(days),
        max_candidate_days: arguments.max_candidate_age.map(days),
    };
    let collected = {
        let mut watcher = Watcher::new(arguments.show, "collecting", host, console);
        let mut store = Store::open(&arguments.store, Mode::Write)?;
        store.gc(&limits, &mut |progress| watcher.see(progress))?
    };
    if Format::of(arguments.show.json) == Format::Json {
        let schema = SCHEMA;
        return console.json(&Removed { schema, collected });
    }
    writeln!(
        console.out,
        "{} pages removed, {} kept; {} candidates forgotten, {} kept; {} before, {} now",
        collected.pages_dropped,
        collected.pages_kept,
        collected.candidates_dropped,
        collected.candidates_kept,
        Size(collected.bytes_before),
        Size(collected.bytes_after),
    )?;
    Ok(())
}

/// The days of an age, rounded up: a store counts in days.
fn days(age: Age) -> u32 {
    u32::try_from(age.0.as_secs().div_ceil(DAY)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ages_become_whole_days() {
        let table = [
            (0, 0),
            (1, 1),
            (86_400, 1),
            (86_401, 2),
            (u64::MAX, u32::MAX),
        ];
        for (seconds, expected) in table {
            assert_eq!(days(Age(Duration::from_secs(seconds))), expected);
        }
    }
}
