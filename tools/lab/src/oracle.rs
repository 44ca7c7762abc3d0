// SPDX-License-Identifier: GPL-2.0

//! How many pages could be merged, and how many are: counted from contents and page tables alone.
//!
//! A [`Snapshot`] notes for each mapped page its content (as a 128-bit hash of our own, unrelated
//! to the module's) and its frame. Pages of equal content are a group. Of a group of *n* pages in
//! *f* frames, *n* - 1 could be saved and *n* - *f* are. Zero pages are a class of their own: each
//! could be saved, as the kernel has a page of zeroes; all are but the frames they take of their own.

use std::collections::{
    HashMap,
    HashSet, //
};
use std::io;
use std::thread;

use crate::pagemap::{
    Frame,
    Frames,
    Pagemap,
    PAGE_BYTES, //
};
use crate::process::Bytes;

/// A range of a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The process.
    pub pid: u32,
    /// First address.
    pub address: u64,
    /// How many pages.
    pub pages: usize,
}

/// One mapped page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which of the ranges it is in.
    pub range: usize,
    /// Its number there.
    pub page: usize,
    /// Its content.
    pub content: Content,
    /// Its frame.
    pub frame: Frame,
    /// Whether the frame is the kernel's page of zeroes.
    pub zero_frame: bool,
    /// Whether the frame is part of a huge page.
    pub huge: bool,
    /// How many page table entries map the frame, in whatever process.
    pub mappings: u64,
}

/// What a page holds: zeroes, or something with this hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// Nothing but zeroes.
    Zero,
    /// Something else.
    Hash(u128),
}

impl Content {
    /// Looks at a page.
    pub fn of(page: &[u8; 4096]) -> Content {
        let (mut a, mut b, mut any) = (0x243f_6a88_85a3_08d3_u64, 0x1319_8a2e_0370_7344_u64, 0);
        for word in page.chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            any |= word;
            a = (a ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25);
            a ^= a >> 29;
            b = (b.rotate_left(31) ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93);
            b ^= b >> 32;
        }
        if any == 0 {
            return Content::Zero;
        }
        Content::Hash((u128::from(a) << 64) | u128::from(b))
    }
}

/// All mapped pages of some ranges. The processes should rest while it is taken.
pub struct Snapshot {
    /// The pages.
    pub seen: Vec<Seen>,
}

impl Snapshot {
    /// Takes a snapshot, of all ranges at the same time. Pages that are not mapped have no content to
    /// look at, and are left alone.
    ///
    /// # Errors
    ///
    /// A process is gone, or its memory cannot be read.
    pub fn of(ranges: &[Range]) -> io::Result<Snapshot> {
        let frames = &Frames::open()?;
        thread::scope(|scope| {
            let look = |(index, range)| scope.spawn(move || pages(index, range, frames));
            let looks: Vec<_> = ranges.iter().enumerate().map(look).collect();
            let mut seen = Vec::new();
            for look in looks {
                seen.extend(
                    look.join()
                        .map_err(|_| io::Error::other("a look panicked"))??,
                );
            }
            Ok(Snapshot { seen })
        })
    }

    /// Counts the whole snapshot as one domain.
    pub fn judge(&self) -> Judgement {
        Judgement::of(self.seen.iter())
    }

    /// Frames that several of the pages map, and how many of those frames have fewer mappings than
    /// that by the kernel's own count.
    pub fn shared_frames(&self) -> (usize, usize) {
        let mut shared = HashMap::new();
        for seen in self.seen.iter().filter(|seen| !seen.zero_frame) {
            let (pages, mappings) = shared.entry(seen.frame).or_insert((0, seen.mappings));
            *pages += 1;
            *mappings = seen.mappings.max(*mappings);
        }
        shared.retain(|_, (pages, _)| *pages > 1);
        let wrong = shared.values().filter(|(pages, mappings)| mappings < pages);
        (shared.len(), wrong.count())
    }

    /// Frames that pages of more than one range map, other than the page of zeroes.
    pub fn frames_across(&self) -> usize {
        let mut owner = HashMap::new();
        let mut across = HashSet::new();
        for seen in self.seen.iter().filter(|seen| !seen.zero_frame) {
            if *owner.entry(seen.frame).or_insert(seen.range) != seen.range {
                across.insert(seen.frame);
            }
        }
        across.len()
    }
}

/// The mapped pages of the range with this index.
fn pages(index: usize, range: &Range, frames: &Frames) -> io::Result<Vec<Seen>> {
    let entries = Pagemap::of(range.pid)?.read(range.address, range.pages)?;
    let bytes = Bytes::of(range.pid)?;
    let mut buffer = [0; 4096];
    let mut seen = Vec::new();
    for (page, entry) in entries.into_iter().enumerate() {
        let Some(frame) = entry.frame() else { continue };
        let flags = frames.flags(frame)?;
        if !flags.zero() {
            bytes.page(range.address + page as u64 * PAGE_BYTES, &mut buffer)?;
        }
        let content = match flags.zero() {
            true => Content::Zero,
            false => Content::of(&buffer),
        };
        seen.push(Seen {
            range: index,
            page,
            content,
            frame,
            zero_frame: flags.zero(),
            huge: flags.huge(),
            mappings: frames.mappings(frame)?,
        });
    }
    Ok(seen)
}

/// What could be merged and what is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Mapped pages.
    pub mapped: usize,
    /// Pages that could be saved.
    pub possible: usize,
    /// Pages that are saved.
    pub merged: usize,
    /// Zero pages among the possible ones.
    pub zero_possible: usize,
    /// Zero pages among the saved ones.
    pub zero_merged: usize,
    /// Possible pages that are not saved and lie in a huge page.
    pub missed_huge: usize,
    /// Mapped pages that lie in a huge page.
    pub huge: usize,
}

impl Judgement {
    fn of<'a>(pages: impl Iterator<Item = &'a Seen>) -> Judgement {
        let mut judgement = Judgement::default();
        let mut groups: HashMap<u128, Group> = HashMap::new();
        let mut zero_frames = HashSet::new();
        for seen in pages {
            judgement.mapped += 1;
            judgement.huge += usize::from(seen.huge);
            match seen.content {
                Content::Zero => {
                    judgement.zero_possible += 1;
                    judgement.missed_huge += usize::from(!seen.zero_frame && seen.huge);
                    if !seen.zero_frame {
                        zero_frames.insert(seen.frame);
                    }
                }
                Content::Hash(hash) => groups.entry(hash).or_default().add(seen),
            }
        }
        judgement.zero_merged = judgement.zero_possible - zero_frames.len();
        judgement.possible = judgement.zero_possible;
        judgement.merged = judgement.zero_merged;
        for group in groups.values() {
            judgement.possible += group.pages - 1;
            judgement.merged += group.pages - group.frames.len();
            // One frame of the group must stay; a huge one would do for that.
            judgement.missed_huge += group.huge.len().min(group.frames.len() - 1);
        }
        judgement
    }

    /// Saved pages of a thousand possible ones.
    pub fn permille(&self) -> usize {
        match self.possible {
            0 => 1000,
            possible => self.merged * 1000 / possible,
        }
    }
}

#[derive(Default)]
struct Group {
    pages: usize,
    frames: HashSet<Frame>,
    huge: HashSet<Frame>,
}

impl Group {
    fn add(&mut self, seen: &Seen) {
        self.pages += 1;
        self.frames.insert(seen.frame);
        if seen.huge {
            self.huge.insert(seen.frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(range: usize, content: u128, frame: u64) -> Seen {
        Seen {
            range,
            page: 0,
            content: match content {
                0 => Content::Zero,
                hash => Content::Hash(hash),
            },
            frame: Frame(frame),
            zero_frame: frame == 0,
            huge: false,
            mappings: 1,
        }
    }

    #[test]
    fn groups_are_counted_by_content_and_frame() {
        let snapshot = Snapshot {
            // Three of one content in two frames, one alone; a zero page in the page of zeroes, three
            // in two frames of their own.
            seen: vec![
                seen(0, 7, 1),
                seen(0, 7, 1),
                seen(1, 7, 2),
                seen(1, 8, 3),
                seen(0, 0, 0),
                seen(1, 0, 4),
                seen(0, 0, 5),
                seen(1, 0, 5),
            ],
        };
        let judgement = snapshot.judge();
        assert_eq!((judgement.possible, judgement.merged), (6, 3));
        assert_eq!((judgement.zero_possible, judgement.zero_merged), (4, 2));
        assert_eq!((judgement.mapped, judgement.permille()), (8, 500));
    }

    #[test]
    fn a_frame_in_two_ranges_is_across() {
        let mut pages = vec![seen(0, 7, 1), seen(0, 7, 1), seen(0, 0, 0), seen(1, 0, 0)];
        assert_eq!(
            Snapshot {
                seen: pages.clone()
            }
            .frames_across(),
            0
        );
        pages.push(seen(1, 7, 1));
        let snapshot = Snapshot { seen: pages };
        assert_eq!(snapshot.frames_across(), 1);
        // Three pages map the frame, and the kernel is said to count one mapping.
        assert_eq!(snapshot.shared_frames(), (1, 1));
    }

    #[test]
    fn every_byte_counts_for_the_content() {
        let mut page = [0; 4096];
        assert_eq!(Content::of(&page), Content::Zero);
        let mut known = HashSet::new();
        for byte in 0..4096 {
            page[byte] = 1;
            assert!(known.insert(Content::of(&page)));
            page[byte] = 0;
        }
    }
}
