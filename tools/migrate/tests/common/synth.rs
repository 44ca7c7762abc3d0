// SPDX-License-Identifier: GPL-2.0

//! Streams as QEMU writes them, made up.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{
    self,
    Write, //
};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// The name of the only RAM block.
const BLOCK: &[u8] = b"pc.ram";
/// The section of RAM.
const RAM: u32 = 1;

/// Writes a stream of one RAM block, record by record.
pub struct Synth<W> {
    out: W,
    named: bool,
}

impl<W: Write> Synth<W> {
    /// Begins a stream: header, configuration, return path, RAM of `ram_bytes`.
    pub fn begin(mut out: W, ram_bytes: u64) -> io::Result<Self> {
        out.write_all(b"QEVM\0\0\0\x03\x07\0\0\0\x07pc-10.0")?;
        command(&mut out, 1, &[])?;
        command(&mut out, 2, &1u32.to_be_bytes())?;
        out.write_all(&[1])?;
        out.write_all(&RAM.to_be_bytes())?;
        out.write_all(b"\x03ram\0\0\0\0\0\0\0\x04")?;
        out.write_all(&(ram_bytes | 4).to_be_bytes())?;
        out.write_all(&[BLOCK.len() as u8])?;
        out.write_all(BLOCK)?;
        out.write_all(&ram_bytes.to_be_bytes())?;
        let mut synth = Self { out, named: false };
        synth.close()?;
        Ok(synth)
    }

    /// Begins a section of RAM in the middle.
    pub fn part(&mut self) -> io::Result<()> {
        self.out.write_all(&[2])?;
        self.out.write_all(&RAM.to_be_bytes())
    }

    /// Begins the last section of RAM; the guest has stopped.
    pub fn last(&mut self) -> io::Result<()> {
        command(&mut self.out, 11, &[])?;
        self.out.write_all(&[3])?;
        self.out.write_all(&RAM.to_be_bytes())
    }

    /// A page of zeroes.
    pub fn zero(&mut self, offset: u64) -> io::Result<()> {
        self.head(offset, 2)?;
        self.out.write_all(&[0])
    }

    /// A page.
    pub fn page(&mut self, offset: u64, page: &[u8]) -> io::Result<()> {
        assert_eq!(page.len(), PAGE);
        self.head(offset, 8)?;
        self.out.write_all(page)
    }

    /// Ends a section of RAM.
    pub fn close(&mut self) -> io::Result<()> {
        self.out.write_all(&0x10u64.to_be_bytes())?;
        self.out.write_all(&[0x7e])?;
        self.out.write_all(&RAM.to_be_bytes())
    }

    /// Ends the stream with `state` as the state of devices.
    pub fn devices(mut self, state: &[u8]) -> io::Result<W> {
        self.out.write_all(&[4, 0, 0, 0, 9])?;
        self.out.write_all(b"\x03cpu\0\0\0\0\0\0\0\x01")?;
        self.out.write_all(state)?;
        self.out.write_all(&[0x7e, 0, 0, 0, 9, 0])?;
        Ok(self.out)
    }

    /// The stream as it is, cut off here.
    pub fn cut(self) -> W {
        self.out
    }

    fn head(&mut self, offset: u64, flag: u64) -> io::Result<()> {
        if self.named {
            return self.out.write_all(&(offset | flag | 0x20).to_be_bytes());
        }
        self.named = true;
        self.out.write_all(&(offset | flag).to_be_bytes())?;
        self.out.write_all(&[BLOCK.len() as u8])?;
        self.out.write_all(BLOCK)
    }
}

/// A command section.
fn command(out: &mut impl Write, number: u16, payload: &[u8]) -> io::Result<()> {
    out.write_all(&[8])?;
    out.write_all(&number.to_be_bytes())?;
    out.write_all(&(payload.len() as u16).to_be_bytes())?;
    out.write_all(payload)
}

/// Numbers that look random; the same for the same seed.
#[derive(Clone)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number (splitmix64).
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.roll() % n.max(1)
    }

    /// Bytes.
    pub fn fill(&mut self, into: &mut [u8]) {
        for part in into.chunks_mut(8) {
            let word = self.roll().to_le_bytes();
            part.copy_from_slice(&word[..part.len()]);
        }
    }

    /// A page that is like no other.
    pub fn page(&mut self) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        self.fill(&mut page);
        page
    }
}
