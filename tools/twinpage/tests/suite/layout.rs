// SPDX-License-Identifier: GPL-2.0

//! The engine's encoding of digests against the C header, field by field.

use std::mem::{
    offset_of,
    size_of, //
};

use twinpage::uapi::{
    twinpage_digest as CRecord,
    twinpage_digests_header as CHeader,
    TWINPAGE_DIGESTS_MAGIC,
    TWINPAGE_DIGEST_SIZE,
    TWINPAGE_PAGE_ABSENT,
    TWINPAGE_PAGE_MERGED,
    TWINPAGE_PAGE_SKIPPED,
    TWINPAGE_PAGE_UNMERGED,
    TWINPAGE_PAGE_ZERO, //
};
use twinpage_engine::engine::wire::{
    Header,
    PageState,
    Record,
    HEADER_BYTES,
    RECORD_BYTES,
    VERSION,
    ZERO_DIGEST, //
};

/// Whether `bytes` have `field` at `offset`.
fn has(bytes: &[u8], offset: usize, field: &[u8]) -> bool {
    &bytes[offset..offset + field.len()] == field
}

#[test]
fn header_is_that_of_the_c_header() {
    let header = Header {
        id: 0x0102_0304,
        domain: 0x1112_1314_1516_1718,
        records: 0x2122_2324_2526_2728,
        layout: 0x3132_3334_3536_3738,
    };
    let bytes = header.encode();
    assert_eq!(bytes.len(), size_of::<CHeader>());
    assert_eq!(HEADER_BYTES, 64);
    let size = 64_u32.to_le_bytes();
    let table: [(usize, &[u8]); 9] = [
        (
            offset_of!(CHeader, magic),
            &TWINPAGE_DIGESTS_MAGIC.to_le_bytes(),
        ),
        (offset_of!(CHeader, version), &VERSION.to_le_bytes()),
        (offset_of!(CHeader, header_size), &size),
        (offset_of!(CHeader, record_size), &size),
        (offset_of!(CHeader, id), &header.id.to_le_bytes()),
        (offset_of!(CHeader, domain), &header.domain.to_le_bytes()),
        (offset_of!(CHeader, records), &header.records.to_le_bytes()),
        (offset_of!(CHeader, layout), &header.layout.to_le_bytes()),
        (offset_of!(CHeader, reserved), &[0; 16]),
    ];
    for (offset, field) in table {
        assert!(has(&bytes, offset, field), "byte {offset}");
    }
}

#[test]
fn record_is_that_of_the_c_header() {
    let digest = [0xd1; TWINPAGE_DIGEST_SIZE as usize];
    let serial = 0x4142_4344_4546_4748;
    let table = [
        (PageState::Absent, TWINPAGE_PAGE_ABSENT, 0, [0; 32]),
        (
            PageState::Unmerged { digest },
            TWINPAGE_PAGE_UNMERGED,
            0,
            digest,
        ),
        (
            PageState::Merged { serial, digest },
            TWINPAGE_PAGE_MERGED,
            serial,
            digest,
        ),
        (PageState::Zero, TWINPAGE_PAGE_ZERO, 0, ZERO_DIGEST),
        (PageState::Skipped, TWINPAGE_PAGE_SKIPPED, 0, [0; 32]),
    ];
    assert_eq!(RECORD_BYTES, size_of::<CRecord>());
    for (state, number, generation, digest) in table {
        let gfn = 0x5152_5354_5556_5758_u64;
        let bytes = Record { gfn, state }.encode();
        let fields: [(usize, &[u8]); 6] = [
            (offset_of!(CRecord, gfn), &gfn.to_le_bytes()),
            (offset_of!(CRecord, state), &number.to_le_bytes()),
            (offset_of!(CRecord, reserved0), &[0; 4]),
            (offset_of!(CRecord, generation), &generation.to_le_bytes()),
            (offset_of!(CRecord, digest), &digest),
            (offset_of!(CRecord, reserved1), &[0; 8]),
        ];
        for (offset, field) in fields {
            assert!(has(&bytes, offset, field), "{state:?}: byte {offset}");
        }
    }
}

#[test]
fn zero_digest_is_the_digest_of_zeroes() {
    assert_eq!(twinpage::digest::Digest::of(&[0; 4096]).0, ZERO_DIGEST);
}
