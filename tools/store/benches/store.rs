// SPDX-License-Identifier: GPL-2.0

//! What the database of canonical pages costs:
//!
//! ```text
//! cargo bench -p twinpage-store [-- PAGES]
//! ```
//!
//! It works below the directory for temporary files (`TMPDIR`), on pages of which no two are equal.

use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::thread;
use std::time::Instant;

use rustix::time::{
    clock_gettime,
    ClockId, //
};
use twinpage_store::{
    Admit,
    Digest,
    Mode,
    Page,
    PageSource,
    Settings,
    SourceId,
    Sources,
    Store,
    Trust, //
};

/// Pages that are loaded unless told.
const PAGES: u64 = 300_000;

/// Pages that are fetched.
const FETCHES: u64 = 200_000;

/// A page of a number.
fn page(number: u64) -> Page {
    let mut page = [0; 4096];
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in page.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    page
}

/// The clock of a measurement, and that of the processors, which other work does not move.
struct Since(Instant, f64);

impl Since {
    /// Begins to measure.
    fn now() -> Self {
        Self(Instant::now(), processor_seconds())
    }
}

/// Seconds of processors that this process used.
fn processor_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// Prints how long something took for each of `count` things.
fn row(what: &str, count: u64, since: Since) {
    let wall = since.0.elapsed().as_secs_f64();
    let used = processor_seconds() - since.1;
    let each = |seconds: f64| seconds * 1e6 / count as f64;
    println!(
        "{what:<42} {wall:7.2} s {:9.2} us each, {:9.2} us of a processor",
        each(wall),
        each(used)
    );
}

/// Offers all pages from one source.
fn offer(
    store: &mut Store,
    source: &str,
    trust: Trust,
    all: &[Digest],
) -> Result<(), Box<dyn Error>> {
    let source = SourceId::new(source);
    let mut load = store.load()?;
    for (number, digest) in (0..).zip(all) {
        load.offer(&source, trust, digest, &page(number))?;
    }
    load.finish()?;
    drop(load);
    store.merge(&mut |_| std::ops::ControlFlow::Continue(()))?;
    Ok(())
}

/// Fetches pages at random, all of which are there.
fn fetch(sources: &Sources, all: &[Digest], seed: u64, count: u64) {
    let mut into = [0; 4096];
    let mut state = seed;
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let digest = &all[(state % all.len() as u64) as usize];
        assert!(sources.fetch(digest, &mut into).is_some());
        black_box(&into);
    }
}

/// Fetches from the store at `path`.
fn reads(path: &Path, all: &[Digest]) -> Result<(), Box<dyn Error>> {
    let since = Since::now();
    let store = Store::open(path, Mode::Read)?;
    row("open", 1, since);
    let mut listed = 0;
    let since = Since::now();
    store.digests(&mut |_| listed += 1)?;
    row("list digests", listed, since);
    let mut sources = Sources::new();
    sources.push(Box::new(store));
    let since = Since::now();
    fetch(&sources, all, 1, FETCHES);
    row("fetch, hashed, first use of the day noted", FETCHES, since);
    let since = Since::now();
    fetch(&sources, all, 2, FETCHES);
    row("fetch, hashed", FETCHES, since);
    let since = Since::now();
    thread::scope(|scope| {
        let other = scope.spawn(|| fetch(&sources, all, 3, FETCHES));
        fetch(&sources, all, 4, FETCHES);
        other.join()
    })
    .map_err(|_| "a thread panicked")?;
    row("fetch, hashed, by two threads", 2 * FETCHES, since);
    let since = Since::now();
    for number in 0..FETCHES {
        let mut absent = [7; 32];
        absent[..8].copy_from_slice(&number.to_be_bytes());
        absent.swap(0, 7);
        assert!(sources.fetch(&Digest(absent), &mut [0; 4096]).is_none());
    }
    row("look for what is absent", FETCHES, since);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let pages = std::env::args()
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(PAGES);
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("store");
    let since = Since::now();
    let all: Vec<_> = (0..pages).map(|number| Digest::of(&page(number))).collect();
    row("make and hash pages", pages, since);
    let mut store = Store::create(&path, &Settings::default())?;
    let since = Since::now();
    offer(&mut store, "one", Trust::Counted, &all)?;
    row("load: seen in a first source", pages, since);
    let stat = store.stat()?;
    let each = stat.candidate_bytes as f64 / stat.candidates as f64;
    println!(
        "{} candidates, {each:.0} bytes on disk for each",
        stat.candidates
    );
    let since = Since::now();
    offer(&mut store, "two", Trust::Counted, &all)?;
    row("load: seen in a second source, admitted", pages, since);
    let since = Since::now();
    offer(&mut store, "three", Trust::Counted, &all)?;
    row("load: there already", pages, since);
    let since = Since::now();
    store.verify(&mut |_| std::ops::ControlFlow::Continue(()))?;
    row("verify", pages, since);
    let stat = store.stat()?;
    println!(
        "{} pages, {:.3} bytes on disk for each of a page",
        stat.pages,
        stat.bytes_on_disk as f64 / (stat.pages * 4096) as f64
    );
    drop(store);
    reads(&path, &all)
}
