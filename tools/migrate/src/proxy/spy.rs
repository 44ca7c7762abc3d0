// SPDX-License-Identifier: GPL-2.0

//! Reads along the destination's return path for the one word that matters: SHUT.
//!
//! The return path is forwarded as bytes whatever this finds (`migration/migration.c`, messages of
//! `MIG_RP_MSG_*`: be16 type, be16 length, payload). The answer only tells a report whether the
//! real destination called the migration good.

/// `MIG_RP_MSG_SHUT`.
const SHUT: u16 = 1;
/// `MIG_RP_MSG_RECV_BITMAP`, whose payload is followed by bytes that its length does not count.
const RECV_BITMAP: u16 = 5;
/// The largest type that QEMU 11 knows.
const LAST_KNOWN: u16 = 7;

/// A reader of a return path.
#[derive(Debug, Default)]
pub struct Spy {
    /// Bytes of a header or a SHUT that is not complete.
    held: Vec<u8>,
    /// Bytes of a payload still to pass over.
    skip: usize,
    /// Something unknown passed: nothing after it can be told apart.
    blind: bool,
    /// The status of SHUT.
    shut: Option<u32>,
}

impl Spy {
    /// Takes the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.blind {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let Some((byte, rest)) = bytes.split_first() else {
                return;
            };
            self.held.push(*byte);
            bytes = rest;
            self.step();
        }
    }

    /// The status of SHUT, if it passed: 0 is good.
    pub fn shut(&self) -> Option<u32> {
        self.shut
    }

    /// Whether something passed after which nothing can be told.
    pub fn blind(&self) -> bool {
        self.blind
    }

    /// Acts on what is held, if it is complete.
    fn step(&mut self) {
        let [a, b, c, d, payload @ ..] = self.held.as_slice() else {
            return;
        };
        let kind = u16::from_be_bytes([*a, *b]);
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        match (kind, payload) {
            (SHUT, [w, x, y, z]) => {
                self.shut = Some(u32::from_be_bytes([*w, *x, *y, *z]));
                self.held.clear();
            }
            (SHUT, _) if length == 4 => (),
            (RECV_BITMAP | SHUT | 0, _) => self.blind = true,
            (kind, _) if kind > LAST_KNOWN => self.blind = true,
            _ => {
                self.skip = length;
                self.held.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PONG: [u8; 8] = [0, 2, 0, 4, 0, 0, 0, 1];
    const REQ_PAGES: [u8; 16] = [0, 4, 0, 12, 1, 2, 3, 4, 0, 1, 0, 4, 9, 9, 9, 9];

    fn told(bytes: &[u8], step: usize) -> (Option<u32>, bool) {
        let mut spy = Spy::default();
        bytes.chunks(step).for_each(|part| spy.feed(part));
        (spy.shut(), spy.blind())
    }

    #[test]
    fn shut_is_found_behind_other_messages_in_any_pieces() {
        for status in [0, 7] {
            let shut = [0, 1, 0, 4, 0, 0, 0, status];
            let all = [&PONG[..], &REQ_PAGES, &PONG, &shut].concat();
            for step in [1, 3, 8, 100] {
                assert_eq!(told(&all, step), (Some(u32::from(status)), false));
            }
        }
    }

    #[test]
    fn bytes_inside_another_message_are_no_shut() {
        let all = [&[0, 4, 0, 8, 0, 1, 0, 4, 0, 0, 0, 0][..], &PONG].concat();
        assert_eq!(told(&all, 5), (None, false));
    }

    #[test]
    fn unknown_messages_make_blind() {
        let shut = [0, 1, 0, 4, 0, 0, 0, 0];
        for first in [[0, 5, 0, 1, 0], [0, 9, 0, 0, 0], [0, 0, 0, 0, 0]] {
            assert_eq!(told(&[&first[..], &shut].concat(), 2), (None, true));
        }
    }
}
