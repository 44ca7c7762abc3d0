// SPDX-License-Identifier: GPL-2.0

//! What a migration would send, computed from digests before anything moves.

use std::collections::HashSet;

use serde::Serialize;
use twinpage_engine::engine::wire::{
    PageState,
    ZERO_DIGEST, //
};

use crate::digest::Digest;
use crate::digests::{
    digest_of,
    Digests, //
};
use crate::error::Error;

/// Bytes on the wire for a page that is sent as it is: its content and a code.
const SENT_BYTES: u64 = 4097;

/// Bytes on the wire for a page that the destination has: its digest and a code.
const HELD_BYTES: u64 = 33;

/// Bytes on the wire for a page that was sent or named before: its number.
const AGAIN_BYTES: u64 = 3;

/// What there is to move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Pages of the VM.
    pub pages: u64,
    /// Pages of zeroes, and pages that have no memory.
    pub zero: u64,
    /// All others.
    pub non_zero: u64,
    /// Of those: pages of which the module cannot tell a digest.
    pub unreadable: u64,
    /// Of those: different contents.
    pub distinct: u64,
}

/// What one candidate spares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Pages that are not zero and that it has.
    pub held_pages: u64,
    /// Bytes that would have to be sent, before compression.
    pub send_bytes: u64,
}

/// Whether a candidate has a page with that digest.
pub type Holds<'a> = dyn Fn(&Digest) -> bool + 'a;

/// Reads `digests` once and says what there is to move, and what each of `candidates` spares.
///
/// Contents are told apart by 64 bits of their digest, which is enough to estimate.
///
/// # Errors
///
/// The digests cannot be read, or the memslots changed meanwhile.
pub fn estimate(
    digests: &mut Digests,
    candidates: &[&Holds<'_>],
) -> Result<(Load, Vec<Estimate>), Error> {
    let mut survey = Survey {
        load: Load::default(),
        seen: HashSet::new(),
        estimates: vec![Estimate::default(); candidates.len()],
    };
    while let Some((_, record)) = digests.read_next()? {
        survey.page(record.state, candidates);
    }
    digests.check_layout()?;
    Ok((survey.load, survey.estimates))
}

/// What was found until now.
struct Survey {
    /// What there is to move.
    load: Load,
    /// Which contents there were.
    seen: HashSet<u64>,
    /// What each candidate spares.
    estimates: Vec<Estimate>,
}

impl Survey {
    /// Looks at one page.
    // OVERFLOW: A file has fewer than 2^57 records.
    fn page(&mut self, state: PageState, candidates: &[&Holds<'_>]) {
        self.load.pages += 1;
        let zero = Digest(ZERO_DIGEST);
        match (state, digest_of(state)) {
            (PageState::Skipped, _) => {
                self.load.non_zero += 1;
                self.load.unreadable += 1;
                for estimate in &mut self.estimates {
                    estimate.send_bytes += SENT_BYTES;
                }
            }
            (_, Some(digest)) if digest != zero => self.content(&digest, candidates),
            _ => self.load.zero += 1,
        }
    }

    /// Looks at a page with content.
    fn content(&mut self, digest: &Digest, candidates: &[&Holds<'_>]) {
        self.load.non_zero += 1;
        let new = self.seen.insert(shortened(digest));
        self.load.distinct += u64::from(new);
        for (estimate, holds) in self.estimates.iter_mut().zip(candidates) {
            let held = holds(digest);
            estimate.held_pages += u64::from(held);
            estimate.send_bytes += match (new, held) {
                (false, _) => AGAIN_BYTES,
                (true, true) => HELD_BYTES,
                (true, false) => SENT_BYTES,
            };
        }
    }
}

/// The first 64 bits of a digest.
fn shortened(digest: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = digest.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of pages of these states by a candidate that has the pages of `has`.
    fn survey(states: &[PageState], has: &[Digest]) -> (Load, Estimate) {
        let mut survey = Survey {
            load: Load::default(),
            seen: HashSet::new(),
            estimates: vec![Estimate::default()],
        };
        for &state in states {
            survey.page(state, &[&|digest| has.contains(digest)]);
        }
        (survey.load, survey.estimates[0])
    }

    #[test]
    fn each_page_is_counted_once() {
        let (a, b) = (Digest([1; 32]), Digest([2; 32]));
        let states = [
            PageState::Merged {
                serial: 7,
                digest: a.0,
            },
            PageState::Unmerged { digest: b.0 },
            PageState::Unmerged { digest: a.0 },
            PageState::Unmerged {
                digest: ZERO_DIGEST,
            },
            PageState::Zero,
            PageState::Absent,
            PageState::Skipped,
        ];
        let (load, estimate) = survey(&states, &[a]);
        assert_eq!(
            load,
            Load {
                pages: 7,
                zero: 3,
                non_zero: 4,
                unreadable: 1,
                distinct: 2,
            }
        );
        assert_eq!(
            estimate,
            Estimate {
                held_pages: 2,
                send_bytes: 33 + 4097 + 3 + 4097,
            }
        );
    }

    #[test]
    fn nothing_costs_nothing() {
        assert_eq!(survey(&[], &[]), (Load::default(), Estimate::default()));
    }
}
