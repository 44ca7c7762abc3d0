// SPDX-License-Identifier: GPL-2.0

//! A build that is killed at any moment loses what it had not finished, and no more.

use std::fs;
use std::io::{
    BufRead,
    BufReader, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Child,
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
struct Build(Child);

impl Build {
    /// Starts it.
    fn start(path: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::victim", "--ignored", "--nocapture"])
            .env(STORE, path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    /// Kills it, and says what it had finished.
    fn kill(mut self) -> u64 {
        self.0.kill().unwrap();
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let finished = lines
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("finished ")?.parse().ok());
        finished.last().unwrap_or(0)
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
        finished = build.kill().max(finished);
        let store = Store::open(&path, Mode::Write).unwrap();
        assert!(
            store.pages() >= finished,
            "kill {kill} after {after:?}: {} pages",
            store.pages()
        );
        assert_eq!(store.pages() % 500, 0);
        finished = store.pages();
        let verified = store.verify(&mut go_on).unwrap();
        assert_eq!(
            (verified.pages, verified.bad),
            (finished, 0),
            "kill {kill} after {after:?}"
        );
        let mut into = [0; 4096];
        for number in 0..finished {
            assert!(
                store.fetch(&digest(number), &mut into).unwrap(),
                "page {number}"
            );
            assert_eq!(into, page(number));
        }
        let stat = store.stat().unwrap();
        assert_eq!(stat.candidates, finished);
        let files = fs::read_dir(&path).unwrap().count() as u64;
        let named = 3 * stat.segments + u64::from(stat.candidates > 0);
        assert!(files <= named + 4, "{files} files, {named} named");
    }
    println!("{KILLS} kills, {finished} pages");
    assert!(
        finished > 0,
        "no build lived long enough to finish anything"
    );
}
