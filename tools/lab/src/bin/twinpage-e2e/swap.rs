// SPDX-License-Identifier: GPL-2.0

//! A swap device in memory, for as long as a test runs.

use std::fs;
use std::process::Command;

use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

const DEVICE: &std::ffi::CStr = c"/dev/zram0";

/// An active swap device.
pub struct Swap(());

impl Swap {
    /// Turns swapping on.
    pub fn on(mib: usize) -> Result<Swap, Failure> {
        prepare(mib)?;
        // A swap header: version 1, last page, then a signature at the end of the first page.
        let mut header = vec![0_u8; 4096];
        header[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
        header[1028..1032].copy_from_slice(&(mib as u32 * 256 - 1).to_le_bytes());
        header[4086..].copy_from_slice(b"SWAPSPACE2");
        fs::write("/dev/zram0", header)?;
        // SAFETY: the path is a C string.
        if unsafe { libc::swapon(DEVICE.as_ptr(), 0) } != 0 {
            let error = std::io::Error::last_os_error();
            return Err(Failure::Skipped(format!("no swap: {error}")));
        }
        Ok(Swap(()))
    }

    /// Turns it off: everything comes back to memory.
    pub fn off(self) -> Outcome {
        // SAFETY: the path is a C string.
        if unsafe { libc::swapoff(DEVICE.as_ptr()) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(())
    }
}

/// Makes an empty disk of this size in memory.
pub fn prepare(mib: usize) -> Outcome {
    if fs::metadata("/dev/zram0").is_err() {
        // It needs compressors, which are modules too.
        let loaded = Command::new("modprobe").arg("zram").output()?;
        if !loaded.status.success() {
            let why = String::from_utf8_lossy(&loaded.stderr).into_owned();
            return Err(Failure::Skipped(format!("no zram: {why}")));
        }
    }
    // A test that failed may have left it in use; the size is set once only.
    // SAFETY: the path is a C string.
    unsafe { libc::swapoff(DEVICE.as_ptr()) };
    fs::write("/sys/block/zram0/reset", "1")?;
    fs::write("/sys/block/zram0/disksize", format!("{mib}M"))?;
    Ok(())
}
