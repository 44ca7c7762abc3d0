// SPDX-License-Identifier: GPL-2.0

//! Compares two memories byte by byte.
//!
//! One thing may differ: KVM writes its own wall clock into the memory of a guest with kvmclock when
//! `MSR_KVM_WALL_CLOCK_NEW` is set (`kvm_write_wall_clock` in arch/x86/kvm/x86.c), as it is when a
//! guest is restored, before it runs. Those 12 bytes are recognised by what they hold, and nothing
//! else is let pass.

use std::fmt;
use std::io::{
    self,
    Read, //
};

/// Bytes of a page.
const PAGE: usize = 4096;

/// Bytes that are shown of a difference.
const SHOWN: usize = 16;

/// Bytes of a wall clock.
const CLOCK_BYTES: u64 = 12;

/// The clocks of both hosts begin with that of the same machine.
const CLOCKS_APART_SECONDS: u32 = 24 * 3600;

/// Nanoseconds in a second.
const NANOSECONDS: u32 = 1_000_000_000;

/// How two memories differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Pages that were compared.
    pub pages: u64,
    /// Pages of which a byte differs.
    pub different: u64,
    /// The first difference.
    pub first: Option<First>,
    /// Address of the last byte that differs.
    pub last: u64,
}

/// Where two memories differ first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct First {
    /// Address of the byte.
    pub address: u64,
    /// The bytes from there on, in the one memory.
    pub a: [u8; SHOWN],
    /// And in the other.
    pub b: [u8; SHOWN],
}

impl fmt::Display for First {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:#x}: {:02x?} and {:02x?}",
            self.address, self.a, self.b
        )
    }
}

impl Difference {
    /// Whether no byte differs, or only KVM's own wall clock does.
    pub fn is_none(&self) -> bool {
        self.first.is_none() || self.is_wall_clock()
    }

    /// Whether all that differs is one wall clock that was written again: `struct
    /// pvclock_wall_clock` is a version that grows by 2, seconds, and nanoseconds.
    pub fn is_wall_clock(&self) -> bool {
        let Some(first) = self.first else {
            return false;
        };
        let (a, b) = (words(&first.a), words(&first.b));
        let apart = a[1].abs_diff(b[1]);
        first.address % 4 == 0
            && self.last < first.address + CLOCK_BYTES
            && a[0] % 2 == 0
            && b[0] == a[0].wrapping_add(2)
            && apart < CLOCKS_APART_SECONDS
            && a[2].max(b[2]) < NANOSECONDS
    }
}

/// The three words of a wall clock.
fn words(bytes: &[u8; SHOWN]) -> [u32; 3] {
    std::array::from_fn(|index| {
        let word = bytes[index * 4..].first_chunk().copied();
        word.map_or(u32::MAX, u32::from_le_bytes)
    })
}

/// Compares what two readers give, `bytes` bytes of each.
///
/// # Errors
///
/// One of them ends early.
pub fn compare(mut a: impl Read, mut b: impl Read, bytes: u64) -> io::Result<Difference> {
    let mut difference = Difference::default();
    let (mut here, mut there) = ([0; PAGE], [0; PAGE]);
    for page in 0..bytes / PAGE as u64 {
        a.read_exact(&mut here)?;
        b.read_exact(&mut there)?;
        difference.pages += 1;
        if here != there {
            difference.different += 1;
            let byte = here.iter().zip(&there).position(|(a, b)| a != b);
            let byte = byte.unwrap_or_default();
            difference.first.get_or_insert(First {
                address: page * PAGE as u64 + byte as u64,
                a: shown(&here, byte),
                b: shown(&there, byte),
            });
            let last = here.iter().zip(&there).rposition(|(a, b)| a != b);
            difference.last = page * PAGE as u64 + last.unwrap_or_default() as u64;
        }
    }
    Ok(difference)
}

/// Some bytes of a page; zeroes behind its end.
fn shown(page: &[u8; PAGE], byte: usize) -> [u8; SHOWN] {
    std::array::from_fn(|index| page.get(byte + index).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_is_found_and_named() {
        let a = vec![7; 3 * PAGE];
        let mut b = a.clone();
        let same = compare(&a[..], &b[..], 3 * PAGE as u64).unwrap();
        assert_eq!((same.pages, same.different, same.first), (3, 0, None));
        assert!(same.is_none());
        b[PAGE + 5] = 8;
        let other = compare(&a[..], &b[..], 3 * PAGE as u64).unwrap();
        assert_eq!(other.different, 1);
        let first = other.first.unwrap();
        assert_eq!(first.address, PAGE as u64 + 5);
        assert_eq!((first.a[0], first.b[0], first.b[1]), (7, 8, 7));
        assert!(!other.is_none());
    }

    #[test]
    fn only_a_wall_clock_may_differ() {
        let mut a = vec![0; 2 * PAGE];
        // As it was seen.
        a[..12].copy_from_slice(b"\x02\0\0\0\x9d\x52\x02\x6b\x23\xc1\xb4\x34");
        let mut b = a.clone();
        b[..12].copy_from_slice(b"\x04\0\0\0\xa2\x53\x02\x6b\x23\x8a\x67\x14");
        let differ = |a: &[u8], b: &[u8]| compare(a, b, 2 * PAGE as u64).unwrap();
        assert!(differ(&a, &b).is_none());
        // Backwards, with another byte beside it, or in another page: no.
        assert!(!differ(&b, &a).is_none());
        for byte in [12, PAGE] {
            let mut c = b.clone();
            c[byte] = 1;
            assert!(!differ(&a, &c).is_none());
        }
        b[7] = 0;
        assert!(!differ(&a, &b).is_none());
    }

    #[test]
    fn a_memory_that_ends_early_is_no_equal_one() {
        let a = vec![7; 2 * PAGE];
        assert!(compare(&a[..], &a[..PAGE], 2 * PAGE as u64).is_err());
    }
}
