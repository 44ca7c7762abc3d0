// SPDX-License-Identifier: GPL-2.0

//! The module's counters in sysfs: what all VMs save together, and what it costs.

use std::str::FromStr;

use serde::Serialize;

use crate::error::Error;
use crate::host::Host;
use crate::module::{
    read_sysfs,
    sysfs_file, //
};
use crate::parse::{
    decimal,
    ParseError, //
};

/// The counters of all VMs together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// 0: stopped, 1: running, 2: unmerged everything and stopped.
    pub run: u32,
    /// Merged copies in use.
    pub pages_shared: u64,
    /// Further mappings of them: pages saved.
    pub pages_sharing: u64,
    /// Pages without a twin.
    pub pages_unshared: u64,
    /// Pages that change too fast.
    pub pages_volatile: u64,
    /// Looks that `smart_scan` saved.
    pub pages_skipped: u64,
    /// Looks at a page so far.
    pub pages_scanned: u64,
    /// Pages mapped to the shared zero page: saved too.
    pub zero_pages: u64,
    /// Complete passes so far.
    pub full_scans: u64,
    /// Saved bytes less the bytes of metadata.
    pub general_profit: i64,
    /// Scanner time so far.
    pub cpu_ns: u64,
    /// Memory that the module needs itself.
    pub metadata_bytes: u64,
}

impl Counters {
    /// Reads them. They are files of their own, so not of one moment.
    ///
    /// # Errors
    ///
    /// The module is not loaded, the caller may not use it, or a file is no number.
    pub fn read(host: &Host) -> Result<Self, Error> {
        Ok(Self {
            run: number(host, "run")?,
            pages_shared: number(host, "pages_shared")?,
            pages_sharing: number(host, "pages_sharing")?,
            pages_unshared: number(host, "pages_unshared")?,
            pages_volatile: number(host, "pages_volatile")?,
            pages_skipped: number(host, "pages_skipped")?,
            pages_scanned: number(host, "pages_scanned")?,
            zero_pages: number(host, "zero_pages")?,
            full_scans: number(host, "full_scans")?,
            general_profit: number(host, "general_profit")?,
            cpu_ns: number(host, "cpu_ns")?,
            metadata_bytes: number(host, "metadata_bytes")?,
        })
    }

    /// Pages saved: what would be used more if nothing were merged.
    pub fn pages_saved(&self) -> u64 {
        self.pages_sharing.saturating_add(self.zero_pages)
    }
}

/// The number in sysfs file `name`.
fn number<T>(host: &Host, name: &str) -> Result<T, Error>
where
    T: FromStr<Err = std::num::ParseIntError>,
{
    let text = read_sysfs(host, name)?;
    let value = decimal(&text);
    Ok(value.map_err(|problem| ParseError::file(&sysfs_file(name), problem))?)
}
