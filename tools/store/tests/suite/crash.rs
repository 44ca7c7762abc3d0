// SPDX-License-Identifier: GPL-2.0

//! A build that is killed at any moment loses what it had not finished, and no more.

use std::fs;
use std::io::{
    BufRead,
    BufReader,
    Lines, //
};
use std::iter;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Child,
    ChildStdout,
    Command,
    Stdio, //
};
use std::thread;
use std::time::Duration;

use twinpage_store::{
    Admit,
    Mode,
    PageSource,
    Store,
    Trust, //
};

use crate::pages::{
    self,
    digest,
    go_on,
    offer,
    page,
    Random, //
};

/// Names the store to the process that is killed.
const STORE: &str = "TWINPAGE_TEST_STORE";

/// How often a build is killed.
const KILLS: u64 = 24;

/// The longest life of a build, in milliseconds.
const LIFE_MS: u64 = 400;

/// Builds until it is killed, and says what it finished.
#[test]
#[ignore = "the process that another test kills"]
fn victim() {
    let path = PathBuf::from(std::env::var_os(STORE).expect("started by the other test"));
    let mut store = Store::open(&path, Mode::Write).unwrap();
    let mut next = store.pages();
    // It cannot run for ever, even if nobody kills it.
    while next < 1_000_000 {
        let mut load = store.load().unwrap();
        for number in next..next + 500 {
            offer(&mut load, "public", Trust::Public, number);
            offer(&mut load, "private", Trust::Counted, (1 << 32) | number);
        }
        load.finish().unwrap();
        drop(load);
        next += 500;
        println!("finished {next}");
        store.merge(&mut go_on).unwrap();
    }
}

/// A build in a process of its own.
struct Build {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Build {
    /// Starts it.
    fn start(path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::victim", "--ignored", "--nocapture"])
            .env(STORE, path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What it says next to have finished; none when it has ended.
    fn hear(&mut self) -> Option<u64> {
        let mut lines = self.lines.by_ref().map_while(Result::ok);
        lines.find_map(|line| line.strip_prefix("finished ")?.parse().ok())
    }

    /// Kills it, and says what it had finished.
    fn kill(mut self) -> u64 {
        self.child.kill().unwrap();
        iter::from_fn(|| self.hear()).last().unwrap_or(0)
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Checks that a build which was killed after it had `finished` so many pages left them, and a
/// whole store; says how many pages that has.
fn check(path: &Path, finished: u64, when: &str) -> u64 {
    let store = Store::open(path, Mode::Write).unwrap();
    let pages = store.pages();
    assert!(pages >= finished, "{when}: {pages} pages");
    assert_eq!(pages % 500, 0);
    let verified = store.verify(&mut go_on).unwrap();
    assert_eq!((verified.pages, verified.bad), (pages, 0), "{when}");
    let mut into = [0; 4096];
    for number in 0..pages {
        assert!(
            store.fetch(&digest(number), &mut into).unwrap(),
            "page {number}"
        );
        assert_eq!(into, page(number));
    }
    let stat = store.stat().unwrap();
    assert_eq!(stat.candidates, pages);
    let files = fs::read_dir(path).unwrap().count() as u64;
    let named = 3 * stat.segments + u64::from(stat.candidates > 0);
    assert!(files <= named + 4, "{files} files, {named} named");
    pages
}

#[test]
fn a_killed_build_loses_only_what_it_had_not_finished() {
    let directory = pages::directory();
    let path = directory.path().join("store");
    drop(pages::store(directory.path(), 2));
    let mut random = Random(0x9e37_79b9);
    let mut finished = 0;
    for kill in 0..KILLS {
        let after = Duration::from_millis(random.below(LIFE_MS));
        let build = Build::start(&path);
        thread::sleep(after);
        let said = build.kill().max(finished);
        finished = check(&path, said, &format!("kill {kill} after {after:?}"));
    }
    if finished == 0 {
        // None lived that long on this machine.
        let mut build = Build::start(&path);
        let first = build.hear().unwrap_or(0);
        let said = build.kill().max(first);
        finished = check(&path, said, "kill after the first part");
    }
    println!("{KILLS} kills, {finished} pages");
    assert!(finished > 0, "no build finished anything");
}
