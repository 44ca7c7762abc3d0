// SPDX-License-Identifier: GPL-2.0

//! Writing segments anew: without bad pages, without old pages, several as one.

use super::manifest::{
    Manifest,
    SegmentEntry, //
};
use super::segment::{
    Found,
    Segment, //
};
use super::writer::SegmentWriter;
use super::{
    Collected,
    Limits,
    Store,
    Verified, //
};
use crate::error::Error;
use crate::store::candidates::CandidatesWriter;
use crate::watch::{
    step,
    Watch, //
};

/// Pages between two reports of progress.
const REPORT: u64 = 4096;

/// Days that a day of last use can be.
const DAYS: usize = 1 << 16;

/// Counts pages and reports now and then.
struct Meter<'w> {
    watch: Watch<'w>,
    done: u64,
    total: u64,
}

impl<'w> Meter<'w> {
    /// Nothing of `total` pages is done.
    fn new(watch: Watch<'w>, total: u64) -> Self {
        Self {
            watch,
            done: 0,
            total,
        }
    }

    /// One more page is done.
    fn count(&mut self) -> Result<(), Error> {
        self.done += 1;
        if self.done % REPORT == 0 || self.done == self.total {
            step(self.watch, self.done, self.total)?;
        }
        Ok(())
    }
}

/// Which pages of a store stay: those used on a later day than `day`, and `more` of that day.
struct Keep {
    day: u16,
    more: u64,
}

impl Keep {
    /// Whether a page that was last used on `day` stays.
    fn wants(&mut self, day: u16) -> bool {
        if day == self.day && self.more > 0 {
            self.more -= 1;
            return true;
        }
        day > self.day
    }
}

impl Store {
    /// Hashes all pages and says how many are bad.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`], or when a file cannot be read at all.
    pub fn verify(&self, watch: Watch<'_>) -> Result<Verified, Error> {
        let mut meter = Meter::new(watch, self.pages());
        let mut verified = Verified::default();
        for segment in &self.segments {
            segment.scan(&mut |found| {
                verified.pages += 1;
                verified.bad += u64::from(!found.good);
                meter.count()
            })?;
        }
        Ok(verified)
    }

    /// Hashes all pages and drops those that are bad.
    ///
    /// # Errors
    ///
    /// As [`Store::verify`], and when the store was opened for reading or cannot be written. It is
    /// as before then.
    pub fn repair(&mut self, watch: Watch<'_>) -> Result<Verified, Error> {
        self.directory.check_writer()?;
        let mut meter = Meter::new(watch, self.pages().saturating_mul(2));
        let mut verified = Verified::default();
        let mut hurt = Vec::new();
        for segment in &self.segments {
            let before = verified.bad;
            segment.scan(&mut |found| {
                verified.pages += 1;
                verified.bad += u64::from(!found.good);
                meter.count()
            })?;
            if verified.bad > before {
                hurt.push(segment.number());
            }
        }
        if !hurt.is_empty() {
            self.rewrite(&hurt, false, &mut |_, found| {
                verified.dropped += u64::from(!found.good);
                meter.count()?;
                Ok(found.good)
            })?;
        }
        Ok(verified)
    }

    /// Drops pages and candidates beyond `limits`, those that were not used for longest first.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`], [`Error::ReadOnly`], or when files cannot be read or written. The pages
    /// are as before then.
    pub fn gc(&mut self, limits: &Limits, watch: Watch<'_>) -> Result<Collected, Error> {
        self.directory.check_writer()?;
        let mut collected = Collected {
            bytes_before: self.bytes_on_disk()?,
            ..Collected::default()
        };
        let before = self.pages();
        let mut keep = self.keep(limits)?;
        let hurt = self.segments_with_old_pages(&keep)?;
        let mut meter = Meter::new(watch, self.pages_of(&hurt));
        self.rewrite(&hurt, false, &mut |segment, found| {
            meter.count()?;
            Ok(keep.wants(segment.day(found.slot)?))
        })?;
        collected.pages_kept = self.pages();
        collected.pages_dropped = before - collected.pages_kept;
        if let Some(days) = limits.max_candidate_days {
            collected.candidates_dropped = self.forget_candidates(days)?;
        }
        collected.candidates_kept = self.manifest.candidates.as_ref().map_or(0, |it| it.count);
        collected.bytes_after = self.bytes_on_disk()?;
        Ok(collected)
    }

    /// Makes one segment of those from one on that is not twice as large as the next, so that there
    /// are few of them. Damaged ones stay as they are, for `repair`; all do if there is no room for
    /// the new one, until the next time.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`], [`Error::ReadOnly`], or when files cannot be read or written. The pages
    /// are as before then, and the next time goes on with it.
    pub fn merge(&mut self, watch: Watch<'_>) -> Result<(), Error> {
        self.directory.check_writer()?;
        let is_small = |pair: &[SegmentEntry]| pair[0].pages / 2 < pair[1].pages;
        while let Some(first) = self.manifest.segments.windows(2).rposition(is_small) {
            let tail = &self.manifest.segments[first..];
            let numbers: Vec<_> = tail.iter().map(|entry| entry.number).collect();
            let mut meter = Meter::new(&mut *watch, self.pages_of(&numbers));
            let merged = self.rewrite(&numbers, true, &mut |segment, found| {
                meter.count()?;
                let what = || Error::damaged(segment.pages_path(), "it has bad pages");
                found.good.then_some(true).ok_or_else(what)
            });
            match merged {
                Err(error) if matches!(error, Error::Damaged { .. }) || error.no_room() => break,
                merged => merged?,
            }
        }
        Ok(())
    }

    /// Writes the segments with these `numbers` anew, with the pages that `keep` wants; as one, or
    /// each by itself.
    fn rewrite(
        &mut self,
        numbers: &[u64],
        as_one: bool,
        keep: &mut dyn FnMut(&Segment, &Found<'_>) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let made = self.write_anew(numbers, as_one, keep);
        match made {
            Ok(manifest) => self.publish(manifest),
            Err(error) => {
                self.sweep()?;
                Err(error)
            }
        }
    }

    /// The work of `rewrite`, up to what the manifest should be.
    fn write_anew(
        &mut self,
        numbers: &[u64],
        as_one: bool,
        keep: &mut dyn FnMut(&Segment, &Found<'_>) -> Result<bool, Error>,
    ) -> Result<Manifest, Error> {
        let mut manifest = self.manifest.clone();
        manifest.segments.clear();
        let mut open: Option<SegmentWriter> = None;
        for (segment, entry) in self.segments.iter().zip(&self.manifest.segments) {
            if !numbers.contains(&entry.number) {
                manifest.segments.push(entry.clone());
                continue;
            }
            let mut writer = match open.take() {
                Some(writer) => writer,
                None => SegmentWriter::new(&self.directory, manifest.take_number())?,
            };
            segment.scan(&mut |found| {
                // A bad page has no digest under which it could be found.
                if keep(segment, &found)? && found.good {
                    writer.push(&found.digest, found.page, segment.day(found.slot)?)?;
                }
                Ok(())
            })?;
            if as_one {
                open = Some(writer);
            } else {
                manifest.segments.push(writer.finish()?);
            }
        }
        if let Some(writer) = open {
            manifest.segments.push(writer.finish()?);
        }
        manifest.segments.retain(|entry| entry.pages > 0);
        Ok(manifest)
    }

    /// Which pages stay within `limits`.
    fn keep(&self, limits: &Limits) -> Result<Keep, Error> {
        let mut by_day = vec![0u64; DAYS];
        for segment in &self.segments {
            segment.days(&mut |day| by_day[usize::from(day)] += 1)?;
        }
        let most = limits
            .max_bytes
            .map_or(u64::MAX, |bytes| bytes / twinpage_wire::PAGE_BYTES as u64);
        let oldest = match limits.max_unused_days {
            Some(days) => super::days_ago(days),
            None => 0,
        };
        let mut room = most;
        for (day, pages) in (0..=u16::MAX).zip(by_day).rev() {
            if day < oldest || pages > room {
                let more = if day < oldest { 0 } else { room };
                return Ok(Keep { day, more });
            }
            room -= pages;
        }
        Ok(Keep {
            day: 0,
            more: u64::MAX,
        })
    }

    /// The segments that have pages which may have to go.
    fn segments_with_old_pages(&self, keep: &Keep) -> Result<Vec<u64>, Error> {
        let mut hurt = Vec::new();
        if keep.more == u64::MAX {
            return Ok(hurt);
        }
        for segment in &self.segments {
            let mut old = false;
            segment.days(&mut |day| old |= day <= keep.day)?;
            if old {
                hurt.push(segment.number());
            }
        }
        Ok(hurt)
    }

    /// How many pages the segments with these numbers have.
    fn pages_of(&self, numbers: &[u64]) -> u64 {
        let some = self
            .segments
            .iter()
            .filter(|segment| numbers.contains(&segment.number()));
        some.map(|segment| segment.pages()).sum()
    }

    /// Drops candidates that were not seen in a further source for so many days.
    fn forget_candidates(&mut self, days: u32) -> Result<u64, Error> {
        let Some(base) = self.manifest.candidates.clone() else {
            return Ok(0);
        };
        let mut manifest = self.manifest.clone();
        let number = manifest.take_number();
        let day = super::today();
        let mut writer = CandidatesWriter::new(&self.directory, number, Some(&base), day)?;
        let dropped = writer.forget_before(super::days_ago(days))?;
        let entry = writer.finish()?;
        manifest.candidates = (entry.count > 0).then_some(entry);
        self.publish(manifest)?;
        Ok(dropped)
    }
}
