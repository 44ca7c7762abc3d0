// SPDX-License-Identifier: GPL-2.0

//! What must be so when all is over.

use std::fs;
use std::time::Duration;

use twinpage_lab::module::{
    self,
    DEBUGFS,
    DEVICE,
    SYSFS, //
};
use twinpage_lab::process::field;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};
use twinpage_lab::{
    ensure,
    wait, //
};

/// How long the module may take to let go of VMs that are closed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Memory that the kernel may keep for itself: slabs and lists that grew.
const KEPT_KIB: u64 = 24 * 1024;

/// Waits until no VM is attached, and nothing is merged.
pub fn nobody_is_left() -> Outcome {
    wait::until("letting go of all VMs", PATIENCE, || {
        Ok::<_, Failure>(fs::read_dir(DEBUGFS)?.count() == 0)
    })?;
    for name in [
        "pages_shared",
        "pages_sharing",
        "pages_unshared",
        "zero_pages",
    ] {
        let pages = module::counter(name)?;
        ensure!(pages == 0, "{name} is {pages} with no VM attached");
    }
    Ok(())
}

/// Says how much the scanner had to do.
pub fn told() -> Outcome {
    println!(
        "{} full scans, {} pages scanned",
        module::counter("full_scans")?,
        module::counter("pages_scanned")?
    );
    Ok(())
}

/// The machine before the module was loaded.
pub struct Before {
    free_kib: u64,
}

impl Before {
    /// Looks at it.
    pub fn look() -> Result<Before, Failure> {
        Ok(Before {
            free_kib: free_kib()?,
        })
    }

    /// Fails unless everything is as it was.
    pub fn is_back(&self) -> Outcome {
        for left in ["/sys/module/twinpage", SYSFS, DEBUGFS, DEVICE] {
            ensure!(fs::metadata(left).is_err(), "{left} is still there");
        }
        let (mut now, kept) = (0, KEPT_KIB + quarantine_kib()?);
        wait::until("getting memory back", PATIENCE, || {
            now = free_kib()?;
            Ok::<_, Failure>(now + kept >= self.free_kib)
        })
        .map_err(|failure| {
            Failure::Failed(format!(
                "{failure}: {} KiB before, {now} now",
                self.free_kib
            ))
        })?;
        println!("{} KiB free before, {now} after", self.free_kib);
        Ok(())
    }
}

/// Free memory when caches are dropped.
fn free_kib() -> Result<u64, Failure> {
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    Ok(field("/proc/meminfo", "MemFree")?)
}

/// What KASAN may hold back of freed memory, to notice who uses it still (mm/kasan/quarantine.c).
fn quarantine_kib() -> Result<u64, Failure> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let total = field("/proc/meminfo", "MemTotal")?;
    Ok(if release.contains("kasan") {
        total / 32
    } else {
        0
    })
}
