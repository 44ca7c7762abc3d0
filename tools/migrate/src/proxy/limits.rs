// SPDX-License-Identifier: GPL-2.0

//! What a session may use, and what it may wait for.

use std::time::Duration;

use twinpage_wire::limits;

use crate::net;
use crate::proxy::error::Error;

/// Least size of a window: any single block fits in it.
pub const LEAST_WINDOW: u64 = 4 << 20;
/// Largest size of a window.
pub const MOST_WINDOW: u64 = 1 << 30;
/// Pages of a dictionary at most.
pub const MOST_DICTIONARY: u32 = 1 << 20;
/// Bytes of QEMU's stream in one block, but for the last push.
pub const BLOCK_STREAM_BYTES: usize = 1 << 20;

/// Limits of memory, time and numbers of a session.
///
/// # Memory
///
/// For each channel, with C = `dictionary_pages`, S = `stream_window`, W = `wire_window`:
///
/// - the sender holds at most 2 S of the stream (for pages that the receiver may ask for), 10
///   chunks of 256 KiB before the encoder, 10 blocks of at most 2.5 MiB after it (with the chunks
///   that their pages lie in, which are half full at least), and 128 bytes for each of the C
///   entries of its dictionary;
/// - the receiver holds at most 2 S of blocks that are decoded and of the pages that they refer to
///   (the decoder waits for the writer before it is more), W of blocks that are not decoded yet,
///   C * 5552 bytes of dictionary (pages stay in the memory that they came in, if they are three
///   quarters of it at least), and 20 blocks of at most 2 MiB that are in work or kept to be used
///   again.
///
/// With the defaults that is 95 MiB and 200 MiB at most; what is allocated grows with what is used.
/// Once for all channels: at the sender the filter (`filter_bytes`, twice that while it arrives);
/// at the receiver 2.25 bytes for each page that it offers, in each filter that is on its way, and
/// some 30 while one is made: for the migration, and for one plan at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bytes of QEMU's stream that are sent and not acknowledged.
    pub stream_window: u64,
    /// Bytes between the proxies that are sent and not acknowledged.
    pub wire_window: u64,
    /// Pages that both ends remember of each channel; 0: none.
    pub dictionary_pages: u32,
    /// Bytes of the largest filter that the sender takes.
    pub filter_bytes: u64,
    /// Connections of one QEMU.
    pub channels: u16,
    /// After so long without anything to say, each end says that it is there.
    pub ping: Duration,
    /// An end that says nothing for so long has gone.
    pub silence: Duration,
    /// How long the two ends may take to know each other.
    pub handshake: Duration,
    /// Threads that hash.
    pub threads: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stream_window: 32 << 20,
            wire_window: 8 << 20,
            dictionary_pages: limits::DICTIONARY_DEFAULT,
            filter_bytes: 256 << 20,
            channels: 64,
            ping: Duration::from_secs(5),
            silence: Duration::from_secs(30),
            handshake: Duration::from_secs(10),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl Limits {
    /// The limits of a link.
    pub(crate) fn of_link(&self) -> net::Limits {
        net::Limits {
            handshake: self.handshake,
            silence: self.silence,
        }
    }

    /// Refuses limits that cannot be used.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] names the first of them.
    pub fn check(&self) -> Result<(), Error> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let rows = [
            (
                "The stream window",
                self.stream_window,
                LEAST_WINDOW,
                MOST_WINDOW,
            ),
            (
                "The wire window",
                self.wire_window,
                LEAST_WINDOW,
                MOST_WINDOW,
            ),
            (
                "The dictionary",
                self.dictionary_pages.into(),
                0,
                MOST_DICTIONARY.into(),
            ),
            ("The number of channels", self.channels.into(), 1, 1024),
            ("The number of threads", self.threads as u64, 1, 1024),
            (
                "The time of silence in ms",
                ms(self.silence),
                100,
                3_600_000,
            ),
            (
                "The time between pings in ms",
                ms(self.ping),
                10,
                ms(self.silence) / 2,
            ),
        ];
        for (what, value, low, high) in rows {
            if value < low || value > high {
                return Err(Error::Limit {
                    what,
                    value,
                    low,
                    high,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_can_be_used() {
        Limits::default().check().unwrap();
    }

    #[test]
    fn what_cannot_work_is_named() {
        let refused = [
            Limits {
                stream_window: LEAST_WINDOW - 1,
                ..Limits::default()
            },
            Limits {
                wire_window: MOST_WINDOW + 1,
                ..Limits::default()
            },
            Limits {
                ping: Duration::from_secs(20),
                ..Limits::default()
            },
            Limits {
                threads: 0,
                ..Limits::default()
            },
        ];
        for limits in refused {
            assert!(matches!(limits.check(), Err(Error::Limit { .. })));
        }
    }
}
