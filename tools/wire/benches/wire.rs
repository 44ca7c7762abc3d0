// SPDX-License-Identifier: GPL-2.0

//! What the wire costs: digests, blocks of every sort of page on both ends, frames, the filter.
//!
//! `cargo bench -p twinpage-wire [NAME...]` runs the groups whose name contains one of `NAME`.
//! Each number is the best of several runs, in processor time of one thread. Throughput is bytes of the migration
//! stream: a page with its header is 4104 of them.

use std::hint::black_box;
use std::sync::Arc;

use rand::{
    rngs::SmallRng,
    Rng,
    RngCore,
    SeedableRng, //
};
use rustix::time::{
    clock_gettime,
    ClockId, //
};
use twinpage_wire::{
    is_zero,
    Block,
    BlockReader,
    BlockWriter,
    Compression,
    Digest,
    DigestRing,
    Direction,
    Filter,
    FilterBuilder,
    FilterKey,
    FrameReader,
    Hello,
    Incoming,
    Item,
    Message,
    Op,
    Page,
    PageRing,
    Purpose,
    Role,
    Sealer,
    SenderDictionary,
    SessionId,
    HEADER_BYTES,
    PAGE_BYTES, //
};

const RUNS: u32 = 5;

/// Pages of a run.
const PAGES: usize = 16384;

/// Bytes of the stream that a page with a header is.
const PAGE_STREAM: usize = 8 + PAGE_BYTES;

/// Prints the best time of a run, for each of `count` things in it that are `bytes` each. `run`
/// returns how long it took.
fn report(name: &str, count: usize, bytes: usize, mut run: impl FnMut() -> u128) {
    let best = (0..RUNS).map(|_| run()).min().unwrap_or(0);
    let each = best as f64 / count as f64;
    println!(
        "{name:<44} {each:>10.1} ns {:>9.2} GB/s",
        bytes as f64 / each
    );
}

/// How long `what` takes: nanoseconds that this thread had a processor.
fn time<T>(what: impl FnOnce() -> T) -> u128 {
    let start = clock();
    black_box(what());
    clock() - start
}

/// Nanoseconds that this thread had a processor so far.
fn clock() -> u128 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as u128 * 1_000_000_000 + now.tv_nsec as u128
}

/// Pages without any order.
fn random_pages() -> Vec<Page> {
    let mut random = SmallRng::seed_from_u64(1);
    let mut pages = vec![[0; PAGE_BYTES]; PAGES];
    pages.iter_mut().for_each(|page| random.fill_bytes(page));
    pages
}

/// Pages like those of a heap: pointers that resemble one another, small numbers, zeros.
fn heap_pages() -> Vec<Page> {
    let mut random = SmallRng::seed_from_u64(2);
    let mut pages = vec![[0; PAGE_BYTES]; PAGES];
    for word in pages.iter_mut().flat_map(|page| page.chunks_exact_mut(8)) {
        let value: u64 = match random.random_range(0..4) {
            0 => 0x7f3a_5c00_0000 + random.random_range(0..0x10_0000) * 16,
            1 => random.random_range(0..1000),
            _ => 0,
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    pages
}

/// The offset of page number `n`.
fn offset(n: usize) -> u64 {
    (n * PAGE_BYTES) as u64
}

fn hello() -> Hello {
    Hello {
        role: Role::Sender,
        purpose: Purpose::Migrate,
        session: SessionId([1; 16]),
        channel: 0,
        domain: String::new(),
        dictionary_pages: 65536,
        zstd: true,
        filter_key: FilterKey::default(),
        window_stream: 64 << 20,
        window_wire: 8 << 20,
        software: "bench".to_owned(),
    }
}

/// A new chain, its HELLO sealed.
fn sealer() -> (Sealer, Vec<u8>) {
    let hello = hello();
    let mut sealer = Sealer::new(Direction::ToReceiver, &hello.session, hello.channel);
    let frame = Message::Hello(hello).frame().expect("a frame");
    let sealed = sealer.seal(frame);
    (sealer, sealed)
}

/// Pushes `count` operations and gives all frames to `each`, which gives the buffers back.
fn write<'a>(
    writer: &mut BlockWriter,
    count: usize,
    op: impl Fn(usize) -> Op<'a>,
    mut each: impl FnMut(Vec<u8>) -> Vec<u8>,
) {
    let (mut sealer, hello) = sealer();
    each(hello);
    for n in 0..count {
        if writer.push(op(n)).full || n + 1 == count {
            if let Some(frame) = writer.finish().expect("a block") {
                let buffer = each(sealer.seal(frame));
                writer.recycle(buffer);
            }
        }
    }
}

/// Both ends of `count` operations that are `bytes` of the stream each.
fn both<'a>(
    name: &str,
    compression: Compression,
    (count, bytes): (usize, usize),
    op: impl Fn(usize) -> Op<'a> + Copy,
) {
    let mut writer = BlockWriter::new(compression).expect("a writer");
    report(&format!("write {name}"), count, bytes, || {
        time(|| write(&mut writer, count, op, |bytes| bytes))
    });
    let totals = writer.totals();
    let ratio = totals.stream_bytes as f64 / totals.wire_bytes as f64;
    println!("{:<44} {ratio:>10.2} times smaller", "");
    let mut frames = Vec::new();
    let mut writer = BlockWriter::new(compression).expect("a writer");
    write(&mut writer, count, op, |bytes| {
        frames.push(bytes);
        Vec::new()
    });
    report(&format!("read {name}, decode"), count, bytes, || {
        read(&frames, |_| ())
    });
    if name.starts_with("back") {
        // Nothing was sent before them that they could mean.
        return;
    }
    report(
        &format!("read {name}, hash and verify, too"),
        count,
        bytes,
        || {
            let (mut ring, mut pages) = (DigestRing::new(4096), PageRing::new(4096));
            read(&frames, |block| {
                let bodies = block.hash_bodies();
                block.verify(&mut ring, &bodies).expect("a good block");
                release(block, &mut pages);
            })
        },
    );
}

/// Decodes `frames`.
fn read(frames: &[Vec<u8>], mut each: impl FnMut(&Block)) -> u128 {
    // As they come from a connection: header and body apart.
    let input = frames.iter().map(|frame| {
        let (header, body) = frame.split_first_chunk::<HEADER_BYTES>().expect("a header");
        (*header, body.to_vec())
    });
    let input = input.collect::<Vec<_>>();
    let mut reader = BlockReader::new(true).expect("a reader");
    let mut chain = FrameReader::new(Direction::ToReceiver);
    time(|| {
        for (header, body) in input {
            let header = chain.header(header).expect("a good header");
            match chain.accept(header, body).expect("a good frame") {
                Incoming::Message(_) => {}
                Incoming::Block(sealed) => {
                    let block = reader.decode(sealed).expect("a good block");
                    each(&block);
                    reader.recycle(block);
                }
            }
        }
    })
}

/// What a receiver does with the pages of a block apart from writing them.
fn release(block: &Block, pages: &mut PageRing) {
    for item in block.items() {
        if let Item::Page { start, .. } = *item {
            pages.append(Arc::new(*block.page(start)));
        }
    }
}

fn digests() {
    let pages = random_pages();
    report("digest of a page", PAGES, PAGE_BYTES, || {
        time(|| {
            pages
                .iter()
                .fold(0, |sum, page| sum ^ Digest::of(page).0[0])
        })
    });
    report("digest of a page, two at a time", PAGES, PAGE_BYTES, || {
        time(|| Digest::of_pages(&pages))
    });
    let zeros = vec![[0; PAGE_BYTES]; PAGES];
    report("is_zero of a page of zeros", PAGES, PAGE_BYTES, || {
        time(|| zeros.iter().filter(|page| is_zero(page)).count())
    });
    report("is_zero of a random page", PAGES, PAGE_BYTES, || {
        time(|| pages.iter().filter(|page| is_zero(page)).count())
    });
}

fn pages() {
    let sorts = [("random", random_pages()), ("heap", heap_pages())];
    for (sort, pages) in &sorts {
        let digests = pages.iter().map(Digest::of).collect::<Vec<_>>();
        let op = |n| Op::Page {
            header: Some(offset(n)),
            digest: &digests[n],
            page: &pages[n],
        };
        for compression in [
            Compression::Off,
            Compression::Level(1),
            Compression::Level(3),
        ] {
            let name = format!("{sort} pages, {compression:?}");
            both(&name, compression, (PAGES, PAGE_STREAM), op);
        }
    }
}

fn references() {
    let mut random = SmallRng::seed_from_u64(3);
    let digests = (0..PAGES)
        .map(|_| Digest(random.random()))
        .collect::<Vec<_>>();
    let reference = |n: usize| Op::Reference {
        header: Some(offset(n)),
        digest: &digests[n % PAGES],
    };
    let back = |n: usize| Op::Back {
        header: Some(offset(n)),
        distance: 1 + (n as u32 * 7919) % 30000,
        digest: &digests[n % PAGES],
    };
    let zero = |n| Op::Zeros {
        first: offset(n),
        count: 1,
    };
    for compression in [Compression::Off, Compression::Level(1)] {
        let name = |what: &str| format!("{what}, {compression:?}");
        both(
            &name("references"),
            compression,
            (1 << 20, PAGE_STREAM),
            reference,
        );
        both(
            &name("back references"),
            compression,
            (1 << 20, PAGE_STREAM),
            back,
        );
        both(&name("zeros"), compression, (1 << 22, 9), zero);
    }
}

fn dictionaries() {
    let mut random = SmallRng::seed_from_u64(4);
    let digests = (0..200_000)
        .map(|_| Digest(random.random()))
        .collect::<Vec<_>>();
    let mut dictionary = SenderDictionary::new(65536);
    digests.iter().for_each(|digest| dictionary.append(digest));
    report(
        "dictionary, find what is not there",
        100_000,
        PAGE_BYTES,
        || {
            time(|| {
                digests[..100_000]
                    .iter()
                    .filter_map(|digest| dictionary.find(digest))
                    .count()
            })
        },
    );
    report("dictionary, find what is there", 60_000, PAGE_BYTES, || {
        time(|| {
            digests[140_000..]
                .iter()
                .filter_map(|digest| dictionary.find(digest))
                .count()
        })
    });
    report("dictionary, append", 200_000, PAGE_BYTES, || {
        time(|| digests.iter().for_each(|digest| dictionary.append(digest)))
    });
    let mut ring = PageRing::new(65536);
    let page = Arc::new([1; PAGE_BYTES]);
    report("pages of the receiver, append", 65536, PAGE_BYTES, || {
        time(|| (0..65536).for_each(|_| ring.append(Arc::clone(&page))))
    });
}

fn filters() {
    let mut random = SmallRng::seed_from_u64(5);
    let digests = (0..1_000_000)
        .map(|_| Digest(random.random()))
        .collect::<Vec<_>>();
    let build = || -> Filter {
        let mut builder = FilterBuilder::new(&FilterKey([1; 16]));
        digests.iter().for_each(|digest| builder.add(digest));
        builder.finish().expect("a filter")
    };
    report(
        "filter of 1,000,000 pages, build",
        digests.len(),
        PAGE_BYTES,
        || time(build),
    );
    let filter = build();
    report(
        "filter of 1,000,000 pages, ask",
        digests.len(),
        PAGE_BYTES,
        || {
            time(|| {
                digests
                    .iter()
                    .filter(|digest| filter.contains(digest))
                    .count()
            })
        },
    );
}

fn frames() {
    let (mut sealer, _) = sealer();
    report("control frame, made and sealed", 10_000, 80, || {
        time(|| {
            for reference in 0..10_000 {
                let frame = Message::Miss { reference }.frame();
                black_box(frame.map(|frame| sealer.seal(frame))).expect("a frame");
            }
        })
    });
}

fn main() {
    let groups: [(&str, fn()); 6] = [
        ("digest", digests),
        ("pages", pages),
        ("references", references),
        ("dictionary", dictionaries),
        ("filter", filters),
        ("frames", frames),
    ];
    let wanted = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let wanted = wanted.collect::<Vec<_>>();
    for (name, group) in groups {
        if wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str())) {
            println!("{name}");
            group();
        }
    }
}
