// SPDX-License-Identifier: GPL-2.0

//! Blocks that no honest sender makes.

use twinpage_wire::{
    limits,
    Block,
    BlockReader,
    Digest,
    DigestRing,
    Direction,
    Error,
    Fault,
    FrameReader,
    Incoming,
    Message,
    Sealed,
    Sealer,
    HEADER_BYTES,
    PAGE_BYTES, //
};
use zstd::stream::raw::{
    Encoder,
    Operation, //
};

use crate::common::hello;

/// The payload `payload` as a block that came. Its running hash is wrong, which is found out after
/// it was decoded.
pub fn sealed(payload: &[u8]) -> Result<Sealed, Error> {
    let hello = hello();
    let mut sealer = Sealer::new(Direction::ToReceiver, &hello.session, hello.channel);
    let first = sealer.seal(Message::Hello(hello).frame()?);
    let (header, body) = first.split_first_chunk::<HEADER_BYTES>().expect("a header");
    let mut reader = FrameReader::new(Direction::ToReceiver);
    let header = reader.header(*header)?;
    reader.accept(header, body.to_vec())?;
    let mut header = [16, 0, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let header = reader.header(header)?;
    match reader.accept(header, [payload, &[0; 32]].concat())? {
        Incoming::Block(sealed) => Ok(sealed),
        Incoming::Message(message) => panic!("{message:?}"),
    }
}

/// What a new reader makes of it.
fn decode(payload: &[u8]) -> Result<Block, Error> {
    BlockReader::new(true)?.decode(sealed(payload)?)
}

/// The fault in it.
fn fault(payload: &[u8]) -> Fault {
    match decode(payload) {
        Err(Error::Peer { place, fault }) => {
            assert_eq!(place.frame, 1);
            fault
        }
        other => panic!("{other:?}"),
    }
}

/// A payload: header, operations as they travel, digests.
fn payload(flags: u32, raw: usize, wire: &[u8], digests: usize) -> Vec<u8> {
    let mut payload = flags.to_le_bytes().to_vec();
    for size in [raw, wire.len(), digests] {
        payload.extend((size as u32).to_le_bytes());
    }
    payload.extend(wire);
    payload.resize(payload.len() + Digest::BYTES * digests, 0);
    payload
}

/// A stored block of `ops`.
fn stored(ops: &[u8]) -> Vec<u8> {
    payload(0, ops.len(), ops, 0)
}

/// A block of `ops` that are compressed in a new stream with a window of 2^`window` bytes.
fn compressed(ops: &[u8], raw: usize, window: u32) -> Vec<u8> {
    use zstd::zstd_safe::CParameter;
    let mut encoder = Encoder::new(1).expect("an encoder");
    encoder
        .set_parameter(CParameter::WindowLog(window))
        .expect("a window");
    let mut wire = vec![0; ops.len() + (1 << 16)];
    let done = encoder.run_on_buffers(ops, &mut wire).expect("compression");
    assert_eq!(done.bytes_read, ops.len());
    let mut at = done.bytes_written;
    loop {
        let mut output = zstd::zstd_safe::OutBuffer::around(&mut wire[at..]);
        let left = encoder.flush(&mut output).expect("compression");
        at += output.pos();
        if left == 0 {
            break;
        }
    }
    payload(1, raw, &wire[..at], 0)
}

#[test]
fn a_good_block_is_taken() {
    let ops = [3, 1, 2, 0, b'a', b'b', 2, 0, 9];
    for payload in [stored(&ops), compressed(&ops, ops.len(), 20)] {
        let block = decode(&payload).expect("a good block");
        assert_eq!(block.items().len(), 3);
        assert_eq!(block.stream_bytes(), 4096 + 2 + 10 * 9);
        let result = block.verify(&mut DigestRing::new(0), &[]);
        assert!(matches!(
            result,
            Err(Error::Peer {
                fault: Fault::Chain,
                ..
            })
        ));
        let result = block.verify(&mut DigestRing::new(0), &[Digest::ZERO_PAGE]);
        assert!(matches!(
            result,
            Err(Error::Peer {
                fault: Fault::Length { .. },
                ..
            })
        ));
    }
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let zeros = vec![0; 512 << 20];
    for raw in [1, limits::BLOCK_RAW_MAX] {
        let payload = compressed(&zeros, raw, 20);
        assert!(payload.len() < 100_000);
        assert_eq!(
            fault(&payload),
            Fault::Zstd("it becomes too long".to_owned())
        );
    }
    // Less than the limit, but not what was announced.
    let payload = compressed(&zeros[..1000], 999, 20);
    let expected = Fault::Length {
        what: "Decompressed bytes",
        found: 1000,
        expected: 999,
    };
    assert_eq!(fault(&payload), expected);
}

#[test]
fn a_large_window_is_refused() {
    let ops = [3; 100];
    assert!(decode(&compressed(&ops, 100, 23)).is_ok());
    let text = fault(&compressed(&ops, 100, 24)).to_string();
    assert!(text.contains("too much memory"), "{text}");
}

#[test]
fn compressed_bytes_that_are_none_are_refused() {
    let good = compressed(&[3; 100], 100, 20);
    // The end of a stream, a frame to be skipped, and junk.
    let ended = zstd::encode_all(&[3; 100][..], 1).expect("compression");
    let skipped = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    for wire in [&ended[..], &skipped, b"junk junk", &[]] {
        let fault = fault(&payload(1, 100, wire, 0));
        assert!(
            matches!(fault, Fault::Zstd(_) | Fault::Length { .. }),
            "{fault}"
        );
    }
    let mut reader = BlockReader::new(false).expect("a reader");
    let result = reader.decode(sealed(&good).expect("a frame"));
    assert!(result.is_err_and(|error| error.to_string().contains("not agreed")));
}

#[test]
fn lengths_that_contradict_one_another_are_refused() {
    let ops = [3; 10];
    let mut table = vec![
        payload(0, 9, &ops, 0),
        payload(0, 11, &ops, 0),
        payload(0, 10, &ops, 1),
        payload(2, 10, &ops, 0),
        payload(1 << 31, 10, &ops, 0),
        payload(0, 0, &[], 1),
        stored(&ops)[..25].to_vec(),
        [&stored(&ops), &[0][..]].concat(),
        stored(&[5, 5]),
        payload(0, 1, &[5], 2),
    ];
    for (at, value) in [(4, u32::MAX), (8, u32::MAX), (12, u32::MAX), (12, 1 << 27)] {
        let mut payload = stored(&ops);
        payload[at..at + 4].copy_from_slice(&value.to_le_bytes());
        table.push(payload);
    }
    for payload in table {
        let result = decode(&payload);
        assert!(result.is_err(), "{payload:?}");
    }
}

#[test]
fn operations_have_one_form_only() {
    let table: [&[u8]; 20] = [
        &[0],
        &[7],
        &[0x0f],
        &[0x11, 1, 0, 5],
        &[0x12, 0, 0],
        &[0x33],
        &[0x43],
        &[0x83],
        &[1],
        &[1, 1],
        &[1, 0, 0],
        &[1, 2, 0, 5],
        &[1, 1, 0, 5, 1, 1, 0, 5],
        &[2, 0],
        &[2, 0x80, 0, 0],
        &[2, 0, 0x80, 0],
        &[0x23, 0],
        &[0x23, 0x82, 0],
        &[6],
        &[6, 0xff, 0xff, 0xff, 0xff, 0x0f],
    ];
    for ops in table {
        let result = decode(&stored(ops));
        assert!(result.is_err(), "{ops:?}");
    }
    assert!(decode(&stored(&[4; PAGE_BYTES])).is_err());
    assert!(decode(&stored(&[4; PAGE_BYTES + 1])).is_ok());
}

#[test]
fn a_block_stands_for_so_much_and_no_more() {
    let pages = limits::BLOCK_STREAM / PAGE_BYTES;
    assert!(decode(&stored(&vec![3; pages])).is_ok());
    assert!(matches!(
        fault(&stored(&vec![3; pages + 1])),
        Fault::TooLong { .. }
    ));
    let runs: [&[u8]; 3] = [
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0xfe, 0xff, 0xff, 0xff, 0x0f],
        &[255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
    ];
    for run in runs {
        let fault = fault(&stored(&[&[2, 0], run].concat()));
        assert!(matches!(fault, Fault::TooLong { .. }), "{fault}");
    }
    let zeros = [2, 0, 0].repeat(limits::BLOCK_OPS + 1);
    assert!(decode(&stored(&zeros[3..])).is_ok());
    assert!(matches!(fault(&stored(&zeros)), Fault::TooLong { .. }));
}

#[test]
fn literals_are_not_split() {
    let literal = |len: usize| {
        let mut op = vec![1];
        op.extend((len as u16).to_le_bytes());
        op.resize(3 + len, 9);
        op
    };
    let full = literal(limits::LITERAL);
    let good = decode(&stored(&[&full[..], &full, &literal(1)].concat()));
    assert_eq!(good.expect("a good block").items().len(), 3);
    // Something else is between them.
    let apart = decode(&stored(&[&literal(1)[..], &[3], &literal(1)].concat()));
    assert_eq!(apart.expect("a good block").items().len(), 3);
    let short = literal(limits::LITERAL - 1);
    let split = fault(&stored(&[&full[..], &short, &literal(1)].concat()));
    let offset = full.len() + short.len();
    assert_eq!(split, Fault::Split { offset });
}

#[test]
fn a_page_that_never_came_is_refused() {
    for (known, distance) in [(0, 1_u32), (3, 4), (3, 200)] {
        let mut ops = vec![5; known];
        ops.push(6);
        let mut less = distance - 1;
        while less >= 0x80 {
            ops.push(less as u8 | 0x80);
            less >>= 7;
        }
        ops.push(less as u8);
        let block = decode(&payload(0, ops.len(), &ops, known)).expect("a block");
        let result = block.verify(&mut DigestRing::new(100), &[]);
        let Err(Error::Peer { fault, .. }) = result else {
            panic!("{result:?}");
        };
        let known = known as u64;
        assert_eq!(fault, Fault::Distance { distance, known });
    }
}
