// SPDX-License-Identifier: GPL-2.0

//! Everything at once, for as long as asked: VMs that check every word of their memory again and
//! again, monitors that do to that memory what monitors do, a host that reclaims, moves, breaks and
//! freezes it, and a module that is told to attach, detach, unmerge, unload and run out of memory
//! meanwhile.
//!
//! Prints how often each thing was done and refused, and ends with status 0 only if no byte was
//! wrong, nothing hung, and merging works as before. The kernel's log is for the caller to judge.
//! With `--bare` the module is never loaded: what goes wrong then is not its fault.
//! Which actor does what in which order follows from `--seed`; what meets what does not.

mod acts;
mod debugger;
mod deck;
mod events;
mod fleet;
mod frames;
mod host;
mod losses;
mod neighbour;
mod proof;
mod stranger;
mod transfer;
mod unmap;
mod vmm;

use std::fs;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_lab::cgroup::Group;
use twinpage_lab::ensure;
use twinpage_lab::faults;
use twinpage_lab::module;
use twinpage_lab::random::Random;
use twinpage_lab::swap::{
    self,
    Swap, //
};
use twinpage_lab::tap::Failure;
use twinpage_lab::wait;

use crate::deck::Deck;
use crate::events::{
    Event,
    GROUP, //
};
use crate::fleet::{
    Count,
    Monitor,
    Record, //
};
use crate::host::Host;
use crate::neighbour::Neighbour;
use crate::proof::{
    Looks,
    Meanwhile, //
};

/// How the program is called.
const USAGE: &str = "\
usage: twinpage-torture [--seconds N] [--seed N] [--vms N] [--pages N] [--qemu N] [--bare]
                        [--only NAME | --except NAME]...
       twinpage-torture --list";

/// How long one event may take before it counts as hung: an emulated machine may have to share its
/// processors with others.
const EVENT_LIMIT: Duration = Duration::from_secs(900);

/// How often somebody looks at how many pages are saved.
const LOOK: Duration = Duration::from_secs(10);

/// Pages of each VM that must be saved in the end, at some moment: most of them would be, but for the
/// guests, which go on writing, and monitors, which go on acting.
const PAGES_AT_THE_END: usize = 64;

/// MiB of the swap device and of the disk.
const SWAP_MIB: usize = 192;
const DISK_MIB: usize = 64;

/// What the caller wants.
struct Options {
    seconds: u64,
    seed: u64,
    vms: usize,
    pages: usize,
    disk: Option<String>,
    qemu: usize,
    bare: bool,
    only: Vec<String>,
    monitor: Option<u64>,
    list: bool,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Options> {
        let mut options = Options {
            seconds: 60,
            seed: 1,
            vms: 5,
            pages: 320,
            disk: None,
            qemu: 0,
            bare: false,
            only: Vec::new(),
            monitor: None,
            list: false,
        };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--list" => options.list = true,
                "--bare" => options.bare = true,
                _ => options.set(&word, &words.next()?)?,
            }
        }
        (options.pages > 1 && options.vms > 0).then_some(options)
    }

    fn set(&mut self, word: &str, value: &str) -> Option<()> {
        match word {
            "--seconds" => self.seconds = value.parse().ok()?,
            "--seed" => self.seed = value.parse().ok()?,
            "--vms" => self.vms = value.parse().ok()?,
            "--pages" => self.pages = value.parse().ok()?,
            "--qemu" => self.qemu = value.parse().ok()?,
            "--disk" => self.disk = Some(value.to_owned()),
            "--only" => self.only.push(value.to_owned()),
            "--except" => {
                if self.only.is_empty() {
                    self.only = names().map(str::to_owned).collect();
                }
                self.only.retain(|name| name != value);
            }
            "--monitor" => self.monitor = Some(value.parse().ok()?),
            _ => return None,
        }
        Some(())
    }

    /// What monitors are told of it.
    fn for_monitors(&self) -> Vec<String> {
        let mut words = vec![
            "--seed".to_owned(),
            self.seed.to_string(),
            "--pages".to_owned(),
            self.pages.to_string(),
        ];
        if let Some(disk) = &self.disk {
            words.extend(["--disk".to_owned(), disk.clone()]);
        }
        for name in &self.only {
            words.extend(["--only".to_owned(), name.clone()]);
        }
        words
    }

    /// Those of some events that the caller wants.
    fn wanted<'a, T>(&self, events: &'a [Event<T>]) -> Vec<&'a Event<T>> {
        let wanted = |event: &&Event<T>| {
            self.only.is_empty() || self.only.iter().any(|name| name == event.name)
        };
        events.iter().filter(wanted).collect()
    }
}

/// The names of all acts and events.
fn names() -> impl Iterator<Item = &'static str> {
    let acts = acts::ACTS.iter().map(|act| act.name);
    let events = events::MODULE.iter().chain(events::KERNEL);
    acts.chain(events.map(|event| event.name))
        .chain(neighbour::EVENTS.iter().map(|event| event.name))
}

fn main() -> ExitCode {
    let Some(mut options) = Options::parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if let Some(number) = options.monitor {
        return vmm::run(vmm::Plan {
            seed: options.seed,
            number,
            pages: options.pages,
            disk: options.disk,
            only: options.only,
        });
    }
    if options.list {
        names().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    let record = Arc::new(Record::default());
    if let Err(failure) = torture(&mut options, &record) {
        record.wrong(failure.to_string());
    }
    for (name, count) in record.table() {
        let Count {
            did, refused, why, ..
        } = count;
        println!("{did:8} done {refused:8} refused  {name:26}  {why}");
    }
    match record.verdict() {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            println!("seed {}: {text}", options.seed);
            ExitCode::FAILURE
        }
    }
}

fn torture(options: &mut Options, record: &Arc<Record>) -> Result<(), Failure> {
    println!(
        "seed {}, {} s, {} VMs with {} data pages and {} of QEMU, {} ksmd",
        options.seed,
        options.seconds,
        options.vms,
        options.pages,
        options.qemu,
        if events::with_ksmd(options.seed) {
            "with"
        } else {
            "without"
        }
    );
    let _idle = tinyvm::Vm::new()?;
    let swap = prepare(options)?;
    if !options.bare {
        host::load()?;
    }
    // They boot before there is anything else to do.
    let neighbours: Result<Vec<_>, Failure> = (1..=options.qemu).map(Neighbour::start).collect();
    let mut host = Host::new(
        options.seed,
        record.clone(),
        neighbours?,
        options.for_monitors(),
        options.vms,
    )?;
    if !options.bare {
        for monitor in host.monitors().iter_mut() {
            host::attach(monitor, 7)?;
        }
    }
    let before = Meanwhile::now();
    let looks = all_at_once(options, &host);
    calm_down();
    let meanwhile = Meanwhile::now().since(&before);
    println!("{meanwhile}");
    println!("{looks}");
    if record.verdict().is_ok() && !options.bare {
        still_merges(&host)?;
    }
    for monitor in host.monitors().drain(..) {
        monitor.finish()?;
    }
    for neighbour in host.neighbours.drain(..) {
        neighbour.verify()?;
    }
    host.open_files().clear();
    host::unload()?;
    did_something(options, record, swap.is_some(), &meanwhile, &looks)?;
    swap.map_or(Ok(()), Swap::off)
}

/// Lets everything happen until the run ends: what makes things happen has a thread of its own each,
/// and so has what happens to each QEMU guest. What was found merged meanwhile.
fn all_at_once(options: &Options, host: &Host) -> Looks {
    let random = |actor: usize| Random::new(options.seed, (1 << 32) + actor as u64);
    let record = &*host.record;
    let module = match options.bare {
        true => Vec::new(),
        false => options.wanted(events::MODULE),
    };
    std::thread::scope(|scope| {
        for (actor, events) in [module, options.wanted(events::KERNEL)]
            .into_iter()
            .enumerate()
        {
            let random = random(actor);
            scope.spawn(move || happen(record, actor, host, events, random));
        }
        for (actor, neighbour) in (2..).zip(&host.neighbours) {
            let (events, random) = (options.wanted(neighbour::EVENTS), random(actor));
            scope.spawn(move || happen(record, actor, neighbour, events, random));
        }
        scope.spawn(|| watch_events(record));
        let looks = scope.spawn(|| watch_merging(host));
        watch_over(host, Duration::from_secs(options.seconds));
        looks.join().unwrap_or_default()
    })
}

/// Fails a long run in which what was tried never came to be. Of the kernels, only our debug ones have
/// all that it takes. `swap`: if there is any.
fn did_something(
    options: &Options,
    record: &Record,
    swap: bool,
    meanwhile: &Meanwhile,
    looks: &Looks,
) -> Result<(), Failure> {
    if options.seconds < proof::LONG {
        return Ok(());
    }
    let everything = options.only.is_empty();
    ensure!(
        !everything || !swap || meanwhile.idle(&proof::SWAPS).is_empty(),
        "there is swap, and pages did not go there and come back"
    );
    if !faults::possible() {
        return Ok(());
    }
    let never = proof::never_done(&record.table(), options.seed);
    ensure!(never.is_empty(), "always refused: {}", never.join(", "));
    let idle = meanwhile.idle(&proof::ALWAYS);
    ensure!(
        !everything || idle.is_empty(),
        "the kernel never counted {}",
        idle.join(", ")
    );
    ensure!(
        !everything || options.bare || looks.mostly_some(),
        "little was merged: {looks}"
    );
    Ok(())
}

/// What the host should have; debug kernels of ours must.
fn should_have<T>(what: &str, made: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match made {
        Ok(made) => Ok(Some(made)),
        Err(failure) if faults::possible() => Err(Failure::Failed(format!("no {what}: {failure}"))),
        Err(failure) => {
            println!("no {what}: {failure}");
            Ok(None)
        }
    }
}

/// A host in which everything can happen: swap, a disk, a group of its own for all monitors.
fn prepare(options: &mut Options) -> Result<Option<Swap>, Failure> {
    let swap = should_have("swap", Swap::on(swap::Kind::Zram, SWAP_MIB))?;
    host::fill_hugetlb();
    options.disk = should_have("disk", swap::attach_loop("/tmp/disk", DISK_MIB))?;
    // It is left as it is: the machine ends with the run.
    std::mem::forget(Group::new("torture")?);
    fs::write("/proc/sys/kernel/core_pattern", "/tmp/core")?;
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the limit is a valid one for the length of the call.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &unlimited) };
    Ok(swap)
}

/// Lets things happen to something until the run ends.
fn happen<T>(record: &Record, actor: usize, to: &T, events: Vec<&Event<T>>, mut random: Random) {
    let mut events = Deck::new(events);
    while !record.stopped() {
        let Some(event) = events.deal(&mut random) else {
            break;
        };
        record.begins(actor, event.name);
        // How many choices it makes may depend on what it meets.
        match (event.run)(to, &mut Random::new(random.word(), 0)) {
            Ok(()) => record.did(event.name),
            Err(Failure::Skipped(why)) => record.refused(event.name, &why),
            Err(Failure::Failed(text)) => record.wrong(format!("{}: {text}", event.name)),
        }
        record.ends(actor);
        random.nap(150);
    }
}

/// Looks now and then at how many pages are saved, until the run ends.
fn watch_merging(host: &Host) -> Looks {
    let (mut looks, mut last) = (Looks::default(), Instant::now());
    while !host.record.stopped() {
        std::thread::sleep(Duration::from_millis(200));
        if last.elapsed() < LOOK {
            continue;
        }
        // A monitor may be going.
        if let Ok(saved) = frames::saved_pages(host) {
            looks.add(saved);
        }
        last = Instant::now();
    }
    looks
}

/// Waits for the end of the run, or for a monitor that ends before.
fn watch_over(host: &Host, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end && !host.record.stopped() {
        std::thread::sleep(Duration::from_millis(200));
        if let Some(death) = host.monitors().iter_mut().find_map(Monitor::has_died) {
            host.record.wrong(death);
        }
    }
    host.record.stop();
}

/// Waits for the end of the run and of all events; ends the program if one of them does not end.
fn watch_events(record: &Record) {
    while !record.stopped() || record.overdue(Duration::ZERO).is_some() {
        std::thread::sleep(Duration::from_secs(1));
        if let Some(event) = record.overdue(EVENT_LIMIT) {
            println!("{}", record.doing());
            // Where each task of the host is goes to its log.
            let _ = fs::write("/proc/sysrq-trigger", "t");
            record.wrong(format!("{event} does not end"));
            std::process::exit(1);
        }
    }
}

/// Puts the host back to what it was.
fn calm_down() {
    for (file, value) in [
        (format!("{GROUP}/cgroup.freeze"), "0"),
        (format!("{GROUP}/memory.high"), "max"),
        ("/sys/kernel/mm/ksm/run".into(), "2"),
        ("/sys/kernel/mm/ksm/run".into(), "0"),
        ("/proc/sys/kernel/numa_balancing".into(), "0"),
    ] {
        let _ = fs::write(file, value);
    }
}

/// After all of that, the VMs' pages merge as on the first day.
fn still_merges(host: &Host) -> Result<(), Failure> {
    for (name, value) in [
        ("run", "1"),
        ("max_page_sharing", "256"),
        ("smart_scan", "0"),
    ] {
        module::set(name, value)?;
    }
    host::hurry()?;
    for monitor in host.monitors().iter_mut() {
        host::detach(monitor, module::Merged::Unmerge)?;
        host::attach(monitor, 7)?;
    }
    let enough = host.monitors().len() * PAGES_AT_THE_END;
    wait::until("merging at the end", EVENT_LIMIT, || {
        Ok(frames::saved_pages(host)? >= enough)
    })
    .map(|_| ())
}
