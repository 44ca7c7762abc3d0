// SPDX-License-Identifier: GPL-2.0

//! `twinpage version`: program, module, and what this kernel allows.

use crate::console::Console;
use crate::error::Error;
use crate::host::Host;
use crate::module;
use crate::uapi::{
    TWINPAGE_FEATURE_FREE_SWAP,
    TWINPAGE_FEATURE_LRU_DRAIN,
    TWINPAGE_FEATURE_THP_SPLIT,
    TWINPAGE_UAPI_VERSION, //
};

/// Features: their bit, and what is missing without them.
const FEATURES: [(u32, &str, &str); 3] = [
    (
        TWINPAGE_FEATURE_THP_SPLIT,
        "thp_split",
        "huge pages are merged after a split",
    ),
    (
        TWINPAGE_FEATURE_FREE_SWAP,
        "free_swap",
        "the swap slot of a merged page is given back at once",
    ),
    (
        TWINPAGE_FEATURE_LRU_DRAIN,
        "lru_drain",
        "freshly written pages can be merged at once",
    ),
];

/// Runs the command. What the program is is told even if there is no module.
pub fn run(host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    writeln!(
        console.out,
        "program:   {} (interface {TWINPAGE_UAPI_VERSION})",
        env!("CARGO_PKG_VERSION"),
    )?;
    let version = module::open(host)?.version();
    let version =
        version.map_err(|source| Error::call("ask the module for its version", source))?;
    writeln!(console.out, "module:    interface {}", version.uapi)?;
    for (bit, name, meaning) in FEATURES {
        let state = match version.features & bit {
            0 => "missing",
            _ => "available",
        };
        writeln!(
            console.out,
            "{:<10} {state:<9}  {meaning}",
            format!("{name}:")
        )?;
    }
    Ok(())
}
