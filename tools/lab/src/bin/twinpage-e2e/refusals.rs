// SPDX-License-Identifier: GPL-2.0

//! Each place in the module that asks for memory gets none, however often it asks.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{
    Duration,
    Instant, //
};

use tinyvm::{
    Backing,
    Memory,
    Slot, //
};
use twinpage_lab::ensure;
use twinpage_lab::module::{
    self,
    Device,
    Merged,
    DEBUGFS, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};

use crate::enomem::{
    left_behind,
    scanner,
    unload, //
};
use crate::faults::Refusal;
use crate::host::{
    key,
    saved_pages,
    Guest,
    Host, //
};

pub const TESTS: &[Test] = &[Test {
    name: "each_place_that_asks_for_memory_gets_none",
    seconds: 1800,
    run: each_place_that_asks_for_memory_gets_none,
}];

/// The places, by `scripts/allocations.sh`.
const LIST: &str = "/allocations";

/// Less than there are.
const FEW: usize = 20;

const PAGES: usize = 16;

/// Memslots that come and go, of a page each.
const SLOTS: usize = 40;

/// How long the module may try before the next thing is asked of it: it tries again and again.
const TRIES: Duration = Duration::from_secs(5);

/// A place in the code of the module.
struct Place {
    section: String,
    offset: u64,
    function: String,
}

impl Place {
    /// All of them.
    fn all() -> Result<Vec<Place>, Failure> {
        let list = fs::read_to_string(LIST)
            .map_err(|error| Failure::Skipped(format!("{LIST}: {error}")))?;
        let place = |line: &str| {
            let mut words = line.splitn(3, ' ');
            Some(Place {
                section: words.next()?.to_owned(),
                offset: u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?,
                function: words.next()?.to_owned(),
            })
        };
        let places: Option<Vec<Place>> = list.lines().map(place).collect();
        places.ok_or_else(|| Failure::Failed(format!("{LIST} has a line that is no place")))
    }

    /// Where it is in the module that is loaded now.
    fn address(&self) -> Result<u64, Failure> {
        let path = format!("/sys/module/twinpage/sections/{}", self.section);
        let text = fs::read_to_string(&path)?;
        let digits = text.trim_end().trim_start_matches("0x");
        let base = u64::from_str_radix(digits, 16);
        let base = base.map_err(|_| Failure::Failed(format!("{path} reads '{text}'")))?;
        Ok(base + self.offset)
    }
}

/// What came of an operation, or nothing where there was no memory for it.
fn unless_short<T>(what: &str, result: io::Result<T>) -> Result<Option<T>, Failure> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => Ok(None),
        Err(error) => Err(Failure::Failed(format!("{what}: {error}"))),
    }
}

/// Two VMs with equal pages, one of which shows more memory in memslots that come and go.
struct Twins {
    guests: [Guest; 2],
    more: Memory,
}

impl Twins {
    fn new() -> Result<Twins, Failure> {
        let guests = [
            Guest::detached(PAGES, Backing::Small)?,
            Guest::detached(PAGES, Backing::Small)?,
        ];
        guests.iter().for_each(|guest| guest.fill_with(key));
        let more = Memory::new(2 * SLOTS, Backing::Small)?;
        Ok(Twins { guests, more })
    }

    fn check(&self) -> Outcome {
        self.guests
            .iter()
            .try_for_each(|guest| guest.check_with(key))
    }

    fn saved(&self) -> Result<usize, Failure> {
        saved_pages(&[&self.guests[0], &self.guests[1]])
    }

    fn attach(&self, device: &Device, domain: u64) -> Result<Vec<u32>, Failure> {
        let mut ids = Vec::new();
        for guest in &self.guests {
            let attached = device.attach(guest.vm()?.as_raw_fd(), domain);
            ids.extend(unless_short("attach", attached)?);
        }
        Ok(ids)
    }

    /// Sets all of the other memslots, or takes them away.
    fn set_slots(&self, there: bool) -> Outcome {
        for number in 0..SLOTS {
            self.guests[1].vm()?.set_slot(Slot {
                number: 1 + number as u16,
                guest: (1 << 28) + (number as u64) * (1 << 20),
                host: self.more.page_address(2 * number),
                pages: usize::from(there),
                ..Slot::default()
            })?;
        }
        Ok(())
    }

    /// Waits until all pages are merged, or somebody was refused memory, for a while.
    fn wait(&self, refusal: &Refusal) -> Outcome {
        let end = Instant::now() + TRIES;
        while Instant::now() < end && refusal.times()? == 0 && self.saved()? < PAGES {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Asks all of the module that it can do; says which VMs it would not let go of.
    fn use_all(&self, refusal: &Refusal, domain: u64) -> Result<Vec<u32>, Failure> {
        let Some(device) = unless_short("open", Device::open())? else {
            return Ok(Vec::new());
        };
        refusal.reaches(&scanner()?.to_string())?;
        let ids = self.attach(&device, domain)?;
        self.set_slots(true)?;
        self.wait(refusal)?;
        for id in &ids {
            for name in ["slots", "digests", "stats"] {
                match fs::read(format!("{DEBUGFS}/{id}/{name}")) {
                    // The kernel does not say when it cannot make a file.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    read => unless_short(name, read)?,
                };
            }
        }
        match device.read(domain, self.guests[0].digest(3)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => None,
            read => unless_short("read by digest", read)?,
        };
        for (name, value) in [("merge_batch", 8), ("run", 2), ("run", 1)] {
            unless_short(name, module::set(name, value))?;
        }
        self.set_slots(false)?;
        let mut stay = Vec::new();
        for id in ids {
            let detached = device.detach(id, Merged::Unmerge);
            let detached = detached.map_err(|(error, _)| error);
            if unless_short("detach", detached)?.is_none() {
                stay.push(id);
            }
        }
        Ok(stay)
    }

    /// Merges all, and takes it apart again.
    fn merge(&self, host: &Host, domain: u64) -> Outcome {
        module::set("run", 1)?;
        let ids = self.attach(host.device(), domain)?;
        ensure!(ids.len() == 2, "no memory, though there is some");
        host.until_saved(&[&self.guests[0], &self.guests[1]], PAGES)?;
        self.check()?;
        detach(host, ids)?;
        ensure!(self.saved()? == 0, "pages are still merged");
        Ok(())
    }
}

fn detach(host: &Host, ids: Vec<u32>) -> Outcome {
    for id in ids {
        let detached = host.device().detach(id, Merged::Unmerge);
        detached.map_err(|(error, _)| error)?;
    }
    Ok(())
}

/// Uses the module, and loads it before if `fresh`, while one of its places gets no memory, and then
/// with memory; says how often the place has asked.
fn refuse(place: &Place, address: u64, domain: u64, fresh: bool) -> Result<u64, Failure> {
    let twins = Twins::new()?;
    let refusal = Refusal::at(address)?;
    let loaded = !fresh || unless_short("loading", module::load())?.is_some();
    let stay = match loaded {
        true => twins.use_all(&refusal, domain)?,
        false => Vec::new(),
    };
    let times = refusal.times()?;
    drop(refusal);
    twins.check()?;
    if loaded {
        ensure!(place.address()? == address, "the module has moved");
        let host = Host::hurried()?;
        detach(&host, stay)?;
        twins.merge(&host, domain)?;
    }
    ensure!(loaded || times > 0, "no memory, though there is some");
    if fresh {
        if loaded {
            unload()?;
        }
        let left = left_behind();
        ensure!(left.is_none(), "{left:?} exists without the module");
    }
    Ok(times)
}

fn each_place_that_asks_for_memory_gets_none() -> Outcome {
    let places = Place::all()?;
    ensure!(places.len() > FEW, "{LIST} has only {}", places.len());
    module::load()?;
    // Where they are each time that it is loaded.
    let mut unmet = Vec::new();
    for place in &places {
        unmet.push((place, place.address()?));
    }
    let mut domain = 0;
    for fresh in [false, true] {
        if fresh {
            unload()?;
        }
        let mut later = Vec::new();
        for (place, address) in unmet {
            domain += 1;
            let times = refuse(place, address, domain, fresh)
                .map_err(|failure| Failure::Failed(format!("{}: {failure}", place.function)))?;
            println!("{times:6} times: {:#x} {}", place.offset, place.function);
            if times == 0 {
                later.push((place, address));
            }
        }
        unmet = later;
    }
    ensure!(
        unmet.is_empty(),
        "{} of {} places did not ask",
        unmet.len(),
        places.len()
    );
    Ok(())
}
