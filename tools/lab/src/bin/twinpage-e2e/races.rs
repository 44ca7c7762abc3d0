// SPDX-License-Identifier: GPL-2.0

//! Everybody at once: writers, unmappers, collapsers and forkers against the scanner.

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
    goes_on,
    mismatch,
    saved_pages,
    Guest,
    Host,
    DOMAIN,
    PRIVATE, //
};
use twinpage_lab::swap::{
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
        seconds: 240,
        run: page_tables_may_vanish_under_the_scanner,
    },
    Test {
        name: "unmapping_memory_races_with_splitting_and_unmerging",
        seconds: 240,
        run: unmapping_memory_races_with_splitting_and_unmerging,
    },
    Test {
        name: "collapsing_huge_pages_races_with_merging",
        seconds: 240,
        run: collapsing_huge_pages_races_with_merging,
    },
];

/// Pages each writer owns.
const OWNED: usize = 2048;

/// Contents that occur; one of them is all zeroes.
const KINDS: usize = 8;

/// After so many transitions there is a line about it.
const MILESTONE: usize = 100_000;

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

    /// Which of this writer's pages are merged: the kernel says that their frame is mapped more
    /// than once, or that it is the page of zeroes, and nothing forks here.
    fn merged(&self) -> Result<Vec<bool>, Failure> {
        let address = self.memory.page_address(self.first);
        let entries = self.pagemap.read(address, OWNED)?;
        Ok(entries
            .into_iter()
            .map(|entry| entry.frame().is_some() && !entry.exclusive())
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
    /// A page that is seen to be merged is unmerged by the write: these are two transitions. They
    /// are awaited until half of the pages are merged, or the merger would spend its time on
    /// rounds, not on pages. Some of the others are written all the time, so that it meets writers
    /// at every moment of its work; not too many, or it would never get to the end of it.
    fn run(mut self, progress: &Progress, goal: usize) -> Outcome {
        while !progress.stop.load(Ordering::Relaxed) {
            let merged = self.merged()?;
            let wait = merged.iter().filter(|merged| **merged).count() < OWNED / 2;
            for (page, merged) in merged.into_iter().enumerate() {
                self.seed = self.seed.wrapping_add(1);
                let choice = mix(self.seed);
                if (merged && wait) || (!merged && choice % 16 != 0) {
                    continue;
                }
                let made = 2 * usize::from(merged);
                if let Err(failure) = self.rewrite(page, (choice >> 32) as usize % KINDS) {
                    progress.stop.store(true, Ordering::Relaxed);
                    return Err(failure);
                }
                progress.writes.fetch_add(1, Ordering::Relaxed);
                let before = progress.transitions.fetch_add(made, Ordering::Relaxed);
                let now = before + made;
                if before / MILESTONE != now / MILESTONE {
                    println!("{now} transitions");
                }
                if now >= goal {
                    progress.stop.store(true, Ordering::Relaxed);
                }
            }
            if wait {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        (0..OWNED).try_for_each(|page| self.check(page))
    }

    fn rewrite(&mut self, page: usize, kind: usize) -> Outcome {
        self.check(page)?;
        self.kinds[page] = kind;
        let content = &self.contents[kind];
        self.memory.write_page(self.first + page, content);
        Ok(())
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
            std::array::from_fn(|_| stream.next() * u64::from(kind != 0))
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
    let told = guest.stats()?;
    let (merges, breaks) = (told.get("merges")?, told.get("breaks")?);
    println!(
        "{transitions} transitions (goal {goal}), {writes} writes in {:.0} s, no differing byte; \
         the module tells of {merges} merges and {breaks} ends of them",
        start.elapsed().as_secs_f32()
    );
    ensure!(transitions >= goal, "only {transitions} transitions");
    ensure!(merges >= transitions as u64 / 2, "more were seen than told");
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
    let start = Instant::now();
    while goes_on(start, TIME, saved > 512) {
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

/// The memory is alone among its page tables, so that those of every level go with it, while others
/// only read the address space.
fn unmapping_memory_races_with_splitting_and_unmerging() -> Outcome {
    const TIME: Duration = Duration::from_secs(20);
    // A huge page.
    const PAGES: usize = 512;
    let host = Host::new()?;
    module::set("thp_split_threshold", 1)?;
    let mut guest = Guest::over(Memory::apart(PAGES, Backing::Huge)?)?;
    guest.attach(&host, PRIVATE)?;
    let stop = AtomicBool::new(false);
    let (mut round, mut saved) = (0_usize, 0);
    std::thread::scope(|scope| -> Outcome {
        let unmerger = scope.spawn(|| unmerge_and_merge(&stop));
        let start = Instant::now();
        let raced = (|| -> Outcome {
            while goes_on(start, TIME, saved > 0) {
                for page in 0..PAGES {
                    guest.memory().set_word(page, 7, page as u64 % 64 + 1);
                }
                match round % 4 {
                    0 => host.until_saved(&[&guest], 1)?,
                    _ => std::thread::sleep(Duration::from_millis(round as u64 % 40)),
                }
                saved += saved_pages(&[&guest])?;
                guest.memory().unmap(0, PAGES)?;
                guest.memory().map_again(0, PAGES, Backing::Huge)?;
                let full = (0..PAGES).find(|&page| guest.memory().word(page, 7) != 0);
                ensure!(full.is_none(), "page {full:?} is there in round {round}");
                round += 1;
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        let unmerged = unmerger.join();
        raced?;
        unmerged.map_err(|_| Failure::Failed("the unmerger panicked".into()))?
    })?;
    println!("{round} rounds, {saved} merges seen");
    ensure!(saved > 0, "no merge was seen in {round} rounds");
    Ok(())
}

/// Gives all pages back and lets them merge again, until somebody says stop.
fn unmerge_and_merge(stop: &AtomicBool) -> Outcome {
    while !stop.load(Ordering::Relaxed) {
        // It may give up on memory that comes and goes.
        let _ = module::set("run", 2);
        module::set("run", 1)?;
        std::thread::sleep(Duration::from_millis(15));
    }
    Ok(())
}

fn collapsing_huge_pages_races_with_merging() -> Outcome {
    const MADV_COLLAPSE: libc::c_int = 25;
    const TIME: Duration = Duration::from_secs(20);
    let host = Host::new()?;
    module::set("thp_split_threshold", 1)?;
    let guest = host.guest(1024, Backing::Huge, PRIVATE)?;
    let key = |page: usize, round: u64| (page as u64 % 64) + round / 2;
    let (mut collapsed, mut saved, mut round) = (0, 0, 0);
    let start = Instant::now();
    while goes_on(start, TIME, saved > 1024 && collapsed > 0) {
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
    ensure!(collapsed > 0, "nothing was collapsed");
    Ok(())
}
