// SPDX-License-Identifier: GPL-2.0

//! What is measured: workloads, links and methods, and which of them are wanted.

use std::fmt;

/// What a guest holds and does while it migrates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Workload {
    /// Debian; the destination's store holds what this very guest held.
    Ideal,
    /// Debian; the destination's store holds the image and what two other guests of it have in
    /// common.
    Realistic,
    /// Nearly all memory is random and rests.
    Random,
    /// Nearly all memory is random and is rewritten all the time.
    Rewritten,
}

/// What is between the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// 100 Mbit/s.
    Slow,
    /// 1 Gbit/s.
    Gigabit,
    /// As fast as this machine is.
    Unlimited,
}

/// Who migrates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// QEMU alone.
    Plain,
    /// QEMU alone, two channels compressed with zstd.
    MultifdZstd,
    /// QEMU alone, which sends differences of pages that it sent before.
    Xbzrle,
    /// Twinpage between two unmodified QEMUs.
    Twinpage,
}

impl Workload {
    /// All of them.
    pub const ALL: [Workload; 4] = [
        Workload::Ideal,
        Workload::Realistic,
        Workload::Random,
        Workload::Rewritten,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Ideal => "ideal",
            Workload::Realistic => "realistic",
            Workload::Random => "random",
            Workload::Rewritten => "rewritten",
        }
    }
}

impl Link {
    /// All of them.
    pub const ALL: [Link; 3] = [Link::Slow, Link::Gigabit, Link::Unlimited];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Link::Slow => "100mbit",
            Link::Gigabit => "1gbit",
            Link::Unlimited => "unlimited",
        }
    }

    /// Its rate in each direction.
    pub fn bits_per_second(self) -> Option<u64> {
        match self {
            Link::Slow => Some(100_000_000),
            Link::Gigabit => Some(1_000_000_000),
            Link::Unlimited => None,
        }
    }
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 4] = [
        Method::Plain,
        Method::MultifdZstd,
        Method::Xbzrle,
        Method::Twinpage,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Method::Plain => "qemu",
            Method::MultifdZstd => "qemu-multifd-zstd",
            Method::Xbzrle => "qemu-xbzrle",
            Method::Twinpage => "twinpage",
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// What migrates.
    pub workload: Workload,
    /// Over what.
    pub link: Link,
    /// By whom.
    pub method: Method,
}

/// The measurements that the words of `--only` choose: of each kind those that are named, or all
/// when none is.
///
/// # Errors
///
/// A word that names nothing.
pub fn choose(words: &[String]) -> Result<Vec<Case>, String> {
    let known = |word: &str| {
        Workload::ALL.iter().any(|workload| workload.name() == word)
            || Link::ALL.iter().any(|link| link.name() == word)
            || Method::ALL.iter().any(|method| method.name() == word)
    };
    if let Some(word) = words.iter().find(|word| !known(word)) {
        return Err(format!("'{word}' is no workload, link or method"));
    }
    let workloads = named(&Workload::ALL, words, Workload::name);
    let links = named(&Link::ALL, words, Link::name);
    let methods = named(&Method::ALL, words, Method::name);
    let mut cases = Vec::new();
    for &workload in &workloads {
        for &link in &links {
            cases.extend(methods.iter().map(|&method| Case {
                workload,
                link,
                method,
            }));
        }
    }
    Ok(cases)
}

/// Those of a kind that are named, or all of it.
fn named<T: Copy>(all: &[T], words: &[String], name: fn(T) -> &'static str) -> Vec<T> {
    let chosen: Vec<T> = all
        .iter()
        .copied()
        .filter(|&one| words.iter().any(|word| word == name(one)))
        .collect();
    if chosen.is_empty() {
        return all.to_vec();
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn nothing_named_is_everything() {
        assert_eq!(choose(&[]).unwrap().len(), 4 * 3 * 4);
    }

    #[test]
    fn words_of_different_kinds_narrow_and_of_one_kind_widen() {
        let cases = choose(&words("ideal 1gbit 100mbit twinpage")).unwrap();
        assert_eq!(cases.len(), 2);
        assert!(cases.iter().all(|case| case.workload == Workload::Ideal));
        assert!(choose(&words("ideal 2gbit")).is_err());
    }
}
