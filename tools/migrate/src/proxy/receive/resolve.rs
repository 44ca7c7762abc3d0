// SPDX-License-Identifier: GPL-2.0

//! Finds the pages of references in the sources of this host.

use std::sync::Arc;

use twinpage_store::Sources;
use twinpage_wire::{
    Digest,
    Message,
    Page,
    PAGE_BYTES, //
};

use crate::proxy::outbox::Outbox;
use crate::proxy::progress::Progress;
use crate::proxy::receive::heals::Heals;
use crate::proxy::receive::held::{
    is_worth_keeping,
    Held, //
};
use crate::proxy::shelf::Shelf;

/// Finds pages for one channel.
pub struct Resolver {
    /// Where pages are.
    pub sources: Arc<Sources>,
    /// Pages that are asked for.
    pub heals: Arc<Heals>,
    /// Where it asks.
    pub outbox: Outbox,
    /// Buffers.
    pub shelf: Arc<Shelf>,
    /// Counters.
    pub progress: Arc<Progress>,
}

/// The pages of a group of references.
pub struct Resolved {
    /// Their bytes, where they were found.
    buffer: Vec<u8>,
    /// How many were asked for.
    pages: usize,
    /// Which of them were not, in order.
    missing: Vec<usize>,
    /// Where the buffer goes in the end.
    shelf: Arc<Shelf>,
}

impl Resolver {
    /// Finds the pages of references from `number` on, and asks the sender for those it does not
    /// find. There are no more of them than pages in a buffer of the shelf.
    pub fn find(&self, number: u64, digests: &[Digest]) -> Resolved {
        let mut buffer = self.shelf.take_for(digests.len() * PAGE_BYTES);
        let missing = self.sources.fetch_all(digests, &mut buffer);
        for &n in &missing {
            if let Some(digest) = digests.get(n) {
                self.ask(number + n as u64, digest);
            }
        }
        Resolved {
            buffer,
            pages: digests.len(),
            missing,
            shelf: Arc::clone(&self.shelf),
        }
    }

    /// Asks the sender for the page of reference `number`.
    fn ask(&self, number: u64, digest: &Digest) {
        self.progress.misses.add(1);
        self.heals.expect(number, *digest);
        if let Ok(frame) = (Message::Miss { reference: number }).frame() {
            // If the outbox has ended, the link broke, which it has told.
            let _ = self.outbox.send(frame);
        }
    }
}

impl Resolved {
    /// The `n`-th page of `group`; empty if it was not found.
    pub fn page(group: &Arc<Self>, n: usize) -> Option<Held> {
        let is_found = n < group.pages && group.missing.binary_search(&n).is_err();
        is_found.then(|| {
            if is_worth_keeping(group.pages - group.missing.len(), group.buffer.len()) {
                Held::Found(Arc::clone(group), n)
            } else {
                Held::Own(Arc::new(*group.bytes(n)))
            }
        })
    }

    /// The bytes of the `n`-th page; zeros if it was not found.
    pub fn bytes(&self, n: usize) -> &Page {
        let place = self.buffer.get(n * PAGE_BYTES..);
        let page = place.and_then(|place| place.first_chunk());
        page.unwrap_or(&[0; PAGE_BYTES])
    }
}

impl Drop for Resolved {
    fn drop(&mut self) {
        self.shelf.put(std::mem::take(&mut self.buffer));
    }
}
