// SPDX-License-Identifier: GPL-2.0

//! The settings, their names and ranges.
//!
//! Names and meanings are those of KSM where KSM has them. [`Knob`] is what sysfs shows as a file;
//! a value that is out of range changes nothing.

use core::fmt;

/// Whether the scanner works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// It does not.
    Stop,
    /// It merges.
    Merge,
    /// It gives every page its own copy back, then stops.
    Unmerge,
}

/// What decides how fast the scanner goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advisor {
    /// `sleep_millisecs` after each `pages_to_scan`.
    None,
    /// A share of one CPU.
    Cpu,
}

/// All settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// Whether the scanner works.
    pub run: Run,
    /// Pages a batch.
    pub pages_to_scan: u32,
    /// Pause between batches without an advisor.
    pub sleep_ms: u32,
    /// Whether pages of zeroes map the shared zero page.
    pub use_zero_pages: bool,
    /// Whether pages that never merge are looked at less often.
    pub smart_scan: bool,
    /// Pages that may map one merged copy.
    pub max_page_sharing: u32,
    /// Whether pages of different NUMA nodes may be one.
    pub merge_across_nodes: bool,
    /// What decides how fast the scanner goes.
    pub advisor: Advisor,
    /// CPU time that the scanner may take, percent of one CPU.
    pub advisor_max_cpu: u32,
    /// Pages of a huge page that must merge to make it worth splitting.
    pub thp_split_threshold: u32,
    /// Neighbouring pages that are replaced together.
    pub merge_batch: u32,
    /// Merged pages of a guest that may break in a second before it is backed off; 0: any number.
    pub max_break_rate: u32,
    /// Whether unloading gives every page its own copy back.
    pub unmerge_on_exit: bool,
}

impl Knobs {
    /// The settings of a freshly loaded module.
    pub const DEFAULT: Self = Self {
        run: Run::Merge,
        pages_to_scan: 4096,
        sleep_ms: 20,
        use_zero_pages: true,
        smart_scan: true,
        max_page_sharing: 256,
        merge_across_nodes: true,
        advisor: Advisor::Cpu,
        advisor_max_cpu: 5,
        thp_split_threshold: 64,
        merge_batch: 32,
        max_break_rate: 10_000,
        unmerge_on_exit: false,
    };

    /// Returns the number that stands for the setting `knob`.
    pub fn get(&self, knob: Knob) -> u32 {
        match knob {
            Knob::Run => match self.run {
                Run::Stop => 0,
                Run::Merge => 1,
                Run::Unmerge => 2,
            },
            Knob::PagesToScan => self.pages_to_scan,
            Knob::SleepMillisecs => self.sleep_ms,
            Knob::UseZeroPages => u32::from(self.use_zero_pages),
            Knob::SmartScan => u32::from(self.smart_scan),
            Knob::MaxPageSharing => self.max_page_sharing,
            Knob::MergeAcrossNodes => u32::from(self.merge_across_nodes),
            Knob::AdvisorMode => match self.advisor {
                Advisor::None => 0,
                Advisor::Cpu => 1,
            },
            Knob::AdvisorMaxCpu => self.advisor_max_cpu,
            Knob::ThpSplitThreshold => self.thp_split_threshold,
            Knob::MergeBatch => self.merge_batch,
            Knob::MaxBreakRate => self.max_break_rate,
            Knob::UnmergeOnExit => u32::from(self.unmerge_on_exit),
        }
    }

    /// Changes the setting `knob` to what `text` says, with or without a newline.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if it is not a value of that knob; nothing changes.
    pub fn store(&mut self, knob: Knob, text: &[u8]) -> Result<(), Invalid> {
        let text = text.trim_ascii();
        let value = match knob {
            Knob::AdvisorMode => match text {
                b"none" => 0,
                b"cpu" => 1,
                _ => return Err(Invalid),
            },
            _ => parse(text)?,
        };
        self.set(knob, value)
    }

    /// Changes the setting `knob` to what `value` stands for.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if it is not a value of that knob; nothing changes.
    pub fn set(&mut self, knob: Knob, value: u32) -> Result<(), Invalid> {
        let range = knob.range();
        if value < range.min || value > range.max {
            return Err(Invalid);
        }
        match knob {
            Knob::Run => {
                self.run = match value {
                    0 => Run::Stop,
                    1 => Run::Merge,
                    _ => Run::Unmerge,
                }
            }
            Knob::PagesToScan => self.pages_to_scan = value,
            Knob::SleepMillisecs => self.sleep_ms = value,
            Knob::UseZeroPages => self.use_zero_pages = value != 0,
            Knob::SmartScan => self.smart_scan = value != 0,
            Knob::MaxPageSharing => self.max_page_sharing = value,
            Knob::MergeAcrossNodes => self.merge_across_nodes = value != 0,
            Knob::AdvisorMode => {
                self.advisor = if value == 0 {
                    Advisor::None
                } else {
                    Advisor::Cpu
                }
            }
            Knob::AdvisorMaxCpu => self.advisor_max_cpu = value,
            Knob::ThpSplitThreshold => self.thp_split_threshold = value,
            Knob::MergeBatch => self.merge_batch = value,
            Knob::MaxBreakRate => self.max_break_rate = value,
            Knob::UnmergeOnExit => self.unmerge_on_exit = value != 0,
        }
        Ok(())
    }

    /// Returns the text of the file of `knob`, without a newline.
    pub fn show(&self, knob: Knob) -> Shown {
        Shown(knob, self.get(knob))
    }
}

impl Default for Knobs {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The text is not a value of the knob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// What values a knob has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The smallest one.
    pub min: u32,
    /// The largest one.
    pub max: u32,
}

/// A setting that has a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knob {
    /// [`Knobs::run`].
    Run,
    /// [`Knobs::pages_to_scan`].
    PagesToScan,
    /// [`Knobs::sleep_ms`].
    SleepMillisecs,
    /// [`Knobs::use_zero_pages`].
    UseZeroPages,
    /// [`Knobs::smart_scan`].
    SmartScan,
    /// [`Knobs::max_page_sharing`].
    MaxPageSharing,
    /// [`Knobs::merge_across_nodes`].
    MergeAcrossNodes,
    /// [`Knobs::advisor`].
    AdvisorMode,
    /// [`Knobs::advisor_max_cpu`].
    AdvisorMaxCpu,
    /// [`Knobs::thp_split_threshold`].
    ThpSplitThreshold,
    /// [`Knobs::merge_batch`].
    MergeBatch,
    /// [`Knobs::max_break_rate`].
    MaxBreakRate,
    /// [`Knobs::unmerge_on_exit`].
    UnmergeOnExit,
}

impl Knob {
    /// Every knob.
    pub const ALL: [Self; 13] = [
        Self::Run,
        Self::PagesToScan,
        Self::SleepMillisecs,
        Self::UseZeroPages,
        Self::SmartScan,
        Self::MaxPageSharing,
        Self::MergeAcrossNodes,
        Self::AdvisorMode,
        Self::AdvisorMaxCpu,
        Self::ThpSplitThreshold,
        Self::MergeBatch,
        Self::MaxBreakRate,
        Self::UnmergeOnExit,
    ];

    /// Returns the name of the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::PagesToScan => "pages_to_scan",
            Self::SleepMillisecs => "sleep_millisecs",
            Self::UseZeroPages => "use_zero_pages",
            Self::SmartScan => "smart_scan",
            Self::MaxPageSharing => "max_page_sharing",
            Self::MergeAcrossNodes => "merge_across_nodes",
            Self::AdvisorMode => "advisor_mode",
            Self::AdvisorMaxCpu => "advisor_max_cpu",
            Self::ThpSplitThreshold => "thp_split_threshold",
            Self::MergeBatch => "merge_batch",
            Self::MaxBreakRate => "max_break_rate",
            Self::UnmergeOnExit => "unmerge_on_exit",
        }
    }

    /// Returns what values it has.
    pub const fn range(self) -> Range {
        let (min, max) = match self {
            Self::Run => (0, 2),
            Self::PagesToScan => (1, 1_048_576),
            Self::SleepMillisecs => (0, 60_000),
            Self::MaxPageSharing => (2, 65_536),
            Self::AdvisorMaxCpu => (1, 100),
            Self::ThpSplitThreshold | Self::MergeBatch => (1, 512),
            Self::MaxBreakRate => (0, 1_000_000),
            Self::UseZeroPages
            | Self::SmartScan
            | Self::MergeAcrossNodes
            | Self::AdvisorMode
            | Self::UnmergeOnExit => (0, 1),
        };
        Range { min, max }
    }
}

/// The text of a knob's file.
#[derive(Clone, Copy, Debug)]
pub struct Shown(Knob, u32);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.1) {
            (Knob::AdvisorMode, 0) => f.write_str("[none] cpu"),
            (Knob::AdvisorMode, _) => f.write_str("none [cpu]"),
            (_, value) => fmt::Display::fmt(&value, f),
        }
    }
}

/// Reads a decimal number.
fn parse(text: &[u8]) -> Result<u32, Invalid> {
    if text.is_empty() {
        return Err(Invalid);
    }
    text.iter().try_fold(0_u32, |value, byte| {
        let digit = byte
            .checked_sub(b'0')
            .filter(|digit| *digit < 10)
            .ok_or(Invalid)?;
        value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u32::from(digit)))
            .ok_or(Invalid)
    })
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_knobs))]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_values_and_their_neighbours_are_not() {
        for knob in Knob::ALL {
            let Range { min, max } = knob.range();
            let mut knobs = Knobs::DEFAULT;
            assert_eq!(knobs.set(knob, max), Ok(()));
            assert_eq!(knobs.get(knob), max);
            assert_eq!(knobs.set(knob, max.wrapping_add(1)), Err(Invalid));
            assert_eq!(knobs.get(knob), max);
            assert_eq!(knobs.set(knob, min), Ok(()));
            assert_eq!(knobs.get(knob), min);
            if let Some(below) = min.checked_sub(1) {
                assert_eq!(knobs.set(knob, below), Err(Invalid));
                assert_eq!(knobs.get(knob), min);
            }
        }
    }

    #[test]
    fn defaults_are_in_range() {
        for knob in Knob::ALL {
            let value = Knobs::DEFAULT.get(knob);
            assert_eq!(Knobs::default().set(knob, value), Ok(()));
        }
    }

    #[test]
    fn only_clean_decimal_numbers_are_read() {
        let good: [(&[u8], u32); 5] = [
            (b"0", 0),
            (b"17\n", 17),
            (b" 60000 ", 60_000),
            (b"007", 7),
            (b"20", 20),
        ];
        for (text, value) in good {
            let mut knobs = Knobs::DEFAULT;
            assert_eq!(knobs.store(Knob::SleepMillisecs, text), Ok(()));
            assert_eq!(knobs.sleep_ms, value);
        }
        let bad: [&[u8]; 9] = [
            b"",
            b"\n",
            b"-1",
            b"+1",
            b"0x10",
            b"1 2",
            b"60001",
            b"4294967296",
            b"99999999999999999999",
        ];
        for text in bad {
            let mut knobs = Knobs::DEFAULT;
            assert_eq!(knobs.store(Knob::SleepMillisecs, text), Err(Invalid));
            assert_eq!(knobs, Knobs::DEFAULT);
        }
    }

    #[test]
    fn the_advisor_has_names_not_numbers() {
        let mut knobs = Knobs::DEFAULT;
        assert_eq!(knobs.store(Knob::AdvisorMode, b"0"), Err(Invalid));
        assert_eq!(knobs.store(Knob::AdvisorMode, b"none\n"), Ok(()));
        assert_eq!(knobs.advisor, Advisor::None);
        assert_eq!(knobs.store(Knob::AdvisorMode, b"scan-time"), Err(Invalid));
        assert_eq!(knobs.advisor, Advisor::None);
        assert_eq!(knobs.store(Knob::AdvisorMode, b"cpu"), Ok(()));
        assert_eq!(knobs.advisor, Advisor::Cpu);
    }
}
