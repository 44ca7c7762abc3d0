// SPDX-License-Identifier: GPL-2.0

//! What an operation may end with.

use std::io;

use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

/// Fails unless an operation failed with one of these errors.
pub fn refused<T>(what: &str, result: io::Result<T>, errors: &[i32]) -> Outcome {
    match either(what, result, errors)? {
        None => Ok(()),
        Some(_) => Err(Failure::Failed(format!(
            "{what} went well, not with one of the errors {errors:?}"
        ))),
    }
}

/// Fails unless an operation went well or failed with one of these errors.
pub fn either<T>(what: &str, result: io::Result<T>, errors: &[i32]) -> Result<Option<T>, Failure> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if error
                .raw_os_error()
                .is_some_and(|code| errors.contains(&code)) =>
        {
            Ok(None)
        }
        Err(error) => Err(Failure::Failed(format!(
            "{what}: {error}, not one of the errors {errors:?}"
        ))),
    }
}

/// Fails unless an operation went well.
pub fn well<T>(what: &str, result: io::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| Failure::Failed(format!("{what}: {error}")))
}
