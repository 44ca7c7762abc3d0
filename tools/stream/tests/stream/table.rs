// SPDX-License-Identifier: GPL-2.0

//! Streams made by hand, and what must come of them.

use twinpage_stream::{
    Channel,
    Mark,
    Parser,
    Piece,
    Reason, //
};

use crate::build::{
    Build,
    RAM, //
};
use crate::replay::{
    replay,
    replay_all,
    Replay, //
};

/// Lengths of chunks.
pub const CHUNKS: [usize; 6] = [1, 7, 4095, 4096, 4097, 65536];

/// Feeds what was built in chunks of all lengths; its pages must be found.
fn check(build: &Build) -> Replay {
    let replay = replay_all(&build.bytes, &CHUNKS);
    assert_eq!(replay.events.pages, build.pages);
    replay
}

/// The marks of a stream with so many bytes of RAM and sections of it before the last.
fn precopy(bytes: u64, sections: usize) -> Vec<Mark> {
    let mut marks = vec![Mark::ReturnPath, Mark::RamStart { bytes }];
    marks.extend(vec![Mark::RamSection; sections]);
    marks.extend([
        Mark::Switchover,
        Mark::RamSection,
        Mark::RamEnd,
        Mark::Ended,
    ]);
    marks
}

/// Some rounds of RAM with every form of record that QEMU has.
pub fn rounds() -> Build {
    Build::with_ram(8)
        .part(2, RAM)
        .page_of("pc.ram", 0)
        .page(1)
        .zero(2)
        .zero(3)
        .page(4)
        .page_of("vga.vram", 7)
        .be64(0x2000 | 2)
        .name("pc.ram")
        .u8(0)
        .zero(5)
        .end_of_section(RAM)
        .part(2, RAM)
        .end_of_section(RAM)
        .part(2, RAM)
        // The block of the last page of the section before.
        .page(6)
        .be64(0x1000 | 0x60)
        .u8(1)
        .be16(3)
        .raw(b"abc")
        .be64(0x1000 | 0x40)
        .name("vga.vram")
        .u8(1)
        .be16(0)
        .be64(0x2060)
        .u8(1)
        .be16(4096)
        .raw(&[9; 4096])
        .be64(0x200)
        .page(0)
        .end_of_section(RAM)
        .end()
}

#[test]
fn all_records_of_ram_are_read() {
    let replay = check(&rounds());
    assert_eq!(replay.marks(), precopy(16 * 4096, 4));
    assert_eq!((replay.zeros, replay.with_header), (3, 4));
}

#[test]
fn zero_pages_of_another_fill_are_literal() {
    let replay = check(
        &Build::with_ram(8)
            .part(2, RAM)
            .page_of("pc.ram", 0)
            .be64(0x22)
            .u8(9)
            .zero(1)
            .end_of_section(RAM)
            .end(),
    );
    assert_eq!(replay.zeros, 1);
    assert_eq!(replay.opaque(), None);
}

#[test]
fn compressed_pages_of_old_qemus_are_passed() {
    let build = Build::with_ram(8)
        .part(2, RAM)
        .be64(0x100)
        .name("pc.ram")
        .be32(5)
        .raw(b"zlib!")
        .be64(0x1120)
        .be32(0)
        .page(1);
    let replay = check(&build.end_of_section(RAM).end());
    assert_eq!(replay.marks(), precopy(16 * 4096, 2));
}

#[test]
fn configuration_may_have_all_subsections() {
    let build = Build::main()
        .subsection("target-page-bits")
        .be32(12)
        .subsection("capabilities")
        .be32(2)
        .name("x-ignore-shared")
        .name("validate-uuid")
        .subsection("uuid")
        .raw(&[5; 16])
        .subsection("capabilities")
        .be32(0)
        .command(1, &[])
        // With x-ignore-shared, each block has an address, which may look like anything.
        .start_ram(12 * 4096)
        .block("shared", 4)
        .be64(0x1000)
        .block("pc.ram", 8)
        .be64(0)
        .end_of_section(RAM)
        .part(2, RAM)
        .page_of("pc.ram", 7)
        .end_of_section(RAM)
        .end();
    assert_eq!(check(&build).marks(), precopy(12 * 4096, 2));
}

#[test]
fn page_sizes_of_blocks_are_recognised() {
    let huge = 2 << 20;
    let advise = |build: Build| {
        let sizes = [(huge | 0x1000_u64).to_be_bytes(), 0x1000_u64.to_be_bytes()].concat();
        build
            .command(1, &[])
            .command(2, &[0, 0, 0, 1])
            .command(3, &sizes)
    };
    let tail = |build: Build| build.part(2, RAM).page_of("b", 1).end_of_section(RAM).end();
    // In the middle, nowhere, at the end, and before the flush of other channels.
    let total = 4096 * (512 + 8);
    let middle = advise(Build::main())
        .start_ram(total)
        .block("a", 512)
        .be64(huge)
        .block("b", 8);
    let last = advise(Build::main())
        .start_ram(total)
        .block("b", 8)
        .block("a", 512)
        .be64(huge);
    let none = advise(Build::main())
        .start_ram(total)
        .block("b", 8)
        .block("a", 512);
    for build in [
        middle,
        last.clone(),
        none.clone(),
        last.be64(0x200),
        none.be64(0x200),
    ] {
        let replay = check(&tail(build.end_of_section(RAM)));
        assert_eq!(replay.marks(), precopy(total, 2));
    }
}

#[test]
fn records_are_never_taken_for_page_sizes() {
    let build = Build::main()
        .command(1, &[])
        .command(3, &[0xff; 16])
        .start_ram(8 * 4096)
        .block("pc.ram", 8);
    let tail = |build: Build| {
        let started = build.end_of_section(RAM).part(2, RAM).page_of("pc.ram", 1);
        started.end_of_section(RAM).end()
    };
    for build in [build.clone(), build.be64(0x200)] {
        assert_eq!(check(&tail(build)).marks(), precopy(8 * 4096, 2));
    }
}

/// A stream of postcopy.
pub fn postcopy() -> Build {
    Build::main()
        .command(1, &[])
        .command(2, &[0, 0, 0, 1])
        .command(3, &[0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x10, 0])
        .start_ram(8 * 4096)
        .block("pc.ram", 8)
        .end_of_section(RAM)
        .part(2, RAM)
        .page_of("pc.ram", 1)
        .end_of_section(RAM)
        .command(11, &[])
        .command(6, b"\0\x06pc.ram\0................")
        .command(2, &[0, 0, 0, 2])
        .command(7, &[0, 0, 0, 9])
        .raw(b"\x08QEVM\x7e\x02\x04\x01")
        .command(2, &[0, 0, 0, 4])
        .part(2, RAM)
        .page(1)
        .page(2)
        .end_of_section(RAM)
        .part(3, RAM)
        .page(3)
        .end_of_section(RAM)
        .u8(0)
}

#[test]
fn postcopy_is_read_to_its_end() {
    let replay = check(&postcopy());
    let expected = [
        Mark::ReturnPath,
        Mark::RamStart { bytes: 8 * 4096 },
        Mark::RamSection,
        Mark::RamSection,
        Mark::Switchover,
        Mark::Packaged,
        Mark::RamSection,
        Mark::RamSection,
        Mark::RamEnd,
        Mark::Ended,
    ];
    assert_eq!(replay.marks(), expected);
}

#[test]
fn background_snapshot_ends_with_the_first_device() {
    let build = Build::main()
        .start_ram(8 * 4096)
        .block("pc.ram", 8)
        .end_of_section(RAM)
        .part(2, RAM)
        .page_of("pc.ram", 1)
        .end_of_section(RAM)
        .head(4, 3, "timer", 2)
        .raw(&[0; 99]);
    let ram = Mark::RamStart { bytes: 8 * 4096 };
    assert_eq!(
        check(&build).marks(),
        [ram, Mark::RamSection, Mark::RamSection, Mark::Ended]
    );
}

/// A stream with all other sections that may come before RAM has ended.
pub fn iterables() -> Build {
    let vfio = |tag: u64| 0xffff_ffff_ef10_0000 | tag;
    Build::with_ram(8)
        .head(4, 3, "0000:00:02.0/virtio-mem-device-early", 1)
        .be64(4 << 30)
        .be64(260 << 20)
        .be64(2 << 20)
        .be32(0)
        .be64(64 << 20)
        .raw(&[0xff; 24])
        .footer(3)
        .head(1, 4, "dirty-bitmap", 1)
        .u8(0x18 | 4)
        .name("disk")
        .name("bitmap")
        .be32(65536)
        .u8(1)
        .u8(1)
        .footer(4)
        .head(1, 5, "0000:00:03.0/vfio", 1)
        .be64(vfio(3))
        .be64(vfio(1))
        .footer(5)
        .head(1, 6, "spapr/htab", 1)
        .be32(24)
        .footer(6)
        .head(1, 7, "s390-stattrib", 0)
        .be64(1)
        .footer(7)
        .part(2, RAM)
        .page_of("pc.ram", 1)
        .end_of_section(RAM)
        .part(2, 4)
        .u8(0x40)
        .be64(0)
        .be32(8)
        .be64(5)
        .raw(b"12345")
        .u8(0x42)
        .be64(8)
        .be32(8)
        // A complete bitmap has no bits.
        .u8(0x60)
        // Flags of two and of four bytes.
        .u8(0x80)
        .u8(0x20)
        .u8(0x80)
        .u8(0x80)
        .be16(0x0021)
        .footer(4)
        .part(2, 5)
        .be64(vfio(4))
        .be64(20)
        .raw(&[0x7e; 20])
        .be64(vfio(5))
        .footer(5)
        .part(2, 6)
        .be32(0)
        .be32(1)
        .be16(2)
        .be16(7)
        .raw(&[1; 32])
        .be64(0)
        .footer(6)
        .part(2, 7)
        .be64(0x3000 | 2)
        .be64(11)
        .raw(&[2; 11])
        .be64(8)
        .be64(1)
        .footer(7)
        .part(2, RAM)
        .page(2)
        .end_of_section(RAM)
        .end()
}

#[test]
fn other_sections_are_passed() {
    assert_eq!(check(&iterables()).marks(), precopy(16 * 4096, 3));
}

#[test]
fn handover_is_said_once_and_at_its_first_sign() {
    let switchover = |build: &Build| {
        let marks = check(build).events.marks;
        let found: Vec<_> = marks
            .iter()
            .filter(|(_, mark)| *mark == Mark::Switchover)
            .collect();
        assert_eq!(found.len(), 1);
        found[0].0
    };
    let live = Build::with_ram(8)
        .part(2, RAM)
        .page_of("pc.ram", 1)
        .end_of_section(RAM);
    let place = live.bytes.len() as u64;
    assert_eq!(switchover(&live.clone().command(11, &[]).end()), place + 5);
    assert_eq!(switchover(&live.clone().end()), place + 5);
    let other = Build::with_ram(8)
        .head(1, 7, "s390-stattrib", 0)
        .be64(1)
        .footer(7)
        .part(2, RAM)
        .end_of_section(RAM);
    let place = other.bytes.len() as u64;
    assert_eq!(
        switchover(&other.part(3, 7).be64(8).be64(1).footer(7).end()),
        place + 5
    );
}

/// A channel for pages with packets of every kind.
pub fn multifd() -> Build {
    let two = Build::multifd().packet(0, 2, 8192, 3).body().body();
    let more = two
        .packet(1, 0, 0, 0)
        .packet(4, 2, 11, 0)
        .raw(b"zstd frames")
        .packet(0, 1, 4096, 0)
        .body();
    // Compressed, and by chance as long as its page.
    let more = more.packet(2, 1, 4096, 0).raw(&[3; 4096]);
    // Not compressed, but not pages either.
    let more = more.packet(0, 2, 5, 0).raw(b"other");
    let device = more
        .be32(0x1122_3344)
        .be32(1)
        .be32(0x40)
        .raw(&[b'd'; 256])
        .be32(0)
        .be32(6)
        .raw(b"device");
    // A packet without pages, also with the length of the one before.
    device
        .packet(0, 0, 0, 128)
        .packet(1, 0, 8192, 0)
        .packet(1, 1, 4096, 0)
        .body()
}

#[test]
fn pages_of_multifd_channels_are_found() {
    let replay = check(&multifd());
    assert_eq!(replay.marks(), []);
}

#[test]
fn kind_of_channel_is_known_after_four_bytes() {
    let first = [
        (Channel::Main, &b"QEVM"[..]),
        (Channel::Multifd, b"\x11\x22\x33\x44"),
        (Channel::Raw, b"\x16\x03\x01\x02"),
    ];
    for (kind, bytes) in first {
        let mut parser = Parser::new();
        assert_eq!(parser.feed(&bytes[..3], &mut Vec::new()), 3);
        assert_eq!(parser.kind(), None);
        assert_eq!(parser.feed(&bytes[3..], &mut Vec::new()), 1);
        assert_eq!(parser.kind(), Some(kind));
    }
}

#[test]
fn unknown_section_is_named() {
    let mut parser = Parser::new();
    let build = Build::with_ram(8).head(1, 5, "new/thing", 1);
    parser.feed(&build.bytes, &mut Vec::new());
    assert_eq!(parser.section(), "new/thing");
}

/// Streams that are not understood from some offset on, and why.
pub fn misfits() -> Vec<(Build, Reason)> {
    let live = || Build::with_ram(8).part(2, RAM).page_of("pc.ram", 1);
    let config = |name: &str| Build::main().subsection(name);
    let advise = [0, 0, 0, 0, 0, 0x20, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x10, 0];
    let memory = |block: u64| {
        let head = Build::main().head(4, 5, "a/virtio-mem-device-early", 1);
        head.be64(0).be64(1 << 30).be64(block).be32(0).be64(0)
    };
    // A block of a stream of postcopy, whose pages have 4096 bytes or 2 MiB.
    let advised = || {
        Build::main()
            .command(3, &advise)
            .start_ram(1 << 30)
            .block("a", 512)
    };
    vec![
        (
            Build::with_ram(8).command(10, &[]),
            Reason::CommandLength(0),
        ),
        (advised().be64(0x4000), Reason::BadName),
        (advised().be64(0x20_1000), Reason::BadName),
        (
            Build::new().raw(&[0x16, 3, 1, 2]),
            Reason::UnknownChannel(0x1603_0102),
        ),
        (Build::new().raw(b"QEVM").be32(2), Reason::Version(2)),
        (Build::new().be32(0x1122_3344).be32(9), Reason::Version(9)),
        (
            Build::new().raw(b"QEVM").be32(3).u8(1),
            Reason::NoConfiguration(1),
        ),
        (
            Build::new().raw(b"QEVM").be32(3).u8(7).be32(0),
            Reason::BadLength(0),
        ),
        (
            Build::new().raw(b"QEVM").be32(3).u8(7).be32(256),
            Reason::BadLength(256),
        ),
        (config("other"), Reason::UnknownSubsection),
        (config("target-page-bits").be32(16), Reason::PageBits(16)),
        (
            config("capabilities").be32(u32::MAX),
            Reason::BadLength(u32::MAX),
        ),
        (
            config("capabilities").be32(1).name("mapped-ram"),
            Reason::MappedRam,
        ),
        (Build::main().u8(5).u8(0), Reason::BadName),
        (Build::main().u8(9), Reason::SectionType(9)),
        (Build::main().head(1, 3, "ram\n", 4), Reason::BadName),
        (
            Build::main().head(1, 3, "ram", 3),
            Reason::SectionVersion(3),
        ),
        (Build::main().head(4, 3, "ram", 4), Reason::UnknownSection),
        (Build::main().head(1, 3, "block", 1), Reason::UnknownSection),
        (Build::main().head(4, 3, "early", 1), Reason::UnknownSection),
        (
            Build::main().head(1, 3, "dirty-bitmap", 2),
            Reason::SectionVersion(2),
        ),
        (
            Build::with_ram(8).head(1, RAM, "dirty-bitmap", 1),
            Reason::SectionNumber(RAM),
        ),
        (
            Build::with_ram(8).head(1, 7, "ram", 4),
            Reason::SectionNumber(7),
        ),
        (Build::with_ram(8).part(2, 5), Reason::NoSuchSection(5)),
        (Build::with_ram(8).command(8, &[]), Reason::Colo),
        (
            Build::with_ram(8).command(12, &[]),
            Reason::UnknownCommand(12),
        ),
        (
            Build::with_ram(8).command(0, &[]),
            Reason::UnknownCommand(0),
        ),
        (
            Build::with_ram(8).u8(8).be16(11).be16(65535),
            Reason::CommandLength(65535),
        ),
        (
            Build::with_ram(8).u8(8).be16(3).be16(8),
            Reason::CommandLength(8),
        ),
        (
            Build::with_ram(8).command(7, &[0xff; 4]),
            Reason::BadLength(u32::MAX),
        ),
        (
            Build::with_ram(8).part(2, RAM).be64(0x28),
            Reason::NoSuchBlock,
        ),
        (
            Build::with_ram(8).part(2, RAM).be64(8).name("other"),
            Reason::NoSuchBlock,
        ),
        (
            Build::with_ram(8).part(2, RAM).be64(8).u8(0),
            Reason::BadName,
        ),
        (
            Build::with_ram(8).part(2, RAM).be64(0x8008).name("pc.ram"),
            Reason::OutsideBlock,
        ),
        (live().be64(0x8028), Reason::OutsideBlock),
        (live().be64(!0xfff | 0x28), Reason::OutsideBlock),
        (live().be64(0x80), Reason::RecordFlags(0x80)),
        (live().be64(0x0a), Reason::RecordFlags(0x0a)),
        (live().be64(0), Reason::RecordFlags(0)),
        (live().be64(0x30), Reason::RecordFlags(0x30)),
        (live().be64(0x428), Reason::RecordFlags(0x428)),
        (live().be64(0x1010), Reason::RecordFlags(0x10)),
        (live().be64(0x1004), Reason::RecordFlags(4)),
        (
            live().be64(0x1060).u8(1).be16(4097),
            Reason::BadLength(4097),
        ),
        (live().be64(0x1060).u8(2).be16(1), Reason::BadLength(1)),
        (live().be64(0x1120).be32(8193), Reason::BadLength(8193)),
        (live().be64(0x10).footer(9), Reason::NoFooter),
        (live().be64(0x10).u8(2).be32(RAM), Reason::NoFooter),
        (
            Build::main().start_ram(4096).block("a", 2),
            Reason::BlockList,
        ),
        (
            Build::main()
                .start_ram(u64::MAX & !0xfff)
                .block("a", 2)
                .block("a", 2),
            Reason::BlockList,
        ),
        (Build::main().start_ram(4096).u8(0), Reason::BadName),
        (
            config("capabilities")
                .be32(1)
                .name("x-ignore-shared")
                .command(3, &advise)
                .start_ram(4096),
            Reason::AmbiguousBlockList,
        ),
        (
            Build::main()
                .head(1, 5, "a/vfio", 1)
                .be64(0xffff_ffff_ef10_0002),
            Reason::BadPayload,
        ),
        (
            Build::main().head(1, 5, "s390-stattrib", 0).be64(4),
            Reason::BadPayload,
        ),
        (memory(4096), Reason::BadPayload),
        (memory(3 << 20), Reason::BadPayload),
        (
            Build::multifd().packet(0, 129, 129 * 4096, 0),
            Reason::BadPacket,
        ),
        (
            Build::multifd().be32(0x1122_3345).be32(1).be32(0),
            Reason::BadPacket,
        ),
    ]
}

#[test]
fn everything_after_a_misfit_is_literal() {
    for (build, reason) in misfits() {
        let more = build.clone().page(1).page(2).raw(&[0; 10000]);
        let replay = replay_all(&more.bytes, &CHUNKS);
        let opaque = replay.opaque().unwrap_or_else(|| panic!("no {reason:?}"));
        assert_eq!(opaque.reason, reason);
        assert!(opaque.offset < build.bytes.len() as u64, "{reason:?}");
        let (place, mark) = replay.events.marks.last().unwrap();
        assert_eq!(*mark, Mark::Opaque(opaque));
        assert!(
            replay.events.pages.iter().all(|page| page < place),
            "{reason:?}"
        );
        assert!(!reason.to_string().is_empty());
    }
}

#[test]
fn offset_of_a_misfit_is_where_its_field_begins() {
    let build = Build::with_ram(8).part(2, RAM).page_of("pc.ram", 1);
    let place = build.bytes.len() as u64;
    for chunk in CHUNKS {
        let opaque = replay(&build.clone().be64(0x80).bytes, chunk)
            .opaque()
            .unwrap();
        assert_eq!(opaque.offset, place);
    }
}

#[test]
fn record_that_fills_a_chunk_is_recognised_whole() {
    let build = Build::with_ram(8)
        .part(2, RAM)
        .page_of("pc.ram", 1)
        .page(2)
        .zero(3);
    let page = build.pages[1] as usize - 8;
    let zero = page + 8 + 4096;
    let mut parser = Parser::new();
    let mut feed = |range: std::ops::Range<usize>| {
        let mut pieces = Vec::new();
        assert_eq!(
            parser.feed(&build.bytes[range.clone()], &mut pieces),
            range.len()
        );
        pieces
    };
    feed(0..page);
    let offset = Some(0x2000);
    assert_eq!(feed(page..zero), [Piece::Page { offset }]);
    assert_eq!(feed(zero..zero + 9), [Piece::Zero { offset: 0x3000 }]);
}

#[test]
fn only_the_beginning_of_a_page_is_held_back() {
    let build = Build::with_ram(8).part(2, RAM).page_of("pc.ram", 1).page(2);
    let (header, body) = (build.pages[1] as usize - 8, build.pages[1] as usize);
    let mut parser = Parser::new();
    let mut feed = |range: std::ops::Range<usize>| {
        let mut pieces = Vec::new();
        let consumed = parser.feed(&build.bytes[range], &mut pieces);
        (consumed, pieces)
    };
    feed(0..header);
    let (consumed, pieces) = feed(header..body + 4095);
    assert_eq!((consumed, pieces), (8, vec![Piece::Literal(8)]));
    let (consumed, pieces) = feed(body..body + 4096);
    assert_eq!(
        (consumed, pieces),
        (4096, vec![Piece::Page { offset: None }])
    );
}
