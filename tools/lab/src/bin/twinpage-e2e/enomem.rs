// SPDX-License-Identifier: GPL-2.0

//! Any allocation may fail: then one operation fails, and nothing else is different.

use std::cell::RefCell;
use std::fs::{
    self,
    File,
    OpenOptions, //
};
use std::io::{
    self,
    Read,
    Write, //
};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{
    Duration,
    Instant, //
};

use tinyvm::Backing;
use twinpage_lab::module::{
    self,
    Merged,
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

use crate::faults::{
    Faults,
    MANY, //
};
use crate::host::{
    fails_with,
    hurry,
    key,
    saved_pages,
    Guest,
    Host,
    CONVERGE,
    DOMAIN, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "attaching_survives_every_failed_allocation",
        seconds: 300,
        run: attaching_survives_every_failed_allocation,
    },
    Test {
        name: "detaching_survives_every_failed_allocation",
        seconds: 300,
        run: detaching_survives_every_failed_allocation,
    },
    Test {
        name: "unmerging_survives_every_failed_allocation",
        seconds: 600,
        run: unmerging_survives_every_failed_allocation,
    },
    Test {
        name: "reading_survives_every_failed_allocation",
        seconds: 300,
        run: reading_survives_every_failed_allocation,
    },
    Test {
        name: "setting_knobs_survives_every_failed_allocation",
        seconds: 600,
        run: setting_knobs_survives_every_failed_allocation,
    },
    Test {
        name: "merging_survives_every_failed_allocation",
        seconds: 900,
        run: merging_survives_every_failed_allocation,
    },
    Test {
        name: "loading_survives_every_failed_allocation",
        seconds: 900,
        run: loading_survives_every_failed_allocation,
    },
];

const PAGES: usize = 16;

/// Loads the module and lets it rest often: fresh pages are free to merge only after that, and a few
/// pages are looked at thousands of times in a batch of the usual size.
fn host_that_rests() -> Result<Host, Failure> {
    let host = Host::new()?;
    module::set("pages_to_scan", PAGES)?;
    Ok(host)
}

/// How many VMs are attached, as debugfs shows it.
fn attached() -> Result<usize, Failure> {
    Ok(fs::read_dir(DEBUGFS)?.count())
}

fn attaching_survives_every_failed_allocation() -> Outcome {
    let host = host_that_rests()?;
    let faults = Faults::own()?;
    let guest = Guest::detached(PAGES, Backing::Small)?;
    guest.fill_with(key);
    let vm = guest.vm()?.as_raw_fd();
    // It is the only VM of its domain, which comes and goes with it.
    faults.each(
        "attach",
        || host.device().attach(vm, DOMAIN),
        |id| {
            if let Some(id) = id {
                // Its files may be missing: the kernel does not say when it cannot make them.
                let again = host.device().attach(vm, DOMAIN);
                fails_with("a second attach", again, libc::EEXIST)?;
                let detached = host.device().detach(id, Merged::Unmerge);
                detached.map_err(|(error, _)| error)?;
            }
            ensure!(attached()? == 0, "{} VMs are attached", attached()?);
            guest.check_with(key)
        },
    )
}

fn detaching_survives_every_failed_allocation() -> Outcome {
    let host = host_that_rests()?;
    let faults = Faults::own()?;
    let guest = RefCell::new(host.guest(PAGES, Backing::Small, DOMAIN)?);
    faults.each(
        "detach",
        || {
            let detached = host.device().detach(guest.borrow().id(), Merged::Keep);
            detached.map_err(|(error, _)| error)
        },
        |detached| {
            let mut guest = guest.borrow_mut();
            match detached {
                Some(_) => guest.attach(&host, DOMAIN),
                None => guest.stats().map(|_| ()),
            }
        },
    )
}

fn unmerging_survives_every_failed_allocation() -> Outcome {
    let host = host_that_rests()?;
    let faults = Faults::own()?;
    let [a, b] = host.twins(PAGES)?;
    let b = RefCell::new(b);
    faults.each(
        "detach and unmerge",
        || {
            let detached = host.device().detach(b.borrow().id(), Merged::Unmerge);
            detached.map_err(|(error, _)| error)
        },
        |detached| {
            let mut b = b.borrow_mut();
            b.check_with(key)?;
            if detached.is_some() {
                ensure!(saved_pages(&[&a, &b])? == 0, "pages are still merged");
                b.attach(&host, DOMAIN)?;
            }
            host.until_saved(&[&a, &b], PAGES)
        },
    )
}

/// Reads a file to its end into memory that is there already.
fn read_into(path: &str, bytes: &mut [u8]) -> io::Result<usize> {
    let mut file = File::open(path)?;
    let mut length = 0;
    loop {
        match file.read(&mut bytes[length..])? {
            0 => return Ok(length),
            read => length += read,
        }
    }
}

fn reading_survives_every_failed_allocation() -> Outcome {
    let host = host_that_rests()?;
    let faults = Faults::own()?;
    let [a, _b] = host.twins(PAGES)?;
    let wanted = a.digest(3);
    let expected = a.memory().read_page(3).map(u64::to_le_bytes).concat();
    faults.each(
        "read by digest",
        || host.device().read(DOMAIN, wanted),
        |bytes| {
            let right = bytes.is_none_or(|bytes| bytes[..] == expected);
            ensure!(right, "the bytes are others");
            Ok(())
        },
    )?;
    module::set("run", 0)?;
    let bytes = RefCell::new(vec![0; 1 << 16]);
    for name in ["slots", "digests", "stats"] {
        let path = format!("{DEBUGFS}/{}/{name}", a.id());
        let expected = fs::read(&path)?;
        faults.each(
            name,
            || read_into(&path, &mut bytes.borrow_mut()),
            |length| {
                let bytes = bytes.borrow();
                let right = length.is_none_or(|length| bytes[..length] == expected);
                ensure!(right, "{name} reads differently");
                Ok(())
            },
        )?;
    }
    a.check_with(key)
}

/// Writes to an existing file, without memory of this program's own.
fn write_to(path: &str, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(text.as_bytes())
}

/// Sets each of these knobs while its allocations fail.
fn set_each(faults: &Faults, knobs: &[(&str, &str)]) -> Outcome {
    for &(name, value) in knobs {
        let path = format!("{SYSFS}/{name}");
        let before = module::knob(name)?;
        faults.each(
            name,
            || write_to(&path, value),
            |done| {
                let now = module::knob(name)?;
                let right = done.is_some() || now == before || now.contains(value);
                ensure!(right, "{name} was {before} and is {now}");
                Ok(())
            },
        )?;
    }
    Ok(())
}

fn setting_knobs_survives_every_failed_allocation() -> Outcome {
    let host = host_that_rests()?;
    let faults = Faults::own()?;
    // This one may change while nothing is merged only.
    set_each(&faults, &[("merge_across_nodes", "0")])?;
    module::set("merge_across_nodes", 1)?;
    let [a, b] = host.twins(PAGES)?;
    let knobs = [
        ("run", "0"),
        ("pages_to_scan", "100"),
        ("sleep_millisecs", "7"),
        ("use_zero_pages", "0"),
        ("smart_scan", "0"),
        ("max_page_sharing", "9"),
        ("advisor_mode", "cpu"),
        ("advisor_max_cpu", "6"),
        ("thp_split_threshold", "3"),
        ("merge_batch", "4"),
        ("max_break_rate", "3"),
        ("unmerge_on_exit", "0"),
    ];
    set_each(&faults, &knobs)?;
    hurry()?;
    module::set("pages_to_scan", PAGES)?;
    module::set("run", 1)?;
    let path = format!("{SYSFS}/run");
    faults.each(
        "run=2",
        || write_to(&path, "2"),
        |done| {
            a.check_with(key)?;
            b.check_with(key)?;
            if done.is_some() {
                ensure!(saved_pages(&[&a, &b])? == 0, "pages are still merged");
            }
            module::set("run", 1)?;
            host.until_saved(&[&a, &b], PAGES)
        },
    )
}

/// The scanner's thread.
pub fn scanner() -> Result<u32, Failure> {
    let processes = fs::read_dir("/proc")?.flatten();
    processes
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .find(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.trim_end() == "twinpaged")
        })
        .ok_or_else(|| Failure::Failed("there is no thread twinpaged".into()))
}

/// Merges two new VMs of a new domain while the scanner's `n`-th allocation is to fail; says how many
/// it made.
fn merge_while_failing(host: &Host, faults: &Faults, domain: u64, n: u64) -> Result<u64, Failure> {
    // All that a domain has is made anew, at once.
    module::set("run", 0)?;
    let a = host.guest(PAGES, Backing::Small, domain)?;
    let b = host.guest(PAGES, Backing::Small, domain)?;
    a.fill_with(key);
    b.fill_with(key);
    faults.arm(n)?;
    module::set("run", 1)?;
    host.until_saved(&[&a, &b], PAGES)?;
    let made = n - faults.left()?;
    faults.arm(0)?;
    a.check_with(key)?;
    b.check_with(key)?;
    let stats = a.stats()?;
    ensure!(stats.sum()? == stats.get("pages")?, "{stats:?}");
    Ok(made)
}

fn merging_survives_every_failed_allocation() -> Outcome {
    /// The first passes make all that merging needs; each pass makes some more, for ever.
    const MOST: u64 = 400;
    const TIME: Duration = Duration::from_secs(600);
    let host = host_that_rests()?;
    let faults = Faults::of(scanner()?)?;
    let made = merge_while_failing(&host, &faults, DOMAIN, MANY)?;
    println!("{made} allocations until all was merged");
    let end = Instant::now() + TIME;
    let (mut failed, mut tried) = (0, 0);
    for n in (1..=made.min(MOST)).take_while(|_| Instant::now() < end) {
        let seen = merge_while_failing(&host, &faults, DOMAIN + n, n)?;
        failed += usize::from(seen == n);
        tried = n;
    }
    println!("{failed} of the first {tried} failed");
    ensure!(failed > PAGES, "only {failed} allocations failed");
    Ok(())
}

/// Everything of the module that is there while it is loaded.
pub fn left_behind() -> Option<&'static str> {
    let places = ["/sys/module/twinpage", SYSFS, DEBUGFS, DEVICE];
    places.into_iter().find(|place| Path::new(place).exists())
}

/// Unloads the module once nobody uses it any more.
pub fn unload() -> Outcome {
    wait::until("unloading", CONVERGE, || {
        Ok::<_, Failure>(module::unload().is_ok())
    })
    .map(|_| ())
}

fn loading_survives_every_failed_allocation() -> Outcome {
    /// Of the kernel's own allocations before the module's first.
    const SAMPLE: u64 = 60;
    /// The module's own, and some of the kernel's.
    const LAST: u64 = 250;
    let faults = Faults::own()?;
    let (total, loaded) = faults.count(module::load)?;
    loaded?;
    unload()?;
    let sampled = (1..total.saturating_sub(LAST)).step_by((total / SAMPLE).max(1) as usize);
    let mut refused = 0;
    for n in sampled.chain(total.saturating_sub(LAST).max(1)..=total + 1) {
        let attempt = faults.attempt(n, module::load)?;
        if attempt.result.is_ok() {
            unload()?;
        } else {
            refused += 1;
        }
        if let Some(left) = left_behind() {
            ensure!(
                false,
                "{left} exists after allocation {n} of {total} failed"
            );
        }
    }
    println!("{total} allocations, {refused} loads failed");
    let host = Host::new()?;
    host.twins(PAGES).map(|_| ())
}
