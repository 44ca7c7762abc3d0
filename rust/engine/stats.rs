// SPDX-License-Identifier: GPL-2.0

//! Plain counters, and the sums that hold between them.
//!
//! A *gauge* says how many pages are in a state now. Every page of every guest is in exactly one
//! gauge, so a guest's gauges add up to its pages. A *counter* only ever grows.

use super::world::{
    Skip,
    PAGE_BYTES, //
};

/// What a page counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gauge {
    /// Not looked at yet.
    Unseen,
    /// Nothing is mapped there.
    Absent,
    /// Content known, no twin found yet.
    Unshared,
    /// Content changed between two looks.
    Volatile,
    /// Maps a merged copy.
    Merged,
    /// Mapped to the shared zero page by us.
    Zero,
    /// Cannot be merged, for this reason.
    Skip(Skip),
}

impl Gauge {
    /// Number of different gauges.
    pub const COUNT: usize = 6 + Skip::ALL.len();

    /// Returns the number of the gauge, below [`Self::COUNT`].
    pub const fn number(self) -> usize {
        match self {
            Self::Unseen => 0,
            Self::Absent => 1,
            Self::Unshared => 2,
            Self::Volatile => 3,
            Self::Merged => 4,
            Self::Zero => 5,
            // OVERFLOW: There are 15 reasons.
            Self::Skip(reason) => 6_usize.wrapping_add(reason as usize),
        }
    }

    /// The name that users see; skipped pages have one for each reason, see [`Skip::name`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unseen => "pages_unseen",
            Self::Absent => "pages_absent",
            Self::Unshared => "pages_unshared",
            Self::Volatile => "pages_volatile",
            Self::Merged => "pages_merged",
            Self::Zero => "zero_pages",
            Self::Skip(reason) => reason.name(),
        }
    }

    /// Returns the gauge of that number.
    pub fn from_number(number: usize) -> Option<Self> {
        match number {
            0 => Some(Self::Unseen),
            1 => Some(Self::Absent),
            2 => Some(Self::Unshared),
            3 => Some(Self::Volatile),
            4 => Some(Self::Merged),
            5 => Some(Self::Zero),
            _ => {
                let reason = Skip::ALL.get(number.checked_sub(6)?)?;
                Some(Self::Skip(*reason))
            }
        }
    }
}

/// Pages by state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gauges([u64; Gauge::COUNT]);

impl Gauges {
    /// No pages.
    pub const fn new() -> Self {
        Self([0; Gauge::COUNT])
    }

    /// Returns how many pages are in that state.
    pub fn get(&self, gauge: Gauge) -> u64 {
        self.0.get(gauge.number()).copied().unwrap_or(0)
    }

    /// Adds `pages` to a gauge.
    pub fn add(&mut self, gauge: Gauge, pages: u64) {
        if let Some(value) = self.0.get_mut(gauge.number()) {
            // OVERFLOW: There are fewer than 2^64 pages.
            *value = value.wrapping_add(pages);
        }
    }

    /// Takes `pages` from a gauge.
    pub fn sub(&mut self, gauge: Gauge, pages: u64) {
        if let Some(value) = self.0.get_mut(gauge.number()) {
            // OVERFLOW: Only pages that were added are taken; `check` tells if not.
            *value = value.wrapping_sub(pages);
        }
    }

    /// Returns the sum of all gauges.
    pub fn pages(&self) -> u64 {
        self.0
            .iter()
            .fold(0_u64, |sum, pages| sum.wrapping_add(*pages))
    }

    /// Adds all gauges of `other`.
    pub fn add_all(&mut self, other: &Self) {
        for (value, more) in self.0.iter_mut().zip(&other.0) {
            // OVERFLOW: There are fewer than 2^64 pages.
            *value = value.wrapping_add(*more);
        }
    }
}

impl Default for Gauges {
    fn default() -> Self {
        Self::new()
    }
}

/// What has been done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Looks at a page's content.
    pub scanned: u64,
    /// Looks at a page's content that backing off saved.
    pub skipped: u64,
    /// Pages replaced by a merged copy or the zero page.
    pub merges: u64,
    /// Replaced pages found to have their own copy again.
    pub breaks: u64,
    /// Complete passes.
    pub passes: u64,
    /// Scanner time, nanoseconds, as told by [`Index::charge`](super::index::Index::charge).
    pub cpu_ns: u64,
}

impl Counters {
    /// Adds all counters of `other`.
    pub fn add_all(&mut self, other: &Self) {
        // OVERFLOW: Saturates rather than starts again at 0.
        self.scanned = self.scanned.saturating_add(other.scanned);
        self.skipped = self.skipped.saturating_add(other.skipped);
        self.merges = self.merges.saturating_add(other.merges);
        self.breaks = self.breaks.saturating_add(other.breaks);
        self.passes = self.passes.saturating_add(other.passes);
        self.cpu_ns = self.cpu_ns.saturating_add(other.cpu_ns);
    }
}

/// Gauges and counters of one guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestStats {
    /// Where its pages are now.
    pub gauges: Gauges,
    /// What has been done to it.
    pub counters: Counters,
}

/// Gauges and counters of an index, or of many added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Where the pages of the attached guests are now.
    pub gauges: Gauges,
    /// What has been done to all guests, those that are gone included.
    pub counters: Counters,
    /// Merged copies that pages are recorded to map.
    pub shared: u64,
    /// Memory that the index takes.
    pub metadata_bytes: u64,
}

impl Totals {
    /// Returns the pages saved: mappings of merged copies beyond the first one of each.
    pub fn sharing(&self) -> u64 {
        self.gauges.get(Gauge::Merged).saturating_sub(self.shared)
    }

    /// Returns what merging gains, in bytes: pages saved less the memory that it takes.
    pub fn general_profit(&self) -> i64 {
        let saved = self.sharing().saturating_add(self.gauges.get(Gauge::Zero));
        let bytes = i64::try_from(saved.saturating_mul(PAGE_BYTES)).unwrap_or(i64::MAX);
        bytes.saturating_sub(i64::try_from(self.metadata_bytes).unwrap_or(i64::MAX))
    }

    /// Adds all of `other`.
    pub fn add_all(&mut self, other: &Self) {
        self.gauges.add_all(&other.gauges);
        self.counters.add_all(&other.counters);
        // OVERFLOW: Fewer than 2^64 pages and bytes exist.
        self.shared = self.shared.wrapping_add(other.shared);
        self.metadata_bytes = self.metadata_bytes.wrapping_add(other.metadata_bytes);
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_stats))]
mod tests {
    use super::*;

    #[test]
    fn gauge_numbers_are_a_bijection() {
        for number in 0..Gauge::COUNT {
            assert_eq!(Gauge::from_number(number).map(Gauge::number), Some(number));
        }
        assert_eq!(Gauge::from_number(Gauge::COUNT), None);
        for reason in Skip::ALL {
            let number = Gauge::Skip(reason).number();
            assert_eq!(Gauge::from_number(number), Some(Gauge::Skip(reason)));
        }
    }

    #[test]
    fn gauges_add_up_to_the_pages() {
        let mut gauges = Gauges::new();
        gauges.add(Gauge::Unseen, 512);
        gauges.sub(Gauge::Unseen, 3);
        gauges.add(Gauge::Skip(Skip::Paused), 3);
        assert_eq!(gauges.get(Gauge::Unseen), 509);
        assert_eq!(gauges.pages(), 512);
        let mut sum = gauges.clone();
        sum.add_all(&gauges);
        assert_eq!(sum.get(Gauge::Skip(Skip::Paused)), 6);
        assert_eq!(sum.pages(), 1024);
    }

    #[test]
    fn profit_may_be_a_loss() {
        let mut totals = Totals {
            metadata_bytes: 10_000,
            ..Totals::default()
        };
        assert_eq!(totals.general_profit(), -10_000);
        totals.gauges.add(Gauge::Merged, 3);
        totals.gauges.add(Gauge::Zero, 1);
        totals.shared = 1;
        assert_eq!(totals.sharing(), 2);
        assert_eq!(totals.general_profit(), 3 * 4096 - 10_000);
        let mut both = totals.clone();
        both.add_all(&totals);
        assert_eq!((both.shared, both.sharing()), (2, 4));
        assert_eq!(both.general_profit(), 2 * totals.general_profit());
    }
}
