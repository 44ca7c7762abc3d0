// SPDX-License-Identifier: GPL-2.0

//! The file that says what a store consists of.
//!
//! It is one line with the SHA-256 of the rest in hexadecimal digits, then JSON. Every file that it
//! names was complete and on the disk before the manifest was, and is never changed again except
//! for the days of last use. So whoever reads it sees one state of the store, and a crash at any
//! moment leaves the state before or the one after.

use std::path::Path;

use serde::{
    Deserialize,
    Serialize, //
};
use sha2::{
    Digest as _,
    Sha256, //
};
use twinpage_wire::Digest;

use crate::admit;
use crate::error::Error;

/// The format that this program reads and writes.
pub(super) const FORMAT: u64 = 1;

/// More bytes than any manifest has.
pub(super) const MANIFEST_BYTES: u64 = 64 << 10;

/// More segments than there can be: each is at least twice as large as the one after it.
const SEGMENTS: usize = 64;

/// What a store consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// The format of all files.
    pub(super) format: u64,
    /// How many sources must have a page.
    pub(super) sources_needed: u32,
    /// The number that the next file gets.
    pub(super) next: u64,
    /// Where pages are, oldest first.
    pub(super) segments: Vec<SegmentEntry>,
    /// Where candidates are, if there are any.
    pub(super) candidates: Option<CandidatesEntry>,
}

/// Pages and their index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SegmentEntry {
    /// The number in the names of its files.
    pub(super) number: u64,
    /// How many pages it has.
    pub(super) pages: u64,
    /// SHA-256 of its index, in hexadecimal digits.
    pub(super) index: String,
}

/// Pages that are not admitted yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CandidatesEntry {
    /// The number in the name of the file.
    pub(super) number: u64,
    /// How many candidates it has.
    pub(super) count: u64,
    /// SHA-256 of the file, in hexadecimal digits.
    pub(super) sha256: String,
}

/// The part that all formats have.
#[derive(Deserialize)]
struct Format {
    format: u64,
}

impl Manifest {
    /// That of an empty store.
    pub(super) fn new(sources_needed: u32) -> Self {
        Self {
            format: FORMAT,
            sources_needed,
            next: 1,
            segments: Vec::new(),
            candidates: None,
        }
    }

    /// The bytes of the file.
    pub(super) fn encode(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let json = serde_json::to_string_pretty(self)
            .map_err(|error| Error::damaged(path, error.to_string()))?;
        Ok(format!("{}\n{json}\n", sum(&format!("{json}\n"))).into_bytes())
    }

    /// What the bytes of the file at `path` in the store at `store` say.
    pub(super) fn decode(bytes: &[u8], path: &Path, store: &Path) -> Result<Self, Error> {
        let damaged = |what: &str| Error::damaged(path, what);
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is no text"))?;
        let (line, json) = text
            .split_once('\n')
            .ok_or_else(|| damaged("it is too short"))?;
        if line != sum(json) {
            return Err(damaged("its checksum is wrong"));
        }
        let wrong = |error: serde_json::Error| damaged(&error.to_string());
        let Format { format } = serde_json::from_str(json).map_err(wrong)?;
        if format != FORMAT {
            return Err(Error::Format {
                path: store.to_owned(),
                found: format,
                known: FORMAT,
            });
        }
        let manifest: Self = serde_json::from_str(json).map_err(wrong)?;
        if manifest.segments.len() > SEGMENTS {
            return Err(damaged("it names too many segments"));
        }
        admit::check_sources(manifest.sources_needed)?;
        Ok(manifest)
    }

    /// Takes the number for the next file.
    pub(super) fn take_number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Whether it names a part with that number.
    pub(super) fn has(&self, part: super::directory::Part, number: u64) -> bool {
        use super::directory::Part;
        match part {
            Part::Candidates => self
                .candidates
                .as_ref()
                .is_some_and(|it| it.number == number),
            Part::Index | Part::Pages | Part::Used => {
                self.segments.iter().any(|it| it.number == number)
            }
        }
    }
}

/// SHA-256 of text, in hexadecimal digits.
fn sum(text: &str) -> String {
    hex(&Sha256::digest(text).into())
}

/// A checksum in hexadecimal digits.
pub(super) fn hex(bytes: &[u8; 32]) -> String {
    Digest(*bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Manifest, Error> {
        Manifest::decode(bytes, Path::new("store/manifest"), Path::new("store"))
    }

    fn some() -> Manifest {
        let mut manifest = Manifest::new(3);
        let number = manifest.take_number();
        manifest.segments.push(SegmentEntry {
            number,
            pages: 17,
            index: hex(&[9; 32]),
        });
        manifest
    }

    #[test]
    fn a_manifest_comes_back() {
        let bytes = some().encode(Path::new("m")).unwrap();
        assert_eq!(decode(&bytes).unwrap(), some());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = some().encode(Path::new("m")).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut wrong = bytes.clone();
                wrong[at] ^= 1 << bit;
                assert!(decode(&wrong).is_err(), "bit {bit} of byte {at}");
            }
        }
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_newer_format_is_named() {
        let json = "{\"format\": 9, \"unknown\": true}";
        let bytes = format!("{}\n{json}", sum(json));
        let error = decode(bytes.as_bytes()).unwrap_err();
        assert!(matches!(error, Error::Format { found: 9, .. }), "{error}");
    }
}
