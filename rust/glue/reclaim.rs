// SPDX-License-Identifier: GPL-2.0

//! Gives merged copies that nobody maps back when memory is short.
//!
//! Reclaim may run inside an allocation that was made under the mutex, so it only tries to take it:
//! what cannot be given back now the scanner gives back in its next steps.

use super::shared::Shared;
use crate::sys::shrinker::Shrink;

/// Of the copies that are kept, one in this many is taken to be unmapped: most are in use, and a
/// higher count would have reclaim call in vain.
const UNMAPPED_DIVISOR: usize = 16;

impl Shrink for Shared {
    fn count(&self) -> usize {
        match self.state.try_lock() {
            Some(state) => state.copies() / UNMAPPED_DIVISOR,
            None => 0,
        }
    }

    fn scan(&self, want: usize) -> usize {
        match self.state.try_lock() {
            Some(mut state) => {
                let swept = state.sweep(want.saturating_mul(UNMAPPED_DIVISOR));
                swept.freed as usize
            }
            None => 0,
        }
    }
}
