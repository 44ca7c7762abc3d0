// SPDX-License-Identifier: GPL-2.0

//! An attached VM.

use crate::{
    engine::{
        layout::Layout,
        policy::Turn,
        world::GuestId, //
    },
    sys::{
        mm::Space,
        vm::Vm, //
    },
};
use kernel::prelude::*;

/// Which index a guest's pages are in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Domain {
    /// Its own.
    Private(GuestId),
    /// The one of all guests attached with that number.
    Group(u64),
}

impl Domain {
    /// The domain that userspace means by `number` when it attaches `guest`.
    pub(crate) fn new(number: u64, guest: GuestId) -> Self {
        match number {
            0 => Self::Private(guest),
            _ => Self::Group(number),
        }
    }

    /// The number that userspace knows it by.
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Private(_) => 0,
            Self::Group(number) => number,
        }
    }
}

/// An attached VM.
pub(crate) struct Guest {
    id: GuestId,
    domain: Domain,
    layout: Layout,
    space: Space,
    vm: Vm,
    /// Round in which the last complete pass ended; 0: none yet.
    round: u64,
    /// A pass has begun and not ended.
    in_pass: bool,
    /// It is being attached, or its merged pages are being given back: nothing may merge.
    held: bool,
    /// Whether it is being detached: then its index forgets it, in steps.
    leaving: Leaving,
}

/// Whether a guest is being detached, and by whom.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// By a call, which returns when all of it is gone.
    Asked,
    /// By the scanner, as its VM or its memory has gone.
    Ended,
}

impl Guest {
    /// Wraps a VM that is to be attached; it is held.
    pub(crate) fn new(id: GuestId, domain: Domain, vm: Vm) -> Self {
        Self {
            id,
            domain,
            layout: Layout::default(),
            space: vm.space(),
            vm,
            round: 0,
            in_pass: false,
            held: true,
            leaving: Leaving::No,
        }
    }

    /// Number of the attachment.
    pub(crate) fn id(&self) -> GuestId {
        self.id
    }

    /// Where its pages are.
    pub(crate) fn domain(&self) -> Domain {
        self.domain
    }

    /// Its VM.
    pub(crate) fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The address space that holds its memory.
    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// Its memslots as of the last [`set_layout`](Self::set_layout).
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Asks KVM for the memslots; `None` if they have not changed.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn ask_layout(&self) -> Result<Option<Layout>> {
        let slots = self.vm.slots()?;
        Ok(self.layout.next(slots, GFP_KERNEL)?)
    }

    /// Its memslots are these now.
    pub(crate) fn set_layout(&mut self, layout: Layout) {
        self.layout = layout;
    }

    /// Does another guest, whose VM still exists, show memory of this guest's process that is in
    /// `layout`?
    pub(crate) fn is_shown_by(&self, other: &Guest, layout: &Layout) -> bool {
        other.id != self.id
            && other.space.is(&self.space)
            && other.layout.overlaps(layout)
            && !other.is_leaving()
            && !other.vm.is_closed()
    }

    /// Its place in the order of turns.
    pub(crate) fn turn(&self) -> Turn {
        Turn {
            guest: self.id,
            round: self.round,
        }
    }

    /// Has no pass been completed yet?
    pub(crate) fn is_new(&self) -> bool {
        self.round == 0
    }

    /// Has a pass begun and not ended?
    pub(crate) fn is_in_pass(&self) -> bool {
        self.in_pass
    }

    /// A pass begins.
    pub(crate) fn begin_pass(&mut self) {
        self.in_pass = true;
    }

    /// The pass has ended, in round `round`.
    pub(crate) fn end_pass(&mut self, round: u64) {
        self.in_pass = false;
        self.round = round;
    }

    /// May its pages merge now? Those of a VM that is closed may be another guest's by now.
    pub(crate) fn is_at_work(&self) -> bool {
        !self.held && !self.is_leaving() && !self.vm.is_closed()
    }

    /// As [`is_at_work`](Self::is_at_work), and is it not being migrated either?
    pub(crate) fn may_merge(&self) -> bool {
        self.is_at_work() && !self.layout.is_migrating()
    }

    /// Is it being attached, or are its merged pages being given back?
    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// Nothing may merge from now on, or it may again.
    pub(crate) fn set_held(&mut self, held: bool) {
        self.held = held;
    }

    /// Is it being detached?
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving != Leaving::No
    }

    /// Is it the scanner that detaches it?
    pub(crate) fn has_ended(&self) -> bool {
        self.leaving == Leaving::Ended
    }

    /// Starts to detach it for somebody who asks for that.
    pub(crate) fn leave(&mut self) {
        self.leaving = Leaving::Asked;
    }

    /// Has the scanner detach it, unless somebody does.
    pub(crate) fn end(&mut self) {
        if !self.is_leaving() {
            self.leaving = Leaving::Ended;
        }
    }
}
