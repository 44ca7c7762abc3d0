// SPDX-License-Identifier: GPL-2.0

//! Loading pages into a store.

use twinpage_wire::{
    Digest,
    Page, //
};

use super::candidates::CandidatesWriter;
use super::writer::SegmentWriter;
use super::{
    today,
    Store, //
};
use crate::admit::{
    Admit,
    Loaded,
    Offered,
    SourceId,
    Trust, //
};
use crate::error::Error;
use crate::tag::Tagger;

/// Pages on their way into a store.
///
/// They become visible with [`Admit::finish`]. What is dropped before that leaves no trace.
pub struct Load<'s> {
    store: &'s mut Store,
    tagger: Tagger,
    segment: Option<SegmentWriter>,
    candidates: Option<CandidatesWriter>,
    loaded: Loaded,
    day: u16,
}

impl<'s> Load<'s> {
    /// Begins to load.
    pub(super) fn new(store: &'s mut Store) -> Result<Self, Error> {
        store.directory.check_writer()?;
        Ok(Self {
            tagger: Tagger::new(&store.directory.key()?),
            store,
            segment: None,
            candidates: None,
            loaded: Loaded::default(),
            day: today(),
        })
    }

    /// Whether the page is in the store or on its way.
    fn is_present(&self, digest: &Digest) -> Result<bool, Error> {
        if let Some((segment, slot)) = self.store.find(digest)? {
            segment.touch(slot, self.day);
            return Ok(true);
        }
        self.segment
            .as_ref()
            .map_or(Ok(false), |segment| segment.contains(digest))
    }

    /// Counts a source of a page that is not public. Whether there are enough now.
    fn is_seen_enough(
        &mut self,
        source: &SourceId,
        digest: &Digest,
        bytes: &Page,
    ) -> Result<bool, Error> {
        let needed = self.store.manifest.sources_needed as usize;
        let page = self.tagger.page(digest);
        let source = self.tagger.source(source);
        let candidates = self.candidates()?;
        let mut sources = candidates.sources(&page)?;
        if sources.contains(&source) {
            return Ok(false);
        }
        sources.push(source);
        let enough = sources.len() >= needed;
        if enough {
            check(digest, bytes)?;
            sources.clear();
        }
        candidates.set(&page, sources)?;
        Ok(enough)
    }

    /// The candidates, copied when they are needed first.
    fn candidates(&mut self) -> Result<&mut CandidatesWriter, Error> {
        if self.candidates.is_none() {
            let number = self.store.manifest.take_number();
            let base = self.store.manifest.candidates.as_ref();
            let new = CandidatesWriter::new(&self.store.directory, number, base, self.day)?;
            return Ok(self.candidates.insert(new));
        }
        self.candidates.as_mut().ok_or(Error::Stopped)
    }

    /// Writes a page whose digest was checked.
    fn admit(&mut self, digest: &Digest, page: &Page) -> Result<(), Error> {
        if let Some(segment) = &mut self.segment {
            return segment.push(digest, page, self.day);
        }
        let number = self.store.manifest.take_number();
        let new = SegmentWriter::new(&self.store.directory, number)?;
        self.segment.insert(new).push(digest, page, self.day)
    }

    /// What becomes of a page.
    fn decide(
        &mut self,
        source: &SourceId,
        trust: Trust,
        digest: &Digest,
        page: &Page,
    ) -> Result<Offered, Error> {
        if twinpage_wire::is_zero(page) {
            return Ok(Offered::Zero);
        }
        if self.is_present(digest)? {
            return Ok(Offered::Present);
        }
        let enough = match trust {
            Trust::Public => check(digest, page).map(|()| true)?,
            Trust::Counted => self.is_seen_enough(source, digest, page)?,
        };
        if !enough {
            return Ok(Offered::Counted);
        }
        self.admit(digest, page)?;
        Ok(Offered::Admitted)
    }
}

/// Refuses a page that was offered under the digest of another.
fn check(digest: &Digest, page: &Page) -> Result<(), Error> {
    let found = Digest::of(page);
    if found == *digest {
        return Ok(());
    }
    Err(Error::WrongDigest {
        given: *digest,
        found,
    })
}

impl Admit for Load<'_> {
    fn offer(
        &mut self,
        source: &SourceId,
        trust: Trust,
        digest: &Digest,
        page: &Page,
    ) -> Result<Offered, Error> {
        let offered = self.decide(source, trust, digest, page)?;
        self.loaded.count(offered);
        Ok(offered)
    }

    fn finish(&mut self) -> Result<(), Error> {
        let mut manifest = self.store.manifest.clone();
        if let Some(segment) = self.segment.take() {
            manifest.segments.push(segment.finish()?);
        }
        if let Some(candidates) = self.candidates.take() {
            manifest.candidates = Some(candidates.finish()?);
        }
        if manifest == self.store.manifest {
            return Ok(());
        }
        self.store.publish(manifest)
    }

    fn loaded(&self) -> Loaded {
        self.loaded
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.segment = None;
        self.candidates = None;
        // What cannot be removed now is removed when the store is opened for writing next.
        let _ = self.store.sweep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::PageSource;
    use crate::store::{
        Mode,
        Settings, //
    };

    #[test]
    fn pages_stay_when_the_disk_fails_after_the_manifest_was_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let mut store = Store::create(&path, &Settings::default()).unwrap();
        let page = [7; 4096];
        let digest = Digest::of(&page);
        let mut load = store.load().unwrap();
        load.offer(&SourceId::new("a"), Trust::Public, &digest, &page)
            .unwrap();
        // As far as publishing comes when the last wait for the disk fails.
        let mut manifest = load.store.manifest.clone();
        let segment = load.segment.take().unwrap();
        manifest.segments.push(segment.finish().unwrap());
        let files = &load.store.directory;
        let bytes = manifest.encode(&files.manifest_path()).unwrap();
        files.replace_manifest(&bytes).unwrap();
        drop(load);
        let reader = Store::open(&path, Mode::Read).unwrap();
        assert!(reader.fetch(&digest, &mut [0; 4096]).unwrap());
    }
}
