// SPDX-License-Identifier: GPL-2.0

//! Which pages of a block are of which kind.

use super::{
    mask::Mask,
    page::{
        Kind,
        Meta, //
    },
    sight::Sight,
};

/// The kinds of the pages of a block, as a set for each bit.
#[derive(Debug)]
pub struct Kinds {
    bits: [Mask; Meta::KIND_BITS],
    huge: Mask,
}

impl Kinds {
    /// Sorts the pages of a block: 64 at a time where they are alike, else 8.
    pub fn of(metas: &[Meta]) -> Self {
        let mut kinds = Self {
            bits: [Mask::EMPTY; Meta::KIND_BITS],
            huge: Mask::EMPTY,
        };
        for (at, metas) in metas.chunks_exact(64).enumerate() {
            let mut eights = [0; 8];
            for (eight, metas) in eights.iter_mut().zip(metas.chunks_exact(8)) {
                *eight = word(metas);
            }
            let [first, ..] = eights;
            if eights.iter().all(|eight| *eight == first) && first == first.rotate_left(8) {
                kinds.add_alike(at.wrapping_mul(64), first);
            } else {
                for (ahead, eight) in eights.into_iter().enumerate() {
                    // OVERFLOW: At most 64.
                    kinds.add_eight(at.wrapping_mul(8).wrapping_add(ahead), eight);
                }
            }
        }
        kinds
    }

    /// Adds the 64 pages from index `first` on, all of which have the bytes of `eight`.
    fn add_alike(&mut self, first: usize, eight: u64) {
        for (set, bit) in self.sets() {
            if eight.wrapping_shr(bit) & 1 == 1 {
                set.add_range(first..first.saturating_add(64));
            }
        }
    }

    /// Adds the eight pages from index `at * 8` on, which have the bytes of `eight`.
    fn add_eight(&mut self, at: usize, eight: u64) {
        for (set, bit) in self.sets() {
            set.add_eight(at, eight.wrapping_shr(bit));
        }
    }

    /// Returns each set, and the bit that it is of.
    fn sets(&mut self) -> [(&mut Mask, u32); 4] {
        let [low, middle, high] = &mut self.bits;
        [
            (low, 0),
            (middle, 1),
            (high, 2),
            (&mut self.huge, Meta::HUGE_BIT),
        ]
    }

    /// Returns the pages of a kind.
    pub fn are(&self, kind: Kind) -> Mask {
        let mut pages = Mask::ALL;
        // CAST: The number of an enum.
        let mut bits = kind as u8;
        for set in &self.bits {
            pages = if bits & 1 == 1 {
                pages.and(set)
            } else {
                pages.without(set)
            };
            bits >>= 1;
        }
        pages
    }

    /// Returns the pages of which nothing is to be recorded if they were seen so, whatever else is
    /// known of them. What merged pages map is to be looked at as well.
    pub fn agreeing(&self, seen: &Sight) -> Mask {
        let private = self
            .are(Kind::Listed)
            .or(&self.are(Kind::Parked))
            .or(&self.are(Kind::Volatile));
        let absent = seen.absent().and(&self.are(Kind::Absent));
        let zero = seen.zero().and(&self.are(Kind::Zero));
        let small = seen.small().and(&private.without(&self.huge));
        let huge = seen.huge().and(&private.and(&self.huge));
        absent.or(&zero).or(&small).or(&huge)
    }
}

/// Returns the bytes of eight pages, the first one lowest.
fn word(metas: &[Meta]) -> u64 {
    match metas {
        &[a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h].map(Meta::byte)),
        _ => 0,
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_kinds))]
mod tests {
    use super::*;
    use crate::{
        engine::{
            page::{
                tests::KINDS,
                Record, //
            },
            world::{
                Seen,
                Skip,
                BLOCK_PAGES, //
            },
        },
        mem::{
            AllocError,
            KVVec,
            GFP_KERNEL, //
        },
    };

    /// A block of which every page is of another kind than its neighbours.
    fn block(huge: bool) -> Result<KVVec<Meta>, AllocError> {
        let mut metas = KVVec::with_capacity(BLOCK_PAGES, GFP_KERNEL)?;
        for kind in KINDS.iter().cycle().take(BLOCK_PAGES) {
            let record = Record {
                huge,
                ..Record::of(*kind)
            };
            metas.push(record.meta(), GFP_KERNEL)?;
        }
        Ok(metas)
    }

    #[test]
    fn each_page_is_of_its_kind() -> Result<(), AllocError> {
        let kinds = Kinds::of(&block(false)?);
        for (at, kind) in KINDS.into_iter().enumerate() {
            let pages = (0..BLOCK_PAGES).filter(|index| index % 8 == at);
            assert!(kinds.are(kind).iter().eq(pages));
        }
        Ok(())
    }

    #[test]
    fn pages_that_are_alike_are_of_their_kind() -> Result<(), AllocError> {
        for kind in KINDS {
            let record = Record::of(kind);
            let mut metas = KVVec::from_elem(record.meta(), BLOCK_PAGES, GFP_KERNEL)?;
            if let Some(other) = metas.get_mut(100) {
                *other = Record::of(Kind::Unseen).meta();
            }
            let pages = (0..BLOCK_PAGES).filter(|index| *index != 100 || kind == Kind::Unseen);
            assert!(Kinds::of(&metas).are(kind).iter().eq(pages));
        }
        Ok(())
    }

    #[test]
    fn a_record_agrees_with_what_it_says() -> Result<(), AllocError> {
        let seen = [
            Seen::Absent,
            Seen::Zero,
            Seen::Anon { node: 1 },
            Seen::Huge { node: 0 },
            Seen::Skip(Skip::Zero),
        ];
        let mut sight = Sight::new()?;
        for huge in [false, true] {
            let kinds = Kinds::of(&block(huge)?);
            for seen in seen {
                sight.clear();
                sight.put(0..BLOCK_PAGES, seen);
                let agreeing = kinds.agreeing(&sight);
                for (at, kind) in KINDS.into_iter().enumerate() {
                    let expected = match kind {
                        Kind::Absent => seen == Seen::Absent,
                        Kind::Zero => seen == Seen::Zero,
                        Kind::Listed | Kind::Parked | Kind::Volatile if huge => {
                            seen == Seen::Huge { node: 0 }
                        }
                        Kind::Listed | Kind::Parked | Kind::Volatile => {
                            seen == Seen::Anon { node: 1 }
                        }
                        // Those need more of the record, or are news whatever is seen.
                        Kind::Unseen | Kind::Merged | Kind::Skipped => false,
                    };
                    assert_eq!(agreeing.has(at), expected);
                    assert_eq!(agreeing.has(at + 504), expected);
                }
            }
        }
        Ok(())
    }
}
