// SPDX-License-Identifier: GPL-2.0

//! Pages, stores and sources that tests are made of.

use std::ops::ControlFlow;
use std::path::Path;

use tempfile::TempDir;
use twinpage_store::{
    Admit,
    Digest,
    Offered,
    Page,
    Progress,
    Settings,
    SourceId,
    Store,
    Trust, //
};

/// A page of a number; equal numbers, equal pages, and none of them zeros.
pub fn page(number: u64) -> Page {
    let mut page = [0; 4096];
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in page.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    page[..8].copy_from_slice(&number.to_le_bytes());
    page
}

/// The digest of the page of a number.
pub fn digest(number: u64) -> Digest {
    Digest::of(&page(number))
}

/// A directory in which nothing is yet.
pub fn directory() -> TempDir {
    tempfile::Builder::new()
        .prefix("twinpage-store-")
        .tempdir()
        .unwrap()
}

/// A new store in `directory` that needs so many sources.
pub fn store(directory: &Path, sources_needed: u32) -> Store {
    Store::create(&directory.join("store"), &Settings { sources_needed }).unwrap()
}

/// Offers the page of a number.
pub fn offer(into: &mut dyn Admit, source: &str, trust: Trust, number: u64) -> Offered {
    into.offer(
        &SourceId::new(source),
        trust,
        &digest(number),
        &page(number),
    )
    .unwrap()
}

/// Loads the pages of `numbers` from a public source, into a part of their own.
pub fn load(store: &mut Store, numbers: impl IntoIterator<Item = u64>) {
    let mut load = store.load().unwrap();
    for number in numbers {
        offer(&mut load, "public", Trust::Public, number);
    }
    load.finish().unwrap();
}

/// Loads the pages of `numbers` as a whole build does.
pub fn publish(store: &mut Store, numbers: impl IntoIterator<Item = u64>) {
    load(store, numbers);
    store.merge(&mut go_on).unwrap();
}

/// Goes on whatever is done.
pub fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Random numbers from a seed.
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
