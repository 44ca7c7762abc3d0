// SPDX-License-Identifier: GPL-2.0

//! The digest of a page: SHA-256 of its 4096 bytes, written as 64 hexadecimal digits.
//!
//! For one page `sha2` was as fast as `ring` and `aws-lc-rs`, because all of them wait for the same
//! instruction. So where there are several pages, `twinpage-digest` takes two at a time
//! (`cargo bench -p twinpage-wire digest`).

use std::fmt;
use std::hash::{
    Hash,
    Hasher, //
};
use std::str::FromStr;

use crate::page::{
    is_zero,
    Page, //
};

/// SHA-256 of a page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(pub [u8; Digest::BYTES]);

/// What is wrong with the text of a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A digest is 64 hexadecimal digits")]
pub struct DigestError;

impl Digest {
    /// Bytes of a digest.
    pub const BYTES: usize = 32;

    /// The digest of a page of zeros.
    pub const ZERO_PAGE: Self = Self([
        0xad, 0x7f, 0xac, 0xb2, 0x58, 0x6f, 0xc6, 0xe9, 0x66, 0xc0, 0x04, 0xd7, 0xd1, 0xd1, 0x6b,
        0x02, 0x4f, 0x58, 0x05, 0xff, 0x7c, 0xb4, 0x7c, 0x7a, 0x85, 0xda, 0xbd, 0x8b, 0x48, 0x89,
        0x2c, 0xa7,
    ]);

    /// The digest of `page`.
    pub fn of(page: &Page) -> Self {
        Self(twinpage_digest::one(page))
    }

    /// The digests of `pages`, in order, by two at a time: for any number of pages this is the way
    /// to hash them.
    pub fn of_pages<'a>(pages: impl IntoIterator<Item = &'a Page>) -> Vec<Self> {
        let mut pages = pages.into_iter();
        let mut digests = Vec::with_capacity(pages.size_hint().0);
        while let Some(first) = pages.next() {
            match pages.next() {
                Some(second) => digests.extend(twinpage_digest::two([first, second]).map(Self)),
                None => digests.push(Self::of(first)),
            }
        }
        digests
    }

    /// The same for memory, of which much may be zeros: those pages are not hashed.
    pub fn of_memory<'a>(pages: impl IntoIterator<Item = &'a Page>) -> Vec<Self> {
        let pages = pages.into_iter();
        let mut digests = Vec::with_capacity(pages.size_hint().0);
        let mut alone = None;
        for (n, page) in pages.enumerate() {
            digests.push(Self::ZERO_PAGE);
            if is_zero(page) {
                continue;
            }
            match alone.take() {
                None => alone = Some((n, page)),
                Some((m, other)) => {
                    let [first, second] = twinpage_digest::two([other, page]);
                    digests[m] = Self(first);
                    digests[n] = Self(second);
                }
            }
        }
        if let Some((n, page)) = alone {
            digests[n] = Self::of(page);
        }
        digests
    }
}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        if text.len() != 2 * Self::BYTES {
            return Err(DigestError);
        }
        let mut digest = [0; Self::BYTES];
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = (nibble(pair[0])? << 4) | nibble(pair[1])?;
        }
        Ok(Self(digest))
    }
}

/// The value of one hexadecimal digit.
fn nibble(digit: u8) -> Result<u8, DigestError> {
    let value = char::from(digit).to_digit(16).ok_or(DigestError)?;
    u8::try_from(value).map_err(|_| DigestError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PAGE_BYTES;

    #[test]
    fn the_constant_is_the_digest_of_zeros() {
        assert_eq!(Digest::of(&[0; PAGE_BYTES]), Digest::ZERO_PAGE);
    }

    #[test]
    fn digest_is_that_of_sha256sum() {
        // head -c 4096 /dev/zero | tr '\0' '\377' | sha256sum
        let expected = "f47a8ec3e9aff2318d896942282ad4fe37d6391c82914f54a5da8a37de1300c6";
        let digest = Digest::of(&[0xff; PAGE_BYTES]);
        assert_eq!(digest.to_string(), expected);
    }

    #[test]
    fn many_pages_have_the_digests_of_each() {
        let fills = [1, 0, 2, 0, 0, 3, 4, 0, 5, 6, 7];
        let pages = fills.map(|fill| [fill; PAGE_BYTES]);
        for count in 0..=pages.len() {
            let expected: Vec<_> = pages[..count].iter().map(Digest::of).collect();
            assert_eq!(Digest::of_pages(&pages[..count]), expected, "{count} pages");
            assert_eq!(
                Digest::of_memory(&pages[..count]),
                expected,
                "{count} pages"
            );
        }
    }

    #[test]
    fn text_comes_back() {
        let digest = Digest::of(&[1; PAGE_BYTES]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(digest.to_string().to_uppercase().parse(), Ok(digest));
    }

    #[test]
    fn other_text_is_refused() {
        let good = Digest::ZERO_PAGE.to_string();
        let table = [
            String::new(),
            good[1..].to_owned(),
            format!("{good}0"),
            good.replace('a', "g"),
            good.replace('a', " "),
            good.replacen("ad", "\u{e4}", 1),
        ];
        for text in table {
            assert_eq!(text.parse::<Digest>(), Err(DigestError), "{text:?}");
        }
    }
}
