// SPDX-License-Identifier: GPL-2.0

//! Memory that is taken away while it holds pages of guests, and copies.

use std::collections::BTreeSet;

use tinyvm::Backing;
use twinpage_lab::blocks::{
    Block,
    Zone, //
};
use twinpage_lab::ensure;
use twinpage_lab::module;
use twinpage_lab::pagemap::Frame;
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};

use crate::host::{
    common_frames,
    Guest,
    Host,
    DOMAIN, //
};
use crate::nodes::bound;
use crate::pressure::break_copy;

pub const TESTS: &[Test] = &[
    Test {
        name: "memory_with_a_copy_stays",
        seconds: 180,
        run: memory_with_a_copy_stays,
    },
    Test {
        name: "movable_memory_gets_no_copy_and_may_go",
        seconds: 300,
        run: movable_memory_gets_no_copy_and_may_go,
    },
    // The last: a block with a broken frame that is taken away does not come back.
    Test {
        name: "memory_with_a_copy_stays_though_another_is_broken",
        seconds: 180,
        run: memory_with_a_copy_stays_though_another_is_broken,
    },
];

const PAGES: usize = 2048;

/// Fails unless all blocks stay that have a copy, and there is one.
fn they_stay(copies: &BTreeSet<Frame>) -> Outcome {
    let mut tried = 0;
    for block in Block::all()? {
        if copies.iter().any(|&copy| block.has(copy)) {
            let gone = block.offline();
            ensure!(gone.is_err(), "memory went with copies in it");
            tried += 1;
        }
    }
    ensure!(tried > 0, "no block has the copies");
    Ok(())
}

fn memory_with_a_copy_stays() -> Outcome {
    let host = Host::new()?;
    if Block::all()?.is_empty() {
        return Err(Failure::Skipped("no memory hotplug".into()));
    }
    let [a, b] = host.twins(PAGES)?;
    they_stay(&a.frame_set()?)?;
    ensure!(common_frames(&a, &b)? == PAGES, "{}", a.told());
    a.check_with(|page| page as u64 + 1)?;
    b.check_with(|page| page as u64 + 1)
}

/// What is meant to be taken away again: merging does not stand in its way.
fn movable_memory_gets_no_copy_and_may_go() -> Outcome {
    let host = Host::new()?;
    module::set("run", 0)?;
    // Some blocks have memory of the kernel, which stays; from the top, as that is further down.
    let mut movable = None;
    for block in Block::inner()?.into_iter().rev() {
        if block.offline().is_ok() {
            block.online(Zone::Movable)?;
            movable = Some(block);
            break;
        }
    }
    let block = movable.ok_or_else(|| Failure::Skipped("no block of memory can go".into()))?;
    let node = block.node()?;
    let guest = || -> Result<Guest, Failure> {
        let mut guest = Guest::over(bound(PAGES / 256, Backing::Small, node)?)?;
        guest.attach(&host, DOMAIN)?;
        Ok(guest)
    };
    let twins = [guest()?, guest()?];
    // The first half has twins, the second is each VM's own.
    let key = |at: usize, page: usize| match page < PAGES / 2 {
        true => page as u64 + 1,
        false => (page + at * PAGES) as u64 + 1,
    };
    for (at, twin) in twins.iter().enumerate() {
        twin.fill_with(|page| key(at, page));
    }
    let inside = |guest: &Guest| -> Result<usize, Failure> {
        let frames = guest.frame_set()?;
        Ok(frames.iter().filter(|&&frame| block.has(frame)).count())
    };
    let before = inside(&twins[0])? + inside(&twins[1])?;
    ensure!(before >= PAGES, "only {before} pages are in movable memory");
    module::set("run", 1)?;
    host.until_saved(&[&twins[0], &twins[1]], PAGES / 2)?;
    let own = twins[1].frame_set()?;
    let copies: Vec<_> = twins[0].frame_set()?.intersection(&own).copied().collect();
    let wrong = copies.iter().filter(|&&copy| block.has(copy)).count();
    ensure!(wrong == 0, "{wrong} copies are in movable memory");
    let left = inside(&twins[0])? + inside(&twins[1])?;
    ensure!(left > 0, "nothing is left there that has to move");
    let gone = block.offline();
    block.online(Zone::Movable)?;
    gone.map_err(|failure| Failure::Failed(format!("it stays: {failure}")))?;
    println!("{before} pages were there, {left} of them moved away");
    for (at, twin) in twins.iter().enumerate() {
        twin.check_with(|page| key(at, page))?;
    }
    ensure!(
        common_frames(&twins[0], &twins[1])? == PAGES / 2,
        "{}",
        twins[0].told()
    );
    Ok(())
}

/// A broken one keeps no block: the kernel takes it for a frame that nobody maps
/// (mm/page_isolation.c:page_is_unmovable). So only blocks that have another copy are tried: those
/// without could go, for good (drivers/base/memory.c:memory_block_online). A kernel with DEBUG_VM
/// would then write over what it knows of the frame that guests still map
/// (mm/memory_hotplug.c:remove_pfn_range_from_zone).
fn memory_with_a_copy_stays_though_another_is_broken() -> Outcome {
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    module::set("run", 0)?;
    let (before, mut copies) = (a.frames()?, a.frame_set()?);
    let pages_of = |block: &Block| -> Vec<usize> {
        let inside = |page: &usize| before[*page].is_some_and(|frame| block.has(frame));
        (0..PAGES).filter(inside).collect()
    };
    let blocks = Block::all()?;
    let crowd = blocks.iter().map(pages_of).max_by_key(Vec::len);
    let [page, _, ..] = crowd.unwrap_or_default()[..] else {
        return Err(Failure::Skipped("no block has two copies".into()));
    };
    let broken = break_copy(&a, page)?;
    copies.remove(&broken);
    they_stay(&copies)?;
    ensure!(a.frames()? == before, "a guest has other frames");
    ensure!(b.frames()? == before, "its twin has other frames");
    a.check_with(|page| page as u64 + 1)?;
    b.check_with(|page| page as u64 + 1)
}
