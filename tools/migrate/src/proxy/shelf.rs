// SPDX-License-Identifier: GPL-2.0

//! Buffers that are used again, which saves the faults of fresh memory.

use std::sync::{
    Mutex,
    MutexGuard,
    PoisonError, //
};

/// Bytes of a buffer: 64 pages.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Buffers that are kept at most, enough for a window of 32 MiB; more are given back to the system.
const SHELF_BUFFERS: usize = 144;

/// Buffers that are not in use, the most recently used (and cached) on top.
#[derive(Default)]
pub struct Shelf(Mutex<Vec<Vec<u8>>>);

impl Shelf {
    /// A buffer of [`CHUNK_BYTES`], with whatever was in it.
    pub fn take(&self) -> Vec<u8> {
        let kept = self.lock().pop();
        kept.unwrap_or_else(|| vec![0; CHUNK_BYTES])
    }

    /// A buffer of at least `bytes`, which may be up to [`CHUNK_BYTES`], and at most twice as many:
    /// many buffers may be in use at once, and what counts against a window are the bytes wanted.
    pub fn take_for(&self, bytes: usize) -> Vec<u8> {
        if bytes * 2 >= CHUNK_BYTES {
            self.take()
        } else {
            vec![0; bytes]
        }
    }

    /// Takes a buffer of [`CHUNK_BYTES`] back; others are given back to the system.
    pub fn put(&self, buffer: Vec<u8>) {
        let mut kept = self.lock();
        if buffer.len() == CHUNK_BYTES && kept.len() < SHELF_BUFFERS {
            kept.push(buffer);
        }
    }

    /// The buffers, also after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_buffer_is_much_larger_than_wanted() {
        let shelf = Shelf::default();
        for bytes in [
            0,
            1,
            4096,
            CHUNK_BYTES / 2 - 1,
            CHUNK_BYTES / 2,
            CHUNK_BYTES,
        ] {
            let buffer = shelf.take_for(bytes);
            assert!(
                buffer.len() >= bytes && buffer.capacity() <= 2 * bytes,
                "{bytes}"
            );
        }
    }

    #[test]
    fn buffers_come_back_whole_or_not_at_all() {
        let shelf = Shelf::default();
        let mut buffer = shelf.take();
        assert_eq!(buffer.len(), CHUNK_BYTES);
        buffer[0] = 42;
        shelf.put(buffer);
        shelf.put(vec![1; 5]);
        assert_eq!(shelf.take()[0], 42);
        assert_eq!(shelf.take()[0], 0);
    }
}
