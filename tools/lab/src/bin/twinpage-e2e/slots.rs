// SPDX-License-Identifier: GPL-2.0

//! Memslots overlap, appear, move and go; the module follows.

use tinyvm::{
    Backing,
    Memory,
    Slot, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::{
    ensure,
    module,
    wait, //
};

use crate::host::{
    check,
    common_frames,
    fill,
    Guest,
    Host,
    CONVERGE,
    DOMAIN,
    PRIVATE, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "two_slots_over_one_address_count_once",
        seconds: 120,
        run: two_slots_over_one_address_count_once,
    },
    Test {
        name: "the_smm_address_space_counts_once",
        seconds: 120,
        run: the_smm_address_space_counts_once,
    },
    Test {
        name: "a_slot_that_appears_is_merged",
        seconds: 120,
        run: a_slot_that_appears_is_merged,
    },
    Test {
        name: "a_slot_that_goes_or_moves_is_followed",
        seconds: 120,
        run: a_slot_that_goes_or_moves_is_followed,
    },
    Test {
        name: "slots_may_change_all_the_time",
        seconds: 120,
        run: slots_may_change_all_the_time,
    },
];

const PAGES: usize = 512;

/// Guest address of a second slot.
const SECOND: u64 = 0x1000_0000;

fn pages(guest: &Guest) -> Result<u64, Failure> {
    Ok(guest.stats()?.get("pages")?)
}

fn until_pages(guest: &Guest, expected: u64) -> Outcome {
    let result: Result<_, Failure> = wait::until("following the slots", CONVERGE, || {
        Ok(pages(guest)? == expected)
    });
    result
        .map(|_| ())
        .map_err(|failure| Failure::Failed(format!("{failure}: {}", guest.told())))
}

/// Pages under two slots are looked at once, and merge as others do.
fn overlap(second: Slot) -> Outcome {
    let host = Host::new()?;
    let guest = Guest::detached(PAGES, Backing::Small)?;
    let set = guest.vm()?.set_slot(Slot {
        host: guest.memory().address() + 128 * 4096,
        ..second
    });
    if let Err(error) = set {
        return Err(Failure::Skipped(error.to_string()));
    }
    let mut guest = guest;
    guest.attach(&host, PRIVATE)?;
    guest.fill_with(|page| page as u64 / 2);
    host.until_saved(&[&guest], PAGES / 2)?;
    host.looks(2)?;
    let stats = guest.stats()?;
    ensure!(stats.get("pages")? == PAGES as u64, "{stats:?}");
    ensure!(stats.sum()? == PAGES as u64, "{stats:?}");
    guest.check_with(|page| page as u64 / 2)
}

fn two_slots_over_one_address_count_once() -> Outcome {
    overlap(Slot {
        number: 1,
        guest: SECOND,
        pages: 256,
        ..Slot::default()
    })
}

fn the_smm_address_space_counts_once() -> Outcome {
    overlap(Slot {
        address_space: 1,
        guest: SECOND,
        pages: 256,
        ..Slot::default()
    })
}

fn a_slot_that_appears_is_merged() -> Outcome {
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    let late = Memory::new(PAGES, Backing::Small)?;
    for page in 0..PAGES {
        fill(&late, page, page as u64 + 1);
    }
    b.vm()?.set_slot(Slot {
        number: 1,
        guest: SECOND,
        host: late.address(),
        pages: PAGES,
        ..Slot::default()
    })?;
    until_pages(&b, 2 * PAGES as u64)?;
    let own = twinpage_lab::pagemap::Pagemap::own()?;
    let frames = a.frames()?;
    wait::until("merging the new slot", CONVERGE, || {
        let entries = own.read(late.address(), PAGES)?;
        let mut pairs = entries.iter().zip(&frames);
        Ok::<_, Failure>(pairs.all(|(entry, frame)| entry.frame() == *frame))
    })?;
    (0..PAGES).try_for_each(|page| check(&late, page, page as u64 + 1))
}

fn a_slot_that_goes_or_moves_is_followed() -> Outcome {
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    let whole = Slot {
        host: b.memory().address(),
        pages: PAGES,
        ..Slot::default()
    };
    b.vm()?.set_slot(Slot {
        guest: SECOND,
        ..whole
    })?;
    host.looks(2)?;
    until_pages(&b, PAGES as u64)?;
    let moved = module::slots(b.id())?;
    ensure!(moved[0].base_gfn == SECOND / 4096, "{moved:?}");
    b.vm()?.set_slot(Slot {
        guest: SECOND,
        pages: 0,
        ..whole
    })?;
    until_pages(&b, 0)?;
    // What was merged stays merged and right, it is only not looked at any more.
    ensure!(
        common_frames(&a, &b)? == PAGES,
        "taking the slot away unmerged"
    );
    b.fill_with(|page| page as u64 + 1);
    host.looks(2)?;
    ensure!(common_frames(&a, &b)? == 0, "merged without a slot");
    b.vm()?.set_slot(whole)?;
    host.until_saved(&[&a, &b], PAGES)
}

fn slots_may_change_all_the_time() -> Outcome {
    let host = Host::new()?;
    let guest = host.guest(PAGES, Backing::Small, DOMAIN)?;
    guest.fill_with(|page| page as u64 % 7);
    let slot = |number, page, pages| Slot {
        number,
        guest: SECOND + u64::from(number) * 0x100_0000,
        host: guest.memory().page_address(page),
        pages,
        ..Slot::default()
    };
    for round in 0..60_usize {
        let number = 1 + (round % 8) as u16;
        guest
            .vm()?
            .set_slot(slot(number, round % 256, 64 + round % 64))?;
        if round % 3 == 0 {
            guest.fill_with(|page| page as u64 % 7 + round as u64 / 50);
        }
        let key = |page: usize| page as u64 % 7 + (round / 3 * 3) as u64 / 50;
        guest.check_with(key)?;
        guest.vm()?.set_slot(slot(number, round % 256, 0))?;
    }
    Ok(())
}
