// SPDX-License-Identifier: GPL-2.0

//! What the module says of one VM: the debugfs file `stats` (`Documentation/export.rst`).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::domain::Domain;
use crate::parse::{
    decimal,
    ParseError, //
};
use crate::process::Pid;
use crate::vm::Id;

/// Longest file that is read, in bytes.
pub const FILE_BYTES: usize = 64 << 10;

/// The state of one VM. Counts are of 4096-byte pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Number of the attachment.
    pub id: Id,
    /// The process that made the VM.
    pub pid: Pid,
    /// Its sharing domain.
    pub domain: Domain,
    /// Pages of its memslots.
    pub pages: u64,
    /// Nothing is mapped there.
    pub pages_absent: u64,
    /// No twin found yet.
    pub pages_unshared: u64,
    /// Changed between two looks.
    pub pages_volatile: u64,
    /// Maps a merged page.
    pub pages_merged: u64,
    /// Mapped to the shared zero page by the module.
    pub zero_pages: u64,
    /// Not looked at yet.
    pub pages_unseen: u64,
    /// Cannot be merged, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Looks at a page so far.
    pub pages_scanned: u64,
    /// Pages merged so far.
    pub merges: u64,
    /// Merged pages that were written to so far.
    pub breaks: u64,
    /// Merged pages that were written to, a second, when that was last measured.
    pub break_rate: u64,
    /// For how long nothing merges as that was too fast, milliseconds; 0: it merges.
    pub backed_off_ms: u64,
    /// How often that was so.
    pub back_offs: u64,
    /// Complete passes so far.
    pub passes: u64,
    /// Scanner time so far.
    pub cpu_ns: u64,
}

impl Stats {
    /// Reads the text of the file `path`. Names that it does not know are ignored.
    ///
    /// # Errors
    ///
    /// A line is no name and number, a name is there twice or a needed one is missing.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ParseError> {
        let mut values = Values::read(path, text)?;
        Ok(Self {
            id: Id(values.take_u32("id")?),
            pid: Pid(values.take_u32("pid")?),
            domain: Domain(values.take("domain")?),
            pages: values.take("pages")?,
            pages_absent: values.take("pages_absent")?,
            pages_unshared: values.take("pages_unshared")?,
            pages_volatile: values.take("pages_volatile")?,
            pages_merged: values.take("pages_merged")?,
            zero_pages: values.take("zero_pages")?,
            pages_unseen: values.take("pages_unseen")?,
            skipped: values.take_skipped(),
            pages_scanned: values.take("pages_scanned")?,
            merges: values.take("merges")?,
            breaks: values.take("breaks")?,
            break_rate: values.take("break_rate")?,
            backed_off_ms: values.take("backed_off_ms")?,
            back_offs: values.take("back_offs")?,
            passes: values.take("passes")?,
            cpu_ns: values.take("cpu_ns")?,
        })
    }

    /// Pages that cannot be merged, whatever the reason.
    pub fn pages_skipped(&self) -> u64 {
        self.skipped
            .values()
            .fold(0, |sum, &pages| sum.saturating_add(pages))
    }

    /// Why pages cannot be merged, the commonest reason first; reasons without pages are left out.
    pub fn reasons(&self) -> Vec<(&str, u64)> {
        let mut reasons: Vec<_> = self
            .skipped
            .iter()
            .map(|(reason, &pages)| (reason.as_str(), pages))
            .filter(|&(_, pages)| pages > 0)
            .collect();
        reasons.sort_by_key(|&(_, pages)| std::cmp::Reverse(pages));
        reasons
    }
}

/// The pairs of one file.
struct Values<'a> {
    /// The file.
    path: &'a Path,
    /// What is left of its pairs.
    pairs: BTreeMap<&'a str, u64>,
}

impl<'a> Values<'a> {
    /// Splits the file into pairs.
    fn read(path: &'a Path, text: &'a str) -> Result<Self, ParseError> {
        let mut pairs = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let error = |problem: String| ParseError::line(path, index + 1, problem);
            let (name, value) = line
                .split_once(' ')
                .ok_or_else(|| error("there is no value".to_owned()))?;
            if pairs.insert(name, decimal(value).map_err(error)?).is_some() {
                return Err(error("the name is there twice".to_owned()));
            }
        }
        Ok(Self { path, pairs })
    }

    /// Takes the value of `name`.
    fn take(&mut self, name: &str) -> Result<u64, ParseError> {
        let value = self.pairs.remove(name);
        value.ok_or_else(|| ParseError::file(self.path, format!("{name} is missing")))
    }

    /// Takes the value of `name`, which is a small one.
    fn take_u32(&mut self, name: &str) -> Result<u32, ParseError> {
        let value = self.take(name)?;
        u32::try_from(value)
            .map_err(|_| ParseError::file(self.path, format!("{name} is too large")))
    }

    /// Takes every `skip_<reason>` that is a sane word.
    fn take_skipped(&mut self) -> BTreeMap<String, u64> {
        let reason = |name: &str| {
            let reason = name.strip_prefix("skip_")?;
            let sane = reason.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            (sane && reason.len() <= 32).then(|| reason.to_owned())
        };
        self.pairs
            .iter()
            .filter_map(|(name, &pages)| Some((reason(name)?, pages)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with every name and three reasons.
    const FULL: &str = "id 3\npid 812\ndomain 7\npages 100\npages_absent 1\npages_unshared 2\n\
         pages_volatile 3\npages_merged 4\nzero_pages 5\nskip_shared 60\nskip_huge 0\n\
         skip_pinned 25\npages_unseen 0\npages_scanned 400\nmerges 9\nbreaks 1\n\
         break_rate 70\nbacked_off_ms 4000\nback_offs 3\npasses 2\n\
         cpu_ns 123456\n";

    fn parse(text: &str) -> Result<Stats, ParseError> {
        Stats::parse(Path::new("/stats"), text)
    }

    #[test]
    fn every_name_is_read() -> Result<(), ParseError> {
        let stats = parse(FULL)?;
        assert_eq!(
            (stats.id, stats.pid, stats.domain),
            (Id(3), Pid(812), Domain(7))
        );
        assert_eq!(
            (stats.pages, stats.pages_merged, stats.cpu_ns),
            (100, 4, 123_456)
        );
        assert_eq!(
            (stats.break_rate, stats.backed_off_ms, stats.back_offs),
            (70, 4000, 3)
        );
        assert_eq!(stats.pages_skipped(), 85);
        assert_eq!(stats.reasons(), [("shared", 60), ("pinned", 25)]);
        Ok(())
    }

    #[test]
    fn unknown_names_are_ignored() -> Result<(), ParseError> {
        let more = format!("{FULL}shiny_new 7\nskip_Evil\x1b 7\n");
        assert_eq!(parse(&more)?, parse(FULL)?);
        Ok(())
    }

    #[test]
    fn broken_files_are_refused() {
        let table = [
            (
                FULL.replace("merges 9\n", ""),
                "/stats is malformed: merges is missing",
            ),
            (
                format!("{FULL}id 4\n"),
                "/stats:22 is malformed: the name is there twice",
            ),
            (
                FULL.replace("id 3", "id"),
                "/stats:1 is malformed: there is no value",
            ),
            (
                FULL.replace("id 3", "id 4294967296"),
                "/stats is malformed: id is too large",
            ),
        ];
        for (text, message) in table {
            assert_eq!(parse(&text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn sums_do_not_overflow() -> Result<(), ParseError> {
        let most = format!("skip_shared {}", u64::MAX);
        assert_eq!(
            parse(&FULL.replace("skip_shared 60", &most))?.pages_skipped(),
            u64::MAX
        );
        Ok(())
    }
}
