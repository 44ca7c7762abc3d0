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

/// Prints how long something took for each of `count` things.
fn row(what: &str, count: u64, since: Instant) {
    let seconds = since.elapsed().as_secs_f64();
    let each = seconds * 1e6 / count as f64;
    println!(
        "{what:<44} {seconds:8.2} s {each:10.2} us each {:10.0}/s",
        count as f64 / seconds
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
    let since = Instant::now();
    let store = Store::open(path, Mode::Read)?;
    row("open", 1, since);
    let mut listed = 0;
    let since = Instant::now();
    store.digests(&mut |_| listed += 1)?;
    row("list digests", listed, since);
    let mut sources = Sources::new();
    sources.push(Box::new(store));
    let since = Instant::now();
    fetch(&sources, all, 1, FETCHES);
    row("fetch, hashed, first use of the day noted", FETCHES, since);
    let since = Instant::now();
    fetch(&sources, all, 2, FETCHES);
    row("fetch, hashed", FETCHES, since);
    let since = Instant::now();
    thread::scope(|scope| {
        let other = scope.spawn(|| fetch(&sources, all, 3, FETCHES));
        fetch(&sources, all, 4, FETCHES);
        other.join()
    })
    .map_err(|_| "a thread panicked")?;
    row("fetch, hashed, by two threads", 2 * FETCHES, since);
    let since = Instant::now();
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
    let since = Instant::now();
    let all: Vec<_> = (0..pages).map(|number| Digest::of(&page(number))).collect();
    row("make and hash pages", pages, since);
    let mut store = Store::create(&path, &Settings::default())?;
    let since = Instant::now();
    offer(&mut store, "one", Trust::Counted, &all)?;
    row("load: seen in a first source", pages, since);
    let stat = store.stat()?;
    let each = stat.candidate_bytes as f64 / stat.candidates as f64;
    println!(
        "{} candidates, {each:.0} bytes on disk for each",
        stat.candidates
    );
    let since = Instant::now();
    offer(&mut store, "two", Trust::Counted, &all)?;
    row("load: seen in a second source, admitted", pages, since);
    let since = Instant::now();
    offer(&mut store, "three", Trust::Counted, &all)?;
    row("load: there already", pages, since);
    let since = Instant::now();
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
