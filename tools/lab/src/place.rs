// SPDX-License-Identifier: GPL-2.0

//! Where things are in the machine that runs the lab programs.
//!
//! The defaults are where `scripts/vm.sh` puts them; the environment overrides.

use std::path::PathBuf;

/// A path from the environment, or its default.
fn path(name: &str, default: &str) -> PathBuf {
    std::env::var_os(name).map_or_else(|| default.into(), PathBuf::from)
}

/// The module.
pub fn module() -> PathBuf {
    path("TWINPAGE_KO", "/twinpage.ko")
}

/// The kernel of the guests.
pub fn kernel() -> PathBuf {
    path("TWINPAGE_KERNEL", "/guest/vmlinuz")
}

/// The `/init` of the guests.
pub fn guest() -> PathBuf {
    path("TWINPAGE_GUEST", "/usr/bin/twinpage-guest")
}

/// The `twinpage` tool.
pub fn tool() -> PathBuf {
    path("TWINPAGE_TOOL", "/usr/bin/twinpage")
}

/// Where results go.
pub fn out() -> PathBuf {
    path("TWINPAGE_OUT", "/out")
}

/// A module of the stock kernel, which the guests run and the host may run.
pub fn stock_module(name: &str) -> Option<PathBuf> {
    let releases = std::fs::read_dir("/lib/modules").ok()?;
    releases
        .flatten()
        .map(|release| release.path().join(format!("{name}.ko")))
        .find(|file| file.exists())
}
