// SPDX-License-Identifier: GPL-2.0

//! Waiting for something that must happen.

use std::fmt;
use std::time::{
    Duration,
    Instant, //
};

/// How often the condition is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// What did not happen in time.
#[derive(Debug)]
pub struct Late {
    what: String,
    limit: Duration,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} did not happen within {:?}", self.what, self.limit)
    }
}

impl std::error::Error for Late {}

/// Waits until `condition` holds; says how long it took.
///
/// # Errors
///
/// The condition's own error, or [`Late`].
pub fn until<E: From<Late>>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<bool, E>,
) -> Result<Duration, E> {
    let start = Instant::now();
    while !condition()? {
        if start.elapsed() > limit {
            let what = what.to_owned();
            return Err(Late { what, limit }.into());
        }
        std::thread::sleep(INTERVAL);
    }
    Ok(start.elapsed())
}
