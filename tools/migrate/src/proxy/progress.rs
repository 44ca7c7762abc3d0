// SPDX-License-Identifier: GPL-2.0

//! What a session has done so far, and what it did in the end.

use std::sync::atomic::{
    AtomicBool,
    AtomicU64,
    AtomicU8,
    Ordering, //
};
use std::time::Instant;

use serde::Serialize;

use crate::proxy::threads::ThreadTime;

/// How far a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Phase {
    /// QEMU has not connected.
    Waiting,
    /// RAM waits for the receiver's filter.
    Filter,
    /// RAM is copied while the guest runs. A receiver does not understand the stream and stays here
    /// from its first block on.
    Ram,
    /// The guest stands still.
    Switchover,
    /// RAM is complete; the state of devices follows.
    Device,
    /// The guest runs at the destination and fetches the rest.
    Postcopy,
    /// The stream has ended and is delivered.
    Ended,
    /// It failed.
    Failed,
}

/// All phases by number.
const PHASES: [Phase; 8] = [
    Phase::Waiting,
    Phase::Filter,
    Phase::Ram,
    Phase::Switchover,
    Phase::Device,
    Phase::Postcopy,
    Phase::Ended,
    Phase::Failed,
];

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a session, which all of its threads add to.
        #[derive(Debug)]
        pub struct Progress {
            /// When the session began.
            began: Instant,
            /// The phase, by its number.
            phase: AtomicU8,
            /// Milliseconds after the beginning at which the guest was known to stand still; 0
            /// before.
            stopped_ms: AtomicU64,
            /// Milliseconds after the beginning at which QEMU connected; 0 before.
            connected_ms: AtomicU64,
            /// Nothing tells any more when RAM is complete.
            blind: AtomicBool,
            /// Everything that the destination needs to run the guest may have arrived there.
            complete: AtomicBool,
            $($(#[$doc])* pub(crate) $name: Count,)*
        }

        /// Counters of a session at one moment.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        pub struct Snapshot {
            /// How far it is.
            pub phase: Phase,
            /// Seconds since the session began to wait for QEMU.
            pub seconds: f64,
            /// Seconds since QEMU connected; 0 before.
            pub active_seconds: f64,
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Progress {
            /// All counters at zero.
            pub(crate) fn new() -> Self {
                Self {
                    began: Instant::now(),
                    phase: AtomicU8::new(Phase::Waiting as u8),
                    stopped_ms: AtomicU64::new(0),
                    connected_ms: AtomicU64::new(0),
                    blind: AtomicBool::new(false),
                    complete: AtomicBool::new(false),
                    $($name: Count::default(),)*
                }
            }

            /// The counters now. They are read one after the other, so their sums may be off by
            /// what happened between.
            pub fn snapshot(&self) -> Snapshot {
                Snapshot {
                    phase: self.phase(),
                    seconds: self.began.elapsed().as_secs_f64(),
                    active_seconds: self.active_seconds(),
                    $($name: self.$name.get(),)*
                }
            }
        }
    };
}

counters! {
    /// Connections of QEMU.
    channels,
    /// Bytes of guest memory, as QEMU announces them.
    ram_bytes,
    /// Bytes of QEMU's stream that were taken (sender) or delivered (receiver).
    stream_bytes,
    /// Bytes of QEMU's stream that the destination QEMU has taken.
    acked_bytes,
    /// Bytes from the sender to the receiver, without those of TLS.
    wire_bytes,
    /// Bytes from the receiver to the sender, without those of TLS.
    return_wire_bytes,
    /// Pages whose bytes were sent.
    pages_sent,
    /// Pages that were earlier in the stream.
    pages_back,
    /// Pages that the receiver had.
    pages_referenced,
    /// Whole pages of zeroes in the stream.
    pages_zero_body,
    /// Records of zero pages.
    pages_zero,
    /// Bytes that belong to no page.
    literal_bytes,
    /// Blocks.
    blocks,
    /// Pages that the receiver did not have after all.
    misses,
    /// Pages that were sent for those.
    healed,
    /// Pages that the filter holds.
    filter_pages,
    /// Bytes between the proxies that the filter took, without those of TLS.
    filter_bytes,
    /// Channels whose rest goes as plain bytes because something in it is unknown.
    opaque_channels,
    /// The round of copying, as whoever asks QEMU has set it.
    round,
    /// Milliseconds that RAM waited for the filter.
    filter_wait_ms,
    /// Bytes of QEMU's stream on their way.
    in_flight_bytes,
    /// Milliseconds from the first sign of the guest's stop in the stream to the destination's word
    /// that it has everything, begun ones included; 0 before, and at the receiver.
    switchover_ms,
}

/// A counter.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Adds `n`.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets it.
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// What it is.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Progress {
    /// Puts the round of copying in, which QEMU tells by QMP (`dirty-sync-count`).
    pub fn set_round(&self, round: u64) {
        self.round.set(round);
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        let number = usize::from(self.phase.load(Ordering::Relaxed));
        PHASES.get(number).copied().unwrap_or(Phase::Failed)
    }

    /// Goes on to `phase`; never back.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::Relaxed);
        if phase >= Phase::Switchover && phase < Phase::Ended {
            self.stopped();
        }
    }

    /// Notes that the guest stands still.
    pub(crate) fn stopped(&self) {
        let now = self.elapsed_ms();
        // The first sign counts; the others follow.
        let _ = self
            .stopped_ms
            .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Notes that what follows of the main stream is not understood.
    pub(crate) fn lose_sight(&self) {
        self.blind.store(true, Ordering::Relaxed);
    }

    /// Notes that bytes are sent. From those behind the end of RAM on, or behind what may be that,
    /// the destination may have everything.
    pub(crate) fn sending(&self) {
        let ended = matches!(self.phase(), Phase::Device | Phase::Postcopy);
        if ended || self.blind.load(Ordering::Relaxed) {
            self.completes();
        }
    }

    /// Notes that the destination may have everything with what follows.
    pub(crate) fn completes(&self) {
        self.complete.store(true, Ordering::Relaxed);
    }

    /// Whether the destination may have everything that it needs to run the guest.
    pub(crate) fn was_complete(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }

    /// Notes that the destination has said that it has everything.
    pub(crate) fn arrived(&self) {
        let stopped = self.stopped_ms.load(Ordering::Relaxed);
        if stopped != 0 && self.switchover_ms.get() == 0 {
            self.switchover_ms
                .set(self.elapsed_ms().saturating_sub(stopped).max(1));
        }
    }

    /// Notes that QEMU has opened one more connection.
    pub(crate) fn connected(&self) {
        let now = self.elapsed_ms();
        // The first one counts; it is no error that others come later.
        let _ = self
            .connected_ms
            .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        self.channels.add(1);
    }

    /// Seconds since QEMU connected.
    fn active_seconds(&self) -> f64 {
        match self.connected_ms.load(Ordering::Relaxed) {
            0 => 0.0,
            since => self.elapsed_ms().saturating_sub(since) as f64 / 1e3,
        }
    }

    /// Milliseconds since the beginning, at least 1.
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis())
            .unwrap_or(u64::MAX)
            .max(1)
    }
}

/// A place from which a channel goes as plain bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpaqueNote {
    /// Number of the connection.
    pub channel: u16,
    /// Offset in its stream.
    pub offset: u64,
    /// What was found there.
    pub reason: String,
}

/// What a source of pages did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceCount {
    /// Which one.
    pub name: String,
    /// Pages that it gave.
    pub hits: u64,
    /// Pages that it did not have.
    pub misses: u64,
    /// Pages that it gave with other bytes than asked for.
    pub wrong: u64,
    /// Times that it failed.
    pub errors: u64,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The counters.
    pub totals: Snapshot,
    /// Whether it came to its end, and the destination QEMU itself said that it is good.
    pub completed: bool,
    /// What the destination QEMU said: 0 is good; empty if that could not be read.
    pub destination: Option<u32>,
    /// Where channels turned to plain bytes because something was unknown.
    pub opaque: Vec<OpaqueNote>,
    /// The sources of pages, at the receiver.
    pub sources: Vec<SourceCount>,
    /// Processor time of the threads.
    pub threads: Vec<ThreadTime>,
    /// Software of the other end.
    pub peer: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_only_go_on() {
        let progress = Progress::new();
        for (enter, then) in [
            (Phase::Ram, Phase::Ram),
            (Phase::Filter, Phase::Ram),
            (Phase::Device, Phase::Device),
            (Phase::Switchover, Phase::Device),
            (Phase::Ended, Phase::Ended),
        ] {
            progress.enter(enter);
            assert_eq!(progress.phase(), then);
        }
    }

    #[test]
    fn time_counts_from_the_first_connection() {
        let progress = Progress::new();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(progress.snapshot().active_seconds, 0.0);
        progress.connected();
        std::thread::sleep(std::time::Duration::from_millis(20));
        progress.connected();
        let seen = progress.snapshot();
        assert_eq!(seen.channels, 2);
        assert!(
            (0.015..seen.seconds).contains(&seen.active_seconds),
            "{seen:?}"
        );
    }

    #[test]
    fn the_first_sign_of_the_stop_counts() {
        let progress = Progress::new();
        progress.stopped();
        std::thread::sleep(std::time::Duration::from_millis(30));
        progress.enter(Phase::Switchover);
        progress.arrived();
        assert!(progress.snapshot().switchover_ms >= 25);
    }

    #[test]
    fn a_stop_too_short_to_measure_is_still_known() {
        let progress = Progress::new();
        progress.enter(Phase::Switchover);
        progress.arrived();
        assert!(progress.snapshot().switchover_ms > 0);
    }

    #[test]
    fn the_stop_is_timed_from_the_switchover_to_the_last_word() {
        let progress = Progress::new();
        progress.arrived();
        assert_eq!(progress.snapshot().switchover_ms, 0);
        progress.enter(Phase::Switchover);
        std::thread::sleep(std::time::Duration::from_millis(30));
        progress.enter(Phase::Device);
        progress.arrived();
        let first = progress.snapshot().switchover_ms;
        assert!((25..10_000).contains(&first), "{first}");
    }
}
