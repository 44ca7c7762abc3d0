// SPDX-License-Identifier: GPL-2.0

//! Pages of tiny VMs, filled with what follows from a key.

use tinyvm::Memory;
use twinpage_guest::pattern::{
    Mismatch,
    Stream, //
};

use crate::tap::{
    Failure,
    Outcome, //
};

/// Writes the content of a key to one page.
pub fn fill(memory: &Memory, page: usize, key: u64) {
    let mut stream = Stream::new(key);
    for word in 0..tinyvm::WORDS {
        memory.set_word(page, word, stream.next());
    }
}

/// The first word of a page that is not of the key's content.
pub fn mismatch(memory: &Memory, page: usize, key: u64) -> Option<Mismatch> {
    let mut stream = Stream::new(key);
    (0..tinyvm::WORDS).find_map(|word| {
        let (expected, seen) = (stream.next(), memory.word(page, word));
        (expected != seen).then_some(Mismatch {
            offset: word * 8,
            expected,
            seen,
        })
    })
}

/// Compares one page with the content of a key.
///
/// # Errors
///
/// The first word that differs.
pub fn check(memory: &Memory, page: usize, key: u64) -> Outcome {
    match mismatch(memory, page, key) {
        None => Ok(()),
        Some(mismatch) => Err(Failure::Failed(format!("page {page} {mismatch}"))),
    }
}
