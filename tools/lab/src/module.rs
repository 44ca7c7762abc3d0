// SPDX-License-Identifier: GPL-2.0

//! The module as its users see it: loading, knobs and counters, the device, the debugfs files.

use std::collections::BTreeMap;
use std::fs::{
    self,
    File,
    OpenOptions, //
};
use std::io::{
    self,
    Write, //
};
use std::os::fd::{
    AsRawFd,
    RawFd, //
};
use std::path::PathBuf;

use nix::kmod::{
    delete_module,
    finit_module,
    DeleteModuleFlags,
    ModuleInitFlags, //
};

use crate::place;

/// The types of `rust/uapi/twinpage.h`.
#[expect(
    missing_docs,
    non_camel_case_types,
    reason = "generated from the C header, which documents them"
)]
#[allow(
    dead_code,
    unsafe_op_in_unsafe_fn,
    reason = "whether generated code has them depends on the header"
)]
pub mod uapi {
    include!(concat!(env!("OUT_DIR"), "/uapi.rs"));
}

/// Where the knobs and counters are.
pub const SYSFS: &str = "/sys/kernel/mm/twinpage";

/// Where the files of each VM are.
pub const DEBUGFS: &str = "/sys/kernel/debug/twinpage";

/// The device.
pub const DEVICE: &str = "/dev/twinpage";

/// Where the results say at which addresses the module's code was, a load after the other.
const SECTIONS: &str = "sections.log";

/// Loads the module.
///
/// # Errors
///
/// The kernel's.
pub fn load() -> io::Result<()> {
    load_file(place::module())?;
    // For whoever reads addresses of the log afterwards: nothing fails for want of it.
    let _ = note_sections();
    Ok(())
}

/// Notes at which addresses the module's code is.
fn note_sections() -> io::Result<()> {
    let path = place::out().join(SECTIONS);
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    for name in [".text", ".init.text", ".exit.text"] {
        let address = fs::read_to_string(format!("/sys/module/twinpage/sections/{name}"))?;
        writeln!(file, "{name} {}", address.trim_end())?;
    }
    Ok(())
}

/// Loads any module.
///
/// # Errors
///
/// No such file, or the kernel refuses it.
pub fn load_file(path: PathBuf) -> io::Result<()> {
    let file = File::open(&path).map_err(|error| at(&path.display().to_string(), &error))?;
    finit_module(file, c"", ModuleInitFlags::empty()).map_err(io::Error::from)
}

/// Unloads the module.
///
/// # Errors
///
/// It is in use.
pub fn unload() -> io::Result<()> {
    delete_module(c"twinpage", DeleteModuleFlags::O_NONBLOCK).map_err(io::Error::from)
}

/// Whether the module is loaded.
pub fn is_loaded() -> bool {
    fs::metadata("/sys/module/twinpage").is_ok()
}

/// How many users a module has, or nothing when it is not loaded.
pub fn users(module: &str) -> Option<i64> {
    fs::read_to_string(format!("/sys/module/{module}/refcnt"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Says which file an error is about.
fn at(path: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// The text of a knob or counter.
///
/// # Errors
///
/// The module is not loaded, or has no such file.
pub fn knob(name: &str) -> io::Result<String> {
    let path = format!("{SYSFS}/{name}");
    let text = fs::read_to_string(&path).map_err(|error| at(&path, &error))?;
    Ok(text.trim_end().to_owned())
}

/// Writes a knob; the error is the kernel's own.
///
/// # Errors
///
/// The value is out of range, or there is no such knob.
pub fn set(name: &str, value: impl ToString) -> io::Result<()> {
    fs::write(format!("{SYSFS}/{name}"), value.to_string())
}

/// The number in a counter.
///
/// # Errors
///
/// The module is not loaded, or the file holds no number.
pub fn counter(name: &str) -> io::Result<i64> {
    let text = knob(name)?;
    text.parse()
        .map_err(|_| io::Error::other(format!("{name} is no number: '{text}'")))
}

/// The `stats` of one VM.
#[derive(Clone, Debug)]
pub struct Stats(BTreeMap<String, u64>);

impl Stats {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// There is no such VM, or the file does not have the documented form.
    pub fn of(id: u32) -> io::Result<Stats> {
        let path = format!("{DEBUGFS}/{id}/stats");
        let text = fs::read_to_string(&path).map_err(|error| at(&path, &error))?;
        let pairs = text.lines().map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        let map = pairs.collect::<Option<_>>();
        map.map(Stats)
            .ok_or_else(|| io::Error::other(format!("{path} is malformed:\n{text}")))
    }

    /// One value.
    ///
    /// # Errors
    ///
    /// There is no such name.
    pub fn get(&self, name: &str) -> io::Result<u64> {
        let value = self.0.get(name).copied();
        value.ok_or_else(|| io::Error::other(format!("stats has no '{name}'")))
    }

    /// The reasons for which pages were skipped, with their counts, other than none.
    pub fn skipped(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().filter_map(|(name, &value)| {
            let reason = name.strip_prefix("skip_")?;
            (value > 0).then_some((reason, value))
        })
    }

    /// What every page was counted as; by the documentation the sum of it is `pages`.
    ///
    /// # Errors
    ///
    /// A name is missing.
    pub fn sum(&self) -> io::Result<u64> {
        let names = [
            "pages_unseen",
            "pages_absent",
            "pages_unshared",
            "pages_volatile",
            "pages_merged",
            "zero_pages",
        ];
        let counted = names.iter().map(|name| self.get(name));
        let counted = counted.sum::<io::Result<u64>>()?;
        Ok(counted + self.skipped().map(|(_, value)| value).sum::<u64>())
    }
}

/// One line of `slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLine {
    /// Address space.
    pub as_id: u64,
    /// Number.
    pub slot: u64,
    /// First guest frame.
    pub base_gfn: u64,
    /// Pages.
    pub npages: u64,
    /// First host address.
    pub userspace_addr: u64,
    /// `KVM_MEM_*`.
    pub flags: u64,
}

/// The memslots of a VM, as the module sees them.
///
/// # Errors
///
/// There is no such VM, or the file does not have the documented form.
pub fn slots(id: u32) -> io::Result<Vec<SlotLine>> {
    let path = format!("{DEBUGFS}/{id}/slots");
    let text = fs::read_to_string(&path).map_err(|error| at(&path, &error))?;
    let mut lines = text.lines();
    let malformed = || io::Error::other(format!("{path} is malformed:\n{text}"));
    if lines.next() != Some("as_id slot base_gfn npages userspace_addr flags") {
        return Err(malformed());
    }
    lines
        .map(|line| slot_line(line).ok_or_else(malformed))
        .collect()
}

fn slot_line(line: &str) -> Option<SlotLine> {
    let words: Vec<_> = line.split(' ').collect();
    let [as_id, slot, base_gfn, npages, userspace_addr, flags] = words.try_into().ok()?;
    let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    Some(SlotLine {
        as_id: as_id.parse().ok()?,
        slot: slot.parse().ok()?,
        base_gfn: base_gfn.parse().ok()?,
        npages: npages.parse().ok()?,
        userspace_addr: hex(userspace_addr)?,
        flags: hex(flags)?,
    })
}

/// The open device.
pub struct Device(File);

/// How far a detach got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detached {
    /// Pages that got their own copy back.
    pub unmerged: u64,
    /// Pages that are still merged.
    pub remaining: u64,
}

/// What becomes of merged pages when a VM is detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// They stay merged.
    Keep,
    /// Each gets its own copy back.
    Unmerge,
}

impl Device {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// The module is not loaded, or this is not root.
    pub fn open() -> io::Result<Device> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        Ok(Device(device))
    }

    /// Any ioctl of the device, with whatever is in `argument`.
    ///
    /// # Errors
    ///
    /// The module's.
    pub fn ioctl<T: Argument>(&self, number: u32, argument: &mut T) -> io::Result<()> {
        let pointer: *mut T = argument;
        // SAFETY: `Argument` types are those of the UAPI header; the kernel reads and writes as
        // many bytes as the number says, and `T::fits` makes sure that `argument` has them.
        let result = unsafe {
            assert!(T::fits(number));
            libc::ioctl(self.0.as_raw_fd(), libc::c_ulong::from(number), pointer)
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Starts merging a VM.
    ///
    /// # Errors
    ///
    /// The module's.
    pub fn attach(&self, vm: RawFd, domain: u64) -> io::Result<u32> {
        let mut argument = uapi::twinpage_attach {
            vm_fd: vm,
            domain,
            ..Default::default()
        };
        self.ioctl(uapi::IOC_ATTACH, &mut argument)?;
        Ok(argument.id)
    }

    /// Stops merging a VM.
    ///
    /// # Errors
    ///
    /// The module's, with how far it got.
    pub fn detach(&self, id: u32, merged: Merged) -> Result<Detached, (io::Error, Detached)> {
        let mut argument = uapi::twinpage_detach {
            id,
            flags: match merged {
                Merged::Keep => 0,
                Merged::Unmerge => uapi::TWINPAGE_DETACH_UNMERGE,
            },
            ..Default::default()
        };
        let result = self.ioctl(uapi::IOC_DETACH, &mut argument);
        let detached = Detached {
            unmerged: argument.unmerged,
            remaining: argument.remaining,
        };
        result.map(|()| detached).map_err(|error| (error, detached))
    }

    /// The bytes of a merged page.
    ///
    /// # Errors
    ///
    /// No such page is merged.
    pub fn read(&self, domain: u64, digest: [u8; 32]) -> io::Result<[u8; 4096]> {
        let mut page = [0; 4096];
        let mut argument = uapi::twinpage_read {
            domain,
            digest,
            buffer: page.as_mut_ptr() as u64,
            ..Default::default()
        };
        self.ioctl(uapi::IOC_READ, &mut argument)?;
        Ok(page)
    }

    /// What the module speaks.
    ///
    /// # Errors
    ///
    /// The module's.
    pub fn version(&self) -> io::Result<uapi::twinpage_version> {
        let mut argument = uapi::twinpage_version::default();
        self.ioctl(uapi::IOC_VERSION, &mut argument)?;
        Ok(argument)
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// An argument of an ioctl of the device.
pub trait Argument: Sized {
    /// Whether the ioctl `number` moves no more bytes than this type has.
    fn fits(number: u32) -> bool {
        ((number >> 16) & 0x3fff) as usize <= size_of::<Self>()
    }
}

impl Argument for uapi::twinpage_version {}
impl Argument for uapi::twinpage_attach {}
impl Argument for uapi::twinpage_detach {}
impl Argument for uapi::twinpage_read {}
