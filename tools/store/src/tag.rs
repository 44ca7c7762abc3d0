// SPDX-License-Identifier: GPL-2.0

//! Keyed tags: what may be kept of pages and sources that are not public.
//!
//! A tag is a truncated HMAC-SHA-256. Without the key, guessing a page and comparing tags is not
//! possible, which it would be with a plain digest.

use hmac::{
    Hmac,
    Mac, //
};
use sha2::Sha256;
use twinpage_wire::Digest;

use crate::admit::SourceId;

/// Bytes of a tag of a page.
pub(crate) const PAGE_TAG: usize = 16;

/// Bytes of a tag of a source.
pub(crate) const SOURCE_TAG: usize = 8;

/// Stands for a page that is not admitted.
pub(crate) type PageTag = [u8; PAGE_TAG];

/// Stands for a source of such pages.
pub(crate) type SourceTag = [u8; SOURCE_TAG];

/// Makes tags with a secret key.
#[derive(Clone)]
pub(crate) struct Tagger(Hmac<Sha256>);

impl Tagger {
    /// Makes tags with `key`.
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        // The key fits into a block of SHA-256, so that this is HMAC with `key` itself.
        let mut block = [0; 64];
        block[..32].copy_from_slice(key);
        Self(Hmac::new(&block.into()))
    }

    /// The tag of a page. It changes with what a source is known by, or one that was seen before
    /// would be a further source; what was counted until then is forgotten.
    pub(crate) fn page(&self, digest: &Digest) -> PageTag {
        self.tag(b"page 3", &digest.0)
    }

    /// The tag of a source.
    pub(crate) fn source(&self, source: &SourceId) -> SourceTag {
        self.tag(b"source", source.as_bytes())
    }

    /// The first `N` bytes of the HMAC of `kind`, a zero byte and `bytes`.
    fn tag<const N: usize>(&self, kind: &[u8], bytes: &[u8]) -> [u8; N] {
        let mut mac = self.0.clone();
        mac.update(kind);
        mac.update(&[0]);
        mac.update(bytes);
        let whole = mac.finalize().into_bytes();
        std::array::from_fn(|at| whole[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_truncated_hmac_sha256() {
        // printf 'source\0vm-1' | openssl dgst -sha256 -mac hmac -macopt hexkey:$(printf '07%.0s' {1..32})
        let tag = Tagger::new(&[7; 32]).source(&SourceId::new("vm-1"));
        assert_eq!(tag, EXPECTED);
    }

    const EXPECTED: SourceTag = [0x26, 0xc2, 0xbf, 0x8e, 0x24, 0x4d, 0xfa, 0x80];

    #[test]
    fn tags_depend_on_the_key() {
        let digest = Digest([1; 32]);
        let one = Tagger::new(&[1; 32]).page(&digest);
        let other = Tagger::new(&[2; 32]).page(&digest);
        assert_ne!(one, other);
        assert_ne!(one[..], digest.0[..PAGE_TAG]);
    }
}
