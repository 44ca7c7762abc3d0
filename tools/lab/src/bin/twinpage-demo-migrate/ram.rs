// SPDX-License-Identifier: GPL-2.0

//! Compares two memories byte by byte.

use std::fmt;
use std::io::{
    self,
    Read, //
};

/// Bytes of a page.
const PAGE: usize = 4096;

/// Bytes that are shown of a difference.
const SHOWN: usize = 16;

/// How two memories differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Pages that were compared.
    pub pages: u64,
    /// Pages of which a byte differs.
    pub different: u64,
    /// The first difference.
    pub first: Option<First>,
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
        b[PAGE + 5] = 8;
        let other = compare(&a[..], &b[..], 3 * PAGE as u64).unwrap();
        assert_eq!(other.different, 1);
        let first = other.first.unwrap();
        assert_eq!(first.address, PAGE as u64 + 5);
        assert_eq!((first.a[0], first.b[0], first.b[1]), (7, 8, 7));
    }

    #[test]
    fn a_memory_that_ends_early_is_no_equal_one() {
        let a = vec![7; 2 * PAGE];
        assert!(compare(&a[..], &a[..PAGE], 2 * PAGE as u64).is_err());
    }
}
