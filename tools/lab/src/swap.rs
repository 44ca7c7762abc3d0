// SPDX-License-Identifier: GPL-2.0

//! A swap device in memory, for as long as somebody wants it.

use std::ffi::CString;
use std::fs;
use std::process::Command;

use crate::process::field;
use crate::tap::{
    Failure,
    Outcome, //
};

/// What is swapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A compressed disk in memory: fast enough for the kernel to give slots back at once.
    Zram,
    /// A file in memory behind a loop device: pages that come back keep their slots for a while.
    Loop,
}

/// An active swap device. A test that fails leaves none behind.
pub struct Swap {
    kind: Kind,
    device: CString,
    on: bool,
}

/// Where the file of the loop device is.
const FILE: &str = "/tmp/swap";

impl Swap {
    /// Turns swapping on.
    ///
    /// # Errors
    ///
    /// [`Failure::Skipped`] where there is no such device.
    pub fn on(kind: Kind, mib: usize) -> Result<Swap, Failure> {
        let path = match kind {
            Kind::Zram => {
                prepare(mib)?;
                "/dev/zram0".to_owned()
            }
            Kind::Loop => attach_loop(FILE, mib)?,
        };
        // A swap header: version 1, last page, then a signature at the end of the first page.
        let mut header = vec![0_u8; 4096];
        header[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
        header[1028..1032].copy_from_slice(&(mib as u32 * 256 - 1).to_le_bytes());
        header[4086..].copy_from_slice(b"SWAPSPACE2");
        fs::write(&path, header)?;
        let device = CString::new(path)?;
        // SAFETY: the path is a C string.
        if unsafe { libc::swapon(device.as_ptr(), 0) } != 0 {
            let error = std::io::Error::last_os_error();
            return Err(Failure::Skipped(format!("no swap: {error}")));
        }
        Ok(Swap {
            kind,
            device,
            on: true,
        })
    }

    /// Turns it off: everything comes back to memory.
    ///
    /// # Errors
    ///
    /// The kernel's, for example no memory.
    pub fn off(mut self) -> Outcome {
        self.turn_off()
    }

    fn turn_off(&mut self) -> Outcome {
        self.on = false;
        // SAFETY: the path is a C string.
        if unsafe { libc::swapoff(self.device.as_ptr()) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        if self.kind == Kind::Loop {
            command("losetup", &["-d", &self.device.to_string_lossy()])?;
            fs::remove_file(FILE)?;
        }
        Ok(())
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if self.on {
            // What went wrong before is what is told.
            let _ = self.turn_off();
        }
    }
}

/// KiB of swap in use.
///
/// # Errors
///
/// No `/proc/meminfo`.
pub fn used_kib() -> std::io::Result<u64> {
    let total = field("/proc/meminfo", "SwapTotal")?;
    Ok(total - field("/proc/meminfo", "SwapFree")?)
}

/// Runs a command of the userland; skips the test when it fails.
fn command(name: &str, arguments: &[&str]) -> Result<String, Failure> {
    let output = Command::new(name).args(arguments).output()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Failure::Skipped(format!("{name}: {}", why.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A loop device over a file in memory, for as long as the machine runs.
///
/// # Errors
///
/// [`Failure::Skipped`] where there is no such device.
pub fn attach_loop(file: &str, mib: usize) -> Result<String, Failure> {
    if fs::metadata("/dev/loop-control").is_err() {
        command("modprobe", &["loop"])?;
    }
    // Swap files have no holes, and neither should this one.
    fs::write(file, vec![1_u8; mib << 20])?;
    let device = command("losetup", &["-f"])?;
    command("losetup", &[&device, file])?;
    Ok(device)
}

/// Makes an empty disk of this size in memory.
///
/// # Errors
///
/// There is no such device, or it is in use.
pub fn prepare(mib: usize) -> Outcome {
    if fs::metadata("/dev/zram0").is_err() {
        // It needs compressors, which are modules too.
        command("modprobe", &["zram"])?;
    }
    // A test that failed may have left it in use; the size is set once only.
    // SAFETY: the path is a C string.
    unsafe { libc::swapoff(c"/dev/zram0".as_ptr()) };
    fs::write("/sys/block/zram0/reset", "1")?;
    fs::write("/sys/block/zram0/disksize", format!("{mib}M"))?;
    Ok(())
}
