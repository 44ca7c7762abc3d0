// SPDX-License-Identifier: GPL-2.0

//! Guests whose merged pages do not stay merged.
//!
//! Each write to a merged page costs its guest a fault, and merging the page was in vain. A guest
//! to which that happens too often is *backed off*: for a while nothing of it merges. It is still
//! looked at, which is cheap, so that breaks are noticed and rounds go on; no page of it is hashed,
//! and no page of another guest merges with one of it. What is merged stays merged.
//!
//! All is decided where a pass over the guest ends. A break is noticed at the next look at the
//! page, so those that a pass finds have happened since the pass before: breaks found in whole
//! passes, by the time that these took, are a rate. Part of a pass would not do, as guests take
//! turns.

use super::{
    index::Index,
    knobs::Knobs,
    page::PageId,
    world::GuestId, //
};

/// The shortest time that a rate is taken over, milliseconds.
pub const WINDOW_MS: u64 = 1000;

/// How long a guest is backed off at first, milliseconds.
pub const FIRST_MS: u64 = 1000;

/// The longest that it is, milliseconds.
pub const LONGEST_MS: u64 = 64 * FIRST_MS;

/// Windows within the limit, in a row, after which back-off is short again. A page that was written
/// to and goes on changing is hashed more and more seldom, down to one in 16 passes: as many, to be
/// sure of most pages.
const CALM_WINDOWS: u8 = 16;

const NS_PER_MS: u64 = 1_000_000;

/// Where a window began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    at_ns: u64,
    breaks: u64,
}

/// The rate at which a guest's merged pages break, and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restraint {
    /// The present window; none before the first pass ended, and while the guest is backed off.
    window: Option<Window>,
    /// Pages a second in the last complete window.
    rate: u64,
    /// Until when nothing merges.
    until_ns: Option<u64>,
    /// How long that was to last, or the time before; 0: back-off starts anew.
    length_ms: u64,
    /// Windows within the limit since.
    calm: u8,
    /// How often the guest was backed off.
    times: u64,
}

impl Restraint {
    /// Returns whether nothing of the guest may merge now.
    pub fn is_backed_off(&self) -> bool {
        self.until_ns.is_some()
    }

    /// Returns how many merged pages broke in each second of the last window.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Returns how long the guest is backed off, milliseconds; 0: it is not.
    pub fn backed_off_ms(&self) -> u64 {
        self.until_ns.map_or(0, |_| self.length_ms)
    }

    /// Returns how often it was backed off so far.
    pub fn times(&self) -> u64 {
        self.times
    }

    /// A pass has ended. `breaks` is what was counted so far; `limit` is a rate, 0 for none.
    fn pass_ended(&mut self, breaks: u64, limit: u64, now_ns: u64) {
        let next = Some(Window {
            at_ns: now_ns,
            breaks,
        });
        if let Some(until) = self.until_ns {
            if now_ns >= until || limit == 0 {
                self.until_ns = None;
                self.window = next;
            }
            return;
        }
        let Some(window) = self.window else {
            self.window = next;
            return;
        };
        let ms = now_ns.saturating_sub(window.at_ns) / NS_PER_MS;
        if ms < WINDOW_MS {
            return;
        }
        let broken = breaks.saturating_sub(window.breaks);
        self.rate = broken.saturating_mul(1000).checked_div(ms).unwrap_or(0);
        self.window = next;
        if limit > 0 && self.rate > limit {
            self.back_off(now_ns);
        } else {
            self.calm_down();
        }
    }

    /// The rate is over the limit.
    fn back_off(&mut self, now_ns: u64) {
        let doubled = self.length_ms.saturating_mul(2);
        self.length_ms = doubled.clamp(FIRST_MS, LONGEST_MS);
        self.until_ns = Some(now_ns.saturating_add(self.length_ms.saturating_mul(NS_PER_MS)));
        self.window = None;
        self.calm = 0;
        self.times = self.times.saturating_add(1);
    }

    /// The rate is within the limit.
    fn calm_down(&mut self) {
        self.calm = self.calm.saturating_add(1);
        if self.calm >= CALM_WINDOWS {
            self.length_ms = 0;
        }
    }
}

impl<F> Index<F> {
    /// Says that a pass over a guest has ended at `now_ns`, by a clock that stands still while
    /// guests do. The guest is backed off from then on if its pages break too fast.
    pub fn pass_ended(&mut self, id: GuestId, knobs: &Knobs, now_ns: u64) {
        let position = self.guests.position(id);
        if let Some(guest) = position.and_then(|position| self.guests.at_mut(position)) {
            let limit = u64::from(knobs.max_break_rate);
            let breaks = guest.stats.counters.breaks;
            guest.restraint.pass_ended(breaks, limit, now_ns);
        }
    }

    /// Returns how fast a guest's pages break, and whether it is backed off.
    pub fn restraint(&self, id: GuestId) -> Option<&Restraint> {
        let position = self.guests.position(id)?;
        Some(&self.guests.at(position)?.restraint)
    }

    /// Returns whether the guest at a position is backed off.
    pub(super) fn is_backed_off(&self, position: u32) -> bool {
        let guest = self.guests.at(position);
        guest.is_some_and(|guest| guest.restraint.is_backed_off())
    }

    /// Returns whether a page is one of a guest that is backed off.
    pub(super) fn is_restrained(&self, page: PageId) -> bool {
        let block = self.store.blocks.get(page.block());
        block.is_some_and(|block| self.is_backed_off(block.guest()))
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_restraint))]
mod tests {
    use super::*;
    use crate::engine::{
        stats::Gauge,
        toy::{
            Page,
            Toy,
            Untested,
            PAGES, //
        },
    };

    const SECOND: u64 = 1_000_000_000;

    /// A limit of 100 pages a second.
    const LIMIT: u64 = 100;

    /// A guest whose pages break at a given rate, with a pass each second.
    struct Clock {
        restraint: Restraint,
        seconds: u64,
        breaks: u64,
    }

    impl Clock {
        /// The first pass has just ended.
        fn new() -> Self {
            let mut restraint = Restraint::default();
            restraint.pass_ended(0, LIMIT, 0);
            Self {
                restraint,
                seconds: 0,
                breaks: 0,
            }
        }

        /// Goes on for so many seconds. Pages break as long as the guest merges.
        fn pass(&mut self, seconds: u64, rate: u64) {
            for _ in 0..seconds {
                self.seconds = self.seconds.saturating_add(1);
                if !self.restraint.is_backed_off() {
                    self.breaks = self.breaks.saturating_add(rate);
                }
                let now = self.seconds.saturating_mul(SECOND);
                self.restraint.pass_ended(self.breaks, LIMIT, now);
            }
        }
    }

    #[test]
    fn the_limit_itself_may_be_reached() {
        let mut clock = Clock::new();
        clock.pass(100, LIMIT);
        assert_eq!(clock.restraint.rate(), LIMIT);
        assert!(!clock.restraint.is_backed_off());
        assert_eq!(clock.restraint.backed_off_ms(), 0);
        clock.pass(1, LIMIT + 1);
        assert_eq!(clock.restraint.rate(), LIMIT + 1);
        assert!(clock.restraint.is_backed_off());
        assert_eq!(clock.restraint.backed_off_ms(), 1000);
        assert_eq!(clock.restraint.times(), 1);
    }

    #[test]
    fn back_off_doubles_up_to_an_end() {
        let mut clock = Clock::new();
        for length in [1, 2, 4, 8, 16, 32, 64, 64, 64] {
            clock.pass(1, 2 * LIMIT);
            assert_eq!(clock.restraint.backed_off_ms(), 1000 * length);
            clock.pass(length - 1, 0);
            assert!(clock.restraint.is_backed_off());
            clock.pass(1, 0);
            assert!(!clock.restraint.is_backed_off());
        }
        assert_eq!(clock.restraint.times(), 9);
    }

    #[test]
    fn who_behaves_for_long_starts_anew() {
        for (calm, length) in [(15, 4000), (16, 1000)] {
            let mut clock = Clock::new();
            clock.pass(1, 2 * LIMIT);
            clock.pass(1, 0);
            clock.pass(1, 2 * LIMIT);
            clock.pass(2, 0);
            clock.pass(calm, LIMIT);
            clock.pass(1, 2 * LIMIT);
            assert_eq!(clock.restraint.backed_off_ms(), length);
        }
    }

    #[test]
    fn a_rate_is_taken_over_a_second_or_a_pass() {
        let mut restraint = Restraint::default();
        // The first pass has none to be compared with.
        restraint.pass_ended(1_000_000, LIMIT, 5 * SECOND);
        restraint.pass_ended(1_000_090, LIMIT, 5 * SECOND + SECOND / 2);
        assert_eq!(restraint.rate(), 0);
        restraint.pass_ended(1_000_090, LIMIT, 6 * SECOND);
        assert_eq!(restraint.rate(), 90);
        restraint.pass_ended(1_005_090, LIMIT, 106 * SECOND);
        assert_eq!(restraint.rate(), 50);
        assert!(!restraint.is_backed_off());
    }

    #[test]
    fn the_rate_that_led_to_back_off_is_shown_meanwhile() {
        let mut clock = Clock::new();
        clock.pass(1, 5 * LIMIT);
        clock.breaks += 1000 * LIMIT;
        clock.pass(1, 0);
        // What broke in between counts for nothing.
        assert!(!clock.restraint.is_backed_off());
        assert_eq!(clock.restraint.rate(), 5 * LIMIT);
        clock.pass(1, 7);
        assert_eq!(clock.restraint.rate(), 7);
    }

    #[test]
    fn without_a_limit_rates_are_only_shown() {
        let mut restraint = Restraint::default();
        restraint.pass_ended(0, 0, 0);
        restraint.pass_ended(1 << 40, 0, SECOND);
        assert_eq!(restraint.rate(), 1 << 40);
        assert!(!restraint.is_backed_off());
        // Taking the limit away ends what it led to.
        restraint.pass_ended(1 << 41, LIMIT, 2 * SECOND);
        assert!(restraint.is_backed_off());
        restraint.pass_ended(1 << 41, 0, 2 * SECOND);
        assert!(!restraint.is_backed_off());
    }

    #[test]
    fn absurd_numbers_do_not_overflow() {
        let mut restraint = Restraint::default();
        restraint.pass_ended(0, LIMIT, 0);
        restraint.pass_ended(u64::MAX, LIMIT, u64::MAX);
        assert!(restraint.is_backed_off());
        restraint.pass_ended(0, LIMIT, 0);
        assert!(restraint.is_backed_off());
        restraint.pass_ended(0, LIMIT, u64::MAX);
        assert!(!restraint.is_backed_off());
    }

    /// Two guests with pages in common; the first writes to its own and is backed off.
    fn one_backed_off() -> Result<Toy, Untested> {
        let mut toy = Toy::new(2)?;
        toy.knobs.smart_scan = false;
        toy.knobs.max_break_rate = 10;
        for guest in 0..2 {
            toy.fill(guest, 0..100, |index| Page::Own(index.saturating_add(1)));
        }
        assert!(toy.pass(2));
        toy.index.pass_ended(GuestId(0), &toy.knobs, 0);
        toy.fill(0, 0..40, |index| Page::Own(index.saturating_add(1)));
        assert!(toy.pass(2));
        toy.index.pass_ended(GuestId(0), &toy.knobs, SECOND);
        let restraint = toy.index.restraint(GuestId(0)).copied();
        assert_eq!(restraint.map(|restraint| restraint.rate()), Some(40));
        Ok(toy)
    }

    #[test]
    fn nothing_of_a_guest_merges_while_it_is_backed_off() -> Result<(), Untested> {
        let mut toy = one_backed_off()?;
        let scanned = toy.index.totals().counters.scanned;
        // Of these the first guest finds some merged, and is to find none of the others.
        toy.fill(0, 40..60, |index| Page::Own(index.saturating_add(1)));
        toy.fill(0, 200..300, |index| Page::Own(1000 + index));
        for _ in 0..4 {
            assert!(toy.pass(1));
        }
        assert_eq!(toy.index.totals().counters.scanned, scanned);
        assert_eq!(toy.gauge(0, Gauge::Merged), 40);
        assert_eq!(toy.gauge(0, Gauge::Volatile), 60);
        assert_eq!(toy.gauge(0, Gauge::Unseen), 100);
        assert_eq!(toy.index.totals().counters.breaks, 60);
        assert_eq!(toy.gauge(1, Gauge::Merged), 100);
        // It merges again when the time is over.
        toy.index.pass_ended(GuestId(0), &toy.knobs, 2 * SECOND);
        for _ in 0..2 {
            assert!(toy.pass(2));
        }
        assert_eq!(toy.gauge(0, Gauge::Merged), 100);
        assert_eq!(toy.gauge(0, Gauge::Unshared), 100);
        Ok(())
    }

    #[test]
    fn others_merge_with_one_another_not_with_it() -> Result<(), Untested> {
        let mut toy = Toy::new(3)?;
        toy.knobs.smart_scan = false;
        toy.knobs.max_break_rate = 1;
        toy.fill(0, 0..4, |_| Page::Own(7));
        toy.fill(0, 100..PAGES, |index| Page::Own(1000 + index));
        assert!(toy.pass(3));
        toy.index.pass_ended(GuestId(0), &toy.knobs, 0);
        toy.fill(0, 0..4, |index| Page::Own(1 + index));
        assert!(toy.pass(3));
        toy.index.pass_ended(GuestId(0), &toy.knobs, SECOND);
        assert_eq!(toy.gauge(0, Gauge::Merged), 0);
        for (guest, merged) in [(1, 0), (2, 64)] {
            toy.fill(guest, 100..164, |index| Page::Own(1000 + index));
            assert!(toy.pass(3));
            assert_eq!(toy.gauge(guest, Gauge::Merged), merged);
        }
        assert_eq!(toy.gauge(1, Gauge::Merged), 64);
        assert_eq!(toy.gauge(0, Gauge::Merged), 0);
        toy.index.pass_ended(GuestId(0), &toy.knobs, 2 * SECOND);
        assert!(toy.pass(3));
        assert_eq!(toy.gauge(0, Gauge::Merged), 64);
        Ok(())
    }
}
