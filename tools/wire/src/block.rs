// SPDX-License-Identifier: GPL-2.0

//! A block that was decoded.

use std::ops::Range;

use crate::chain::{
    self,
    Transcript, //
};
use crate::dictionary::DigestRing;
use crate::digest::Digest;
use crate::error::{
    Error,
    Fault,
    Place, //
};
use crate::frame::HEADER_BYTES;
use crate::frames::Sealed;
use crate::limits::BLOCK_HEADER;
use crate::op::Item;
use crate::page::{
    Page,
    PAGE_BYTES, //
};

/// A block that was decoded. States: before [`Block::verify`] said yes, its bytes may be hashed but
/// not released.
#[derive(Debug, Default)]
pub struct Block {
    /// Memory that the operations are in.
    pub(crate) buffer: Vec<u8>,
    /// Where they are in it.
    pub(crate) raw: Range<usize>,
    /// What they are.
    pub(crate) items: Vec<Item>,
    /// Where pages begin in the operations.
    ///
    /// # Invariants
    ///
    /// A whole page follows each of them.
    pub(crate) bodies: Vec<u32>,
    /// Digests of references.
    pub(crate) references: Vec<Digest>,
    /// The number of the first reference.
    pub(crate) first_reference: u64,
    /// Bytes of the stream before this block.
    pub(crate) stream_offset: u64,
    /// Bytes of the stream that it stands for.
    pub(crate) stream_bytes: u64,
    /// Bytes of the frame.
    pub(crate) wire_bytes: u64,
    /// The header of the block.
    pub(crate) header: [u8; BLOCK_HEADER],
    /// Checksum of the compressed bytes.
    pub(crate) checksum: Option<u64>,
    /// The header of the frame.
    frame_header: [u8; HEADER_BYTES],
    /// The running hash before the frame.
    previous: chain::Value,
    /// The running hash that came with it.
    value: chain::Value,
    /// Where the frame is.
    place: Place,
}

impl Block {
    /// What it consists of, in the order of the stream.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The bytes that literals and pages are in.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.raw.clone()]
    }

    /// The bytes of an [`Item::Literal`] of this block.
    ///
    /// # Panics
    ///
    /// There is no such item in this block.
    pub fn literal(&self, start: u32, len: u32) -> &[u8] {
        &self.bytes()[start as usize..][..len as usize]
    }

    /// The bytes of an [`Item::Page`] of this block.
    ///
    /// # Panics
    ///
    /// There is no such item in this block.
    pub fn page(&self, start: u32) -> &Page {
        let page = self.bytes()[start as usize..].first_chunk::<PAGE_BYTES>();
        // PANIC: A whole page follows the start of an item of this block.
        page.expect("an item of this block")
    }

    /// How many pages it has: items that are [`Item::Page`].
    pub fn bodies(&self) -> usize {
        self.bodies.len()
    }

    /// The bytes of page number `n` of them.
    ///
    /// # Panics
    ///
    /// There are not so many.
    pub fn body(&self, n: usize) -> &Page {
        self.page(self.bodies[n])
    }

    /// The digests of all pages, in order.
    pub fn hash_bodies(&self) -> Vec<Digest> {
        Digest::of_pages(self.bodies.iter().map(|&start| self.page(start)))
    }

    /// The digests of the references, in order.
    pub fn references(&self) -> &[Digest] {
        &self.references
    }

    /// The number of the first of them.
    pub fn first_reference(&self) -> u64 {
        self.first_reference
    }

    /// Bytes of the stream before this block.
    pub fn stream_offset(&self) -> u64 {
        self.stream_offset
    }

    /// Bytes of the stream that it stands for.
    pub fn stream_bytes(&self) -> u64 {
        self.stream_bytes
    }

    /// Bytes of the frame that it came in.
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// Where the frame is that it came in.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Checks the block: its running hash covers all that was decoded, and the digests of all pages
    /// in it, also of those that it refers to. Blocks have to be checked in order, because `ring`
    /// follows them; `bodies` are the digests of the pages as the receiver computed them. When this
    /// and all earlier blocks are right, bytes may be released.
    ///
    /// # Errors
    ///
    /// A back reference is out of range, `bodies` are not as many as pages, or something differs
    /// from what the sender sent.
    pub fn verify(&self, ring: &mut DigestRing, bodies: &[Digest]) -> Result<(), Error> {
        self.check(ring, bodies).map_err(self.place.of())
    }

    /// The same, without the place.
    fn check(&self, ring: &mut DigestRing, bodies: &[Digest]) -> Result<(), Fault> {
        if bodies.len() != self.bodies.len() {
            return Err(Fault::Length {
                what: "Digests of pages",
                found: bodies.len() as u64,
                expected: self.bodies.len() as u64,
            });
        }
        let (mut pages, mut references) = (bodies.iter(), self.references.iter());
        let mut backs = Vec::new();
        for item in &self.items {
            match item {
                Item::Page { .. } => pages.next().into_iter().for_each(|page| ring.append(page)),
                Item::Reference { .. } => {
                    references
                        .next()
                        .into_iter()
                        .for_each(|page| ring.append(page));
                }
                Item::Back { distance, .. } => backs.push(ring.back(*distance)?),
                Item::Literal { .. } | Item::Zeros { .. } | Item::ZeroPage { .. } => {}
            }
        }
        let transcript = Transcript {
            header: &self.header,
            checksum: self.checksum,
            raw: self.bytes(),
            bodies: &self.bodies,
            digests: [bodies, &self.references, &backs],
        };
        let value = chain::next(&self.previous, &self.frame_header, &transcript.hash());
        if value != self.value {
            return Err(Fault::Chain);
        }
        Ok(())
    }

    /// How much memory it takes.
    pub fn memory_bytes(&self) -> usize {
        self.buffer.capacity()
            + self.items.capacity() * size_of::<Item>()
            + self.bodies.capacity() * size_of::<u32>()
            + self.references.capacity() * Digest::BYTES
    }

    /// Takes out the buffer that the block was received in, if its operations still lie there: if
    /// it was not compressed. The block has no items afterwards.
    pub fn take_received(&mut self) -> Option<Vec<u8>> {
        let received = self.checksum.is_none() && !self.buffer.is_empty();
        self.restart();
        received.then(|| std::mem::take(&mut self.buffer))
    }

    /// Forgets everything but its memory.
    pub(crate) fn restart(&mut self) {
        self.items.clear();
        self.bodies.clear();
        self.references.clear();
        self.stream_bytes = 0;
        self.checksum = None;
        self.raw = 0..0;
    }

    /// Keeps what [`Block::verify`] needs of the frame.
    pub(crate) fn seal(&mut self, sealed: &Sealed) {
        self.frame_header = sealed.header;
        self.previous = sealed.previous;
        self.value = sealed.value;
        self.place = sealed.place;
    }
}
