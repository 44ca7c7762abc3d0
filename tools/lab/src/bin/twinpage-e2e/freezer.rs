// SPDX-License-Identifier: GPL-2.0

//! The scanner stands still while the system is frozen to be suspended.

use std::fs;
use std::path::Path;
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::time::{
    Duration,
    Instant, //
};

use tinyvm::Backing;
use twinpage_lab::ensure;
use twinpage_lab::module;
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};

use crate::host::{
    Host,
    PRIVATE, //
};

pub const TESTS: &[Test] = &[Test {
    name: "the_scanner_rests_while_the_system_is_frozen",
    seconds: 180,
    run: the_scanner_rests_while_the_system_is_frozen,
}];

const PAGES: usize = 4096;

/// How often the system is frozen.
const ROUNDS: usize = 3;

/// Where the kernel is asked to go no further than to freeze everything, for a while.
const PM_TEST: &str = "/sys/power/pm_test";

/// How long that is (kernel/power/suspend_test.c: TEST_SUSPEND_SECONDS).
const FROZEN: Duration = Duration::from_secs(5);

/// CPU time of the scanner's thread, by the scheduler's account.
fn scanner_time() -> Result<Duration, Failure> {
    for process in fs::read_dir("/proc")?.flatten() {
        let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        if comm.trim() != "twinpaged" {
            continue;
        }
        let stat = fs::read_to_string(process.path().join("stat"))?;
        let after = stat.rsplit(')').next().unwrap_or_default();
        // The 14th and 15th field, of which the name is the second: user and system, in 1/100 s.
        let ticks: Option<u64> = after
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().ok())
            .sum();
        let ticks = ticks.ok_or_else(|| Failure::Failed(format!("stat is '{stat}'")))?;
        return Ok(Duration::from_millis(ticks * 10));
    }
    Err(Failure::Failed("there is no thread twinpaged".into()))
}

fn the_scanner_rests_while_the_system_is_frozen() -> Outcome {
    if !Path::new(PM_TEST).exists() {
        let text = "without CONFIG_PM_DEBUG the host would not stop at freezing, but sleep";
        return Err(Failure::Skipped(text.into()));
    }
    let host = Host::new()?;
    module::set("smart_scan", 0)?;
    module::set("sleep_millisecs", 0)?;
    let guest = host.guest(PAGES, Backing::Small, PRIVATE)?;
    let key = |page: usize| page as u64 % 2000;
    guest.fill_with(key);
    let (start, before) = (Instant::now(), scanner_time()?);
    std::thread::sleep(Duration::from_secs(3));
    let busy = (scanner_time()? - before).as_secs_f64() / start.elapsed().as_secs_f64();
    println!("the scanner takes {:.0} % of a CPU", busy * 100.0);
    ensure!(busy > 0.1, "a scanner that rests anyway tells nothing");

    // Whoever wants the scanner's mutex is frozen before the scanner is.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Outcome {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = module::set("pages_to_scan", 65536);
                let _ = guest.stats();
            }
        });
        let frozen = (0..ROUNDS).try_for_each(|_| frozen(busy));
        stop.store(true, Ordering::Relaxed);
        frozen
    })?;
    guest.check_with(key)?;
    // It goes on where it was.
    host.until_saved(&[&guest], PAGES - 2000)?;
    host.looks(1)?;
    guest.check_with(key)
}

/// Freezes the system for some seconds, in which a scanner that is `busy` otherwise must rest.
fn frozen(busy: f64) -> Outcome {
    fs::write(PM_TEST, "freezer")?;
    let (start, before) = (Instant::now(), scanner_time()?);
    fs::write("/sys/power/state", "mem")?;
    // In this order, so that what was used was used within that time.
    let used = scanner_time()? - before;
    let took = start.elapsed();
    fs::write(PM_TEST, "none")?;
    println!("frozen for {took:?}, in which the scanner took {used:?}");
    ensure!(took >= FROZEN, "nothing was frozen");
    // Freezing and thawing take their time too, which the scanner may use.
    let free = took - FROZEN;
    ensure!(
        used.as_secs_f64() < busy * (free + FROZEN / 4).as_secs_f64(),
        "the scanner went on while the system was frozen"
    );
    Ok(())
}
