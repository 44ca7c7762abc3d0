// SPDX-License-Identifier: GPL-2.0

//! A VM whose merged pages do not stay merged is left alone for a while.

use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::time::{
    Duration,
    Instant, //
};

use tinyvm::{
    Backing,
    Memory, //
};
use twinpage_lab::module::{
    self,
    Stats, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::{
    ensure,
    wait, //
};

use crate::host::{
    common_frames,
    key,
    saved_pages,
    Guest,
    Host,
    CONVERGE,
    DOMAIN, //
};
use crate::machine::tool;

pub const TESTS: &[Test] = &[Test {
    name: "a_vm_that_rewrites_its_merged_pages_is_backed_off",
    seconds: 600,
    run: a_vm_that_rewrites_its_merged_pages_is_backed_off,
}];

/// Pages of each VM.
const PAGES: usize = 512;

/// Pages a second that may break: few, as on a slow machine few merge again in time.
const LIMIT: u64 = 10;

/// Back-off so long that something can be seen in it.
const LONG_MS: u64 = 4000;

/// The longest back-off that there is, twice: it may begin anew when the last writes are seen.
const PATIENCE: Duration = Duration::from_secs(150);

/// Writes to all pages, what they hold already, until told to stop.
fn rewrite(memory: &Memory, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for page in 0..PAGES {
            memory.set_word(page, 0, memory.word(page, 0));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for a back-off that is not one of the shortest; what the module says of the VM then.
fn until_backed_off(guest: &Guest) -> Result<Stats, Failure> {
    let mut stats = guest.stats()?;
    let result: Result<_, Failure> = wait::until("a long back-off", PATIENCE, || {
        stats = guest.stats()?;
        Ok(stats.get("backed_off_ms")? >= LONG_MS)
    });
    match result {
        Ok(_) => Ok(stats),
        Err(failure) => Err(Failure::Failed(format!("{failure}\n{stats:?}"))),
    }
}

/// Sees that rounds go on while the VM is backed off, and that none of its pages merges.
fn it_rests(host: &Host, restless: &Guest, other: &Guest) -> Outcome {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let before = until_backed_off(restless)?;
        // What merged before is written to first.
        while common_frames(restless, other)? > 0 && rests_since(&before, &restless.stats()?)? {}
        host.passes(2)?;
        let common = common_frames(restless, other)?;
        let after = restless.stats()?;
        if !rests_since(&before, &after)? {
            continue;
        }
        let merges = after.get("merges")? - before.get("merges")?;
        ensure!(merges == 0, "{merges} pages merged meanwhile: {after:?}");
        ensure!(common == 0, "{common} frames are shared: {after:?}");
        let (rate, times) = (after.get("break_rate")?, after.get("back_offs")?);
        println!("{rate} pages a second, back-off number {times}: {after:?}");
        ensure!(rate > LIMIT, "backed off at {rate} pages a second");
        ensure!(times >= 3, "so long a back-off is number {times}");
        return Ok(());
    }
    Err(Failure::Failed("no back-off lasted two passes".into()))
}

/// Whether the back-off that `before` tells of goes on.
fn rests_since(before: &Stats, now: &Stats) -> Result<bool, Failure> {
    let same = before.get("back_offs")? == now.get("back_offs")?;
    Ok(same && now.get("backed_off_ms")? > 0)
}

/// Sees that the tool says why nothing of the VM merges.
fn the_tool_tells(restless: &Guest) -> Outcome {
    let whose = format!("Note: VM {} ", restless.id());
    let mut text = String::new();
    let told: Result<_, Failure> = wait::until("a note of the tool", CONVERGE, || {
        text = tool(&["status"])?;
        let mut notes = text.lines().filter(|line| line.starts_with(&whose));
        Ok(notes.any(|note| note.contains(": nothing merges for ")))
    });
    println!("{text}");
    told.map(|_| ())
}

/// What must hold while a VM does not rest, for it and for two others that share.
fn watch(host: &Host, restless: &Guest, [a, b]: [&Guest; 2]) -> Result<Guest, Failure> {
    it_rests(host, restless, a)?;
    the_tool_tells(restless)?;
    let saved = saved_pages(&[a, b])?;
    ensure!(saved >= PAGES, "only {saved} pages of the others are saved");
    // One that comes now merges with those that rest.
    let mut late = Guest::detached(PAGES, Backing::Small)?;
    late.fill_with(key);
    late.attach(host, DOMAIN)?;
    host.until_saved(&[a, b, &late], 2 * PAGES)?;
    for guest in [a, b, &late] {
        let times = guest.stats()?.get("back_offs")?;
        ensure!(times == 0, "one that rests is backed off: {}", guest.told());
    }
    Ok(late)
}

fn a_vm_that_rewrites_its_merged_pages_is_backed_off() -> Outcome {
    let host = Host::new()?;
    module::set("smart_scan", 0)?;
    let [a, b] = host.twins(PAGES)?;
    let restless = host.guest(PAGES, Backing::Small, DOMAIN)?;
    restless.fill_with(key);
    host.until_saved(&[&a, &b, &restless], 2 * PAGES)?;
    module::set("max_break_rate", LIMIT)?;
    let stop = AtomicBool::new(false);
    let late = std::thread::scope(|scope| {
        scope.spawn(|| rewrite(restless.memory(), &stop));
        let seen = watch(&host, &restless, [&a, &b]);
        stop.store(true, Ordering::Relaxed);
        seen
    })?;
    let took = wait::until("merging again", PATIENCE, || {
        Ok::<_, Failure>(restless.stats()?.get("pages_merged")? == PAGES as u64)
    })?;
    println!("all of it merged again after {:.0} s", took.as_secs_f32());
    let guests = [&a, &b, &restless, &late];
    host.until_saved(&guests, 3 * PAGES)?;
    let length = restless.stats()?.get("backed_off_ms")?;
    ensure!(length == 0, "it merges, backed off for {length} ms");
    guests.iter().try_for_each(|guest| guest.check_with(key))
}
