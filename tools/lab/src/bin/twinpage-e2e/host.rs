// SPDX-License-Identifier: GPL-2.0

//! What nearly every test needs: the module loaded and in a hurry, VMs with known content.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{
    Duration,
    Instant, //
};

use sha2::{
    Digest,
    Sha256, //
};
use tinyvm::{
    Backing,
    Memory,
    Vm, //
};
pub use twinpage_lab::child::{
    in_child,
    Child, //
};
pub use twinpage_lab::content::{
    check,
    fill,
    mismatch, //
};
pub use twinpage_lab::files::pipe;
use twinpage_lab::module::{
    self,
    Device,
    Merged,
    Stats, //
};
use twinpage_lab::pagemap::{
    Entry,
    Frame,
    Frames,
    Pagemap, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};
use twinpage_lab::{
    ensure,
    wait, //
};

/// The longest that merging a few thousand pages may take on an emulated processor that others use.
pub const CONVERGE: Duration = Duration::from_secs(180);

/// The domain most tests use.
pub const DOMAIN: u64 = 77;

/// The domain of VMs that share with no other.
pub const PRIVATE: u64 = 0;

/// The content of a page that all VMs of a test have, unless it says otherwise; no page is like
/// another.
pub fn key(page: usize) -> u64 {
    page as u64 + 1
}

/// The loaded module.
pub struct Host {
    device: Device,
}

impl Host {
    /// Loads the module and lets it scan without rest.
    pub fn new() -> Result<Host, Failure> {
        module::load()?;
        Host::hurried()
    }

    /// Loads another file of the module and lets it scan without rest.
    pub fn of_file(path: PathBuf) -> Result<Host, Failure> {
        module::load_file(path)?;
        Host::hurried()
    }

    /// Lets the module that was loaded scan without rest.
    pub fn hurried() -> Result<Host, Failure> {
        hurry()?;
        Ok(Host {
            device: Device::open()?,
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Makes a VM whose only slot shows new memory, and attaches it.
    pub fn guest(&self, pages: usize, backing: Backing, domain: u64) -> Result<Guest, Failure> {
        let mut guest = Guest::detached(pages, backing)?;
        guest.attach(self, domain)?;
        Ok(guest)
    }

    /// Two VMs of one domain whose pages of the same number are equal.
    pub fn equals(&self, pages: usize) -> Result<[Guest; 2], Failure> {
        let twins = [
            self.guest(pages, Backing::Small, DOMAIN)?,
            self.guest(pages, Backing::Small, DOMAIN)?,
        ];
        for twin in &twins {
            twin.fill_with(key);
        }
        Ok(twins)
    }

    /// The same, and merged.
    pub fn twins(&self, pages: usize) -> Result<[Guest; 2], Failure> {
        let twins = self.equals(pages)?;
        self.until_saved(&[&twins[0], &twins[1]], pages)?;
        Ok(twins)
    }

    /// Waits until at least so many pages of the VMs are saved.
    pub fn until_saved(&self, guests: &[&Guest], pages: usize) -> Outcome {
        let mut saved = 0;
        let limit = CONVERGE + Duration::from_millis(pages as u64 * 4);
        let result: Result<_, Failure> = wait::until("merging", limit, || {
            saved = saved_pages(guests)?;
            Ok(saved >= pages)
        });
        result.map(|_| ()).map_err(|failure| {
            let mut text = format!("{failure}: {saved} of {pages} pages saved");
            for guest in guests {
                text += &format!("\n{}", guest.told());
            }
            Failure::Failed(text)
        })
    }

    /// Waits for so many further complete passes over all VMs.
    ///
    /// The pass that runs when this is called does not count, so that whatever each of them looks
    /// at is seen as it was left by what came before.
    pub fn passes(&self, passes: i64) -> Outcome {
        let goal = module::counter("full_scans")? + passes + 1;
        wait::until("a pass", CONVERGE, || {
            Ok(module::counter("full_scans")? >= goal)
        })
        .map(|_| ())
    }

    /// Waits until every page was looked at so many times again: where nothing happens, one pass
    /// in four does that.
    pub fn looks(&self, looks: i64) -> Outcome {
        self.passes(looks * 4)
    }
}

/// Lets the module scan without rest, and merge whatever is written to.
pub fn hurry() -> Outcome {
    module::set("advisor_mode", "none")?;
    module::set("sleep_millisecs", 1)?;
    module::set("pages_to_scan", 65536)?;
    module::set("max_break_rate", 0)?;
    Ok(())
}

/// Whether to go on with what began at `start`: for this time, and until enough was seen, unless
/// that takes longer than [`CONVERGE`]: others may keep the scanner from its work.
pub fn goes_on(start: Instant, time: Duration, enough: bool) -> bool {
    let passed = start.elapsed();
    passed < time || (!enough && passed < CONVERGE)
}

/// A VM that the test itself is the monitor of.
pub struct Guest {
    vm: Option<Vm>,
    memory: Memory,
    id: u32,
}

impl Guest {
    /// A VM that is not attached yet.
    pub fn detached(pages: usize, backing: Backing) -> Result<Guest, Failure> {
        Guest::over(Memory::new(pages, backing)?)
    }

    /// A VM with this memory that is not attached yet.
    pub fn over(memory: Memory) -> Result<Guest, Failure> {
        Ok(Guest {
            vm: Some(Vm::over(&memory)?),
            memory,
            id: 0,
        })
    }

    /// Attaches it.
    pub fn attach(&mut self, host: &Host, domain: u64) -> Outcome {
        self.id = host.device.attach(self.vm()?.as_raw_fd(), domain)?;
        Ok(())
    }

    /// Detaches it.
    pub fn detach(&self, host: &Host, merged: Merged) -> Result<module::Detached, Failure> {
        host.device
            .detach(self.id, merged)
            .map_err(|(error, detached)| Failure::Failed(format!("{error} after {detached:?}")))
    }

    /// The VM, unless it was closed.
    pub fn vm(&self) -> Result<&Vm, Failure> {
        self.vm
            .as_ref()
            .ok_or_else(|| Failure::Failed("the VM is closed".into()))
    }

    /// Closes the VM; its memory stays.
    pub fn close_vm(&mut self) {
        self.vm = None;
    }

    /// Number of the attachment.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// What the module counts about it.
    pub fn stats(&self) -> Result<Stats, Failure> {
        Ok(Stats::of(self.id)?)
    }

    /// What the module counts about it, for a message.
    pub fn told(&self) -> String {
        Stats::of(self.id).map_or_else(|error| error.to_string(), |stats| format!("{stats:?}"))
    }

    /// Writes the content of a key to every page.
    pub fn fill_with(&self, key: impl Fn(usize) -> u64) {
        for page in 0..self.memory.pages() {
            fill(&self.memory, page, key(page));
        }
    }

    /// Compares every page with the content of its key.
    pub fn check_with(&self, key: impl Fn(usize) -> u64) -> Outcome {
        for page in 0..self.memory.pages() {
            check(&self.memory, page, key(page))?;
        }
        Ok(())
    }

    /// SHA-256 of a page.
    pub fn digest(&self, page: usize) -> [u8; 32] {
        let mut hash = Sha256::new();
        for word in self.memory.read_page(page) {
            hash.update(word.to_le_bytes());
        }
        hash.finalize().into()
    }

    /// Its page table entries.
    pub fn entries(&self) -> Result<Vec<Entry>, Failure> {
        Ok(Pagemap::own()?.read(self.memory.address(), self.memory.pages())?)
    }

    /// The frame of each page.
    pub fn frames(&self) -> Result<Vec<Option<Frame>>, Failure> {
        let entries = self.entries()?;
        Ok(entries.into_iter().map(Entry::frame).collect())
    }

    /// All frames that it maps.
    pub fn frame_set(&self) -> Result<BTreeSet<Frame>, Failure> {
        Ok(self.frames()?.into_iter().flatten().collect())
    }
}

/// Pages that are saved: those beyond the first of each frame, and those of the page of zeroes.
pub fn saved_pages(guests: &[&Guest]) -> Result<usize, Failure> {
    let frames = Frames::open()?;
    let mut seen = std::collections::HashSet::new();
    let mut saved = 0;
    for guest in guests {
        for frame in guest.frames()?.into_iter().flatten() {
            if !seen.insert(frame) || frames.flags(frame)?.zero() {
                saved += 1;
            }
        }
    }
    Ok(saved)
}

/// Frames that both VMs map, other than the page of zeroes.
pub fn common_frames(a: &Guest, b: &Guest) -> Result<usize, Failure> {
    let frames = Frames::open()?;
    let own = a.frame_set()?;
    let mut common = 0;
    for frame in b.frames()?.into_iter().flatten() {
        common += usize::from(own.contains(&frame) && !frames.flags(frame)?.zero());
    }
    Ok(common)
}

/// How many pages of a VM are in huge pages.
pub fn huge_pages(guest: &Guest) -> Result<usize, Failure> {
    let frames = Frames::open()?;
    let mut huge = 0;
    for frame in guest.frames()?.into_iter().flatten() {
        huge += usize::from(frames.flags(frame)?.huge());
    }
    Ok(huge)
}

/// How many pages of a VM the module skips for a reason.
pub fn skipped(guest: &Guest, reason: &str) -> Result<u64, Failure> {
    Ok(guest.stats()?.get(&format!("skip_{reason}"))?)
}

/// Fails unless an operation failed with this error.
pub fn fails_with<T>(what: &str, result: std::io::Result<T>, errno: i32) -> Outcome {
    let seen = result.err().and_then(|error| error.raw_os_error());
    ensure!(
        seen == Some(errno),
        "{what}: expected error {errno}, got {seen:?}"
    );
    Ok(())
}
