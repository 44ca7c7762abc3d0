// SPDX-License-Identifier: GPL-2.0

//! Random numbers.

use super::bindings;

/// A number that nobody outside can guess.
pub(crate) fn random_u64() -> u64 {
    // SAFETY: There is nothing to guarantee; any context will do.
    unsafe { bindings::twinpage_shim_random() }
}
