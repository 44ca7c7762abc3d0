// SPDX-License-Identifier: GPL-2.0

//! Sharing domains: which VMs may share pages with each other.
//!
//! The module knows domains by number. For people they have names:
//!
//! | written             | number                                                              |
//! |---------------------|---------------------------------------------------------------------|
//! | `private`           | 0: the VM shares with no other                                      |
//! | a decimal number    | itself                                                              |
//! | any other name      | the first 8 bytes, big-endian, of SHA-256(`twinpage-domain:` + name) |
//!
//! A number does not tell its name, so `attach` leaves names in `/run/twinpage/domains`, one file a
//! number. Such a file is believed only if its name gives that number.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{
    Serialize,
    Serializer, //
};
use sha2::{
    Digest as _,
    Sha256, //
};

use crate::host::Host;

/// Longest name, in bytes.
const NAME_BYTES: usize = 255;

/// Where names of domains are kept for display.
const NAMES: &str = "/run/twinpage/domains";

/// Number of a sharing domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(pub u64);

/// A domain as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainName {
    /// What was written.
    pub text: String,
    /// Its number.
    pub domain: Domain,
}

/// What is wrong with the name of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// There is no name.
    #[error("The name of a domain is empty")]
    Empty,
    /// The name is too long.
    #[error("The name of a domain is at most {NAME_BYTES} bytes")]
    Long,
    /// The name would garble a terminal.
    #[error("The name of a domain has a control character")]
    Control,
    /// Somebody who writes so hardly wants to share.
    #[error("The domain of those that share with nobody is written `private`")]
    Private,
    /// A decimal number that does not fit.
    #[error("The number of a domain is at most {}", u64::MAX)]
    Large,
}

impl Domain {
    /// The domain of a VM that shares with no other.
    pub const PRIVATE: Self = Self(0);
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::PRIVATE => f.write_str("private"),
            Self(number) => write!(f, "{number}"),
        }
    }
}

impl Serialize for Domain {
    /// Writes the number as text: JSON readers that use floating point would round it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl DomainName {
    /// The domain that shares with nobody.
    pub fn private() -> Self {
        Self {
            text: Domain::PRIVATE.to_string(),
            domain: Domain::PRIVATE,
        }
    }

    /// Keeps the name for display. Without it the number is shown, so failure does not matter.
    pub fn remember(&self, host: &Host) {
        if self.domain.to_string() != self.text && self.domain != Domain::PRIVATE {
            let _nothing_lost = host.leave(&name_file(self.domain), &self.text);
        }
    }
}

impl FromStr for DomainName {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        if text.is_empty() {
            return Err(DomainError::Empty);
        }
        if text.len() > NAME_BYTES {
            return Err(DomainError::Long);
        }
        if text.chars().any(char::is_control) {
            return Err(DomainError::Control);
        }
        let domain = if text == "private" {
            Domain::PRIVATE
        } else if text.eq_ignore_ascii_case("private") {
            return Err(DomainError::Private);
        } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
            Domain(text.parse().map_err(|_| DomainError::Large)?)
        } else {
            hashed(text)
        };
        Ok(Self {
            text: text.to_owned(),
            domain,
        })
    }
}

/// The name of `domain` if one is known, else its number.
pub fn display_name(host: &Host, domain: Domain) -> String {
    known_name(host, domain).unwrap_or_else(|| domain.to_string())
}

/// The name that somebody attached a VM of `domain` with, on this host since it started.
fn known_name(host: &Host, domain: Domain) -> Option<String> {
    if domain == Domain::PRIVATE {
        return None;
    }
    let text = host.read_text(name_file(domain), NAME_BYTES).ok()?;
    let name = text.parse::<DomainName>().ok()?;
    (name.domain == domain).then_some(name.text)
}

/// Where the name of `domain` is kept.
fn name_file(domain: Domain) -> PathBuf {
    PathBuf::from(NAMES).join(format!("{:016x}", domain.0))
}

/// The number of a domain with a name. Never 0, which is not shared.
fn hashed(name: &str) -> Domain {
    let digest = Sha256::digest(format!("twinpage-domain:{name}"));
    let number = digest[..8]
        .iter()
        .fold(0, |number, &byte| (number << 8) | u64::from(byte));
    Domain(number.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_stable_numbers() -> Result<(), DomainError> {
        // The hashed ones: printf %s twinpage-domain:web | sha256sum | cut -c1-16
        let table = [
            ("private", 0),
            ("0", 0),
            ("7", 7),
            ("18446744073709551615", u64::MAX),
            ("web", 0x8318_6719_cca8_44b2),
        ];
        for (text, number) in table {
            assert_eq!(text.parse::<DomainName>()?.domain, Domain(number), "{text}");
        }
        Ok(())
    }

    #[test]
    fn bad_names_are_refused() {
        let table = [
            ("", DomainError::Empty),
            ("18446744073709551616", DomainError::Large),
            ("a\nb", DomainError::Control),
            ("Private", DomainError::Private),
            (&"x".repeat(256), DomainError::Long),
        ];
        for (text, error) in table {
            assert_eq!(text.parse::<DomainName>(), Err(error), "{text:?}");
        }
    }
}
