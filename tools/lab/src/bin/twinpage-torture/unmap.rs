// SPDX-License-Identifier: GPL-2.0

//! Guest memory that goes, its page tables with it, and comes back empty.

use std::ops::Range;

use tinyvm::{
    content,
    Backing,
    Counter, //
};
use twinpage_lab::random::Random;

use crate::acts::{
    put,
    MADV_POPULATE_WRITE, //
};
use crate::vmm::{
    Machine,
    Trouble, //
};

/// Advice since Linux 6.13.
const MADV_GUARD_INSTALL: libc::c_int = 102;
const MADV_GUARD_REMOVE: libc::c_int = 103;

/// Pages that one page table maps.
const TABLE: usize = 512;

/// Unmaps some pages, a whole page table, or all of the memory, which is alone among its page tables:
/// those of every level go. For a moment the module finds a slot where nothing is mapped, or where
/// something is that it must not touch.
pub fn unmap(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let all = machine.memory.pages();
    let (page, pages) = match random.below(3) {
        0 => machine.some_pages(random, 64),
        1 if all > TABLE => (all / TABLE * TABLE, all % TABLE),
        _ => (0, all),
    };
    let pages = pages.max(1);
    let state = machine.still();
    // The guest's program, and what it remembers of its data pages.
    let own: Vec<_> = (page..machine.first_page)
        .map(|page| machine.memory.read_page(page))
        .collect();
    machine.memory.unmap(page, pages)?;
    let other = random.pick(&[None, Some(Backing::Shared), Some(Backing::Hugetlb)]);
    let shown = other.map_or(Ok(()), |other| show(machine, page..page + pages, other));
    random.nap(10);
    if let Some(range) = whole(page..page + pages, other) {
        machine.memory.unmap(range.start, range.len())?;
    }
    machine
        .memory
        .map_again(page, pages, machine.backing())
        .map_err(|error| Trouble::Wrong(format!("mapping memory again: {error}")))?;
    for (index, content) in own.iter().enumerate() {
        machine.memory.write_page(page + index, content);
    }
    let first = page.max(machine.first_page) - machine.first_page;
    let end = page + pages - machine.first_page;
    (first..end).for_each(|data| state.counter.believe(data, 0));
    refill(machine, &state.counter, random, first..end)?;
    shown
}

/// Memory of another kind where that of the guest was, written to: the module may know a page of the
/// guest by its address still.
fn show(machine: &Machine, gone: Range<usize>, other: Backing) -> Result<(), Trouble> {
    let Some(range) = whole(gone, Some(other)) else {
        return Ok(());
    };
    let (page, pages) = (range.start, range.len());
    machine.memory.map_again(page, pages, other)?;
    // There may be none to have, and an access would be a signal then.
    Ok(machine.memory.advise(page, pages, MADV_POPULATE_WRITE)?)
}

/// The part of a range that memory of this kind can be mapped to, if there is any.
fn whole(range: Range<usize>, backing: Option<Backing>) -> Option<Range<usize>> {
    let range = match backing? {
        Backing::Hugetlb => range.start.next_multiple_of(TABLE)..range.end / TABLE * TABLE,
        _ => range,
    };
    (!range.is_empty()).then_some(range)
}

/// Puts guards in the place of some pages, with which an access faults for good. For a moment the
/// module finds entries that are no pages.
pub fn guard(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, pages) = machine.some_pages(random, 64);
    let state = machine.still();
    let installed = machine.memory.advise(page, pages, MADV_GUARD_INSTALL);
    random.nap(10);
    // Without memory for all of them some may be there.
    machine.memory.advise(page, pages, MADV_GUARD_REMOVE)?;
    machine.memory.advise(page, pages, libc::MADV_DONTNEED)?;
    let data = page - machine.first_page..page - machine.first_page + pages;
    data.clone().for_each(|data| state.counter.believe(data, 0));
    refill(machine, &state.counter, random, data)?;
    Ok(installed?)
}

/// Half of the pages get content again; the others must be empty.
fn refill(
    machine: &Machine,
    counter: &Counter,
    random: &mut Random,
    data: Range<usize>,
) -> Result<(), Trouble> {
    for page in data.clone().step_by(2) {
        put(machine, counter, page, random.below(64));
    }
    for page in data.skip(1).step_by(2) {
        if machine.memory.read_page(machine.first_page + page) != content(0) {
            let text = format!("data page {page} is not empty after mapping it anew");
            return Err(Trouble::Wrong(text));
        }
    }
    Ok(())
}
