// SPDX-License-Identifier: GPL-2.0

//! One place where pages come from.

use twinpage_wire::{
    Digest,
    Page, //
};

use crate::error::Error;

/// Something that has pages and finds them by digest.
///
/// Implementations are asked by several threads at once. What they give is not believed:
/// [`Sources`](crate::Sources) hashes it.
pub trait PageSource: Send + Sync {
    /// Its name in messages, counters and switches.
    fn name(&self) -> &'static str;

    /// Calls `each` with the digest of every page that it has, in any order, possibly repeated.
    ///
    /// # Errors
    ///
    /// When the list cannot be read to its end. What was given until then is still true.
    fn digests(&self, each: &mut dyn FnMut(Digest)) -> Result<(), Error>;

    /// Copies the page with `digest` to `into`, or says `false`: it has no such page.
    ///
    /// # Errors
    ///
    /// When it cannot find out, or has the page and cannot read it. `into` may hold anything then.
    fn fetch(&self, digest: &Digest, into: &mut Page) -> Result<bool, Error>;

    /// The same for one who hashes the copy himself, so that nobody does it twice.
    ///
    /// # Errors
    ///
    /// As for [`PageSource::fetch`].
    fn copy(&self, digest: &Digest, into: &mut Page) -> Result<bool, Error> {
        self.fetch(digest, into)
    }

    /// Says where the page lies that [`PageSource::copy`] gave for `digest` although it has another
    /// one, if it is a place that a person can look at.
    fn damage(&self, _digest: &Digest) -> Option<Error> {
        None
    }
}
