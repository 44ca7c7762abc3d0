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

/// Pages that one page table maps, or a huge page has.
pub const TABLE: usize = 512;

/// Unmaps some pages, a whole page table, or all of the memory, which is alone among its page tables:
/// those of every level go. For a moment the module finds a slot where nothing is mapped.
pub fn unmap(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let all = machine.memory.pages();
    let (page, pages) = match random.below(3) {
        0 => machine.some_pages(random, 64),
        1 if all > TABLE => (all / TABLE * TABLE, all % TABLE),
        _ => (0, all),
    };
    come_and_go(machine, random, page..page + pages.max(1), None)
}

/// The same, with shared memory in its place for a moment: the module may know a page of the guest by
/// its address still.
pub fn show_shared(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, pages) = machine.some_pages(random, 64);
    let gone = page..page + pages;
    come_and_go(machine, random, gone.clone(), Some((Backing::Shared, gone)))
}

/// The same, with a huge page of hugetlb in the place of a page table.
pub fn show_hugetlb(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let all = 0..machine.memory.pages();
    come_and_go(machine, random, all, Some((Backing::Hugetlb, 0..TABLE)))
}

/// Unmaps pages, and maps them again a moment later. What is in the place of some meanwhile is written
/// to.
fn come_and_go(
    machine: &Machine,
    random: &mut Random,
    gone: Range<usize>,
    other: Option<(Backing, Range<usize>)>,
) -> Result<(), Trouble> {
    let wrong = |what, error| Trouble::Wrong(format!("{what} memory: {error}"));
    let (page, pages) = (gone.start, gone.len());
    let state = machine.still();
    // The guest's program, and what it remembers of its data pages.
    let own: Vec<_> = (page..machine.first_page)
        .map(|page| machine.memory.read_page(page))
        .collect();
    machine.memory.unmap(page, pages)?;
    let shown = other.as_ref().map_or(Ok(()), |(backing, place)| {
        machine
            .memory
            .map_again(place.start, place.len(), *backing)?;
        // There may be none to have, and an access would be a signal then.
        machine
            .memory
            .advise(place.start, place.len(), MADV_POPULATE_WRITE)
    });
    random.nap(10);
    if let Some((_, place)) = other {
        let taken = machine.memory.unmap(place.start, place.len());
        taken.map_err(|error| wrong("taking away other", error))?;
    }
    let mapped = machine.memory.map_again(page, pages, machine.backing());
    mapped.map_err(|error| wrong("mapping again", error))?;
    for (index, content) in own.iter().enumerate() {
        machine.memory.write_page(page + index, content);
    }
    let first = page.max(machine.first_page) - machine.first_page;
    let end = page + pages - machine.first_page;
    (first..end).for_each(|data| state.counter.believe(data, 0));
    refill(machine, &state.counter, random, first..end)?;
    Ok(shown?)
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
