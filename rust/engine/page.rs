// SPDX-License-Identifier: GPL-2.0

//! What is remembered of one page: 17 bytes.
//!
//! A page is in one of these states:
//!
//! | kind     | key            | link           | in the tree | counts as                    |
//! |----------|----------------|----------------|-------------|------------------------------|
//! | Unseen   | -              | -              | no          | unseen                       |
//! | Absent   | -              | -              | no          | absent                       |
//! | Listed   | key            | tree           | yes         | unshared                     |
//! | Parked   | key            | -              | no          | unshared; if huge: skip huge |
//! | Volatile | class or 0     | -              | no          | volatile                     |
//! | Merged   | -              | merged copy    | no          | merged                       |
//! | Zero     | -              | -              | no          | zero                         |
//! | Skipped  | reason         | -              | no          | skip of that reason          |
//!
//! *Listed* pages are candidates: others of the same key ([`super::key`]) find them. *Parked* is a
//! page whose key is known but whose place in the tree another page or a merged copy has, or which
//! has just come to rest; it merges when it is looked at next and can. A *volatile* page is
//! recognized by its class; one whose bytes differed from those of the same hash, by that hash.

use super::{
    key::{
        self,
        UNKNOWN, //
    },
    stats::Gauge,
    world::{
        Skip,
        BLOCK_PAGES, //
    },
};

/// Blocks that page numbers have room for.
pub const MAX_BLOCKS: u32 = 1 << 21;

/// Set in numbers that mean a merged copy.
const COPY: u32 = 1 << 30;

/// Bits of a page number that say which page of the block.
const INDEX_BITS: u32 = BLOCK_PAGES.trailing_zeros();

const INDEX_MASK: u32 = (1 << INDEX_BITS) - 1;

/// Number of a page: its block's number and its index there. Below 2^30.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageId(u32);

impl PageId {
    /// Returns the number of a page.
    pub const fn new(block: u32, index: usize) -> Self {
        // CAST: Indexes are below 512.
        let index = index as u32 & INDEX_MASK;
        Self(((block & (MAX_BLOCKS - 1)) << INDEX_BITS) | index)
    }

    /// Returns the number of its block.
    pub const fn block(self) -> u32 {
        self.0 >> INDEX_BITS
    }

    /// Returns its index in the block.
    pub const fn index(self) -> usize {
        // CAST: `usize` is wider.
        (self.0 & INDEX_MASK) as usize
    }
}

/// Number of a merged copy, below 2^30 - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CopyId(pub u32);

/// What a node of the tree stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A page that is a candidate.
    Page(PageId),
    /// A merged copy.
    Copy(CopyId),
}

impl Place {
    /// Returns the number of the node.
    pub const fn node(self) -> u32 {
        match self {
            Self::Page(page) => page.0,
            Self::Copy(copy) => copy.0 | COPY,
        }
    }

    /// Returns what the node of that number stands for.
    pub const fn of_node(node: u32) -> Self {
        if node & COPY == 0 {
            Self::Page(PageId(node))
        } else {
            Self::Copy(CopyId(node & (COPY - 1)))
        }
    }
}

/// The state of a page, see the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Not looked at, or not the guest's.
    Unseen,
    /// Nothing is mapped.
    Absent,
    /// A candidate in the tree.
    Listed,
    /// Hash known, not in the tree.
    Parked,
    /// Content changed since the look before the last.
    Volatile,
    /// Maps a merged copy.
    Merged,
    /// Maps the shared zero page, by us.
    Zero,
    /// Cannot be merged.
    Skipped,
}

/// How seldom a page is looked at: at level `n` in one of 2^n passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(u8);

impl Level {
    /// In every pass.
    pub const ALWAYS: Self = Self(0);
    /// In every other pass.
    pub const SECOND: Self = Self(1);
    /// The most seldom that patience alone makes it.
    pub const PATIENT: Self = Self(4);
    /// The most seldom: long for what can hardly merge, not for ever if that was a coincidence.
    pub const LAST: Self = Self(5);

    /// Returns the next level, at most [`Self::PATIENT`].
    pub fn raised(self) -> Self {
        Self(self.0.saturating_add(1)).min(Self::PATIENT)
    }

    /// Returns whether a page of that index is due in that pass, or was in one of those before it
    /// in which its block was not visited: `stride` passes in all.
    pub fn is_due(self, pass: u64, stride: u64, index: usize) -> bool {
        let mask = 1_u64.wrapping_shl(u32::from(self.0)).wrapping_sub(1);
        // CAST: `usize` is 64 bits wide. OVERFLOW: Only low bits count.
        pass.wrapping_add(index as u64) & mask < stride
    }
}

/// Kind, level and two marks of a page in one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta(u8);

impl Meta {
    /// What a page starts as.
    pub const UNSEEN: Self = Self(0);

    /// The low bits, which are the number of the [`Kind`].
    pub const KIND_BITS: usize = 3;

    /// The bit of pages that were in a large folio when last looked at.
    pub const HUGE_BIT: u32 = 6;

    const HUGE: u8 = 1 << Self::HUGE_BIT;
    const MARK: u8 = 1 << 7;

    /// Returns the state.
    pub const fn kind(self) -> Kind {
        match self.0 & 7 {
            0 => Kind::Unseen,
            1 => Kind::Absent,
            2 => Kind::Listed,
            3 => Kind::Parked,
            4 => Kind::Volatile,
            5 => Kind::Merged,
            6 => Kind::Zero,
            _ => Kind::Skipped,
        }
    }

    /// Returns how seldom the page is looked at.
    pub const fn level(self) -> Level {
        Level((self.0 >> 3) & 7)
    }

    /// Returns whether the page was in a large folio when last looked at.
    pub const fn is_huge(self) -> bool {
        self.0 & Self::HUGE != 0
    }

    /// Returns all of it.
    pub const fn byte(self) -> u8 {
        self.0
    }
}

/// What is remembered of a page, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// State.
    pub kind: Kind,
    /// Key of the content, or reason of skipping.
    pub key: u64,
    /// The merged copy that a [`Kind::Merged`] page maps.
    pub copy: CopyId,
    /// How seldom it is looked at.
    pub level: Level,
    /// Whether it was in a large folio.
    pub huge: bool,
    /// Of a listed huge page: a twin has found it since its block was judged. Of a small page: its
    /// bytes differed from those of a page or copy of the same hash, and its hash has not changed
    /// since.
    pub mark: bool,
}

impl Record {
    /// A page that was not looked at.
    pub const UNSEEN: Self = Self {
        kind: Kind::Unseen,
        key: UNKNOWN,
        copy: CopyId(0),
        level: Level::ALWAYS,
        huge: false,
        mark: false,
    };

    /// Returns a record of that kind without a key.
    pub const fn of(kind: Kind) -> Self {
        Self {
            kind,
            ..Self::UNSEEN
        }
    }

    /// Returns a record of a page that cannot be merged.
    pub const fn skipped(reason: Skip) -> Self {
        Self {
            kind: Kind::Skipped,
            // CAST: The number of an enum.
            key: reason as u64,
            ..Self::UNSEEN
        }
    }

    /// Returns the byte that kind, level and marks are kept in.
    pub const fn meta(&self) -> Meta {
        let huge = if self.huge { Meta::HUGE } else { 0 };
        let mark = if self.mark { Meta::MARK } else { 0 };
        // CAST: The number of an enum.
        Meta(self.kind as u8 | ((self.level.0 & 7) << 3) | huge | mark)
    }

    /// Unpacks a record.
    pub const fn unpack(meta: Meta, key: u64, link: u32) -> Self {
        let copy = match meta.kind() {
            Kind::Merged => CopyId(link),
            _ => CopyId(0),
        };
        Self {
            kind: meta.kind(),
            key,
            copy,
            level: meta.level(),
            huge: meta.is_huge(),
            mark: meta.0 & Meta::MARK != 0,
        }
    }

    /// Returns what the page counts as.
    pub fn gauge(&self) -> Gauge {
        match self.kind {
            Kind::Unseen => Gauge::Unseen,
            Kind::Absent => Gauge::Absent,
            Kind::Parked if self.huge => Gauge::Skip(Skip::Huge),
            Kind::Listed | Kind::Parked => Gauge::Unshared,
            Kind::Volatile => Gauge::Volatile,
            Kind::Merged => Gauge::Merged,
            Kind::Zero => Gauge::Zero,
            Kind::Skipped => {
                let reason = usize::try_from(self.key)
                    .ok()
                    .and_then(|number| Skip::ALL.get(number));
                Gauge::Skip(reason.copied().unwrap_or(Skip::Special))
            }
        }
    }

    /// Returns whether something is known of the page's content.
    pub fn has_key(&self) -> bool {
        matches!(self.kind, Kind::Listed | Kind::Parked | Kind::Volatile) && self.key != UNKNOWN
    }

    /// Returns whether that is the hash of all of it.
    pub fn has_whole_key(&self) -> bool {
        self.has_key() && key::is_whole(self.key)
    }

    /// Returns whether it is a volatile page of which only a sample is known.
    pub fn has_sample(&self) -> bool {
        self.kind == Kind::Volatile && self.has_key() && !key::is_whole(self.key)
    }

    /// Returns whether it is a huge page that would merge if it were split.
    pub fn waits_for_split(&self) -> bool {
        self.huge && self.kind == Kind::Parked
    }

    /// Returns whether it is a huge page that a twin has found since its block was judged.
    pub fn has_vote(&self) -> bool {
        self.huge && self.kind == Kind::Listed && self.mark
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_page))]
pub(crate) mod tests {
    use super::*;

    /// All of them.
    pub(crate) const KINDS: [Kind; 8] = [
        Kind::Unseen,
        Kind::Absent,
        Kind::Listed,
        Kind::Parked,
        Kind::Volatile,
        Kind::Merged,
        Kind::Zero,
        Kind::Skipped,
    ];

    #[test]
    fn records_come_back_as_they_were() {
        for kind in KINDS {
            for bits in 0..32_u8 {
                let record = Record {
                    kind,
                    key: 0x0123_4567_89ab_cdef,
                    copy: match kind {
                        Kind::Merged => CopyId(77),
                        _ => CopyId(0),
                    },
                    level: Level(bits & 7),
                    huge: bits & 8 != 0,
                    mark: bits & 16 != 0,
                };
                assert_eq!(Record::unpack(record.meta(), record.key, 77), record);
            }
        }
    }

    #[test]
    fn the_record_of_an_unseen_page_is_all_zeroes() {
        assert_eq!(Record::UNSEEN.meta(), Meta::UNSEEN);
        assert_eq!(core::mem::size_of::<Meta>(), 1);
    }

    #[test]
    fn numbers_of_pages_and_copies_do_not_meet() {
        let pages = [(0, 0), (0, 511), (1, 0), (MAX_BLOCKS - 1, 511)];
        for (block, index) in pages {
            let page = PageId::new(block, index);
            assert_eq!((page.block(), page.index()), (block, index));
            assert_eq!(Place::of_node(Place::Page(page).node()), Place::Page(page));
        }
        for number in [0, 1, (1 << 30) - 2] {
            let place = Place::Copy(CopyId(number));
            assert_eq!(Place::of_node(place.node()), place);
            assert!(place.node() < crate::engine::node::NIL);
        }
    }

    #[test]
    fn every_page_is_due_once_in_its_turn() {
        for bits in 0..8_u8 {
            let level = Level(bits);
            let passes = 1_u64 << bits;
            for index in [0_usize, 1, 7, 511] {
                for stride in [1_u64, 2, 4] {
                    let due = (0..passes)
                        .filter(|turn| level.is_due(turn.wrapping_mul(stride), stride, index))
                        .count();
                    // CAST: At most 4 passes.
                    assert_eq!(due, passes.min(stride) as usize);
                }
            }
        }
    }

    #[test]
    fn patience_has_an_end() {
        let mut level = Level::ALWAYS;
        for _ in 0..10 {
            level = level.raised();
        }
        assert_eq!(level, Level::PATIENT);
        assert_eq!(Level::LAST.raised(), Level::PATIENT);
    }

    #[test]
    fn a_skipped_page_counts_by_its_reason() {
        for reason in Skip::ALL {
            assert_eq!(Record::skipped(reason).gauge(), Gauge::Skip(reason));
        }
    }

    #[test]
    fn only_huge_pages_without_a_place_count_as_huge() {
        for kind in [Kind::Listed, Kind::Parked] {
            for huge in [false, true] {
                let record = Record {
                    huge,
                    ..Record::of(kind)
                };
                let expected = if huge && kind == Kind::Parked {
                    Gauge::Skip(Skip::Huge)
                } else {
                    Gauge::Unshared
                };
                assert_eq!(record.gauge(), expected);
            }
        }
    }
}
