// SPDX-License-Identifier: GPL-2.0

//! What the module knows: domains, guests, settings. All of it under one mutex.
//!
//! Methods do bounded work, so that the mutex is never held for long; whoever has more to do calls
//! again. What must not be dropped under the mutex, a large index, is handed out as [`Departed`].

use super::{
    guests::{
        Domain,
        Guest, //
    },
    world::HostWorld,
};
use crate::{
    engine::{
        digests::{
            Asked,
            Search, //
        },
        index::{
            Found,
            Index,
            Progress,
            Swept,
            Unmerged, //
        },
        knobs::Knobs,
        policy::{
            Effort,
            Pace,
            Rounds, //
        },
        restraint::Restraint,
        scratch::Scratch,
        stats::{
            Counters,
            GuestStats,
            Totals, //
        },
        wire::PageState,
        world::{
            Away,
            GuestId,
            BLOCK_PAGES, //
        }, //
    },
    sys::{
        frame::Frame,
        look::Look,
        random::random_u64,
        vm::Vm, //
    },
};
use kernel::{
    alloc::KVec,
    page::PAGE_SIZE,
    prelude::*,
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// Blocks of a leaving guest, or of memory that a guest lost, that are forgotten at once.
const LEAVE_BLOCKS: usize = 64;

/// Merged copies that are polled at each step: half of a block's pages, as two pages share a copy
/// at least, so that a round polls all of those that are of use.
pub(crate) const SWEEP_COPIES: usize = BLOCK_PAGES / 2;

/// Digests that are computed at once, without letting go of the mutex.
pub(crate) const DIGEST_BUDGET: usize = 64;

/// Serial numbers that each index gets.
const SERIALS: u64 = 1 << 40;

/// A sharing domain that has guests.
struct Room {
    domain: Domain,
    index: Index<Frame>,
}

/// What the module knows.
pub(crate) struct State {
    pub(crate) knobs: Knobs,
    rounds: Rounds,
    pub(crate) effort: Effort,
    seed: u64,
    last_guest: u32,
    last_room: u64,
    rooms: KVec<Room>,
    /// Sorted by number.
    guests: KVec<Guest>,
    /// Counters of rooms that are gone.
    past: Counters,
    /// Which room is swept next.
    swept: usize,
    loaded: Instant<Monotonic>,
    look: Look,
    scratch: Scratch,
}

/// A detached guest, and its index if it was the last one there. To be dropped without locks.
pub(crate) struct Departed {
    id: GuestId,
    _guest: Guest,
    _index: Option<Index<Frame>>,
}

impl Departed {
    /// Number that the guest had.
    pub(crate) fn id(&self) -> GuestId {
        self.id
    }
}

/// What one step of the scanner did.
pub(crate) struct Worked {
    /// Pages of the block that something is mapped at.
    pub(crate) present: u32,
    /// How urgent it was.
    pub(crate) pace: Pace,
    /// Whether the guest was busy, so that it is to be tried again after a rest.
    pub(crate) busy: bool,
    /// Whose.
    pub(crate) guest: GuestId,
}

/// Bytes of the merged copy with a digest.
pub(crate) enum Bytes {
    /// These.
    Read,
    /// There is no such copy.
    None,
    /// Digests are missing; ask again.
    More,
}

impl State {
    /// No guests, default settings.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            knobs: Knobs::DEFAULT,
            rounds: Rounds::new(),
            effort: Effort::new(),
            seed: random_u64(),
            last_guest: 0,
            last_room: 0,
            rooms: KVec::new(),
            guests: KVec::new(),
            past: Counters::default(),
            swept: 0,
            loaded: Instant::now(),
            look: Look::new()?,
            scratch: Scratch::new()?,
        })
    }

    fn position(&self, id: GuestId) -> Option<usize> {
        self.guests.binary_search_by_key(&id, Guest::id).ok()
    }

    /// An attached guest.
    pub(crate) fn guest(&self, id: GuestId) -> Option<&Guest> {
        self.guests.get(self.position(id)?)
    }

    fn guest_mut(&mut self, id: GuestId) -> Option<&mut Guest> {
        let at = self.position(id)?;
        self.guests.get_mut(at)
    }

    /// The attached guest with the lowest number above `after`.
    pub(crate) fn guest_after(&self, after: GuestId) -> Option<GuestId> {
        let at = self.guests.partition_point(|guest| guest.id() <= after);
        self.guests.get(at).map(Guest::id)
    }

    /// All that a step needs, side by side: the guest's index, the world, room to work.
    fn parts(&mut self, id: GuestId) -> Option<(&mut Index<Frame>, HostWorld<'_>, &mut Scratch)> {
        let domain = self.guest(id)?.domain();
        let room = self.rooms.iter_mut().find(|room| room.domain == domain)?;
        let world = HostWorld::new(&self.guests, &mut self.look);
        Some((&mut room.index, world, &mut self.scratch))
    }

    /// Attaches a VM, and holds it; `number` is the domain's. Its memslots are not known yet.
    ///
    /// # Errors
    ///
    /// `EEXIST`, `ENOMEM`, `ENOSPC`.
    pub(crate) fn attach(&mut self, vm: Vm, number: u64) -> Result<GuestId> {
        if self.guests.iter().any(|guest| guest.vm().is(&vm)) {
            return Err(EEXIST);
        }
        let next = self.last_guest.checked_add(1).ok_or(ENOSPC)?;
        let id = GuestId(next);
        let domain = Domain::new(number, id);
        self.make_room(domain)?;
        if self.guests.reserve(1, GFP_KERNEL).is_err() {
            self.drop_room_if_empty(domain);
            return Err(ENOMEM);
        }
        let joined = match self.room(domain) {
            Some(room) => room.index.attach(id).map_err(Error::from),
            None => Err(ENOMEM),
        };
        if let Err(error) = joined {
            self.drop_room_if_empty(domain);
            return Err(error);
        }
        self.last_guest = next;
        if self
            .guests
            .push_within_capacity(Guest::new(id, domain, vm))
            .is_err()
        {
            // PANIC: Not reached: room was reserved above.
            return Ok(id);
        }
        Ok(id)
    }

    fn room(&mut self, domain: Domain) -> Option<&mut Room> {
        self.rooms.iter_mut().find(|room| room.domain == domain)
    }

    fn make_room(&mut self, domain: Domain) -> Result {
        if self.room(domain).is_some() {
            return Ok(());
        }
        let next = self.last_room.checked_add(1).ok_or(ENOSPC)?;
        let first = next.checked_mul(SERIALS).ok_or(ENOSPC)?;
        let index = Index::new(self.seed, first..first.saturating_add(SERIALS));
        self.rooms.push(Room { domain, index }, GFP_KERNEL)?;
        self.last_room = next;
        Ok(())
    }

    fn drop_room_if_empty(&mut self, domain: Domain) -> Option<Index<Frame>> {
        let at = self
            .rooms
            .iter()
            .position(|room| room.domain == domain && room.index.is_empty())?;
        let room = self.rooms.remove(at).ok()?;
        self.past.add_all(&room.index.totals().counters);
        Some(room.index)
    }

    /// Asks for a guest's memslots and tells its index. With [`Progress::More`] the old ones still
    /// serve: what is known of memory that is gone takes more calls to forget.
    ///
    /// # Errors
    ///
    /// `ENOENT`, `ENOMEM`, `ENOSPC`; `EBUSY`, another guest has a part of that memory, too: a page
    /// must not be in two domains, nor be its own twin. The old ones stay.
    pub(crate) fn refresh(&mut self, id: GuestId) -> Result<Progress> {
        let guest = self.guest(id).ok_or(ENOENT)?;
        let Some(layout) = guest.ask_layout()? else {
            return Ok(Progress::Done);
        };
        let mut others = self.guests.iter();
        if others.any(|other| guest.is_shown_by(other, &layout)) {
            return Err(EBUSY);
        }
        let domain = guest.domain();
        let index = &mut self.room(domain).ok_or(ENOENT)?.index;
        let progress = index.forget_outside(id, layout.ranges(), LEAVE_BLOCKS);
        if progress == Progress::Done {
            index.set_ranges(id, layout.ranges())?;
            self.guest_mut(id).ok_or(ENOENT)?.set_layout(layout);
        }
        Ok(progress)
    }

    /// Keeps a guest from merging until [`release`](Self::release) or until it is detached.
    ///
    /// # Errors
    ///
    /// `ENOENT`; `EBUSY`, somebody else holds it.
    pub(crate) fn hold(&mut self, id: GuestId) -> Result {
        let guest = self.guest_mut(id).ok_or(ENOENT)?;
        if guest.is_held() {
            return Err(EBUSY);
        }
        guest.set_held(true);
        Ok(())
    }

    /// Lets a guest merge again.
    pub(crate) fn release(&mut self, id: GuestId) {
        if let Some(guest) = self.guest_mut(id) {
            guest.set_held(false);
        }
    }

    /// Starts to detach a guest; [`leave`](Self::leave) does it.
    ///
    /// # Errors
    ///
    /// `ENOENT`.
    pub(crate) fn begin_leave(&mut self, id: GuestId) -> Result {
        self.guest_mut(id).ok_or(ENOENT)?.leave();
        Ok(())
    }

    /// A guest that the scanner is to detach.
    pub(crate) fn ended(&self) -> Option<GuestId> {
        self.guests
            .iter()
            .find(|guest| guest.has_ended())
            .map(Guest::id)
    }

    /// One step of detaching: the departed guest when it was the last.
    pub(crate) fn leave(&mut self, id: GuestId) -> Option<Departed> {
        let at = self.position(id)?;
        let domain = self.guests.get(at)?.domain();
        if self.room(domain)?.index.detach(id, LEAVE_BLOCKS) == Progress::More {
            return None;
        }
        let index = self.drop_room_if_empty(domain);
        let guest = self.guests.remove(at).ok()?;
        Some(Departed {
            id,
            _guest: guest,
            _index: index,
        })
    }

    /// Marks guests whose VM is gone.
    pub(crate) fn notice_closed(&mut self) {
        for guest in self.guests.iter_mut() {
            if guest.vm().is_closed() {
                guest.end();
            }
        }
    }

    /// One step of the scanner; `None` if there is nobody to scan.
    pub(crate) fn scan(&mut self) -> Option<Worked> {
        let turns = self
            .guests
            .iter()
            .filter(|guest| guest.is_at_work())
            .map(Guest::turn);
        let id = self.rounds.next(turns)?;
        let halvings = self.effort.halvings();
        let guest = self.guest_mut(id)?;
        let pace = if guest.is_new() {
            Pace::Boost
        } else {
            Pace::Steady(halvings)
        };
        if !guest.is_in_pass() {
            // Without memory the old memslots serve: a stale range does no harm.
            if self.refresh(id) == Ok(Progress::More) {
                return Some(Worked {
                    present: 0,
                    pace,
                    busy: false,
                    guest: id,
                });
            }
            self.guest_mut(id)?.begin_pass();
        }
        let knobs = self.knobs;
        let round = self.rounds.number();
        let now_ns = self.loaded.elapsed().as_nanos().unsigned_abs();
        let (index, mut world, scratch) = self.parts(id)?;
        let step = index.scan(&mut world, scratch, id, &knobs);
        if step.is_ok_and(|step| step.pass_ended) {
            index.pass_ended(id, &knobs, now_ns);
        }
        let mut budget = SWEEP_COPIES;
        index.sweep(&mut world, &knobs, &mut budget);
        let present = match step {
            Ok(step) => {
                self.effort.step(&step, round);
                if step.pass_ended {
                    self.guest_mut(id)?.end_pass(round);
                }
                step.present
            }
            Err(Away::Gone) => {
                self.guest_mut(id)?.end();
                0
            }
            Err(Away::Busy) => 0,
        };
        Some(Worked {
            present,
            pace,
            busy: step == Err(Away::Busy),
            guest: id,
        })
    }

    /// Adds CPU time to a guest's account.
    pub(crate) fn charge(&mut self, id: GuestId, cpu_ns: u64) {
        if let Some((index, _, _)) = self.parts(id) {
            index.charge(id, cpu_ns);
        }
    }

    /// Frees copies that nobody maps: looks at up to `budget` domains and copies, domain after
    /// domain.
    pub(crate) fn sweep(&mut self, mut budget: usize) -> Swept {
        let mut world = HostWorld::new(&self.guests, &mut self.look);
        let mut all = Swept::default();
        while let Some(left) = budget.checked_sub(1) {
            budget = left;
            let Some(room) = self.rooms.get_mut(self.swept) else {
                self.swept = 0;
                all.done = true;
                break;
            };
            let swept = room.index.sweep(&mut world, &self.knobs, &mut budget);
            all.freed = all.freed.saturating_add(swept.freed);
            // OVERFLOW: There is a room of that number.
            self.swept = self.swept.wrapping_add(usize::from(swept.done));
        }
        all
    }

    /// Has [`sweep`](Self::sweep) begin with the first copy of the first domain.
    pub(crate) fn sweep_anew(&mut self) {
        self.swept = 0;
        for room in self.rooms.iter_mut() {
            room.index.sweep_anew();
        }
    }

    /// Has [`sweep_due`](Self::sweep_due) look at the copies of a guest's domain.
    pub(crate) fn sweep_soon(&mut self, id: GuestId) {
        if let Some((index, _, _)) = self.parts(id) {
            index.sweep_anew();
        }
    }

    /// Frees copies of guests that left or were unmerged, as far as one step goes; whether there is
    /// more to do.
    pub(crate) fn sweep_due(&mut self) -> bool {
        let mut world = HostWorld::new(&self.guests, &mut self.look);
        let room = self.rooms.iter_mut().find(|room| room.index.is_sweep_due());
        if let Some(room) = room {
            let mut budget = SWEEP_COPIES;
            room.index.sweep(&mut world, &self.knobs, &mut budget);
        }
        self.rooms.iter().any(|room| room.index.is_sweep_due())
    }

    /// Copies that are kept.
    pub(crate) fn copies(&self) -> usize {
        self.rooms.iter().map(|room| room.index.copies()).sum()
    }

    /// Gives a guest's next merged pages their own copies back.
    ///
    /// # Errors
    ///
    /// As [`Index::unmerge`].
    pub(crate) fn unmerge(&mut self, id: GuestId, cursor: &mut u64) -> Result<Unmerged, Away> {
        let (index, mut world, scratch) = self.parts(id).ok_or(Away::Gone)?;
        index.unmerge(&mut world, scratch, id, cursor)
    }

    /// Gives pages of a guest that map merged copies which its domain does not know their own.
    ///
    /// # Errors
    ///
    /// As [`Index::give_up_orphans`].
    pub(crate) fn give_up_orphans(
        &mut self,
        id: GuestId,
        cursor: &mut u64,
    ) -> Result<Unmerged, Away> {
        let (index, mut world, scratch) = self.parts(id).ok_or(Away::Gone)?;
        index.give_up_orphans(&mut world, scratch, id, cursor)
    }

    /// Pages of a guest that map a merged copy.
    pub(crate) fn merged(&mut self, id: GuestId) -> u64 {
        self.parts(id).map_or(0, |(index, _, _)| index.merged(id))
    }

    /// Gauges and counters of a guest.
    pub(crate) fn stats(&mut self, id: GuestId) -> Option<GuestStats> {
        self.parts(id)?.0.guest(id).cloned()
    }

    /// How fast a guest's merged pages break, and whether it is backed off.
    pub(crate) fn restraint(&mut self, id: GuestId) -> Option<Restraint> {
        self.parts(id)?.0.restraint(id).copied()
    }

    /// Complete rounds over all guests.
    pub(crate) fn full_scans(&self) -> u64 {
        self.rounds.full_scans()
    }

    /// Gauges and counters of all guests, those that are gone included.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        totals.counters.add_all(&self.past);
        for room in self.rooms.iter() {
            totals.add_all(&room.index.totals());
        }
        totals
    }

    /// Tells the states of pages in order; says how many. As [`Index::page_states`].
    ///
    /// # Errors
    ///
    /// `ENOENT`, `ESRCH`, `EAGAIN`, `ENOMEM`.
    pub(crate) fn page_states(
        &mut self,
        asked: Asked,
        tell: impl FnMut(PageState),
    ) -> Result<usize> {
        let (index, world, scratch) = self.parts(asked.guest).ok_or(ENOENT)?;
        let mut world = world.for_reading();
        Ok(index.page_states(&mut world, scratch, asked, tell)?)
    }

    /// Goes on with a search in group `number`, and reads the merged copy that it finds.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn read_digest(
        &mut self,
        number: u64,
        search: &mut Search,
        bytes: &mut [u8; PAGE_SIZE],
    ) -> Result<Bytes> {
        let domain = Domain::Group(number);
        let Some(room) = self.rooms.iter_mut().find(|room| room.domain == domain) else {
            return Ok(Bytes::None);
        };
        let mut world = HostWorld::new(&self.guests, &mut self.look);
        match room.index.find_digest(&mut world, search, DIGEST_BUDGET)? {
            Found::Copy(frame) if frame.read(bytes) => Ok(Bytes::Read),
            // It broke just now; the kernel marks it.
            Found::Copy(_) => Ok(Bytes::None),
            Found::None => Ok(Bytes::None),
            Found::More => Ok(Bytes::More),
        }
    }
}
