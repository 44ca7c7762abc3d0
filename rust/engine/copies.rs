// SPDX-License-Identifier: GPL-2.0

//! The merged copies, 256 at a time, 32 bytes each.
//!
//! A copy is in one of these states:
//!
//! | state   | in tree | has frame | given to more pages                                  |
//! |---------|---------|-----------|------------------------------------------------------|
//! | Listed  | yes     | yes       | yes, up to the cap                                   |
//! | Full    | no      | yes       | no; listed again when it has few pages (see `sweep`) |
//! | Odd     | no      | yes       | never: its content is not that of its key            |
//! | Retired | no      | yes       | never, and never read: the frame is broken           |
//! | Dead    | no      | no        | never; the number is kept while a record refers to it |
//!
//! *Records* are pages that are recorded to map a copy. Others may map it too: children of a fork,
//! pages that moved and were not looked at yet. That is why only the world's count of mappings
//! decides when a copy is freed.

use super::{
    catalog::Digest,
    node::{
        Node,
        NIL, //
    },
    page::CopyId, //
};
use crate::mem::{
    AllocError,
    KVVec,
    GFP_KERNEL, //
};

/// Copies in a chunk.
pub(super) const CHUNK: usize = 256;

/// Chunks that numbers have room for, so that the greatest number is below 2^30 - 1.
const MAX_CHUNKS: usize = (1 << 22) - 1;

/// End of the list of chunks.
const NONE: u32 = u32::MAX;

/// What a merged copy can be used for, see the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Others of the same key find it.
    Listed,
    /// As many pages as allowed map it, and another has its place in the tree.
    Full,
    /// Only one page took it, so it may not have the content that its key is of.
    Odd,
    /// Its frame is broken.
    Retired,
    /// Freed, but pages are still recorded to map it.
    Dead,
    /// The number is free.
    Free,
}

/// What is known of a copy's digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Digested {
    /// Nothing.
    No,
    /// It is kept.
    Known,
    /// It is kept, and in the tree of digests.
    Listed,
}

/// A merged copy.
#[derive(Debug)]
pub struct MergedCopy<F> {
    node: Node,
    frame: Option<F>,
    records: u32,
    planned: u16,
    state: State,
    pub(super) digested: Digested,
}

impl<F> MergedCopy<F> {
    /// Makes a listed copy that nobody maps yet.
    pub fn new(frame: F, key: u64) -> Self {
        Self {
            node: Node::new(key),
            frame: Some(frame),
            records: 0,
            planned: 0,
            state: State::Listed,
            digested: Digested::No,
        }
    }

    /// Returns its state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Returns its frame, unless dead.
    pub fn frame(&self) -> Option<&F> {
        self.frame.as_ref()
    }

    /// Returns how many pages are recorded to map it.
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Returns how many pages this step is going to give it to.
    pub fn planned(&self) -> u16 {
        self.planned
    }

    /// Returns whether another page may get it if at most `max` may.
    pub fn has_room(&self, max: u32) -> bool {
        self.state == State::Listed && self.records.saturating_add(u32::from(self.planned)) < max
    }
}

/// Room for [`CHUNK`] copies.
#[derive(Debug)]
pub(super) struct Chunk<F> {
    /// The copies.
    pub(super) entries: KVVec<MergedCopy<F>>,
    /// Their digests, if anybody asked for one.
    pub(super) digests: KVVec<Digest>,
    /// First free entry, or [`NIL`]; each has the next in its node's link.
    free: u32,
    used: u32,
    /// The next chunk that has room.
    next: u32,
}

impl<F> Chunk<F> {
    fn new() -> Self {
        Self {
            entries: KVVec::new(),
            digests: KVVec::new(),
            free: NIL,
            used: 0,
            next: NONE,
        }
    }

    /// Puts `copy` in a free entry.
    fn insert(&mut self, copy: MergedCopy<F>) -> Result<usize, MergedCopy<F>> {
        let index = self.free as usize;
        let index = if let Some(slot) = self.entries.get_mut(index) {
            self.free = slot.node.link();
            *slot = copy;
            index
        } else {
            let index = self.entries.len();
            if let Err(refused) = self.entries.push_within_capacity(copy) {
                return Err(refused.0);
            }
            index
        };
        // OVERFLOW: At most `CHUNK`.
        self.used = self.used.wrapping_add(1);
        Ok(index)
    }
}

/// All merged copies of an index.
#[derive(Debug)]
pub struct Copies<F> {
    pub(super) chunks: KVVec<Chunk<F>>,
    /// First chunk that has room.
    room: u32,
    /// A chunk that may be empty and keeps its memory.
    spare: usize,
    used: u32,
    shared: u32,
}

/// Returns the chunk of a copy and its index there.
pub(super) fn split(id: CopyId) -> (usize, usize) {
    // CAST: `usize` is wider.
    (id.0 as usize / CHUNK, id.0 as usize % CHUNK)
}

impl<F> Copies<F> {
    /// Makes none, without allocating.
    pub const fn new() -> Self {
        Self {
            chunks: KVVec::new(),
            room: NONE,
            spare: 0,
            used: 0,
            shared: 0,
        }
    }

    /// Makes room for one copy.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory or no number.
    pub fn reserve(&mut self) -> Result<(), AllocError> {
        if self.room == NONE {
            if self.chunks.len() >= MAX_CHUNKS {
                return Err(AllocError);
            }
            self.chunks.push(Chunk::new(), GFP_KERNEL)?;
            // CAST, OVERFLOW: At least 1, at most `MAX_CHUNKS`.
            self.room = self.chunks.len().wrapping_sub(1) as u32;
        }
        let chunk = self.chunks.get_mut(self.room as usize).ok_or(AllocError)?;
        if chunk.entries.capacity() == 0 {
            chunk.entries.reserve(CHUNK, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Keeps a copy; the caller puts its node in the tree.
    ///
    /// # Errors
    ///
    /// The copy, if no room was reserved.
    pub fn insert(&mut self, copy: MergedCopy<F>) -> Result<CopyId, MergedCopy<F>> {
        let number = self.room;
        let Some(chunk) = self.chunks.get_mut(number as usize) else {
            return Err(copy);
        };
        let index = chunk.insert(copy)?;
        if chunk.used as usize == CHUNK {
            self.room = chunk.next;
        }
        // OVERFLOW: Numbers are below 2^30. CAST: So is the index.
        self.used = self.used.wrapping_add(1);
        let first = number.wrapping_mul(CHUNK as u32);
        Ok(CopyId(first.wrapping_add(index as u32)))
    }

    /// Returns the copy of that number, which may be dead.
    pub fn get(&self, id: CopyId) -> Option<&MergedCopy<F>> {
        let (chunk, index) = split(id);
        let copy = self.chunks.get(chunk)?.entries.get(index)?;
        (copy.state != State::Free).then_some(copy)
    }

    pub(super) fn get_mut(&mut self, id: CopyId) -> Option<&mut MergedCopy<F>> {
        let (chunk, index) = split(id);
        let copy = self.chunks.get_mut(chunk)?.entries.get_mut(index)?;
        (copy.state != State::Free).then_some(copy)
    }

    /// Returns the tree node of a copy.
    pub fn node(&self, id: CopyId) -> Option<&Node> {
        let (chunk, index) = split(id);
        Some(&self.chunks.get(chunk)?.entries.get(index)?.node)
    }

    /// Returns the tree node of a copy.
    pub fn node_mut(&mut self, id: CopyId) -> Option<&mut Node> {
        let (chunk, index) = split(id);
        Some(&mut self.chunks.get_mut(chunk)?.entries.get_mut(index)?.node)
    }

    /// Changes the state of a copy that has a frame to another with a frame.
    pub fn set_state(&mut self, id: CopyId, state: State) {
        if let Some(copy) = self.get_mut(id) {
            copy.state = state;
        }
    }

    /// Records one more page that maps the copy.
    pub fn join(&mut self, id: CopyId) {
        if let Some(copy) = self.get_mut(id) {
            // OVERFLOW: There are at most 2^30 pages.
            copy.records = copy.records.wrapping_add(1);
            if copy.records == 1 {
                self.shared = self.shared.wrapping_add(1);
            }
        }
    }

    /// Records one page less that maps the copy. The number of a dead one is free after the last.
    pub fn leave(&mut self, id: CopyId) {
        let Some(copy) = self.get_mut(id) else {
            return;
        };
        // OVERFLOW: Pages leave what they joined.
        copy.records = copy.records.wrapping_sub(1);
        if copy.records == 0 {
            let dead = copy.state == State::Dead;
            self.shared = self.shared.wrapping_sub(1);
            if dead {
                self.free(id);
            }
        }
    }

    /// Plans to give the copy to one more page.
    pub fn plan(&mut self, id: CopyId) {
        if let Some(copy) = self.get_mut(id) {
            // OVERFLOW: A step plans at most 513 pages.
            copy.planned = copy.planned.wrapping_add(1);
        }
    }

    /// Undoes [`Self::plan`]: it was given or could not be.
    pub fn unplan(&mut self, id: CopyId) {
        if let Some(copy) = self.get_mut(id) {
            // OVERFLOW: It was planned.
            copy.planned = copy.planned.wrapping_sub(1);
        }
    }

    /// Takes the frame of a copy whose nodes are in no tree any more.
    pub fn kill(&mut self, id: CopyId) -> Option<F> {
        let copy = self.get_mut(id)?;
        let frame = copy.frame.take();
        copy.state = State::Dead;
        copy.digested = Digested::No;
        if copy.records == 0 {
            self.free(id);
        }
        frame
    }

    /// Makes the number of a dead copy free, and gives back memory that nothing is left in.
    fn free(&mut self, id: CopyId) {
        let (number, index) = split(id);
        let room = self.room;
        let Some(chunk) = self.chunks.get_mut(number) else {
            return;
        };
        let Some(copy) = chunk.entries.get_mut(index) else {
            return;
        };
        copy.state = State::Free;
        copy.node = Node::with_link(0, chunk.free);
        // CAST: Below `CHUNK`.
        chunk.free = index as u32;
        if chunk.used as usize == CHUNK {
            chunk.next = room;
            // CAST: At most `MAX_CHUNKS`.
            self.room = number as u32;
        }
        // OVERFLOW: It was in use.
        chunk.used = chunk.used.wrapping_sub(1);
        self.used = self.used.wrapping_sub(1);
        if chunk.used == 0 {
            self.trim(number);
        }
    }

    /// Gives back the memory of an empty chunk, unless it is the only one: a copy that comes and
    /// goes shall not allocate each time.
    fn trim(&mut self, number: usize) {
        let kept = self.chunks.get(self.spare);
        let has_spare = kept.is_some_and(|chunk| chunk.used == 0 && chunk.entries.capacity() > 0);
        if !has_spare || self.spare == number {
            self.spare = number;
        } else if let Some(chunk) = self.chunks.get_mut(number) {
            chunk.entries = KVVec::new();
            chunk.digests = KVVec::new();
            chunk.free = NIL;
        }
    }

    /// Returns the first number from `from` on that is in use, dead ones included.
    pub fn next(&self, from: CopyId) -> Option<(CopyId, &MergedCopy<F>)> {
        let (mut number, mut index) = split(from);
        while let Some(chunk) = self.chunks.get(number) {
            while let Some(copy) = chunk.entries.get(index) {
                if copy.state != State::Free {
                    // OVERFLOW: Numbers are below 2^30. CAST: So they fit.
                    let id = CopyId(number.wrapping_mul(CHUNK).wrapping_add(index) as u32);
                    return Some((id, copy));
                }
                index = index.wrapping_add(1);
            }
            // OVERFLOW: At most `MAX_CHUNKS`.
            number = number.wrapping_add(1);
            index = 0;
        }
        None
    }

    /// Returns a number that is above all those in use.
    pub fn end(&self) -> CopyId {
        // OVERFLOW: Numbers are below 2^30. CAST: So it fits.
        CopyId(self.chunks.len().wrapping_mul(CHUNK) as u32)
    }

    /// Returns how many numbers are in use.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Returns how many copies pages are recorded to map.
    pub fn shared(&self) -> u32 {
        self.shared
    }

    /// Returns the bytes that all of it takes.
    pub fn bytes(&self) -> usize {
        let chunks = size_of::<Chunk<F>>().wrapping_mul(self.chunks.capacity());
        // OVERFLOW: It is in memory.
        self.chunks.iter().fold(chunks, |sum, chunk| {
            let entries = size_of::<MergedCopy<F>>().wrapping_mul(chunk.entries.capacity());
            let digests = size_of::<Digest>().wrapping_mul(chunk.digests.capacity());
            sum.wrapping_add(entries).wrapping_add(digests)
        })
    }
}

impl<F> Default for Copies<F> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_copies))]
mod tests {
    use super::*;

    /// A frame of the size that the kernel's has.
    type Frame = core::num::NonZeroU64;

    fn add(copies: &mut Copies<Frame>) -> Result<CopyId, AllocError> {
        copies.reserve()?;
        copies
            .insert(MergedCopy::new(Frame::MIN, 0))
            .map_err(|_| AllocError)
    }

    #[test]
    fn a_copy_takes_thirty_two_bytes() {
        assert_eq!(size_of::<MergedCopy<Frame>>(), 32);
    }

    #[test]
    fn without_room_the_frame_comes_back() {
        let mut copies = Copies::new();
        let refused = copies.insert(MergedCopy::new(Frame::MAX, 0));
        assert!(refused.is_err_and(|copy| copy.frame() == Some(&Frame::MAX)));
        assert_eq!(copies.used(), 0);
        assert!(copies.next(CopyId(0)).is_none());
    }

    #[test]
    fn freed_numbers_are_used_again() -> Result<(), AllocError> {
        let mut copies = Copies::new();
        let count = CHUNK as u32 * 2 + 3;
        for number in 0..count {
            assert_eq!(add(&mut copies)?, CopyId(number));
        }
        for number in [5, 300, 6, 299] {
            assert_eq!(copies.kill(CopyId(number)), Some(Frame::MIN));
            assert!(copies.get(CopyId(number)).is_none());
            assert_eq!(copies.kill(CopyId(number)), None);
        }
        assert_eq!(copies.next(CopyId(5)).map(|(id, _)| id), Some(CopyId(7)));
        assert_eq!(copies.used(), count.wrapping_sub(4));
        let mut again = [false; 4];
        for _ in 0..4 {
            let CopyId(number) = add(&mut copies)?;
            let place = [5, 6, 299, 300].iter().position(|freed| *freed == number);
            if let Some(seen) = place.and_then(|place| again.get_mut(place)) {
                *seen = true;
            }
        }
        assert!(again.iter().all(|seen| *seen));
        assert_eq!(add(&mut copies)?, CopyId(count));
        Ok(())
    }

    #[test]
    fn the_number_of_a_dead_copy_is_free_after_the_last_record() -> Result<(), AllocError> {
        let mut copies = Copies::new();
        let id = add(&mut copies)?;
        copies.join(id);
        copies.join(id);
        assert_eq!(copies.shared(), 1);
        assert_eq!(copies.kill(id), Some(Frame::MIN));
        assert_eq!(copies.get(id).map(MergedCopy::state), Some(State::Dead));
        copies.leave(id);
        assert_eq!((copies.used(), copies.shared()), (1, 1));
        copies.leave(id);
        assert_eq!((copies.used(), copies.shared()), (0, 0));
        assert!(copies.get(id).is_none());
        Ok(())
    }

    #[test]
    fn memory_is_given_back_when_a_chunk_is_empty() -> Result<(), AllocError> {
        let mut copies = Copies::new();
        for _ in 0..CHUNK * 3 {
            add(&mut copies)?;
        }
        let full = copies.bytes();
        for number in 0..CHUNK as u32 * 3 {
            copies.kill(CopyId(number));
        }
        assert_eq!(copies.used(), 0);
        assert!(copies.bytes().saturating_mul(2) < full);
        for _ in 0..CHUNK * 3 {
            let CopyId(number) = add(&mut copies)?;
            assert!((number as usize) < CHUNK * 3);
        }
        Ok(())
    }

    #[test]
    fn planned_pages_count_towards_the_cap() -> Result<(), AllocError> {
        let mut copies = Copies::new();
        let id = add(&mut copies)?;
        copies.join(id);
        copies.plan(id);
        assert!(copies.get(id).is_some_and(|copy| copy.has_room(3)));
        assert!(!copies.get(id).is_some_and(|copy| copy.has_room(2)));
        copies.unplan(id);
        assert!(copies.get(id).is_some_and(|copy| copy.has_room(2)));
        copies.set_state(id, State::Odd);
        assert!(!copies.get(id).is_some_and(|copy| copy.has_room(9)));
        Ok(())
    }
}
