// SPDX-License-Identifier: GPL-2.0

//! Where results and messages go, and whether that is a terminal.

use std::io::{
    self,
    IsTerminal,
    Write, //
};

use rustix::termios::tcgetwinsize;

use crate::error::Error;

/// Size of a terminal that does not tell it, as a serial console.
const UNKNOWN: Screen = Screen {
    columns: 200,
    rows: 50,
};

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// How progress is shown on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// Bars that are drawn over, on a terminal.
    Bars,
    /// Lines, now and then.
    Lines,
    /// Not at all.
    Nothing,
}

/// Size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// What others said, on one line without anything that a terminal might obey.
pub fn printable(text: impl Iterator<Item = char>) -> String {
    text.map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A message in which others may have had a word, as [`printable`], but it keeps its lines.
pub fn lines(text: &str) -> String {
    let lines: Vec<_> = text
        .split('\n')
        .map(|line| printable(line.chars()))
        .collect();
    lines.join("\n")
}

/// Standard output and standard error.
pub struct Console<'a> {
    /// Where results go.
    pub out: &'a mut dyn Write,
    /// Where messages go.
    pub err: &'a mut dyn Write,
    /// Size of the terminal that `out` is, if it is one.
    pub screen: Option<Screen>,
    /// How progress is shown on `err`.
    pub live: Live,
}

impl Live {
    /// What fits standard error.
    pub fn of_stderr() -> Self {
        match io::stderr().is_terminal() {
            true => Self::Bars,
            false => Self::Lines,
        }
    }
}

impl Format {
    /// The format that `--json` or its absence asks for.
    pub fn of(json: bool) -> Self {
        if json {
            Self::Json
        } else {
            Self::Text
        }
    }
}

impl Screen {
    /// The terminal that standard output is.
    pub fn of_stdout() -> Option<Self> {
        let stdout = io::stdout();
        if !stdout.is_terminal() {
            return None;
        }
        match tcgetwinsize(stdout) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Some(Self {
                columns: size.ws_col,
                rows: size.ws_row,
            }),
            _ => Some(UNKNOWN),
        }
    }
}

impl Console<'_> {
    /// Says what went wrong.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn report(&mut self, error: &Error) -> Result<(), Error> {
        Ok(writeln!(self.err, "twinpage: {}", lines(&error.report()))?)
    }

    /// Says what the user should know although nothing failed.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn warn(&mut self, text: &str) -> Result<(), Error> {
        Ok(writeln!(self.err, "twinpage: warning: {}", lines(text))?)
    }

    /// Writes `value` as JSON over several lines.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn json<T: serde::Serialize>(&mut self, value: &T) -> Result<(), Error> {
        serde_json::to_writer_pretty(&mut *self.out, value)?;
        Ok(writeln!(self.out)?)
    }

    /// Writes `value` as JSON on one line.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn json_line<T: serde::Serialize>(&mut self, value: &T) -> Result<(), Error> {
        serde_json::to_writer(&mut *self.out, value)?;
        Ok(writeln!(self.out)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_lines_and_nothing_that_a_terminal_obeys() {
        assert_eq!(lines("a\x1b[2J\r\n  b\t"), "a?[2J?\n  b?");
        assert_eq!(printable("a\nb".chars()), "a?b");
    }
}
