// SPDX-License-Identifier: GPL-2.0

//! The knobs do what they say and refuse the rest; nobody but root may look.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{
    Duration,
    Instant, //
};

use tinyvm::Backing;
use twinpage_lab::module::{
    self,
    DEBUGFS,
    DEVICE,
    SYSFS, //
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
    fails_with,
    fill,
    hurry,
    in_child,
    saved_pages,
    Host,
    CONVERGE,
    DOMAIN,
    PRIVATE, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "knobs_refuse_what_is_out_of_range",
        seconds: 60,
        run: knobs_refuse_what_is_out_of_range,
    },
    Test {
        name: "knobs_have_their_documented_defaults",
        seconds: 60,
        run: knobs_have_their_documented_defaults,
    },
    Test {
        name: "stopping_takes_effect_at_once",
        seconds: 300,
        run: stopping_takes_effect_at_once,
    },
    Test {
        name: "run_2_gives_every_page_its_own_frame_back",
        seconds: 180,
        run: run_2_gives_every_page_its_own_frame_back,
    },
    Test {
        name: "the_cpu_advisor_keeps_to_its_share",
        seconds: 600,
        run: the_cpu_advisor_keeps_to_its_share,
    },
    Test {
        name: "smart_scan_looks_less_at_what_never_merges",
        seconds: 180,
        run: smart_scan_looks_less_at_what_never_merges,
    },
    Test {
        name: "pages_that_never_rest_are_counted_volatile",
        seconds: 120,
        run: pages_that_never_rest_are_counted_volatile,
    },
    Test {
        name: "counters_agree_with_the_page_tables",
        seconds: 180,
        run: counters_agree_with_the_page_tables,
    },
    Test {
        name: "nobody_but_root_can_look",
        seconds: 60,
        run: nobody_but_root_can_look,
    },
];

/// A knob, its default, values it takes and values it refuses.
type Knob = (
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const KNOBS: &[Knob] = &[
    ("run", "1", &["0", "1"], &["3", "-1", "x", ""]),
    (
        "pages_to_scan",
        "4096",
        &["1", "1048576"],
        &["0", "1048577", "-1", "4096x"],
    ),
    ("sleep_millisecs", "20", &["0", "60000"], &["60001", "-1"]),
    ("use_zero_pages", "1", &["0", "1"], &["2", "-1"]),
    ("smart_scan", "1", &["0", "1"], &["2"]),
    (
        "max_page_sharing",
        "256",
        &["2", "65536"],
        &["1", "0", "65537"],
    ),
    ("merge_across_nodes", "1", &["0", "1"], &["2"]),
    (
        "advisor_mode",
        "none [cpu]",
        &["none", "cpu"],
        &["fast", "", "1"],
    ),
    ("advisor_max_cpu", "5", &["1", "100"], &["0", "101"]),
    ("thp_split_threshold", "64", &["1", "512"], &["0", "513"]),
    (
        "merge_batch",
        "32",
        &["1", "512"],
        &["0", "513", "99999999999999999999999"],
    ),
    (
        "max_break_rate",
        "10000",
        &["0", "1000000"],
        &["1000001", "-1"],
    ),
    ("unmerge_on_exit", "0", &["0", "1"], &["2"]),
];

fn knobs_refuse_what_is_out_of_range() -> Outcome {
    module::load()?;
    for &(name, _, good, bad) in KNOBS {
        for value in good {
            module::set(name, value)?;
            let seen = module::knob(name)?;
            let expected = match name {
                "advisor_mode" if *value == "none" => "[none] cpu",
                "advisor_mode" => "none [cpu]",
                _ => value,
            };
            ensure!(
                seen == expected,
                "{name} was set to {value} and reads {seen}"
            );
        }
        let before = module::knob(name)?;
        for value in bad.iter().filter(|value| !value.is_empty()) {
            fails_with(
                &format!("{name}={value}"),
                module::set(name, value),
                libc::EINVAL,
            )?;
            let after = module::knob(name)?;
            ensure!(
                after == before,
                "{name}: {before} became {after} by {value}"
            );
        }
    }
    Ok(())
}

fn knobs_have_their_documented_defaults() -> Outcome {
    module::load()?;
    for &(name, default, _, _) in KNOBS {
        let seen = module::knob(name)?;
        ensure!(seen == default, "{name} is {seen} at first, not {default}");
    }
    Ok(())
}

fn stopping_takes_effect_at_once() -> Outcome {
    let host = Host::new()?;
    let guest = host.guest(20_000, Backing::Small, PRIVATE)?;
    guest.fill_with(|page| page as u64);
    host.looks(1)?;
    // When the write returns, nothing is under way any more.
    module::set("run", 0)?;
    let stopped = module::counter("pages_scanned")?;
    guest.fill_with(|page| page as u64 % 100 + 30_000);
    std::thread::sleep(Duration::from_secs(2));
    let later = module::counter("pages_scanned")?;
    ensure!(
        stopped == later,
        "{} pages scanned while stopped",
        later - stopped
    );
    let saved = saved_pages(&[&guest])?;
    ensure!(saved == 0, "{saved} pages merged while stopped");
    module::set("run", 1)?;
    wait::until("scanning again", CONVERGE, || {
        Ok::<_, Failure>(module::counter("pages_scanned")? > later)
    })?;
    // Unloading stops the thread, whatever it is at.
    let start = Instant::now();
    drop(guest);
    drop(host);
    module::unload()?;
    let took = start.elapsed();
    // How fast the machine is decides about seconds; that it ends is what counts.
    ensure!(took < Duration::from_secs(100), "unloading took {took:?}");
    Ok(())
}

fn run_2_gives_every_page_its_own_frame_back() -> Outcome {
    const PAGES: usize = 2048;
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    module::set("run", 2)?;
    wait::until("unmerging", CONVERGE, || {
        Ok::<_, Failure>(saved_pages(&[&a, &b])? == 0)
    })?;
    ensure!(common_frames(&a, &b)? == 0, "still shared");
    a.check_with(|page| page as u64 + 1)?;
    b.check_with(|page| page as u64 + 1)?;
    let run = module::knob("run")?;
    ensure!(run == "2", "run reads {run}");
    std::thread::sleep(Duration::from_secs(1));
    ensure!(saved_pages(&[&a, &b])? == 0, "merged again while run is 2");
    module::set("run", 1)?;
    host.until_saved(&[&a, &b], PAGES)
}

/// Percent of one processor that the scanner takes, over some time in which it takes any.
fn percent_taken() -> Result<i64, Failure> {
    let (start, before) = (Instant::now(), module::counter("cpu_ns")?);
    std::thread::sleep(Duration::from_secs(15));
    let mut spent = 0;
    // All of that may be the rest after one long batch.
    wait::until("scanning", CONVERGE, || {
        spent = module::counter("cpu_ns")? - before;
        Ok::<_, Failure>(spent > 0)
    })?;
    Ok(spent * 100 / start.elapsed().as_nanos() as i64)
}

fn the_cpu_advisor_keeps_to_its_share() -> Outcome {
    const SHARE: i64 = 10;
    module::load()?;
    module::set("sleep_millisecs", 1)?;
    // A rest is as long as its batch asks for: with nothing to merge, 80 times that.
    module::set("pages_to_scan", 1024)?;
    module::set("advisor_max_cpu", SHARE)?;
    let host_memory = crate::host::Guest::detached(16_384, Backing::Small)?;
    host_memory.fill_with(|page| page as u64);
    let device = module::Device::open()?;
    let vm = std::os::fd::AsRawFd::as_raw_fd(host_memory.vm()?);
    device.attach(vm, PRIVATE)?;
    // The advisor may need a moment to learn how fast this machine is.
    std::thread::sleep(Duration::from_secs(10));
    let mut percent = 0;
    // Time that this machine does not get counts as the scanner's: once may be chance.
    for _ in 0..3 {
        percent = percent_taken()?;
        println!("{percent} % of one processor with advisor_max_cpu={SHARE}");
        if percent <= SHARE * 2 {
            return Ok(());
        }
    }
    let text = format!("{percent} % is far above {SHARE} %");
    Err(Failure::Failed(text))
}

/// Passes, pages looked at and pages not looked at so far, while nothing is scanned: they belong
/// together.
fn counted() -> Result<[i64; 3], Failure> {
    module::set("run", 0)?;
    let counted = [
        module::counter("full_scans")?,
        module::counter("pages_scanned")?,
        module::counter("pages_skipped")?,
    ];
    module::set("run", 1)?;
    Ok(counted)
}

/// Pages looked at in a pass over pages that have no twin, and pages not looked at in some passes.
fn looks(smart_scan: u32) -> Result<(i64, i64), Failure> {
    const PAGES: usize = 4096;
    let host = Host::new()?;
    module::set("smart_scan", smart_scan)?;
    let guest = host.guest(PAGES, Backing::Small, PRIVATE)?;
    guest.fill_with(|page| page as u64);
    // So that each page has been seen unchanged a few times, however fast passes over no pages were.
    host.looks(4)?;
    let before = counted()?;
    host.passes(8)?;
    let after = counted()?;
    let [passes, scanned, skipped] = [0, 1, 2].map(|at| after[at] - before[at]);
    drop((guest, host));
    wait::until("unloading", CONVERGE, || {
        Ok::<_, Failure>(module::unload().is_ok())
    })?;
    Ok((scanned / passes, skipped))
}

fn smart_scan_looks_less_at_what_never_merges() -> Outcome {
    let (dull, dull_skipped) = looks(0)?;
    let (smart, smart_skipped) = looks(1)?;
    println!("{dull} looks in a pass without smart_scan, {smart} with it");
    ensure!(
        dull_skipped == 0,
        "{dull_skipped} pages skipped without smart_scan"
    );
    ensure!(smart_skipped > 0, "no page skipped with smart_scan");
    ensure!(smart * 4 < dull * 3, "smart_scan saves less than a quarter");
    Ok(())
}

fn pages_that_never_rest_are_counted_volatile() -> Outcome {
    const PAGES: usize = 32;
    let host = Host::new()?;
    // Each page is written to between two looks, however slow the machine: what was not is found at
    // rest.
    module::set("pages_to_scan", PAGES)?;
    module::set("sleep_millisecs", 500)?;
    let guest = host.guest(PAGES, Backing::Small, PRIVATE)?;
    let mut round = 0;
    let end = Instant::now() + CONVERGE;
    loop {
        for page in 0..PAGES {
            fill(guest.memory(), page, round * 1000 + page as u64);
        }
        round += 1;
        let volatile = guest.stats()?.get("pages_volatile")?;
        if volatile > PAGES as u64 / 2 {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "only {volatile} pages are volatile\n{}",
            guest.told()
        );
    }
}

fn counters_agree_with_the_page_tables() -> Outcome {
    const PAGES: usize = 2000;
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    let c = host.guest(PAGES, Backing::Small, DOMAIN)?;
    c.fill_with(|page| match page % 4 {
        0 => 7,
        _ => (1 << 40) | page as u64,
    });
    let zeroes = host.guest(100, Backing::Small, PRIVATE)?;
    for page in 0..100 {
        zeroes.memory().write_page(page, &[0; tinyvm::WORDS]);
    }
    host.until_saved(&[&a, &b, &c], PAGES + PAGES / 4 - 4)?;
    host.until_saved(&[&zeroes], 100)?;
    host.looks(3)?;
    module::set("run", 0)?;
    let saved = saved_pages(&[&a, &b, &c])? as i64;
    let sharing = module::counter("pages_sharing")?;
    ensure!(
        saved == sharing,
        "{saved} pages are saved, pages_sharing is {sharing}"
    );
    let zero = module::counter("zero_pages")?;
    ensure!(zero == 100, "zero_pages is {zero}");
    let metadata = module::counter("metadata_bytes")?;
    let profit = module::counter("general_profit")?;
    let expected = (saved + zero) * 4096 - metadata;
    let close = (profit - expected).abs() < 1 << 20;
    ensure!(
        close,
        "general_profit is {profit}, expected about {expected}"
    );
    for guest in [&a, &b, &c, &zeroes] {
        let stats = guest.stats()?;
        let (sum, pages) = (stats.sum()?, stats.get("pages")?);
        ensure!(
            sum == pages,
            "the parts sum up to {sum} of {pages}: {stats:?}"
        );
        ensure!(pages == guest.memory().pages() as u64, "{pages} pages");
        ensure!(
            stats.get("pid")? == u64::from(std::process::id()),
            "{stats:?}"
        );
    }
    let merged = c.stats()?.get("pages_merged")?;
    ensure!(merged >= (PAGES / 4 - 4) as u64, "{}", c.told());
    Ok(())
}

fn nobody_but_root_can_look() -> Outcome {
    let host = Host::new()?;
    let guest = host.guest(16, Backing::Small, PRIVATE)?;
    let own = format!("{DEBUGFS}/{}", guest.id());
    let mut secret = vec![DEVICE.to_owned()];
    for directory in [SYSFS, &own] {
        for entry in fs::read_dir(directory)?.flatten() {
            secret.push(entry.path().display().to_string());
        }
    }
    ensure!(secret.len() > 20, "only {secret:?}");
    for path in &secret {
        let mode = fs::metadata(path)?.permissions().mode() & 0o777;
        ensure!(mode & 0o077 == 0, "{path} has mode {mode:o}");
    }
    in_child(move || {
        let nobody = nix::unistd::Uid::from_raw(65534);
        if nix::unistd::setuid(nobody).is_err() {
            return false;
        }
        let open = secret
            .iter()
            .find(|path| fs::File::open(Path::new(path)).is_ok());
        if let Some(path) = open {
            println!("{path} can be opened by anybody");
        }
        open.is_none()
    })?
    .join()?;
    hurry()
}
