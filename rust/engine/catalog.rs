// SPDX-License-Identifier: GPL-2.0

//! The digests of merged copies, kept apart from these as few hosts ask for them: 56 bytes each.

use super::{
    copies::{
        split,
        Copies,
        Digested,
        MergedCopy,
        State,
        CHUNK, //
    },
    node::Node,
    page::CopyId,
    world::DIGEST_BYTES, //
};
use crate::mem::{
    AllocError,
    KVVec,
    GFP_KERNEL, //
};

/// The digest of a copy, and its node in the tree of digests.
#[derive(Clone, Copy, Debug)]
pub struct Digest {
    node: Node,
    /// Serial number of the copy, never used again.
    pub serial: u64,
    /// SHA-256 of the copy.
    pub sha256: [u8; DIGEST_BYTES],
}

impl<F> Copies<F> {
    /// Returns the digest of a copy, if it is known.
    pub fn digest(&self, id: CopyId) -> Option<&Digest> {
        if self.get(id)?.digested == Digested::No {
            return None;
        }
        let (chunk, index) = split(id);
        self.chunks.get(chunk)?.digests.get(index)
    }

    /// Returns the copy of that number, as [`get`](Self::get) does, and its digest if that is known
    /// and in the tree of digests.
    #[inline]
    pub(super) fn with_digest(&self, id: CopyId) -> Option<(&MergedCopy<F>, Option<&Digest>)> {
        let (number, index) = split(id);
        let chunk = self.chunks.get(number)?;
        let copy = chunk.entries.get(index)?;
        let digest = match copy.digested {
            Digested::Listed => chunk.digests.get(index),
            Digested::No | Digested::Known => None,
        };
        (copy.state() != State::Free).then_some((copy, digest))
    }

    /// Returns the node of a copy in the tree of digests.
    pub fn digest_node(&self, id: CopyId) -> Option<&Node> {
        let (chunk, index) = split(id);
        Some(&self.chunks.get(chunk)?.digests.get(index)?.node)
    }

    /// Returns the node of a copy in the tree of digests.
    pub fn digest_node_mut(&mut self, id: CopyId) -> Option<&mut Node> {
        let (chunk, index) = split(id);
        Some(&mut self.chunks.get_mut(chunk)?.digests.get_mut(index)?.node)
    }

    /// Returns whether a copy is in the tree of digests.
    pub fn is_digest_listed(&self, id: CopyId) -> bool {
        self.get(id)
            .is_some_and(|copy| copy.digested == Digested::Listed)
    }

    /// Notes that a copy whose digest is known is in the tree of digests now.
    pub fn digest_listed(&mut self, id: CopyId) {
        if let Some(copy) = self.get_mut(id) {
            copy.digested = Digested::Listed;
        }
    }

    /// Forgets the digest of a copy that is not in the tree of digests any more.
    pub fn clear_digest(&mut self, id: CopyId) {
        if let Some(copy) = self.get_mut(id) {
            copy.digested = Digested::No;
        }
    }

    /// Makes room for the digests of a chunk.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory.
    pub fn reserve_digest(&mut self, id: CopyId) -> Result<(), AllocError> {
        let (chunk, _) = split(id);
        let chunk = self.chunks.get_mut(chunk).ok_or(AllocError)?;
        if chunk.digests.is_empty() {
            const UNKNOWN: Digest = Digest {
                node: Node::new(0),
                serial: 0,
                sha256: [0; DIGEST_BYTES],
            };
            chunk.digests = KVVec::from_elem(UNKNOWN, CHUNK, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Keeps the digest of a copy, for which room was reserved.
    pub fn set_digest(&mut self, id: CopyId, serial: u64, sha256: [u8; DIGEST_BYTES]) {
        let (chunk, index) = split(id);
        let Some(chunk) = self.chunks.get_mut(chunk) else {
            return;
        };
        let (Some(copy), Some(digest)) = (
            chunk.entries.get_mut(index),
            chunk.digests.get_mut(index), //
        ) else {
            return;
        };
        let [a, b, c, d, e, f, g, h, ..] = sha256;
        *digest = Digest {
            node: Node::new(u64::from_be_bytes([a, b, c, d, e, f, g, h])),
            serial,
            sha256,
        };
        copy.digested = Digested::Known;
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_catalog))]
mod tests {
    use super::*;

    fn add(copies: &mut Copies<u64>) -> Result<CopyId, AllocError> {
        copies.reserve()?;
        copies.insert(MergedCopy::new(7, 0)).map_err(|_| AllocError)
    }

    #[test]
    fn a_digest_goes_with_its_copy() -> Result<(), AllocError> {
        let mut copies = Copies::new();
        let id = add(&mut copies)?;
        assert!(copies.digest(id).is_none());
        copies.reserve_digest(id)?;
        assert!(copies.digest(id).is_none());
        let mut sha256 = [0x55; DIGEST_BYTES];
        for (number, byte) in sha256.iter_mut().take(8).enumerate() {
            *byte = number as u8;
        }
        copies.set_digest(id, 42, sha256);
        assert_eq!(
            copies.digest(id).map(|d| (d.serial, d.sha256)),
            Some((42, sha256))
        );
        assert_eq!(
            copies.digest_node(id).map(Node::key),
            Some(0x0001_0203_0405_0607)
        );
        copies.kill(id);
        assert_eq!(add(&mut copies)?, id);
        assert!(copies.digest(id).is_none());
        Ok(())
    }
}
