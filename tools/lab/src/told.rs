// SPDX-License-Identifier: GPL-2.0

//! What `twinpage migrate ... --json` says at its end. Fields that nobody here needs are passed over.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The end of a migration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Told {
    /// What the proxy counted.
    pub totals: Totals,
    /// Where the receiver found pages; empty at the sender.
    #[serde(default)]
    pub sources: Vec<Source>,
}

/// Counters of a proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Totals {
    /// Bytes of QEMU's stream.
    pub stream_bytes: u64,
    /// Bytes from the sender to the receiver.
    pub wire_bytes: u64,
    /// Pages sent as they are.
    pub pages_sent: u64,
    /// Pages that were earlier in the stream.
    pub pages_back: u64,
    /// Pages that the receiver had.
    pub pages_referenced: u64,
    /// Whole pages of zeroes in the stream.
    pub pages_zero_body: u64,
    /// Records of zero pages.
    pub pages_zero: u64,
}

/// What one source of pages did.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Source {
    /// Which one.
    pub name: String,
    /// Pages that it gave.
    pub hits: u64,
}

impl Told {
    /// Understands what a proxy printed.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn parse(text: &str) -> serde_json::Result<Told> {
        serde_json::from_str(text)
    }

    /// Of the pages that are not zero, the part that each source had, and the part that was `sent`;
    /// `stream` are pages that were sent before.
    pub fn hit_ratios(&self) -> BTreeMap<String, f64> {
        let totals = &self.totals;
        let all = totals.pages_sent + totals.pages_back + totals.pages_referenced;
        let own = [("sent", totals.pages_sent), ("stream", totals.pages_back)];
        let sources = self
            .sources
            .iter()
            .map(|source| (source.name.as_str(), source.hits));
        own.into_iter()
            .chain(sources)
            .filter(|&(_, pages)| pages > 0 && all > 0)
            .map(|(name, pages)| (name.to_owned(), pages as f64 / all as f64))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_pages_that_are_not_zero() {
        let text = r#"{
            "schema": 1, "role": "receive",
            "totals": {
                "phase": "ended", "stream_bytes": 9, "wire_bytes": 5, "pages_sent": 1,
                "pages_back": 1, "pages_referenced": 2, "pages_zero_body": 4, "pages_zero": 100
            },
            "sources": [
                { "name": "module", "hits": 2, "misses": 0 },
                { "name": "store", "hits": 0, "misses": 2 }
            ]
        }"#;
        let told = Told::parse(text).unwrap();
        let ratios = told.hit_ratios();
        assert_eq!(ratios.len(), 3);
        assert_eq!(ratios["sent"], 0.25);
        assert_eq!(ratios["stream"], 0.25);
        assert_eq!(ratios["module"], 0.5);
        assert!(Told::default().hit_ratios().is_empty());
    }
}
