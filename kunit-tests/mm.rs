// SPDX-License-Identifier: GPL-2.0

//! Tests of `sys` on a live address space: what a merge does, and that it undoes what it must.

use crate::{
    engine::{
        sight::Sight,
        wire::ZERO_DIGEST,
        world::{Seen, Shared, Skip, Target, Token, Unshared, BLOCK_PAGES, RUN_PAGES}, //
    },
    memory::{Kind, Memory},
    sys::{
        frame::Frame,
        ksym::Symbols,
        look::Look,
        mm::{User, RUN_MAX}, //
    }, //
};
use kernel::prelude::*;

const ALL: [u64; BLOCK_PAGES / 64] = [u64::MAX; BLOCK_PAGES / 64];
const NONE: [u64; BLOCK_PAGES / 64] = [0; BLOCK_PAGES / 64];

/// A test's memory with a look at it.
struct Bench {
    memory: Memory,
    user: User,
    look: Look,
    seen: Sight,
}

impl Bench {
    fn new(pages: usize, kind: Kind) -> Result<Self> {
        let memory = Memory::map(pages, kind)?;
        let user = memory.space()?.user().ok_or(ESRCH)?;
        Ok(Self {
            memory,
            user,
            look: Look::new()?,
            seen: Sight::new()?,
        })
    }

    /// Private pages, filled with `(byte, last)` each, small and without other references.
    fn filled(pages: &[(u8, u8)]) -> Result<Self> {
        let mut bench = Self::new(BLOCK_PAGES, Kind::Private)?;
        // Before anything else is written: a split maps what is zero to the zero page.
        bench.memory.fill(0, 1, 1)?;
        Symbols::bind()?.lru_drain();
        if matches!(bench.see(0)?, Seen::Huge { .. }) {
            let locked = bench.user.try_lock().ok_or(EAGAIN)?;
            locked
                .split(bench.memory.addr(0))
                .then_some(())
                .ok_or(EBUSY)?;
        }
        for (page, (byte, last)) in pages.iter().enumerate() {
            bench.memory.fill(page, *byte, *last)?;
        }
        Symbols::bind()?.lru_drain();
        Ok(bench)
    }

    fn look(&mut self, wanted: &[u64; BLOCK_PAGES / 64]) -> Result {
        let locked = self.user.try_lock().ok_or(EAGAIN)?;
        let block = self.memory.addr(0) as u64;
        self.seen.clear();
        self.look
            .at(&locked, block, 0..BLOCK_PAGES, wanted, |pages, seen| {
                self.seen.put(pages, seen);
            });
        Ok(())
    }

    fn see(&mut self, page: usize) -> Result<Seen> {
        self.look(&NONE)?;
        Ok(self.seen.get(page))
    }

    /// A merged copy of a page.
    fn copy(&mut self, page: usize) -> Result<Frame> {
        self.look(&ALL)?;
        let kept = self.look.kept(page).ok_or(ENOENT)?;
        let frame = Frame::copy_of(kept).ok_or(ENOMEM)?;
        self.look.release();
        Ok(frame)
    }

    fn share(&self, page: usize, targets: &[Target<'_, Frame>], results: &mut [Shared]) -> Result {
        let locked = self.user.try_lock().ok_or(EAGAIN)?;
        locked.share(self.memory.addr(page), RUN_PAGES as u32, targets, results);
        Ok(())
    }

    fn share_one(&self, page: usize, target: Target<'_, Frame>) -> Result<Shared> {
        let mut results = [Shared::Busy];
        self.share(page, &[target], &mut results)?;
        Ok(results[0])
    }

    fn unshare(&self, page: usize, pages: usize) -> Result<(usize, Unshared)> {
        let locked = self.user.try_lock().ok_or(EAGAIN)?;
        Ok(locked.unshare(self.memory.addr(page), pages))
    }

    fn is_merged(&mut self, page: usize, frame: &Frame) -> Result<bool> {
        Ok(matches!(self.see(page)?, Seen::Merged { pfn, .. } if pfn == frame.pfn()))
    }
}

#[kernel::macros::kunit_tests(twinpage_mm)]
mod tests {
    use super::*;

    #[test]
    fn equal_pages_map_one_frame() -> Result {
        let mut bench = Bench::filled(&[(7, 9), (7, 9)])?;
        let frame = bench.copy(0)?;
        assert_eq!(frame.mappings(), 0);
        let mut results = [Shared::Busy; 2];
        bench.share(
            0,
            &[Target::Copy(&frame), Target::Copy(&frame)],
            &mut results,
        )?;
        assert_eq!(results, [Shared::Done; 2]);
        assert_eq!(frame.mappings(), 2);
        assert!(bench.is_merged(0, &frame)?);
        assert!(bench.is_merged(1, &frame)?);
        assert!(bench.memory.is(0, 7, 9)?);
        assert!(bench.memory.is(1, 7, 9)?);
        Ok(())
    }

    #[test]
    fn a_write_gives_the_page_its_own_copy() -> Result {
        let mut bench = Bench::filled(&[(7, 9), (7, 9)])?;
        let frame = bench.copy(0)?;
        let mut results = [Shared::Busy; 2];
        bench.share(
            0,
            &[Target::Copy(&frame), Target::Copy(&frame)],
            &mut results,
        )?;
        bench.memory.fill(0, 7, 10)?;
        assert!(matches!(bench.see(0)?, Seen::Anon { .. }));
        assert!(bench.is_merged(1, &frame)?);
        assert!(bench.memory.is(0, 7, 10)?);
        assert!(bench.memory.is(1, 7, 9)?);
        assert_eq!(frame.mappings(), 1);
        Ok(())
    }

    #[test]
    fn the_last_sharer_copies_too() -> Result {
        let mut bench = Bench::filled(&[(7, 9)])?;
        let frame = bench.copy(0)?;
        assert_eq!(bench.share_one(0, Target::Copy(&frame))?, Shared::Done);
        bench.memory.fill(0, 8, 8)?;
        assert!(matches!(bench.see(0)?, Seen::Anon { .. }));
        assert_eq!(frame.mappings(), 0);
        Ok(())
    }

    #[test]
    fn different_bytes_are_never_replaced() -> Result {
        let mut bench = Bench::filled(&[(7, 9), (7, 8)])?;
        let frame = bench.copy(0)?;
        assert_eq!(bench.share_one(1, Target::Copy(&frame))?, Shared::Differs);
        assert!(matches!(bench.see(1)?, Seen::Anon { .. }));
        assert!(bench.memory.is(1, 7, 8)?);
        assert_eq!(bench.share_one(1, Target::Zero)?, Shared::Differs);
        assert!(bench.memory.is(1, 7, 8)?);
        // It is still the process's own page, to be written without a copy.
        bench.memory.fill(1, 1, 1)?;
        assert!(bench.memory.is(1, 1, 1)?);
        Ok(())
    }

    #[test]
    fn a_run_leaves_out_what_differs() -> Result {
        let mut bench = Bench::filled(&[(5, 5), (5, 5), (5, 6), (5, 5), (0, 0)])?;
        let frame = bench.copy(0)?;
        let copy = || Target::Copy(&frame);
        let mut results = [Shared::Busy; 5];
        bench.share(
            0,
            &[copy(), copy(), copy(), copy(), Target::Zero],
            &mut results,
        )?;
        let mut expected = [Shared::Done; 5];
        expected[2] = Shared::Differs;
        assert_eq!(results, expected);
        assert_eq!(frame.mappings(), 3);
        assert_eq!(bench.see(4)?, Seen::Zero);
        assert!(bench.memory.is(2, 5, 6)?);
        assert!(bench.memory.is(3, 5, 5)?);
        Ok(())
    }

    #[test]
    fn a_run_is_cut_at_the_end_of_the_mapping() -> Result {
        let mut bench = Bench::filled(&[(7, 9); 4])?;
        bench.memory.map_apart(2, 2)?;
        bench.memory.fill(2, 7, 9)?;
        bench.memory.fill(3, 7, 9)?;
        Symbols::bind()?.lru_drain();
        let frame = bench.copy(0)?;
        let copy = || Target::Copy(&frame);
        let mut results = [Shared::Busy; 4];
        bench.share(0, &[copy(), copy(), copy(), copy()], &mut results)?;
        let mut expected = [Shared::Done; 4];
        expected[2] = Shared::Gone;
        expected[3] = Shared::Gone;
        assert_eq!(results, expected);
        assert_eq!(frame.mappings(), 2);
        // Nothing else kept the others from it.
        let mut results = [Shared::Busy; 2];
        bench.share(2, &[copy(), copy()], &mut results)?;
        assert_eq!(results, [Shared::Done; 2]);
        assert_eq!(frame.mappings(), 4);
        Ok(())
    }

    #[test]
    fn an_entry_that_is_restored_has_all_its_bits() -> Result {
        let mut bench = Bench::filled(&[(7, 9), (7, 8), (7, 8)])?;
        let (frame, other) = (bench.copy(0)?, bench.copy(1)?);
        // Unsharing leaves an entry that is clean and read-only, writing one that is neither.
        assert_eq!(bench.share_one(2, Target::Copy(&other))?, Shared::Done);
        assert_eq!(bench.unshare(2, 1)?, (1, Unshared::Done));
        Symbols::bind()?.lru_drain();
        let before = [bench.memory.entry(1), bench.memory.entry(2)];
        assert!(before[0] != 0 && before[1] != 0);
        let mut results = [Shared::Busy; 2];
        bench.share(
            1,
            &[Target::Copy(&frame), Target::Copy(&frame)],
            &mut results,
        )?;
        assert_eq!(results, [Shared::Differs; 2]);
        assert_eq!([bench.memory.entry(1), bench.memory.entry(2)], before);
        Ok(())
    }

    #[test]
    fn the_last_byte_counts() -> Result {
        let mut bench = Bench::filled(&[(7, 9), (7, 8), (0, 1)])?;
        let frame = bench.copy(0)?;
        let mut results = [Shared::Busy; 2];
        bench.share(1, &[Target::Copy(&frame), Target::Zero], &mut results)?;
        assert_eq!(results, [Shared::Differs; 2]);
        assert!(bench.memory.is(1, 7, 8)?);
        assert!(bench.memory.is(2, 0, 1)?);
        Ok(())
    }

    #[test]
    fn zeroes_map_the_zero_page_until_written() -> Result {
        let mut bench = Bench::filled(&[(0, 0)])?;
        assert_eq!(bench.share_one(0, Target::Zero)?, Shared::Done);
        assert_eq!(bench.see(0)?, Seen::Zero);
        assert!(bench.memory.is(0, 0, 0)?);
        bench.memory.fill(0, 0, 1)?;
        assert!(matches!(bench.see(0)?, Seen::Anon { .. }));
        assert!(bench.memory.is(0, 0, 1)?);
        Ok(())
    }

    #[test]
    fn unsharing_keeps_the_bytes() -> Result {
        let mut bench = Bench::filled(&[(3, 4), (3, 4)])?;
        let frame = bench.copy(0)?;
        let mut results = [Shared::Busy; 2];
        bench.share(
            0,
            &[Target::Copy(&frame), Target::Copy(&frame)],
            &mut results,
        )?;
        assert_eq!(bench.unshare(0, 1)?, (1, Unshared::Done));
        assert!(matches!(bench.see(0)?, Seen::Anon { .. }));
        assert!(bench.memory.is(0, 3, 4)?);
        assert_eq!(frame.mappings(), 1);
        assert_eq!(bench.unshare(1, 1)?, (1, Unshared::Done));
        assert_eq!(frame.mappings(), 0);
        // Nothing to do is done.
        assert_eq!(bench.unshare(1, 1)?, (1, Unshared::Done));
        Ok(())
    }

    #[test]
    fn unsharing_ends_at_the_run() -> Result {
        let mut bench = Bench::filled(&[(3, 4); 5])?;
        let frame = bench.copy(0)?;
        for page in [0, 1, 3, 4] {
            assert_eq!(bench.share_one(page, Target::Copy(&frame))?, Shared::Done);
        }
        assert_eq!(bench.unshare(1, 3)?, (3, Unshared::Done));
        assert_eq!(frame.mappings(), 2);
        for page in 0..5 {
            assert_eq!(bench.is_merged(page, &frame)?, page == 0 || page == 4);
            assert!(bench.memory.is(page, 3, 4)?);
        }
        // Behind the mapping nothing maps a copy.
        assert_eq!(bench.unshare(0, RUN_MAX)?, (RUN_MAX, Unshared::Done));
        assert_eq!(frame.mappings(), 0);
        // What is in the next page table is left out.
        assert_eq!(
            bench.unshare(BLOCK_PAGES - 2, RUN_MAX)?,
            (2, Unshared::Done)
        );
        Ok(())
    }

    #[test]
    fn a_page_somebody_holds_is_not_replaced() -> Result {
        let mut bench = Bench::filled(&[(3, 4)])?;
        let frame = bench.copy(0)?;
        bench.look(&ALL)?;
        assert_eq!(
            bench.share_one(0, Target::Copy(&frame))?,
            Shared::Skip(Skip::Pinned)
        );
        bench.look.release();
        assert_eq!(bench.share_one(0, Target::Copy(&frame))?, Shared::Done);
        Ok(())
    }

    #[test]
    fn what_is_merged_is_not_merged_again() -> Result {
        let mut bench = Bench::filled(&[(3, 4)])?;
        let (one, other) = (bench.copy(0)?, bench.copy(0)?);
        assert_eq!(bench.share_one(0, Target::Copy(&one))?, Shared::Done);
        assert_eq!(bench.share_one(0, Target::Copy(&other))?, Shared::Gone);
        assert_eq!(other.mappings(), 0);
        Ok(())
    }

    #[test]
    fn mapped_frames_outlive_their_owner() -> Result {
        let mut bench = Bench::filled(&[(3, 4)])?;
        let frame = bench.copy(0)?;
        assert_eq!(bench.share_one(0, Target::Copy(&frame))?, Shared::Done);
        drop(frame);
        assert!(bench.memory.is(0, 3, 4)?);
        bench.memory.fill(0, 3, 5)?;
        assert!(bench.memory.is(0, 3, 5)?);
        Ok(())
    }

    #[test]
    fn a_frame_that_was_let_go_of_has_no_token() -> Result {
        let mut bench = Bench::filled(&[(3, 4)])?;
        let frame = bench.copy(0)?;
        let pfn = frame.pfn();
        frame.set_token(Token(7));
        assert_eq!(bench.share_one(0, Target::Copy(&frame))?, Shared::Done);
        let merged = |token| Seen::Merged { pfn, token };
        assert_eq!(bench.see(0)?, merged(Token(7)));
        drop(frame);
        assert_eq!(bench.see(0)?, merged(Token(0)));
        Ok(())
    }

    #[test]
    fn untouched_pages_are_absent() -> Result {
        let mut bench = Bench::new(BLOCK_PAGES, Kind::Private)?;
        assert_eq!(bench.see(1)?, Seen::Absent);
        // There is no mapping with pages of its own yet.
        assert!(matches!(bench.share_one(1, Target::Zero)?, Shared::Skip(_)));
        Ok(())
    }

    #[test]
    fn shared_memory_is_refused() -> Result {
        let mut bench = Bench::new(BLOCK_PAGES, Kind::Shared)?;
        bench.memory.fill(0, 1, 1)?;
        assert_eq!(bench.see(0)?, Seen::Skip(Skip::Shared));
        assert!(matches!(bench.share_one(0, Target::Zero)?, Shared::Skip(_)));
        Ok(())
    }

    #[test]
    fn unmapped_addresses_are_told() -> Result {
        let mut bench = Bench::filled(&[(1, 1)])?;
        let locked = bench.user.try_lock().ok_or(EAGAIN)?;
        // The first block of any address space is kept free (mmap_min_addr).
        bench
            .look
            .at(&locked, 0, 0..BLOCK_PAGES, &ALL, |pages, seen| {
                bench.seen.put(pages, seen);
            });
        assert_eq!(bench.seen.get(0), Seen::Skip(Skip::NoVma));
        assert_eq!(bench.seen.get(BLOCK_PAGES - 1), Seen::Skip(Skip::NoVma));
        Ok(())
    }

    #[test]
    fn words_are_the_bytes_of_the_page() -> Result {
        let mut bench = Bench::filled(&[(0xa5, 0x17)])?;
        bench.look(&ALL)?;
        let kept = bench.look.kept(0).ok_or(ENOENT)?;
        let words = kept.words();
        assert_eq!(words.get(0), 0xa5a5_a5a5_a5a5_a5a5);
        assert_eq!(words.get(511), 0x17a5_a5a5_a5a5_a5a5);
        assert_eq!(words.get(512), 0);
        Ok(())
    }

    #[test]
    fn a_copy_of_zeroes_has_the_known_digest() -> Result {
        let mut bench = Bench::filled(&[(0, 0)])?;
        assert_eq!(bench.copy(0)?.sha256(), ZERO_DIGEST);
        Ok(())
    }
}
