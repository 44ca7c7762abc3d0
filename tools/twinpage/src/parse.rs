// SPDX-License-Identifier: GPL-2.0

//! Reading numbers out of text that may say anything.

use std::fmt;
use std::num::ParseIntError;
use std::path::{
    Path,
    PathBuf, //
};
use std::str::FromStr;

/// A file does not say what its format promises.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{} is malformed: {problem}", path.display(), Line(*line))]
pub struct ParseError {
    /// Path of the file.
    path: PathBuf,
    /// Line, from 1; 0 when it is no matter of one line.
    line: usize,
    /// What is wrong.
    problem: String,
}

impl ParseError {
    /// `path` is wrong as a whole.
    pub fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::line(path, 0, problem)
    }

    /// Line `line` of `path` (from 1) is wrong.
    pub fn line(path: &Path, line: usize, problem: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            problem: problem.into(),
        }
    }
}

/// A line number behind a path.
struct Line(usize);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            line => write!(f, ":{line}"),
        }
    }
}

/// `text` as a decimal number of type `T`, or what is wrong with it.
pub fn decimal<T: FromStr<Err = ParseIntError>>(text: &str) -> Result<T, String> {
    let number = text.parse();
    number.map_err(|error| format!("{:?} is not a number here ({error})", shortened(text)))
}

/// `text` as a hexadecimal number without prefix, or what is wrong with it.
pub fn hexadecimal(text: &str) -> Result<u64, String> {
    let number = u64::from_str_radix(text, 16);
    number.map_err(|error| format!("{:?} is not hexadecimal ({error})", shortened(text)))
}

/// As much of `text` as belongs into a message.
fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_file_and_line() {
        let path = Path::new("/a/b");
        let table = [
            (
                ParseError::file(path, "it is empty"),
                "/a/b is malformed: it is empty",
            ),
            (
                ParseError::line(path, 3, "it is odd"),
                "/a/b:3 is malformed: it is odd",
            ),
        ];
        for (error, text) in table {
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn numbers_are_checked() {
        assert_eq!(decimal::<u32>("17"), Ok(17));
        assert_eq!(hexadecimal("7f00"), Ok(0x7f00));
        for text in ["", "x", "4294967296", "-1", "1 ", "0x1"] {
            assert!(decimal::<u32>(text).is_err(), "{text:?}");
        }
        for text in ["", "g", "10000000000000000", "0x1"] {
            assert!(hexadecimal(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn messages_stay_short() {
        let error = decimal::<u32>(&"9".repeat(10_000)).unwrap_err();
        assert!(error.len() < 120);
    }
}
