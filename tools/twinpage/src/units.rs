// SPDX-License-Identifier: GPL-2.0

//! Amounts on the command line: sizes, rates and ages with their units.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What bytes are counted in, largest first.
const SIZES: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// What bits a second are counted in, largest first.
const BITS: [(&str, u64); 4] = [
    ("Gbit", 1_000_000_000),
    ("Mbit", 1_000_000),
    ("kbit", 1_000),
    ("bit", 1),
];

/// What ages are counted in.
const AGES: [(&str, u64); 5] = [
    ("w", 7 * 86_400),
    ("d", 86_400),
    ("h", 3_600),
    ("m", 60),
    ("s", 1),
];

/// A number of bytes: `64MiB`, `64M` or `67108864`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Bytes a second: `100Mbit`, or a [`Size`] a second. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

/// A time gone by: `30d`, `12h`, `90m`, `45s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age(pub Duration);

/// What is wrong with the text of an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// It is no number with a unit of a size.
    #[error("A size is a number with B, KiB, MiB, GiB or TiB (or K, M, G, T for short)")]
    Size,
    /// It is no number with a unit of a rate.
    #[error("A rate is a number with kbit, Mbit or Gbit, or a size that passes in one second")]
    Rate,
    /// It is no number with a unit of an age.
    #[error("An age is a whole number with s, m, h, d or w")]
    Age,
    /// Nothing would ever pass.
    #[error("A rate is at least 8 bits a second")]
    Zero,
    /// It does not fit.
    #[error("The amount is too large")]
    Large,
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split(text);
        let factor = match unit {
            "" => Some(1),
            unit => SIZES.iter().find_map(|&(name, factor)| {
                let short = name.strip_suffix("iB").unwrap_or(name);
                (unit == name || unit == short).then_some(factor)
            }),
        };
        let factor = factor.ok_or(UnitError::Size)?;
        times(number, factor).ok_or(UnitError::Size)?.map(Self)
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split(text);
        let bits = BITS.iter().find(|(name, _)| *name == unit);
        let bytes = match bits {
            Some(&(_, factor)) => times(number, factor).ok_or(UnitError::Rate)?? / 8,
            None => match text.parse::<Size>() {
                Err(UnitError::Size) => return Err(UnitError::Rate),
                size => size?.0,
            },
        };
        match bytes {
            0 => Err(UnitError::Zero),
            bytes => Ok(Self(bytes)),
        }
    }
}

impl FromStr for Age {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split(text);
        let factor = AGES.iter().find(|(name, _)| *name == unit);
        let &(_, factor) = factor.ok_or(UnitError::Age)?;
        let number: u64 = match number.contains('.') {
            true => return Err(UnitError::Age),
            false => digits(number).ok_or(UnitError::Age)??,
        };
        let seconds = number.checked_mul(factor).ok_or(UnitError::Large)?;
        Ok(Self(Duration::from_secs(seconds)))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |&&(_, factor): &&(&str, u64)| self.0 >= factor;
        let &(name, factor) = SIZES.iter().find(fits).unwrap_or(&("B", 1));
        match factor {
            1 => write!(f, "{} {name}", self.0),
            // CAST: Rounded for display.
            factor => write!(f, "{:.1} {name}", self.0 as f64 / factor as f64),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Size(self.0))
    }
}

/// The number at the start of `text`, and what follows.
fn split(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    text.split_at(end)
}

/// The whole number `text`: nothing if it is none, an error if it is too large.
fn digits(text: &str) -> Option<Result<u64, UnitError>> {
    let all = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| text.parse().map_err(|_| UnitError::Large))
}

/// The decimal number `text` times `factor`, rounded down.
fn times(text: &str, factor: u64) -> Option<Result<u64, UnitError>> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let (whole, part_number) = (digits(whole)?, digits(part)?);
    let product = || {
        let whole = whole?.checked_mul(factor).ok_or(UnitError::Large)?;
        let places = u32::try_from(part.len()).map_err(|_| UnitError::Large)?;
        let scale = 10_u128.checked_pow(places).ok_or(UnitError::Large)?;
        let part = u128::from(part_number?) * u128::from(factor) / scale;
        // CAST: It is less than `factor`.
        whole.checked_add(part as u64).ok_or(UnitError::Large)
    };
    Some(product())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let table = [
            ("0", Ok(0)),
            ("4096", Ok(4096)),
            ("1K", Ok(1024)),
            ("1.5MiB", Ok(3 << 19)),
            ("2G", Ok(2 << 30)),
            ("16777215T", Ok(16_777_215 << 40)),
            ("0.0000001B", Ok(0)),
            ("16777216T", Err(UnitError::Large)),
            ("99999999999999999999", Err(UnitError::Large)),
            ("1.99999999999999999999", Err(UnitError::Large)),
            ("", Err(UnitError::Size)),
            ("M", Err(UnitError::Size)),
            ("1MB", Err(UnitError::Size)),
            ("1 M", Err(UnitError::Size)),
            ("-1", Err(UnitError::Size)),
            ("1.2.3M", Err(UnitError::Size)),
            (".5M", Err(UnitError::Size)),
            ("5.", Err(UnitError::Size)),
        ];
        for (text, size) in table {
            assert_eq!(text.parse::<Size>(), size.map(Size), "{text:?}");
        }
    }

    #[test]
    fn rates_are_read() {
        let table = [
            ("1Gbit", Ok(125_000_000)),
            ("100Mbit", Ok(12_500_000)),
            ("0.1kbit", Ok(12)),
            ("8bit", Ok(1)),
            ("12M", Ok(12 << 20)),
            ("7bit", Err(UnitError::Zero)),
            ("0", Err(UnitError::Zero)),
            ("1Tbit", Err(UnitError::Rate)),
            ("fast", Err(UnitError::Rate)),
            ("99999999999Gbit", Err(UnitError::Large)),
        ];
        for (text, rate) in table {
            assert_eq!(text.parse::<Rate>(), rate.map(Rate), "{text:?}");
        }
    }

    #[test]
    fn ages_are_read() {
        let table = [
            ("0s", Ok(0)),
            ("90m", Ok(5_400)),
            ("30d", Ok(2_592_000)),
            ("2w", Ok(1_209_600)),
            ("30", Err(UnitError::Age)),
            ("d", Err(UnitError::Age)),
            ("1.5d", Err(UnitError::Age)),
            ("99999999999999999999s", Err(UnitError::Large)),
            ("18446744073709551615w", Err(UnitError::Large)),
        ];
        for (text, seconds) in table {
            let age = seconds.map(Duration::from_secs).map(Age);
            assert_eq!(text.parse::<Age>(), age, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit() {
        let table = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (u64::MAX, "16777216.0 TiB"),
        ];
        for (size, text) in table {
            assert_eq!(Size(size).to_string(), text);
        }
        assert_eq!(Rate(12_500_000).to_string(), "11.9 MiB/s");
    }
}
