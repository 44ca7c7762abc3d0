// SPDX-License-Identifier: GPL-2.0

//! A sender and a receiver made of the parts of the crate.

use std::collections::HashMap;
use std::sync::{
    Arc,
    LazyLock, //
};

use proptest::prelude::*;
use rand::{
    rngs::SmallRng,
    Rng,
    RngCore,
    SeedableRng, //
};
use sha2::{
    Digest as _,
    Sha256, //
};
use twinpage_wire::{
    page_header,
    write_zeros,
    Block,
    BlockReader,
    BlockWriter,
    Compression,
    Digest,
    DigestRing,
    Direction,
    Error,
    FilterKey,
    FrameReader,
    Header,
    Hello,
    Incoming,
    Item,
    LentPage,
    Memory,
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

pub const SESSION: SessionId = SessionId(*b"a session of 16 ");
pub const CHANNEL: u16 = 3;

/// The pages of all numbers that tests use.
static SUPPLY: LazyLock<HashMap<Digest, u16>> =
    LazyLock::new(|| (1..50).map(|n| (Digest::of(&page(n)), n)).collect());

/// One step of a sender.
#[derive(Clone, Debug)]
pub enum Step {
    /// Bytes as they are.
    Literal(Vec<u8>),
    /// Records of zero pages.
    Zeros(u64, u32),
    /// A page, named by a number that says its content.
    Page(Header, u16),
    /// The same; the receiver has it.
    Reference(Header, u16),
    /// The block ends.
    Flush,
    /// Another frame between blocks.
    Ping,
}

/// What a step or an item means, so that both can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    Literal(u8),
    Zero(u64),
    ZeroPage(Header),
    Page(Header, Digest),
    Reference(Header, Digest),
    Back(Header, u32),
}

/// The page of number `n`: 0 is zeros, odd ones are random, even ones are mostly text.
pub fn page(n: u16) -> Page {
    let mut page = [0; PAGE_BYTES];
    if n % 2 == 1 {
        SmallRng::seed_from_u64(n.into()).fill_bytes(&mut page);
    } else if n > 0 {
        for (at, byte) in page.iter_mut().enumerate() {
            *byte = b"twinpage"[(at / usize::from(n)) % 8];
        }
    }
    page
}

/// The HELLO of the sender.
pub fn hello() -> Hello {
    Hello {
        role: Role::Sender,
        purpose: Purpose::Migrate,
        session: SESSION,
        channel: CHANNEL,
        domain: "web".to_owned(),
        dictionary_pages: 64,
        zstd: true,
        filter_key: FilterKey::default(),
        window_stream: 64 << 20,
        window_wire: 8 << 20,
        software: "test 1".to_owned(),
    }
}

/// The running hash before the first frame, as the documentation has it.
pub fn chain_start(direction: Direction, hello: &Hello) -> [u8; 32] {
    let mut bytes = b"twinpage-migrate 1".to_vec();
    bytes.push(if direction == Direction::ToReceiver {
        1
    } else {
        2
    });
    bytes.extend(hello.session.0);
    bytes.extend(hello.channel.to_le_bytes());
    Sha256::digest(bytes).into()
}

/// A frame of any kind and payload, with the running hash that follows `previous`.
pub fn raw_frame(kind: u8, payload: &[u8], previous: &mut [u8; 32]) -> Vec<u8> {
    let mut frame = vec![kind, 0, 0, 0];
    frame.extend((payload.len() as u32).to_le_bytes());
    frame.extend(payload);
    let mut hash = previous.to_vec();
    hash.extend(&frame);
    *previous = Sha256::digest(hash).into();
    frame.extend(*previous);
    frame
}

/// A sender and what it has sent.
pub struct Sender {
    pub writer: BlockWriter,
    dictionary: SenderDictionary,
    sealer: Sealer,
    /// Frames in order, and how many bytes of the stream are in earlier ones.
    pub frames: Vec<(Vec<u8>, usize)>,
    /// The stream.
    pub stream: Vec<u8>,
    /// What was sent.
    pub meanings: Vec<Meaning>,
    /// Bytes of the stream in finished blocks.
    finished: usize,
    /// Pages are left where they lie until they are written.
    pub lends: bool,
}

impl Sender {
    pub fn new(writer: BlockWriter, pages: u32) -> Self {
        let mut sender = Self {
            writer,
            dictionary: SenderDictionary::new(pages),
            sealer: Sealer::new(Direction::ToReceiver, &SESSION, CHANNEL),
            frames: Vec::new(),
            stream: Vec::new(),
            meanings: Vec::new(),
            finished: 0,
            lends: false,
        };
        sender.send(&Message::Hello(hello()));
        sender
    }

    pub fn send(&mut self, message: &Message) {
        let frame = message.frame().expect("a frame");
        let bytes = frame.wire_bytes();
        let sealed = self.sealer.seal(frame);
        assert_eq!(sealed.len(), bytes);
        self.frames.push((sealed, self.finished));
    }

    pub fn finish(&mut self) {
        let stream = self.writer.stream_bytes() as usize;
        if let Some(frame) = self.writer.finish().expect("a block") {
            let bytes = frame.wire_bytes();
            let sealed = self.sealer.seal(frame);
            assert_eq!(sealed.len(), bytes);
            self.writer.recycle(sealed.clone());
            self.frames.push((sealed, self.finished));
            self.finished += stream;
        }
        assert!(self.writer.is_empty());
    }

    pub fn steps(&mut self, steps: &[Step]) {
        steps.iter().for_each(|step| self.step(step));
        self.finish();
        assert_eq!(self.finished, self.stream.len());
    }

    pub fn step(&mut self, step: &Step) {
        match step {
            Step::Literal(bytes) => {
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let left = self.push(Op::Literal(rest));
                    rest = &rest[rest.len() - left..];
                }
                self.stream.extend(bytes);
                self.meanings
                    .extend(bytes.iter().map(|&byte| Meaning::Literal(byte)));
            }
            Step::Zeros(first, count) => {
                let (mut first_left, mut left) = (*first, *count);
                while left > 0 {
                    let op = Op::Zeros {
                        first: first_left,
                        count: left,
                    };
                    let rest = self.push(op) as u32;
                    first_left = offset(first_left, left - rest);
                    left = rest;
                }
                write_zeros(*first, *count, &mut self.stream);
                let zeros = (0..*count).map(|n| Meaning::Zero(offset(*first, n)));
                self.meanings.extend(zeros);
            }
            Step::Page(header, 0) => {
                let header = *header;
                self.body(
                    header,
                    0,
                    Op::ZeroPage { header },
                    Meaning::ZeroPage(header),
                );
            }
            Step::Page(header, n) | Step::Reference(header, n) => {
                let known = matches!(step, Step::Reference(..));
                self.content(*header, *n, known);
            }
            Step::Flush => self.finish(),
            Step::Ping => self.send(&Message::Ping),
        }
    }

    fn content(&mut self, header: Header, n: u16, known: bool) {
        let bytes = page(n);
        let digest = &Digest::of(&bytes);
        if let Some(distance) = self.dictionary.find(digest) {
            let back = Op::Back {
                header,
                distance,
                digest,
            };
            self.body(header, n, back, Meaning::Back(header, distance));
            self.dictionary
                .hit(distance)
                .expect("a distance just found");
            return;
        }
        let page = &bytes;
        let memory: Memory = Arc::new([&[1; 7][..], page].concat());
        let (op, meaning) = if known {
            let op = Op::Reference { header, digest };
            (op, Meaning::Reference(header, *digest))
        } else if self.lends && n % 4 > 0 {
            assert!(LentPage::new(&memory, 8).is_none());
            let op = Op::LentPage {
                header,
                digest,
                page: LentPage::new(&memory, 7).expect("a page"),
            };
            (op, Meaning::Page(header, *digest))
        } else {
            let op = Op::Page {
                header,
                digest,
                page,
            };
            (op, Meaning::Page(header, *digest))
        };
        self.body(header, n, op, meaning);
        self.dictionary.append(digest);
    }

    fn body(&mut self, header: Header, n: u16, op: Op<'_>, meaning: Meaning) {
        while self.push(op) > 0 {}
        self.stream.extend(header.map(page_header).iter().flatten());
        self.stream.extend(page(n));
        self.meanings.push(meaning);
    }

    fn push(&mut self, op: Op<'_>) -> usize {
        let pushed = self.writer.push(op);
        assert_eq!(pushed.full, self.writer.is_full());
        assert!(pushed.left == 0 || pushed.full);
        if pushed.full {
            self.finish();
        }
        pushed.left
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.frames
            .iter()
            .flat_map(|(bytes, _)| bytes.iter().copied())
            .collect()
    }
}

fn offset(first: u64, pages: u32) -> u64 {
    first.wrapping_add(u64::from(pages) * PAGE_BYTES as u64)
}

/// Why a receiver stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// Something was wrong.
    Wrong(Error),
    /// The end came inside of a frame.
    Cut,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Wrong(error)
    }
}

/// A receiver and what it has released.
pub struct Receiver {
    frames: FrameReader,
    reader: BlockReader,
    digests: DigestRing,
    pages: PageRing,
    supply: u16,
    /// The stream.
    pub stream: Vec<u8>,
    /// What came.
    pub meanings: Vec<Meaning>,
    /// Frames other than blocks.
    pub messages: Vec<Message>,
}

impl Receiver {
    /// One that can supply pages with numbers below `supply`.
    pub fn new(pages: u32, supply: u16) -> Self {
        Self {
            frames: FrameReader::new(Direction::ToReceiver),
            reader: BlockReader::new(true).expect("a reader"),
            digests: DigestRing::new(pages),
            pages: PageRing::new(pages),
            supply,
            stream: Vec::new(),
            meanings: Vec::new(),
            messages: Vec::new(),
        }
    }

    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Stop> {
        while !bytes.is_empty() {
            let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(Stop::Cut)?;
            let header = self.frames.header(*header)?;
            let body = rest.get(..header.body_bytes()).ok_or(Stop::Cut)?;
            match self.frames.accept(header, body.to_vec())? {
                Incoming::Message(message) => self.messages.push(message),
                Incoming::Block(sealed) => {
                    let block = self.reader.decode(sealed)?;
                    block.verify(&mut self.digests, &block.hash_bodies())?;
                    self.release(&block)?;
                    self.reader.recycle(block);
                }
            }
            bytes = &rest[header.body_bytes()..];
        }
        Ok(())
    }

    fn release(&mut self, block: &Block) -> Result<(), Error> {
        assert_eq!(block.stream_offset(), self.stream.len() as u64);
        for item in block.items() {
            let before = self.stream.len();
            self.item(block, item)?;
            assert_eq!((self.stream.len() - before) as u64, item.stream_bytes());
        }
        let end = block.stream_offset() + block.stream_bytes();
        assert_eq!(end, self.stream.len() as u64);
        Ok(())
    }

    fn item(&mut self, block: &Block, item: &Item) -> Result<(), Error> {
        match *item {
            Item::Literal { start, len } => {
                let bytes = block.literal(start, len);
                self.stream.extend(bytes);
                self.meanings
                    .extend(bytes.iter().map(|&byte| Meaning::Literal(byte)));
            }
            Item::Zeros { first, count } => {
                write_zeros(first, count, &mut self.stream);
                let zeros = (0..count).map(|n| Meaning::Zero(offset(first, n)));
                self.meanings.extend(zeros);
            }
            Item::ZeroPage { header } => {
                self.body(header, &[0; PAGE_BYTES]);
                self.meanings.push(Meaning::ZeroPage(header));
            }
            Item::Page { header, start } => {
                let page = block.page(start);
                self.body(header, page);
                self.pages.append(Arc::new(*page));
                self.meanings.push(Meaning::Page(header, Digest::of(page)));
            }
            Item::Reference { header, index } => {
                let digest = block.references()[index as usize];
                let number = SUPPLY.get(&digest).filter(|&&n| n < self.supply);
                let page = number.map_or([0xee; PAGE_BYTES], |&n| page(n));
                self.body(header, &page);
                self.pages.append(Arc::new(page));
                self.meanings.push(Meaning::Reference(header, digest));
            }
            Item::Back { header, distance } => {
                let page = **self.pages.back(distance)?;
                self.body(header, &page);
                self.meanings.push(Meaning::Back(header, distance));
            }
        }
        Ok(())
    }

    fn body(&mut self, header: Header, page: &Page) {
        self.stream.extend(header.map(page_header).iter().flatten());
        self.stream.extend(page);
    }
}

/// Any header: none, near the others, or anywhere.
pub fn headers() -> impl Strategy<Value = Header> {
    prop_oneof![
        Just(None),
        (0..40_u64).prop_map(|n| Some(n * PAGE_BYTES as u64)),
        any::<u64>().prop_map(|n| Some(n & !0xfff)),
    ]
}

/// Any step; pages have numbers below `pages`.
pub fn steps(pages: u16) -> impl Strategy<Value = Step> {
    let literal = prop::collection::vec(any::<u8>(), 1..200);
    let long = (any::<u8>(), 1..150_000_usize).prop_map(|(byte, len)| vec![byte; len]);
    let zeros = (headers(), 1..300_u32);
    prop_oneof![
        6 => (headers(), 0..pages).prop_map(|(header, n)| Step::Page(header, n)),
        4 => (headers(), 1..pages).prop_map(|(header, n)| Step::Reference(header, n)),
        3 => literal.prop_map(Step::Literal),
        1 => long.prop_map(Step::Literal),
        3 => zeros.prop_map(|(first, count)| Step::Zeros(first.unwrap_or(0), count)),
        1 => Just(Step::Flush),
        1 => Just(Step::Ping),
    ]
}

/// Either way of compression.
pub fn compressions() -> impl Strategy<Value = Compression> {
    prop_oneof![
        Just(Compression::Off),
        Just(Compression::Level(1)),
        Just(Compression::Level(3))
    ]
}

/// Steps that follow `seed`, in runs as QEMU makes them.
pub fn random_steps(seed: u64, count: usize) -> Vec<Step> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut at = 0;
    (0..count)
        .map(|_| {
            at += PAGE_BYTES as u64;
            match random.random_range(0..8) {
                0 => Step::Literal(vec![random.random(); random.random_range(1..60)]),
                1 => Step::Zeros(at, random.random_range(1..5)),
                2 => Step::Flush,
                3 => Step::Reference(Some(at), random.random_range(1..40)),
                4 => Step::Page(None, random.random_range(0..40)),
                _ => Step::Page(Some(at), random.random_range(0..40)),
            }
        })
        .collect()
}
