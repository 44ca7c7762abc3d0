// SPDX-License-Identifier: GPL-2.0

//! Memory that moves to a device and back (HMM, the kernel's own test driver).

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use tinyvm::Backing;
use twinpage_lab::pagemap::Frames;
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::{
    ensure,
    module,
    place, //
};

use crate::host::{
    common_frames,
    Host,
    DOMAIN, //
};

pub const TESTS: &[Test] = &[Test {
    name: "memory_of_a_device_and_merged_pages_keep_apart",
    seconds: 180,
    run: memory_of_a_device_and_merged_pages_keep_apart,
}];

/// `struct hmm_dmirror_cmd` and a request of `lib/test_hmm_uapi.h`.
#[repr(C)]
#[derive(Default)]
struct Command {
    addr: u64,
    ptr: u64,
    npages: u64,
    cpages: u64,
    faults: u64,
}

const MIGRATE_TO_DEVICE: libc::c_ulong =
    (3 << 30) | (40 << 16) | ((b'H' as libc::c_ulong) << 8) | 2;

fn memory_of_a_device_and_merged_pages_keep_apart() -> Outcome {
    const PAGES: usize = 64;
    if std::fs::metadata("/dev/hmm_dmirror0").is_err() {
        let file = place::stock_module("test_hmm").unwrap_or_else(|| PathBuf::from("/test_hmm.ko"));
        if let Err(error) = module::load_file(file) {
            return Err(Failure::Skipped(format!("no test_hmm: {error}")));
        }
    }
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    let frame = a.frames()?[0].ok_or(Failure::Failed("not mapped".into()))?;
    if Frames::open()?.flags(frame)?.anonymous() {
        // Documentation/design.rst, "Two kinds of copy": migrate_vma cannot handle these.
        let text = "merged pages are anonymous on this kernel, which HMM cannot migrate";
        return Err(Failure::Skipped(text.into()));
    }
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/hmm_dmirror0")?;
    let buffer = vec![0_u8; PAGES * 4096];
    let mut command = Command {
        addr: a.memory().address(),
        ptr: buffer.as_ptr() as u64,
        npages: PAGES as u64,
        ..Command::default()
    };
    // SAFETY: the driver reads and writes the 40 bytes of the command and copies the pages to the
    // buffer, which has as many.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), MIGRATE_TO_DEVICE, &mut command) };
    println!("migration returned {result}, {} pages", command.cpages);
    ensure!(
        common_frames(&a, &b)? == PAGES,
        "merged pages moved to the device"
    );
    a.check_with(|page| page as u64 + 1)?;
    // Pages of its own may move; the scanner must leave them where they are.
    let c = host.guest(PAGES, Backing::Small, DOMAIN)?;
    c.fill_with(|page| page as u64 + 9000);
    command.addr = c.memory().address();
    // SAFETY: as above.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), MIGRATE_TO_DEVICE, &mut command) };
    println!("migration returned {result}, {} pages", command.cpages);
    host.looks(3)?;
    c.check_with(|page| page as u64 + 9000)?;
    b.check_with(|page| page as u64 + 1)
}
