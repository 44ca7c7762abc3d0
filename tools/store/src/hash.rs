// SPDX-License-Identifier: GPL-2.0

//! Hashing many pages on all processors.

use std::num::NonZeroUsize;
use std::thread;

use twinpage_wire::{
    Digest,
    Page,
    PAGE_BYTES, //
};

/// Fewer pages than this are not worth a thread.
const WORTH_A_THREAD: usize = 128;

/// The pages in `bytes`; what is left at the end is no page.
pub(crate) fn pages(bytes: &[u8]) -> impl Iterator<Item = &Page> {
    bytes
        .chunks_exact(PAGE_BYTES)
        .filter_map(|page| page.try_into().ok())
}

/// The digests of the pages in `bytes`, in order.
pub(crate) fn digests(bytes: &[u8]) -> Vec<Digest> {
    let count = bytes.len() / PAGE_BYTES;
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = threads.min(count / WORTH_A_THREAD).max(1);
    let share = count.div_ceil(threads).max(1);
    let mut digests = vec![Digest::ZERO_PAGE; count];
    thread::scope(|scope| {
        let mut shares = digests
            .chunks_mut(share)
            .zip(bytes.chunks(share * PAGE_BYTES));
        let own = shares.next();
        for (into, from) in shares {
            scope.spawn(move || into.copy_from_slice(&Digest::of_memory(pages(from))));
        }
        if let Some((into, from)) = own {
            into.copy_from_slice(&Digest::of_memory(pages(from)));
        }
    });
    digests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_threads_give_the_digests_of_one() {
        for count in [0, 1, 127, 128, 255, 256, 257, 1000] {
            let bytes: Vec<u8> = (0..count * PAGE_BYTES + 7)
                .map(|at| {
                    if at / PAGE_BYTES % 3 == 0 {
                        0
                    } else {
                        (at / 999) as u8
                    }
                })
                .collect();
            let expected: Vec<_> = pages(&bytes).map(Digest::of).collect();
            assert_eq!(digests(&bytes), expected, "{count} pages");
        }
    }
}
