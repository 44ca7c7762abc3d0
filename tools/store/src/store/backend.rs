// SPDX-License-Identifier: GPL-2.0

//! What the storage engine writes to.
//!
//! The engine wants a file for itself alone and writes to it even to read. An index of this store
//! is either being made, and private, or published, and never changed again. So there are two
//! backends: [`Scratch`] does not wait for the disk, since a crash throws the file away; [`Frozen`]
//! keeps what the engine writes in memory, so that any number of processes read one file.

use std::collections::btree_map::{
    BTreeMap,
    Entry, //
};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{
    Mutex,
    MutexGuard,
    PoisonError, //
};

use redb::StorageBackend;

/// Bytes of a block that is kept in memory.
const BLOCK: usize = 4096;

/// How much longer than its file a frozen index may become in memory.
const GROWTH: u64 = 64 << 20;

/// A file that is being made.
#[derive(Debug)]
pub(super) struct Scratch(pub(super) File);

/// A file that is not changed.
#[derive(Debug)]
pub(super) struct Frozen {
    file: File,
    file_bytes: u64,
    changes: Mutex<Changes>,
}

/// What the engine wrote.
#[derive(Debug)]
struct Changes {
    bytes: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

impl StorageBackend for Scratch {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self, _eventual: bool) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

impl Frozen {
    /// Reads `file`.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let file_bytes = file.metadata()?.len();
        Ok(Self {
            file,
            file_bytes,
            changes: Mutex::new(Changes {
                bytes: file_bytes,
                blocks: BTreeMap::new(),
            }),
        })
    }

    /// The changes. No holder of the lock panics half way.
    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills `bytes` with what the file has at `offset`, and zeros behind its end.
    fn read_file(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let there = self.file_bytes.saturating_sub(offset);
        let there = usize::try_from(there)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        self.file.read_exact_at(&mut bytes[..there], offset)?;
        bytes[there..].fill(0);
        Ok(())
    }
}

/// The parts of `len` bytes at `offset`: number of the block, first byte in it, bytes.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut at = offset;
    let mut left = len;
    std::iter::from_fn(move || {
        let start = (at % BLOCK as u64) as usize;
        let part = (at / BLOCK as u64, start, left.min(BLOCK - start));
        at += part.2 as u64;
        left -= part.2;
        (part.2 > 0).then_some(part)
    })
}

/// Refuses a range that is not within `bytes`.
fn check(bytes: u64, offset: u64, len: usize) -> io::Result<()> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= bytes => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

impl StorageBackend for Frozen {
    fn len(&self) -> io::Result<u64> {
        Ok(self.changes().bytes)
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let changes = self.changes();
        check(changes.bytes, offset, len)?;
        let changed: Vec<_> = parts(offset, len)
            .map(|(block, start, count)| {
                let bytes = changes.blocks.get(&block);
                bytes.map(|bytes| bytes[start..start + count].to_vec())
            })
            .collect();
        drop(changes);
        let mut bytes = vec![0; len];
        self.read_file(offset, &mut bytes)?;
        let mut at = 0;
        for ((_, _, count), changed) in parts(offset, len).zip(changed) {
            if let Some(changed) = changed {
                bytes[at..at + count].copy_from_slice(&changed);
            }
            at += count;
        }
        Ok(bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut changes = self.changes();
        if len > self.file_bytes.saturating_add(GROWTH) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        changes.bytes = len;
        Ok(())
    }

    fn sync_data(&self, _eventual: bool) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changes = self.changes();
        check(changes.bytes, offset, data.len())?;
        let mut at = 0;
        for (block, start, count) in parts(offset, data.len()) {
            let bytes = match changes.blocks.entry(block) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(free) => {
                    let mut bytes = Box::new([0; BLOCK]);
                    self.read_file(block * BLOCK as u64, &mut bytes[..])?;
                    free.insert(bytes)
                }
            };
            bytes[start..start + count].copy_from_slice(&data[at..at + count]);
            at += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frozen_reads_what_was_written_and_leaves_the_file() {
        let file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..10_000u32).map(|at| at as u8).collect();
        file.write_all_at(&content, 0).unwrap();
        let frozen = Frozen::new(file.try_clone().unwrap()).unwrap();
        let mut expected = content.clone();
        expected.resize(12_000, 0);
        frozen.set_len(12_000).unwrap();
        for (offset, len) in [(0, 1), (4090, 12), (5000, 5000), (9_990, 2_010)] {
            frozen.write(offset as u64, &vec![0xee; len]).unwrap();
            expected[offset..offset + len].fill(0xee);
            assert_eq!(frozen.read(0, 12_000).unwrap(), expected);
        }
        assert_eq!(frozen.read(4_091, 3).unwrap(), [0xee; 3]);
        let mut now = vec![0; 10_000];
        file.read_exact_at(&mut now, 0).unwrap();
        assert_eq!(now, content);
        assert_eq!(file.metadata().unwrap().len(), 10_000);
    }

    #[test]
    fn frozen_has_bounds() {
        let frozen = Frozen::new(tempfile::tempfile().unwrap()).unwrap();
        assert!(frozen.read(0, 1).is_err());
        assert!(frozen.write(u64::MAX, &[1, 2]).is_err());
        assert!(frozen.set_len(GROWTH + 1).is_err());
        assert!(frozen.set_len(GROWTH).is_ok());
    }
}
