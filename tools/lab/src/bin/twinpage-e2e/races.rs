// SPDX-License-Identifier: GPL-2.0

//! Everybody at once: writers, unmappers, collapsers and forkers against the scanner.

use std::collections::HashMap;
use std::sync::atomic::{
    AtomicBool,
    AtomicUsize,
    Ordering, //
};
use std::time::{
    Duration,
    Instant, //
};

use tinyvm::{
    Backing,
    Memory,
    WORDS, //
};
use twinpage_guest::pattern::{
    mix,
    Stream, //
};
use twinpage_lab::ensure;
use twinpage_lab::module;
use twinpage_lab::pagemap::Pagemap;
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};

use crate::host::{
    mismatch,
    saved_pages,
    Host,
    DOMAIN,
    PRIVATE, //
};
use crate::swap::{
    Kind,
    Swap, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "writers_lose_no_write_to_the_merger",
        seconds: 1500,
        run: writers_lose_no_write_to_the_merger,
    },
    Test {
        name: "page_tables_may_vanish_under_the_scanner",
        seconds: 180,
        run: page_tables_may_vanish_under_the_scanner,
    },
    Test {
        name: "collapsing_huge_pages_races_with_merging",
        seconds: 180,
        run: collapsing_huge_pages_races_with_merging,
    },
];

/// Pages each writer owns.
const OWNED: usize = 1024;

/// Contents that occur.
const KINDS: usize = 8;

/// Threads that write.
const WRITERS: usize = 2;

/// What writers did, all together.
#[derive(Default)]
struct Progress {
    transitions: AtomicUsize,
    writes: AtomicUsize,
    stop: AtomicBool,
}

/// The pages of one writer, from `first` on, with what each should hold.
struct Writer<'a> {
    memory: &'a Memory,
    contents: &'a [[u64; WORDS]],
    first: usize,
    kinds: Vec<usize>,
    pagemap: Pagemap,
    seed: u64,
}

impl<'a> Writer<'a> {
    fn new(
        memory: &'a Memory,
        contents: &'a [[u64; WORDS]],
        first: usize,
    ) -> Result<Writer<'a>, Failure> {
        (0..OWNED).for_each(|page| memory.write_page(first + page, &contents[0]));
        Ok(Writer {
            memory,
            contents,
            first,
            kinds: vec![0; OWNED],
            pagemap: Pagemap::own()?,
            seed: first as u64,
        })
    }

    /// Which of this writer's pages share their frame with another page of any writer.
    fn merged(&self) -> Result<Vec<bool>, Failure> {
        let entries = self
            .pagemap
            .read(self.memory.address(), self.memory.pages())?;
        let mut mappings = HashMap::new();
        for frame in entries.iter().filter_map(|entry| entry.frame()) {
            *mappings.entry(frame).or_insert(0) += 1;
        }
        let own = &entries[self.first..self.first + OWNED];
        Ok(own
            .iter()
            .map(|entry| entry.frame().is_some_and(|frame| mappings[&frame] > 1))
            .collect())
    }

    fn check(&self, page: usize) -> Outcome {
        let content = &self.contents[self.kinds[page]];
        let page = self.first + page;
        for (word, &expected) in content.iter().enumerate() {
            let seen = self.memory.word(page, word);
            ensure!(
                seen == expected,
                "page {page} word {word}: expected {expected:#x}, seen {seen:#x}"
            );
        }
        Ok(())
    }

    /// Rewrites pages until somebody says stop; each is checked first.
    ///
    /// A page that is seen to share its frame was merged, and the write unmerges it: these are two
    /// transitions. Some of the others are written too, so that the merger meets writers at every
    /// moment of its work; not too many, or it would never get to the end of it.
    fn run(mut self, progress: &Progress, goal: usize) -> Outcome {
        while !progress.stop.load(Ordering::Relaxed) {
            let merged = self.merged()?;
            if merged.iter().filter(|merged| **merged).count() < OWNED / 4 {
                std::thread::sleep(Duration::from_millis(1));
            }
            for (page, merged) in merged.into_iter().enumerate() {
                self.seed = self.seed.wrapping_add(1);
                let choice = mix(self.seed);
                if !merged && choice % 16 != 0 {
                    continue;
                }
                if let Err(failure) = self.check(page) {
                    progress.stop.store(true, Ordering::Relaxed);
                    return Err(failure);
                }
                let kind = (choice >> 32) as usize % KINDS;
                self.kinds[page] = kind;
                self.memory
                    .write_page(self.first + page, &self.contents[kind]);
                progress.writes.fetch_add(1, Ordering::Relaxed);
                let made = 2 * usize::from(merged);
                let before = progress.transitions.fetch_add(made, Ordering::Relaxed);
                if before + made >= goal {
                    progress.stop.store(true, Ordering::Relaxed);
                }
            }
        }
        (0..OWNED).try_for_each(|page| self.check(page))
    }
}

fn writers_lose_no_write_to_the_merger() -> Outcome {
    let goal = crate::transitions();
    let host = Host::new()?;
    module::set("smart_scan", 0)?;
    module::set("sleep_millisecs", 0)?;
    let guest = host.guest(WRITERS * OWNED, Backing::Small, PRIVATE)?;
    let contents: Vec<[u64; WORDS]> = (0..KINDS)
        .map(|kind| {
            let mut stream = Stream::new(kind as u64);
            std::array::from_fn(|_| stream.next())
        })
        .collect();
    let progress = Progress::default();
    let start = Instant::now();
    std::thread::scope(|scope| -> Outcome {
        let mut threads = Vec::new();
        for index in 0..WRITERS {
            let writer = Writer::new(guest.memory(), &contents, index * OWNED)?;
            let progress = &progress;
            threads.push(scope.spawn(move || writer.run(progress, goal)));
        }
        for thread in threads {
            thread
                .join()
                .map_err(|_| Failure::Failed("a writer panicked".into()))??;
        }
        Ok(())
    })?;
    let (transitions, writes) = (
        progress.transitions.into_inner(),
        progress.writes.into_inner(),
    );
    println!(
        "{transitions} transitions (goal {goal}), {writes} writes in {:.0} s, no differing byte",
        start.elapsed().as_secs_f32()
    );
    ensure!(transitions >= goal, "only {transitions} transitions");
    Ok(())
}

fn page_tables_may_vanish_under_the_scanner() -> Outcome {
    const TIME: Duration = Duration::from_secs(20);
    let swap = Swap::on(Kind::Zram, 128);
    if let Err(failure) = &swap {
        println!("without swap: {failure}");
    }
    let host = Host::new()?;
    // A whole page table each.
    let guests = [
        host.guest(512, Backing::Small, DOMAIN)?,
        host.guest(512, Backing::Small, DOMAIN)?,
    ];
    for guest in &guests {
        guest.fill_with(|page| page as u64 % 100);
    }
    let (mut saved, mut round) = (0, 0_u64);
    let end = Instant::now() + TIME;
    while Instant::now() < end {
        for guest in &guests {
            match round % 4 {
                0 => guest.memory().advise(0, 512, libc::MADV_DONTNEED)?,
                1 => guest.memory().advise(0, 512, libc::MADV_PAGEOUT)?,
                2 => drop(crate::host::in_child(|| true)?.join()),
                _ => guest.memory().advise(256, 256, libc::MADV_COLD)?,
            }
            let gone = round % 4 == 0;
            for page in 0..512 {
                let wrong = match gone {
                    true => guest.memory().word(page, 7) != 0,
                    false => mismatch(guest.memory(), page, page as u64 % 100).is_some(),
                };
                ensure!(!wrong, "page {page} is wrong in round {round}");
            }
            if gone {
                guest.fill_with(|page| page as u64 % 100);
            }
        }
        saved += saved_pages(&[&guests[0], &guests[1]])?;
        round += 1;
    }
    println!("{round} rounds, {saved} merges seen");
    ensure!(saved > 512, "only {saved} merges were seen");
    drop(guests);
    drop(host);
    swap.map_or(Ok(()), Swap::off)
}

fn collapsing_huge_pages_races_with_merging() -> Outcome {
    const MADV_COLLAPSE: libc::c_int = 25;
    const TIME: Duration = Duration::from_secs(20);
    let host = Host::new()?;
    module::set("thp_split_threshold", 1)?;
    let guest = host.guest(1024, Backing::Huge, PRIVATE)?;
    let key = |page: usize, round: u64| (page as u64 % 64) + round / 2;
    let (mut collapsed, mut saved, mut round) = (0, 0, 0);
    let end = Instant::now() + TIME;
    while Instant::now() < end {
        // Collapsing refuses merged pages, so it must find them while they are about to merge.
        if round % 2 == 0 {
            guest.fill_with(|page| key(page, round));
        }
        for half in [0, 512] {
            collapsed += usize::from(guest.memory().advise(half, 512, MADV_COLLAPSE).is_ok());
        }
        guest.check_with(|page| key(page, round))?;
        saved += saved_pages(&[&guest])?;
        round += 1;
    }
    println!("{round} rounds, {collapsed} collapses, {saved} merges seen");
    ensure!(saved > 1024, "only {saved} merges were seen");
    Ok(())
}
