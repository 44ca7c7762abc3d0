// SPDX-License-Identifier: GPL-2.0

//! Streams made by hand.

/// A stream that grows.
#[derive(Clone, Debug, Default)]
pub struct Build {
    /// The stream.
    pub bytes: Vec<u8>,
    /// Where its pages are.
    pub pages: Vec<u64>,
    /// How many pages it has had, so that they differ.
    seed: u8,
}

/// Number of the section of RAM.
pub const RAM: u32 = 2;

/// The page `seed`.
pub fn page(seed: u8) -> Vec<u8> {
    (0..4096_u32)
        .map(|place| (place / 7) as u8 ^ seed)
        .collect()
}

impl Build {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Header and configuration up to its subsections.
    pub fn main() -> Self {
        Self::new()
            .raw(b"QEVM")
            .be32(3)
            .u8(7)
            .be32(9)
            .raw(b"pc-q35-10")
    }

    /// The same with the start of RAM: two blocks of `pages` pages each.
    pub fn with_ram(pages: u64) -> Self {
        let blocks = Self::main().command(1, &[]).start_ram(pages * 2 * 4096);
        blocks
            .block("pc.ram", pages)
            .block("vga.vram", pages)
            .end_of_section(RAM)
    }

    /// A first message of a channel for pages.
    pub fn multifd() -> Self {
        Self::new().be32(0x1122_3344).be32(1).raw(&[7; 56])
    }

    /// Bytes.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    /// A byte.
    pub fn u8(self, value: u8) -> Self {
        self.raw(&[value])
    }

    /// An integer of 16 bits.
    pub fn be16(self, value: u16) -> Self {
        self.raw(&value.to_be_bytes())
    }

    /// An integer of 32 bits.
    pub fn be32(self, value: u32) -> Self {
        self.raw(&value.to_be_bytes())
    }

    /// An integer of 64 bits.
    pub fn be64(self, value: u64) -> Self {
        self.raw(&value.to_be_bytes())
    }

    /// A name with its length.
    pub fn name(self, name: &str) -> Self {
        self.u8(name.len() as u8).raw(name.as_bytes())
    }

    /// A command.
    pub fn command(self, number: u16, payload: &[u8]) -> Self {
        self.u8(8)
            .be16(number)
            .be16(payload.len() as u16)
            .raw(payload)
    }

    /// A subsection of the configuration, up to its fields.
    pub fn subsection(self, name: &str) -> Self {
        self.u8(5).name(&format!("configuration/{name}")).be32(1)
    }

    /// The head of a section that starts.
    pub fn head(self, kind: u8, id: u32, name: &str, version: u32) -> Self {
        self.u8(kind).be32(id).name(name).be32(0).be32(version)
    }

    /// The head of a section that goes on (2) or ends (3).
    pub fn part(self, kind: u8, id: u32) -> Self {
        self.u8(kind).be32(id)
    }

    /// The footer of a section.
    pub fn footer(self, id: u32) -> Self {
        self.u8(0x7e).be32(id)
    }

    /// The start of RAM of `bytes` bytes, up to the list of blocks.
    pub fn start_ram(self, bytes: u64) -> Self {
        self.head(1, RAM, "ram", 4).be64(bytes | 4)
    }

    /// A block of `pages` pages in the list.
    pub fn block(self, name: &str, pages: u64) -> Self {
        self.name(name).be64(pages * 4096)
    }

    /// The end of a section of RAM.
    pub fn end_of_section(self, id: u32) -> Self {
        self.be64(0x10).footer(id)
    }

    /// The body of a page.
    pub fn body(mut self) -> Self {
        self.pages.push(self.bytes.len() as u64);
        self.seed = self.seed.wrapping_add(1);
        let body = page(self.seed);
        self.raw(&body)
    }

    /// A page of the block of the page before.
    pub fn page(self, number: u64) -> Self {
        self.be64((number << 12) | 0x28).body()
    }

    /// A page of the block `name`.
    pub fn page_of(self, name: &str, number: u64) -> Self {
        self.be64((number << 12) | 8).name(name).body()
    }

    /// A zero page of the block of the page before.
    pub fn zero(self, number: u64) -> Self {
        self.be64((number << 12) | 0x22).u8(0)
    }

    /// The end of RAM and of the state, with some of what follows.
    pub fn end(self) -> Self {
        self.part(3, RAM)
            .end_of_section(RAM)
            .head(4, 9, "timer", 2)
            .raw(&[0; 24])
            .footer(9)
            .u8(0)
            .u8(6)
    }

    /// A packet of a channel for pages: its head.
    pub fn packet(self, flags: u32, pages: u32, length: u32, zeros: u32) -> Self {
        let head = self
            .be32(0x1122_3344)
            .be32(1)
            .be32(flags)
            .be32(pages + zeros)
            .be32(pages)
            .be32(length);
        head.be64(5)
            .be32(zeros)
            .raw(&[0; 28])
            .raw(&[b'r'; 256])
            .raw(&[1; 1024])
    }
}
