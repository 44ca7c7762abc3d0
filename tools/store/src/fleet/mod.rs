// SPDX-License-Identifier: GPL-2.0

//! The database of canonical pages on a Valkey or Redis cluster, for all hosts of a fleet.
//!
//! | Key | Value |
//! |---|---|
//! | `twinpage:1:page:` and the digest (32 bytes) | string: the page (4096 bytes) |
//! | `twinpage:1:seen:` and the tag of a page (16 bytes) | set of tags of sources (8 bytes each); expires |
//!
//! The server is not believed: pages are hashed by who fetches them, and lengths of answers are
//! checked. There is a time limit for each piece of an answer, but none for a whole one, and none for
//! making a connection: callers set those. What it holds is what its operator may know: pages that
//! were admitted, and tags, whose key it never sees.

mod client;
mod load;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use twinpage_wire::{
    Digest,
    Page,
    PAGE_BYTES, //
};

use crate::admit;
use crate::error::Error;
use crate::source::PageSource;
use client::Client;

pub use load::FleetLoad;

/// What the keys of pages begin with.
const PAGE_KEY: &[u8] = b"twinpage:1:page:";

/// What the keys of candidates begin with.
const SEEN_KEY: &[u8] = b"twinpage:1:seen:";

/// Keys that a server should look at in one step of a scan.
const SCAN_KEYS: u64 = 1000;

/// More steps of a scan of one server than that has keys for; a scan that goes on is a loop.
const SCAN_STEPS: u64 = 1 << 24;

/// Days after which a candidate is forgotten that no further source had.
const CANDIDATE_DAYS: u64 = 30;

/// How a fleet is reached.
#[derive(Clone)]
pub struct FleetOptions {
    /// `redis://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]`, or `rediss://` for TLS. Some nodes are
    /// enough, they know the others.
    pub url: String,
    /// Whether `redis://` may be used, by which digests, pages and the password travel in clear.
    pub plaintext: bool,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long an answer may take.
    pub reply_timeout: Duration,
    /// With TLS: certificates (PEM) that the servers' must be signed by, instead of the system's.
    pub ca: Option<PathBuf>,
    /// The key of tags, the same for all hosts of the fleet. Without it, only pages of public
    /// sources can be loaded.
    pub key: Option<[u8; 32]>,
    /// How many distinct sources must have a page that is not public, the same for all hosts.
    pub sources_needed: u32,
}

/// The database of canonical pages of a fleet.
pub struct Fleet {
    client: Client,
    key: Option<[u8; 32]>,
    sources_needed: u32,
}

/// What a fleet consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FleetStat {
    /// Servers that have a part of the keys.
    pub servers: u64,
    /// Keys of all servers: pages, candidates, and what others keep there.
    pub keys: u64,
}

impl FleetOptions {
    /// The fleet at `url`, with defaults for the rest.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            plaintext: false,
            connect_timeout: Duration::from_secs(2),
            reply_timeout: Duration::from_secs(2),
            ca: None,
            key: None,
            sources_needed: admit::LEAST_SOURCES,
        }
    }

    /// Looks whether a connection may be tried.
    ///
    /// # Errors
    ///
    /// [`Error::Address`] or [`Error::Plaintext`].
    pub fn check(&self) -> Result<(), Error> {
        client::nodes(self).map(drop)
    }
}

impl fmt::Debug for FleetOptions {
    /// All but what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = match (self.url.split_once("://"), self.url.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, hosts))) => format!("{scheme}://...@{hosts}"),
            _ => self.url.clone(),
        };
        f.debug_struct("FleetOptions")
            .field("url", &url)
            .field("plaintext", &self.plaintext)
            .field("connect_timeout", &self.connect_timeout)
            .field("reply_timeout", &self.reply_timeout)
            .field("ca", &self.ca)
            .field("key", &self.key.map(|_| "..."))
            .field("sources_needed", &self.sources_needed)
            .finish()
    }
}

impl Fleet {
    /// Connects to a fleet.
    ///
    /// # Errors
    ///
    /// What [`FleetOptions::check`] says, [`Error::Setting`], or when no server answers as one of a
    /// cluster.
    pub fn connect(options: FleetOptions) -> Result<Self, Error> {
        admit::check_sources(options.sources_needed)?;
        let client = Client::new(&options)?;
        client.slots()?;
        Ok(Self {
            client,
            key: options.key,
            sources_needed: options.sources_needed,
        })
    }

    /// Begins to load pages. They are in the fleet after [`finish`](crate::Admit::finish), many of
    /// them earlier.
    ///
    /// # Errors
    ///
    /// None today; it may connect in the future.
    pub fn load(&self) -> Result<FleetLoad<'_>, Error> {
        Ok(FleetLoad::new(self))
    }

    /// What it consists of.
    ///
    /// # Errors
    ///
    /// When a server does not answer.
    pub fn stat(&self) -> Result<FleetStat, Error> {
        let slots = self.client.slots()?;
        let mut keys = 0u64;
        for slot in &slots {
            let size: u64 = self
                .client
                .ask_slot("count its keys", *slot, &redis::cmd("DBSIZE"))?;
            keys = keys.saturating_add(size);
        }
        Ok(FleetStat {
            servers: slots.len() as u64,
            keys,
        })
    }

    /// Calls `each` with the digests that the server of `slot` has.
    fn scan(&self, slot: u16, each: &mut dyn FnMut(Digest)) -> Result<(), Error> {
        let mut cursor = 0u64;
        for _ in 0..SCAN_STEPS {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg([PAGE_KEY, b"*"].concat());
            scan.arg("COUNT").arg(SCAN_KEYS);
            let (next, keys): (u64, Vec<Vec<u8>>) =
                self.client.ask_slot("list its pages", slot, &scan)?;
            for key in keys {
                let digest = key
                    .strip_prefix(PAGE_KEY)
                    .and_then(|digest| digest.try_into().ok());
                // A key of another length is none of ours.
                if let Some(digest) = digest {
                    each(Digest(digest));
                }
            }
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
        Err(Error::Answer {
            action: "SCAN",
            what: format!("no end after {SCAN_STEPS} steps"),
        })
    }
}

impl PageSource for Fleet {
    fn name(&self) -> &'static str {
        "fleet"
    }

    fn digests(&self, each: &mut dyn FnMut(Digest)) -> Result<(), Error> {
        let slots = self.client.slots()?;
        slots.into_iter().try_for_each(|slot| self.scan(slot, each))
    }

    fn fetch(&self, digest: &Digest, into: &mut Page) -> Result<bool, Error> {
        let mut get = redis::cmd("GETRANGE");
        // One byte more than a page, to see what is none; never more, whatever is there.
        get.arg(page_key(digest)).arg(0).arg(PAGE_BYTES);
        let bytes: Vec<u8> = self.client.ask("give a page", &get)?;
        if bytes.is_empty() {
            return Ok(false);
        }
        match <&Page>::try_from(&bytes[..]) {
            Ok(page) => {
                into.copy_from_slice(page);
                Ok(true)
            }
            Err(_) => Err(Error::Answer {
                action: "GETRANGE",
                what: format!("{} bytes instead of a page", bytes.len()),
            }),
        }
    }
}

/// The key of a page.
fn page_key(digest: &Digest) -> Vec<u8> {
    [PAGE_KEY, &digest.0].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let mut options = FleetOptions::new("rediss://me:secret@one:1,two:2");
        options.key = Some([0xab; 32]);
        let text = format!("{options:?}");
        assert!(!text.contains("secret") && !text.contains("171"), "{text}");
        assert!(text.contains("one:1,two:2"), "{text}");
    }
}
