// SPDX-License-Identifier: GPL-2.0

//! Numbers of 1 to 10 bytes: 7 bits a byte, the lowest first; the top bit says that more follow.
//!
//! There is one encoding of each number, and only that one is accepted, so that whatever is altered
//! in an encoding alters what is decoded.

use crate::cursor::Cursor;
use crate::error::Fault;
use crate::page::PAGE_BYTES;

/// Bits of a page offset that are usually 0.
const PAGE_BITS: u32 = PAGE_BYTES.ilog2();

/// Appends `value`.
pub(crate) fn write(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        // CAST: The lowest byte is meant.
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads a number.
///
/// # Errors
///
/// The end comes first, the number is longer than it need be or does not fit.
pub(crate) fn read(from: &mut Cursor<'_>) -> Result<u64, Fault> {
    let offset = from.at();
    let mut value = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = from.u8("a number")?;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
            return Err(Fault::Number { offset });
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Fault::Number { offset })
}

/// How far `offset` is from `predicted`, so that a few pages in either direction are a small
/// number. Every difference has one number, and the other way round: the distance in pages goes to
/// the low 52 bits with its sign in the lowest, and what is not a whole page to the high 12.
pub(crate) fn difference(offset: u64, predicted: u64) -> u64 {
    let bytes = offset.wrapping_sub(predicted);
    // CAST: The sign is wanted.
    let pages = bytes as i64 >> PAGE_BITS;
    let rest = bytes & (PAGE_BYTES as u64 - 1);
    let folded = (pages << 1) ^ (pages >> 63);
    folded as u64 | (rest << (u64::BITS - PAGE_BITS))
}

/// The offset that is `difference` from `predicted`.
pub(crate) fn offset(difference: u64, predicted: u64) -> u64 {
    let rest = difference >> (u64::BITS - PAGE_BITS);
    let folded = difference << PAGE_BITS >> PAGE_BITS;
    let pages = (folded >> 1) ^ (folded & 1).wrapping_neg();
    predicted.wrapping_add((pages << PAGE_BITS) | rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_shortest_encoding_is_the_only_one() {
        let table: [(u64, &[u8]); 5] = [
            (0, &[0]),
            (0x7f, &[0x7f]),
            (0x80, &[0x80, 1]),
            (300, &[0xac, 2]),
            (u64::MAX, &[255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
        ];
        for (value, bytes) in table {
            let mut out = Vec::new();
            write(value, &mut out);
            assert_eq!(out, bytes);
            assert_eq!(read(&mut Cursor::new(bytes)), Ok(value));
        }
        let bad: [&[u8]; 6] = [
            &[],
            &[0x80],
            &[0x80, 0],
            &[0xff, 0x80, 0],
            &[255, 255, 255, 255, 255, 255, 255, 255, 255, 2],
            &[255, 255, 255, 255, 255, 255, 255, 255, 255, 129, 0],
        ];
        for bytes in bad {
            assert!(read(&mut Cursor::new(bytes)).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn near_pages_are_small_numbers() {
        let table = [
            (0x5000, 0),
            (0x4000, 1),
            (0x6000, 2),
            (0x3000, 3),
            (0x7000, 4),
        ];
        for (there, number) in table {
            assert_eq!(difference(there, 0x5000), number);
        }
        assert_eq!(difference(0, 0xf_f000), 2 * 255 - 1);
    }

    proptest! {
        #[test]
        fn every_number_comes_back(value: u64) {
            let mut out = Vec::new();
            write(value, &mut out);
            let mut from = Cursor::new(&out);
            prop_assert_eq!(read(&mut from), Ok(value));
            prop_assert!(from.end().is_ok());
        }

        #[test]
        fn every_offset_comes_back(there: u64, predicted: u64) {
            prop_assert_eq!(offset(difference(there, predicted), predicted), there);
        }

        #[test]
        fn every_difference_comes_back(number: u64, predicted: u64) {
            prop_assert_eq!(difference(offset(number, predicted), predicted), number);
        }
    }
}
