// SPDX-License-Identifier: GPL-2.0

//! Loading pages into a fleet, many with one round trip.

use std::collections::HashMap;

use redis::cluster::cluster_pipe;
use twinpage_wire::{
    Digest,
    Page, //
};

use super::{
    page_key,
    Fleet,
    CANDIDATE_DAYS,
    SEEN_KEY, //
};
use crate::admit::{
    Admit,
    Loaded,
    Offered,
    SourceId,
    Trust, //
};
use crate::error::Error;
use crate::tag::{
    SourceTag,
    Tagger, //
};

/// Pages that are decided together. They are in memory until then.
const BATCH: usize = 256;

/// Pages on their way into a fleet.
pub struct FleetLoad<'f> {
    fleet: &'f Fleet,
    tagger: Option<Tagger>,
    batch: HashMap<Digest, Waiting>,
    loaded: Loaded,
}

/// A page that waits for its decision.
struct Waiting {
    page: Box<Page>,
    public: bool,
    sources: Vec<SourceTag>,
    offered: u64,
}

impl<'f> FleetLoad<'f> {
    /// Begins to load.
    pub(super) fn new(fleet: &'f Fleet) -> Self {
        Self {
            fleet,
            tagger: fleet.key.as_ref().map(Tagger::new),
            batch: HashMap::new(),
            loaded: Loaded::default(),
        }
    }

    /// Decides what waits.
    fn flush(&mut self) -> Result<(), Error> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch: Vec<_> = self.batch.drain().collect();
        let mut pipe = cluster_pipe();
        for (digest, _) in &batch {
            pipe.cmd("EXISTS").arg(page_key(digest));
        }
        let there: Vec<bool> = self.fleet.client.ask_all("look for pages", &pipe)?;
        check("EXISTS", there.len(), batch.len())?;
        let (present, new): (Vec<_>, Vec<_>) = batch.into_iter().zip(there).partition(|it| it.1);
        self.count(
            Offered::Present,
            present.iter().map(|it| it.0 .1.offered).sum(),
        );
        let (public, counted): (Vec<_>, Vec<_>) =
            new.into_iter().map(|it| it.0).partition(|it| it.1.public);
        let (enough, few) = self.seen_enough(counted)?;
        self.count(Offered::Counted, few);
        self.write(public.into_iter().chain(enough).collect())
    }

    /// Counts the sources of candidates: those that are seen enough, and how many offers are of
    /// others.
    fn seen_enough(
        &self,
        candidates: Vec<(Digest, Waiting)>,
    ) -> Result<(Vec<(Digest, Waiting)>, u64), Error> {
        if candidates.is_empty() {
            return Ok((candidates, 0));
        }
        let tagger = self.tagger.as_ref().ok_or(Error::NoKey)?;
        let mut pipe = cluster_pipe();
        for (digest, waiting) in &candidates {
            let key = [SEEN_KEY, &tagger.page(digest)].concat();
            let sources: Vec<&[u8]> = waiting.sources.iter().map(|tag| &tag[..]).collect();
            pipe.cmd("SADD").arg(&key).arg(&sources).ignore();
            pipe.cmd("EXPIRE")
                .arg(&key)
                .arg(CANDIDATE_DAYS * 24 * 60 * 60)
                .ignore();
            pipe.cmd("SCARD").arg(&key);
        }
        let seen: Vec<u64> = self.fleet.client.ask_all("count sources", &pipe)?;
        check("SCARD", seen.len(), candidates.len())?;
        let needed = u64::from(self.fleet.sources_needed);
        let (enough, few): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .zip(seen)
            .partition(|it| it.1 >= needed);
        let few = few.iter().map(|it| it.0 .1.offered).sum();
        Ok((enough.into_iter().map(|it| it.0).collect(), few))
    }

    /// Writes pages, whose digests were only claimed until now.
    fn write(&mut self, pages: Vec<(Digest, Waiting)>) -> Result<(), Error> {
        if pages.is_empty() {
            return Ok(());
        }
        let mut pipe = cluster_pipe();
        for (digest, waiting) in &pages {
            let found = Digest::of(&waiting.page);
            if found != *digest {
                return Err(Error::WrongDigest {
                    given: *digest,
                    found,
                });
            }
            pipe.cmd("SET")
                .arg(page_key(digest))
                .arg(&waiting.page[..])
                .ignore();
            if let (false, Some(tagger)) = (waiting.public, &self.tagger) {
                let key = [SEEN_KEY, &tagger.page(digest)].concat();
                pipe.cmd("DEL").arg(&key).ignore();
            }
        }
        self.fleet.client.ask_all::<()>("take pages", &pipe)?;
        self.count(Offered::Admitted, pages.len() as u64);
        // The same page again in one batch.
        let repeated = pages.iter().map(|it| it.1.offered - 1).sum();
        self.count(Offered::Present, repeated);
        Ok(())
    }

    /// Counts `times` offers.
    fn count(&mut self, offered: Offered, times: u64) {
        for _ in 0..times {
            self.loaded.count(offered);
        }
    }
}

/// Refuses another number of answers than of questions.
fn check(action: &'static str, answers: usize, questions: usize) -> Result<(), Error> {
    if answers == questions {
        return Ok(());
    }
    Err(Error::Answer {
        action,
        what: format!("{answers} answers instead of {questions}"),
    })
}

impl Admit for FleetLoad<'_> {
    fn offer(
        &mut self,
        source: &SourceId,
        trust: Trust,
        digest: &Digest,
        page: &Page,
    ) -> Result<Offered, Error> {
        if twinpage_wire::is_zero(page) {
            self.loaded.count(Offered::Zero);
            return Ok(Offered::Zero);
        }
        let source = match (trust, &self.tagger) {
            (Trust::Public, _) => None,
            (Trust::Counted, None) => return Err(Error::NoKey),
            (Trust::Counted, Some(tagger)) => Some(tagger.source(source)),
        };
        let waiting = self.batch.entry(*digest).or_insert_with(|| Waiting {
            page: Box::new(*page),
            public: false,
            sources: Vec::new(),
            offered: 0,
        });
        waiting.offered += 1;
        match source {
            None => waiting.public = true,
            Some(source) if !waiting.sources.contains(&source) => waiting.sources.push(source),
            Some(_) => (),
        }
        if self.batch.len() >= BATCH {
            self.flush()?;
        }
        Ok(Offered::Later)
    }

    fn finish(&mut self) -> Result<(), Error> {
        self.flush()
    }

    fn loaded(&self) -> Loaded {
        self.loaded
    }
}
