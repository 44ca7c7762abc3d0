// SPDX-License-Identifier: GPL-2.0

//! SHA-256 by the kernel's library, which uses the CPU's instructions for it.

use super::bindings;
use crate::engine::world::DIGEST_BYTES;

/// SHA-256 of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    let mut digest = [0; DIGEST_BYTES];
    // SAFETY: `bytes` is readable and `digest` has the 32 bytes that are written, until the call
    // returns.
    unsafe {
        bindings::twinpage_shim_sha256(bytes.as_ptr().cast(), bytes.len(), digest.as_mut_ptr())
    };
    digest
}
