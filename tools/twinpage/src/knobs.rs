// SPDX-License-Identifier: GPL-2.0

//! The module's knobs in sysfs: their ranges, and what they mean.

use std::fmt;
use std::io;

use crate::error::{
    Error,
    Exit, //
};
use crate::host::Host;
use crate::module::{
    read_sysfs,
    sysfs_file, //
};

/// Which values a knob takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// A decimal number, from the first to the second.
    Number(u64, u64),
    /// One of some words.
    Word(&'static [&'static str]),
}

/// One knob.
#[derive(Debug)]
pub struct Knob {
    /// Its file.
    pub name: &'static str,
    /// Which values it takes.
    pub values: Values,
    /// What it means.
    pub meaning: &'static str,
}

/// A value for a knob, as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The knob.
    pub name: String,
    /// The value.
    pub value: String,
}

/// What is wrong with a knob or its value.
#[derive(Debug, thiserror::Error)]
pub enum KnobError {
    /// There is no such knob.
    #[error("There is no knob {name:?}")]
    Unknown {
        /// What was written.
        name: String,
    },
    /// The value is outside the range.
    #[error("{} cannot be {value:?}", knob.name)]
    Range {
        /// The knob.
        knob: &'static Knob,
        /// What was written.
        value: String,
    },
    /// The module refused the value.
    #[error("The module refused {value:?} for {}", knob.name)]
    Refused {
        /// The knob.
        knob: &'static Knob,
        /// What was written.
        value: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Every knob.
pub const KNOBS: [Knob; 13] = [
    Knob {
        name: "run",
        values: Values::Number(0, 2),
        meaning: "0 stop, 1 run, 2 give every page its own copy back and stop",
    },
    Knob {
        name: "pages_to_scan",
        values: Values::Number(1, 1_048_576),
        meaning: "pages looked at in one batch",
    },
    Knob {
        name: "sleep_millisecs",
        values: Values::Number(0, 60_000),
        meaning: "pause between two batches, ms",
    },
    Knob {
        name: "use_zero_pages",
        values: Values::Number(0, 1),
        meaning: "1: zero pages become the kernel's zero page",
    },
    Knob {
        name: "smart_scan",
        values: Values::Number(0, 1),
        meaning: "1: look less often at pages that keep not merging",
    },
    Knob {
        name: "max_page_sharing",
        values: Values::Number(2, 65_536),
        meaning: "mappings of one merged copy before another one is made",
    },
    Knob {
        name: "merge_across_nodes",
        values: Values::Number(0, 1),
        meaning: "0: merge only inside a NUMA node",
    },
    Knob {
        name: "advisor_mode",
        values: Values::Word(&["none", "cpu"]),
        meaning: "cpu: keep the scanner at advisor_max_cpu",
    },
    Knob {
        name: "advisor_max_cpu",
        values: Values::Number(1, 100),
        meaning: "scanner's share of one CPU, percent",
    },
    Knob {
        name: "thp_split_threshold",
        values: Values::Number(1, 512),
        meaning: "split a huge page when at least so many of its 512 pages would merge",
    },
    Knob {
        name: "merge_batch",
        values: Values::Number(1, 512),
        meaning: "neighbouring pages merged with one TLB flush",
    },
    Knob {
        name: "max_break_rate",
        values: Values::Number(0, 1_000_000),
        meaning: "merged pages a VM may write to in a second before it rests; 0: no limit",
    },
    Knob {
        name: "unmerge_on_exit",
        values: Values::Number(0, 1),
        meaning: "1: unmerge everything when the module is unloaded",
    },
];

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(first, last) => write!(f, "{first}..{last}"),
            Self::Word(words) => f.write_str(&words.join("|")),
        }
    }
}

impl Values {
    /// Whether `value` is one of them.
    fn allow(self, value: &str) -> bool {
        match self {
            Self::Number(first, last) => {
                let number = value.parse::<u64>();
                number.is_ok_and(|number| (first..=last).contains(&number))
            }
            Self::Word(words) => words.contains(&value),
        }
    }
}

impl Knob {
    /// Its value.
    ///
    /// # Errors
    ///
    /// The module is not loaded, or the caller may not use it.
    pub fn read(&self, host: &Host) -> Result<String, Error> {
        Ok(chosen(&read_sysfs(host, self.name)?).to_owned())
    }

    /// Gives it a value.
    ///
    /// # Errors
    ///
    /// The module refuses it, or the caller may not use it.
    pub fn write(&'static self, host: &Host, value: &str) -> Result<(), Error> {
        // Its absence would be told as the file's, which is the smaller part of the truth.
        self.read(host)?;
        let written = host.write(sysfs_file(self.name), value);
        written.map_err(|error| match error.raw_os_error() {
            Some(number) if error.kind() != io::ErrorKind::PermissionDenied => {
                Error::from(KnobError::Refused {
                    knob: self,
                    value: value.to_owned(),
                    source: io::Error::from_raw_os_error(number),
                })
            }
            _ => error.into(),
        })
    }
}

impl Setting {
    /// The knob that it is for, if it exists and takes the value.
    ///
    /// # Errors
    ///
    /// It does not exist, or the value is outside its range.
    pub fn knob(&self) -> Result<&'static Knob, KnobError> {
        let knob = KNOBS.iter().find(|knob| knob.name == self.name);
        let knob = knob.ok_or_else(|| KnobError::Unknown {
            name: self.name.clone(),
        })?;
        if !knob.values.allow(&self.value) {
            let value = self.value.clone();
            return Err(KnobError::Range { knob, value });
        }
        Ok(knob)
    }
}

impl KnobError {
    /// What the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Unknown { .. } => "`twinpage set` lists the knobs".to_owned(),
            // What unmerging fails with; the module has stopped then.
            Self::Refused { knob, source, .. }
                if knob.name == "run" && source.kind() != io::ErrorKind::InvalidInput =>
            {
                let first = match source.kind() {
                    io::ErrorKind::OutOfMemory => "free memory, then ",
                    _ => "",
                };
                format!(
                    "run is 0 now: {first}set run=2 again, and it goes on where it stopped; or run=1 \
                     to go on merging"
                )
            }
            Self::Refused { knob, source, .. } if source.kind() == io::ErrorKind::ResourceBusy => {
                format!(
                    "{} changes only while nothing is merged: set run=2 first",
                    knob.name
                )
            }
            Self::Range { knob, .. } | Self::Refused { knob, .. } => {
                format!("{} takes {}", knob.name, knob.values)
            }
        }
    }

    /// The exit code of the program.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Unknown { .. } | Self::Range { .. } => Exit::Usage,
            Self::Refused { .. } => Exit::Failed,
        }
    }
}

/// The word in brackets of a list such as `none [cpu]`, or the text as it is.
fn chosen(text: &str) -> &str {
    let chosen = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    chosen.map_or(text, |(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_kept() {
        let table = [
            ("run", "0", true),
            ("run", "2", true),
            ("run", "3", false),
            ("run", "-1", false),
            ("run", "", false),
            ("pages_to_scan", "0", false),
            ("pages_to_scan", "1048576", true),
            ("pages_to_scan", "1048577", false),
            ("advisor_mode", "cpu", true),
            ("advisor_mode", "[cpu]", false),
            ("thp_split_threshold", "513", false),
        ];
        for (name, value, allowed) in table {
            let (name, value) = (name.to_owned(), value.to_owned());
            let setting = Setting { name, value };
            assert_eq!(setting.knob().is_ok(), allowed, "{setting:?}");
        }
    }

    #[test]
    fn refusals_have_remedies_of_their_own() {
        let refused = |name: &str, errno: rustix::io::Errno| {
            let knob = KNOBS.iter().find(|knob| knob.name == name).unwrap();
            let value = String::new();
            let source = errno.into();
            KnobError::Refused {
                knob,
                value,
                source,
            }
            .remedy()
        };
        use rustix::io::Errno;
        let table = [
            (
                "run",
                Errno::NOMEM,
                "run is 0 now: free memory, then set run=2",
            ),
            ("run", Errno::BUSY, "run is 0 now: set run=2"),
            (
                "merge_across_nodes",
                Errno::BUSY,
                "merge_across_nodes changes only while",
            ),
            ("pages_to_scan", Errno::INVAL, "pages_to_scan takes 1.."),
        ];
        for (name, errno, text) in table {
            let remedy = refused(name, errno);
            assert!(remedy.starts_with(text), "{remedy}");
        }
    }

    #[test]
    fn chosen_word_is_found() {
        let table = [
            ("none [cpu]", "cpu"),
            ("[none] cpu", "none"),
            ("17", "17"),
            ("[", "["),
        ];
        for (text, word) in table {
            assert_eq!(chosen(text), word);
        }
    }
}
