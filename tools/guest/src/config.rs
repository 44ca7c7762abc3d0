// SPDX-License-Identifier: GPL-2.0

//! How much of which content a guest holds: the `tp.` words of its kernel command line.

use std::fmt;

/// Pages in a mebibyte.
const MIB_PAGES: usize = 256;

/// Sizes in MiB and seeds, as on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `tp.image`: guests with the same number hold the same common pages.
    pub image: u64,
    /// `tp.seed`: makes the pages of one guest its own.
    pub seed: u64,
    /// `tp.common`: MiB that equal those of all guests of the image.
    pub common: usize,
    /// `tp.own`: MiB that no other page equals.
    pub own: usize,
    /// `tp.dup`: MiB of pages that repeat inside this guest, each [`Config::REPEATS`] times.
    pub dup: usize,
    /// `tp.zero`: MiB that were used and then zeroed.
    pub zero: usize,
    /// `tp.churn`: MiB that never stop changing.
    pub churn: usize,
}

impl Config {
    /// How often each content of the `dup` region occurs.
    pub const REPEATS: usize = 8;

    /// Reads the `tp.` words of a kernel command line; others are somebody else's.
    ///
    /// # Errors
    ///
    /// A `tp.` word that is unknown or whose value is no number.
    pub fn parse(command_line: &str) -> Result<Config, String> {
        let mut config = Config::default();
        for word in command_line.split_whitespace() {
            let Some(setting) = word.strip_prefix("tp.") else {
                continue;
            };
            let (name, value) = setting
                .split_once('=')
                .ok_or_else(|| format!("'{word}' has no value"))?;
            let number: u64 = value
                .parse()
                .map_err(|_| format!("'{word}' is no number"))?;
            match name {
                "image" => config.image = number,
                "seed" => config.seed = number,
                "common" => config.common = number as usize,
                "own" => config.own = number as usize,
                "dup" => config.dup = number as usize,
                "zero" => config.zero = number as usize,
                "churn" => config.churn = number as usize,
                _ => return Err(format!("'{word}' is not known")),
            }
        }
        Ok(config)
    }

    /// Pages of `mib` mebibytes.
    pub fn pages(mib: usize) -> usize {
        mib * MIB_PAGES
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            image: 1,
            seed: 1,
            common: 8,
            own: 4,
            dup: 2,
            zero: 4,
            churn: 1,
        }
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "tp.image={} tp.seed={} tp.common={} tp.own={} tp.dup={} tp.zero={} tp.churn={}",
            self.image, self.seed, self.common, self.own, self.dup, self.zero, self.churn
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_is_parsed() {
        let config = Config {
            image: 3,
            seed: 9,
            churn: 2,
            ..Config::default()
        };
        assert_eq!(
            Config::parse(&format!("quiet {config} panic=-1")),
            Ok(config)
        );
    }

    #[test]
    fn a_word_that_is_not_understood_is_named() {
        for word in ["tp.own", "tp.own=x", "tp.owned=1"] {
            let error = Config::parse(word).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
