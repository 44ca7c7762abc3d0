// SPDX-License-Identifier: GPL-2.0

//! Memory that is taken away while it holds pages of guests, and copies.

use tinyvm::Backing;
use twinpage_lab::blocks::{
    Block,
    Zone, //
};
use twinpage_lab::ensure;
use twinpage_lab::module;
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
];

const PAGES: usize = 2048;

fn memory_with_a_copy_stays() -> Outcome {
    let host = Host::new()?;
    let blocks = Block::all()?;
    if blocks.is_empty() {
        return Err(Failure::Skipped("no memory hotplug".into()));
    }
    let [a, b] = host.twins(PAGES)?;
    let copies = a.frame_set()?;
    let mut tried = 0;
    for block in &blocks {
        if copies.iter().any(|&copy| block.has(copy)) {
            let gone = block.offline();
            ensure!(gone.is_err(), "memory went with copies in it");
            tried += 1;
        }
    }
    ensure!(tried > 0, "no block has the copies");
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
