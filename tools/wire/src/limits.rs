// SPDX-License-Identifier: GPL-2.0

//! The maxima of the format, all of them. A peer that exceeds one is refused before memory is
//! allocated for what it announced.

use crate::digest::Digest;
use crate::page::PAGE_BYTES;

/// Bytes of operations after which a block is full.
pub const BLOCK_RAW: usize = 1 << 20;

/// Bytes of operations that a block may have: the operation that fills it may exceed [`BLOCK_RAW`].
pub const BLOCK_RAW_MAX: usize = BLOCK_RAW + 2 * PAGE_BYTES;

/// Bytes of a block's operations as they travel. Compressed, they may be a little longer than they
/// are.
pub const BLOCK_WIRE_MAX: usize = BLOCK_RAW_MAX + 16384;

/// Operations of a block.
pub const BLOCK_OPS: usize = 32768;

/// Bytes of the stream that a block may stand for.
pub const BLOCK_STREAM: usize = 4 << 20;

/// Bytes in front of the operations of a block.
pub const BLOCK_HEADER: usize = 16;

/// Bytes of a block's payload.
pub const BLOCK_PAYLOAD: usize = BLOCK_HEADER + BLOCK_WIRE_MAX + BLOCK_OPS * Digest::BYTES;

/// Bytes of one literal operation.
pub const LITERAL: usize = u16::MAX as usize;

/// Base-2 logarithm of the window of the compression: 8 MiB.
pub const WINDOW_LOG: u32 = 23;

/// Bytes of the return path in one frame.
pub const RETURN_BYTES: usize = 64 << 10;

/// Bytes of a filter in one frame.
pub const FILTER_PART: usize = 1 << 20;

/// Bytes of a whole filter, unless the sender is told otherwise.
pub const FILTER_TOTAL: usize = 256 << 20;

/// Digests in a filter; others are left out when it is built.
pub const FILTER_KEYS: usize = 100_000_000;

/// Bytes of the text of an error.
pub const ERROR_TEXT: usize = 1024;

/// Bytes of the name of a domain, and of the text that names the software.
pub const NAME: usize = 255;

/// Bytes of a HELLO.
pub const HELLO_BYTES: usize = 68 + 2 * (1 + NAME);

/// Pages of the dictionary.
pub const DICTIONARY_PAGES: u32 = 1 << 20;

/// Pages of the dictionary, unless told otherwise.
pub const DICTIONARY_DEFAULT: u32 = 16384;

/// Bytes that a window may have: from 4 MiB, so that any block fits in, to 1 GiB.
pub const WINDOW: std::ops::RangeInclusive<u64> = 4 << 20..=1 << 30;
