// SPDX-License-Identifier: GPL-2.0

//! One line a question, one line an answer, over the guest's second serial port.
//!
//! | question   | answer                         | meaning                              |
//! |------------|--------------------------------|--------------------------------------|
//! | (none)     | `ready PAGES`                  | said once: the memory is filled      |
//! | `sum`      | `sum HEX`                      | checksum of what does not change     |
//! | `verify`   | `ok PAGES WRITTEN`, `bad TEXT` | every page against what it should be |
//! | `stop`     | `ok`                           | the churn rests                      |
//! | `go`       | `ok`                           | the churn goes on                    |
//! | `write N`  | `ok N`, `bad TEXT`             | writes to N common pages, undoes it  |
//! | `reboot`   | (then `ready` again)           | the machine is reset                 |
//! | `poweroff` | (none)                         | the machine goes off                 |
//! | other      | `what? LINE`                   | the line is not understood           |

use std::fmt;

/// A question to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Checksum over the pages that do not change.
    Sum,
    /// Compare every page with what it should hold.
    Verify,
    /// Let the churn rest.
    Stop,
    /// Let the churn go on.
    Go,
    /// Write to so many common pages, check them and write the old content back.
    Write(usize),
    /// Reset the machine.
    Reboot,
    /// Turn the machine off.
    PowerOff,
}

impl Request {
    /// Understands one line, or not.
    pub fn parse(line: &str) -> Option<Request> {
        let mut words = line.split_whitespace();
        let request = match (words.next()?, words.next()) {
            ("sum", None) => Request::Sum,
            ("verify", None) => Request::Verify,
            ("stop", None) => Request::Stop,
            ("go", None) => Request::Go,
            ("write", Some(count)) => Request::Write(count.parse().ok()?),
            ("reboot", None) => Request::Reboot,
            ("poweroff", None) => Request::PowerOff,
            _ => return None,
        };
        words.next().is_none().then_some(request)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Sum => f.write_str("sum"),
            Request::Verify => f.write_str("verify"),
            Request::Stop => f.write_str("stop"),
            Request::Go => f.write_str("go"),
            Request::Write(count) => write!(f, "write {count}"),
            Request::Reboot => f.write_str("reboot"),
            Request::PowerOff => f.write_str("poweroff"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_understood_as_printed() {
        for request in [
            Request::Sum,
            Request::Verify,
            Request::Stop,
            Request::Go,
            Request::Write(12),
            Request::Reboot,
            Request::PowerOff,
        ] {
            assert_eq!(Request::parse(&request.to_string()), Some(request));
        }
    }

    #[test]
    fn noise_is_no_request() {
        for line in ["", "su", "sum 1", "write", "write x", "write 1 2"] {
            assert_eq!(Request::parse(line), None, "{line}");
        }
    }
}
