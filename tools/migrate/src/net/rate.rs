// SPDX-License-Identifier: GPL-2.0

//! A limit of bytes per second that several writers can share.
//!
//! It is a token bucket written as a schedule: `next` is the time from which on the bytes granted
//! so far are paid for. Whoever takes bytes moves `next` on by what they cost and sleeps until
//! the bytes before were paid for. A writer that idles saves up at most [`BURST`] worth of bytes.
//! When the kernel wakes a sleeper late, that is not the writer's idleness, so the schedule keeps
//! it as credit, up to [`LATENESS`]: else the rate on a busy machine would be too low.

use std::num::NonZeroU64;
use std::sync::{
    Arc,
    Mutex,
    MutexGuard,
    PoisonError, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

/// How much time's worth of bytes an idle writer may send at once.
const BURST: Duration = Duration::from_millis(10);

/// How late a sleeper may wake up without losing what it could have sent.
const LATENESS: Duration = Duration::from_millis(100);

/// A writer should take no more bytes at once than this time's worth.
const STEP: Duration = Duration::from_millis(5);

/// Bounds of what a writer takes at once.
const CHUNK_BYTES: std::ops::RangeInclusive<u64> = 1500..=64 << 10;

/// A limit of bytes per second; clones share it.
#[derive(Clone, Debug)]
pub struct RateLimit {
    rate: NonZeroU64,
    schedule: Arc<Mutex<Schedule>>,
}

/// When the next byte may go.
#[derive(Debug)]
struct Schedule {
    /// From this time on all bytes granted so far are paid for.
    next: Instant,
    /// How much too late the last sleeper woke up, as far as it was not made good since.
    late: Duration,
}

impl RateLimit {
    /// A limit of so many bytes per second, with nothing saved up.
    pub fn new(bytes_per_second: NonZeroU64) -> Self {
        let schedule = Schedule {
            next: Instant::now(),
            late: Duration::ZERO,
        };
        Self {
            rate: bytes_per_second,
            schedule: Arc::new(Mutex::new(schedule)),
        }
    }

    /// The bytes per second.
    pub fn bytes_per_second(&self) -> u64 {
        self.rate.get()
    }

    /// How many bytes to take at once, so that the rate is smooth and sleeps are few.
    pub fn chunk(&self) -> usize {
        let step = u128::from(self.rate.get()) * STEP.as_micros() / 1_000_000;
        let step = u64::try_from(step).unwrap_or(u64::MAX);
        let chunk = step.clamp(*CHUNK_BYTES.start(), *CHUNK_BYTES.end());
        usize::try_from(chunk).unwrap_or(usize::MAX)
    }

    /// Sleeps until `bytes` more may go.
    pub fn take(&self, bytes: usize) {
        let due = self.reserve(bytes, Instant::now());
        let wait = due.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return;
        }
        thread::sleep(wait);
        let late = Instant::now().saturating_duration_since(due);
        self.schedule().late = late.min(LATENESS);
    }

    /// Enters `bytes` into the schedule at time `now` and says when they may go.
    fn reserve(&self, bytes: usize, now: Instant) -> Instant {
        let cost = self.cost(bytes);
        let mut schedule = self.schedule();
        let earliest = now.checked_sub(BURST + schedule.late).unwrap_or(now);
        let due = schedule.next.max(earliest);
        // OVERFLOW: a duration of 584 years is not reached by lengths of buffers in memory.
        schedule.next = due.checked_add(cost).unwrap_or(due);
        let behind = now.saturating_duration_since(schedule.next);
        schedule.late = schedule.late.min(behind.saturating_sub(BURST));
        due
    }

    /// How long `bytes` take at this rate.
    fn cost(&self, bytes: usize) -> Duration {
        let ns = bytes as u128 * 1_000_000_000 / u128::from(self.rate.get());
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// The schedule; a thread that panicked cannot have left it half done.
    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(rate: u64) -> RateLimit {
        RateLimit::new(NonZeroU64::new(rate).unwrap())
    }

    /// Takes chunks until `end` and says how many bytes that were.
    fn taken(limit: &RateLimit, end: Instant) -> usize {
        let mut bytes = 0;
        while Instant::now() < end {
            limit.take(limit.chunk());
            bytes += limit.chunk();
        }
        bytes
    }

    /// The same by four clones together.
    fn four_take(limit: &RateLimit, end: Instant) -> usize {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let limit = limit.clone();
                    scope.spawn(move || taken(&limit, end))
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        })
    }

    /// How many bytes per second `take` takes, which gets a second for that.
    fn measured(take: impl FnOnce(Instant) -> usize) -> f64 {
        let start = Instant::now();
        let bytes = take(start + Duration::from_secs(1));
        bytes as f64 / start.elapsed().as_secs_f64()
    }

    /// Measures until the rate is as high as it should be, since a machine that is busy with
    /// other things may not get there each time; it must never be higher.
    fn check(rate: u64, measure: impl Fn(&RateLimit) -> f64) {
        let found = (0..8).map(|_| {
            let found = measure(&limit(rate)) / rate as f64;
            assert!(found < 1.02, "{rate} B/s became {found} of that");
            found
        });
        assert!(
            found.into_iter().any(|found| found > 0.98),
            "{rate} B/s is never reached"
        );
    }

    #[test]
    fn a_second_is_exact_to_two_percent() {
        for rate in [1_000_000, 12_500_000, 125_000_000, 1_250_000_000] {
            check(rate, |limit| measured(|end| taken(limit, end)));
        }
    }

    #[test]
    fn clones_share_the_limit() {
        check(10_000_000, |limit| measured(|end| four_take(limit, end)));
    }

    #[test]
    fn idling_saves_up_no_more_than_the_burst() {
        let limit = limit(1_000_000);
        let later = Instant::now() + Duration::from_secs(3600);
        assert_eq!(limit.reserve(20_000, later), later - BURST);
        // 20,000 bytes cost 20 ms, of which the burst paid 10.
        assert_eq!(limit.reserve(1, later), later + BURST);
    }

    #[test]
    fn a_late_wake_up_is_made_good_but_no_more() {
        let limit = limit(1_000_000);
        let later = Instant::now() + Duration::from_secs(3600);
        let ms = Duration::from_millis;
        limit.schedule().late = ms(20);
        for granted in 0..6 {
            let due = limit.reserve(5_000, later);
            assert_eq!(due, later - BURST - ms(20) + ms(5) * granted);
        }
        assert_eq!(limit.reserve(5_000, later), later);
        let again = later + Duration::from_secs(1);
        assert_eq!(limit.reserve(0, again), again - BURST);
    }

    #[test]
    fn chunks_are_bounded() {
        assert_eq!(limit(1).chunk(), 1500);
        assert_eq!(limit(2_500_000).chunk(), 12_500);
        assert_eq!(limit(u64::MAX).chunk(), 64 << 10);
    }
}
