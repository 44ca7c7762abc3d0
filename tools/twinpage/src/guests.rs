// SPDX-License-Identifier: GPL-2.0

//! The file that says which guest shares with whom: a line a guest, its name and its domain.

use std::collections::HashMap;
use std::path::Path;

use crate::domain::DomainName;
use crate::error::Error;
use crate::host::Host;
use crate::parse::ParseError;

/// The most bytes of such a file.
const FILE_BYTES: usize = 1 << 20;

/// The domains of guests, by the guests' names.
#[derive(Debug)]
pub struct Guests(HashMap<String, DomainName>);

impl Guests {
    /// Reads the file `path`. Empty lines are passed over, and those that begin with `#`.
    ///
    /// # Errors
    ///
    /// It cannot be read, or a line is wrong.
    pub fn read(host: &Host, path: &Path) -> Result<Self, Error> {
        let text = host.read_text(path, FILE_BYTES)?;
        let mut guests = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |problem: &str| Error::Guests(ParseError::line(path, number, problem));
            // A name may have blanks, which the number or name of a domain here cannot.
            let (name, domain) = line
                .rsplit_once(char::is_whitespace)
                .ok_or_else(|| wrong("it is not a guest's name and a domain"))?;
            let domain: DomainName = domain.parse().map_err(|error| wrong(&format!("{error}")))?;
            if guests.insert(name.trim_end().to_owned(), domain).is_some() {
                return Err(wrong("the guest was named before"));
            }
        }
        Ok(Self(guests))
    }

    /// The domain of the guest `name`, if the file has it.
    pub fn domain(&self, name: &str) -> Option<&DomainName> {
        self.0.get(name)
    }
}
