// SPDX-License-Identifier: GPL-2.0

//! Buffers that are used again, which saves the faults of fresh memory.

use std::sync::{
    Mutex,
    MutexGuard,
    PoisonError, //
};

/// Bytes of a buffer: 64 pages.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Buffers that are kept at most, enough for a window of 64 MiB; more are given back to the system.
const SHELF_BUFFERS: usize = 288;

/// Buffers that are not in use, the most recently used (and cached) on top.
#[derive(Default)]
pub struct Shelf(Mutex<Vec<Vec<u8>>>);

impl Shelf {
    /// A buffer of [`CHUNK_BYTES`], with whatever was in it.
    pub fn take(&self) -> Vec<u8> {
        let kept = self.lock().pop();
        kept.unwrap_or_else(|| vec![0; CHUNK_BYTES])
    }

    /// Takes a buffer of [`CHUNK_BYTES`] back.
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
