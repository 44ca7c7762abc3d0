// SPDX-License-Identifier: GPL-2.0

//! Pages and the records of QEMU's stream that a receiver writes again.

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

/// The bytes of a page.
pub type Page = [u8; PAGE_BYTES];

/// Bytes of the header in front of a page body.
pub(crate) const PAGE_HEADER_BYTES: usize = 8;

/// Bytes of the record of a zero page.
pub(crate) const ZERO_RECORD_BYTES: usize = 9;

/// Flags of a page record that continues the RAM block of the one before: PAGE, CONTINUE.
const PAGE_FLAGS: u64 = 0x28;

/// The same of a zero page: ZERO, CONTINUE.
const ZERO_FLAGS: u64 = 0x22;

/// Whether all bytes of `page` are 0. It looks at 64 bytes first, which is enough for most pages
/// that are not, and then at 512 at a time.
pub fn is_zero(page: &Page) -> bool {
    all_zero(&page[..64]) && page.chunks_exact(512).all(all_zero)
}

/// Whether all of `bytes` are 0. It looks at all of them, which is fast when they are some hundred.
fn all_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |any, byte| any | byte) == 0
}

/// The header of the page at `offset` of the RAM block of the page before.
pub fn page_header(offset: u64) -> [u8; PAGE_HEADER_BYTES] {
    (offset | PAGE_FLAGS).to_be_bytes()
}

/// The record of the zero page at `offset` of the RAM block of the page before.
pub fn zero_record(offset: u64) -> [u8; ZERO_RECORD_BYTES] {
    let mut record = [0; ZERO_RECORD_BYTES];
    record[..PAGE_HEADER_BYTES].copy_from_slice(&(offset | ZERO_FLAGS).to_be_bytes());
    record
}

/// Appends the records of `count` zero pages, the first of them at offset `first`.
pub fn write_zeros(first: u64, count: u32, out: &mut Vec<u8>) {
    let mut offset = first;
    out.reserve(count as usize * ZERO_RECORD_BYTES);
    for _ in 0..count {
        out.extend_from_slice(&zero_record(offset));
        offset = offset.wrapping_add(PAGE_BYTES as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_zero_only_when_all_of_it_is() {
        let mut page = [0; PAGE_BYTES];
        assert!(is_zero(&page));
        for at in [0, 1, 63, 64, 2048, 4095] {
            page[at] = 0x80;
            assert!(!is_zero(&page), "byte {at}");
            page[at] = 0;
        }
    }

    #[test]
    fn records_are_those_of_qemu() {
        assert_eq!(page_header(0x1000), [0, 0, 0, 0, 0, 0, 0x10, 0x28]);
        assert_eq!(zero_record(0xa000), [0, 0, 0, 0, 0, 0, 0xa0, 0x22, 0]);
        let mut out = vec![7];
        write_zeros(0xf000, 2, &mut out);
        assert_eq!(
            out,
            [7, 0, 0, 0, 0, 0, 0, 0xf0, 0x22, 0, 0, 0, 0, 0, 0, 1, 0, 0x22, 0]
        );
    }
}
