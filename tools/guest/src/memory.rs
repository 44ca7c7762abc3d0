// SPDX-License-Identifier: GPL-2.0

//! The pages a guest holds: some never change, some never rest.

use crate::config::Config;
use crate::pattern::{
    checksum,
    key,
    mix,
    Mismatch,
    Page, //
};

/// Separates the seeds of the regions.
const OWN: u64 = 1 << 32;
const DUP: u64 = 2 << 32;
const CHURN: u64 = 3 << 32;

/// A page that does not hold what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    /// The region the page is in.
    pub region: &'static str,
    /// Its number there.
    pub page: usize,
    /// The first word that differs.
    pub mismatch: Mismatch,
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} page {} {}", self.region, self.page, self.mismatch)
    }
}

/// Attaches the place to a difference.
fn at(region: &'static str, page: usize) -> impl FnOnce(Mismatch) -> Bad {
    move |mismatch| Bad {
        region,
        page,
        mismatch,
    }
}

/// Pages that do not change once they are filled.
pub struct Still {
    config: Config,
    common: Vec<Page>,
    own: Vec<Page>,
    dup: Vec<Page>,
    zero: Vec<Page>,
}

impl Still {
    /// Takes the memory and fills it.
    pub fn fill(config: &Config) -> Still {
        let mut still = Still {
            config: config.clone(),
            common: vec![Page::ZERO; Config::pages(config.common)],
            own: vec![Page::ZERO; Config::pages(config.own)],
            dup: vec![Page::ZERO; Config::pages(config.dup)],
            zero: vec![Page::ZERO; Config::pages(config.zero)],
        };
        let keys = Keys(config.clone());
        fill(&mut still.common, |index| keys.common(index));
        fill(&mut still.own, |index| keys.own(index));
        fill(&mut still.dup, |index| keys.dup(index));
        // Zero pages of the host's page tables do not count: these were really used.
        fill(&mut still.zero, |index| keys.own(index) ^ 1);
        still.zero.iter_mut().for_each(|page| page.0.fill(0));
        still
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.common.len() + self.own.len() + self.dup.len() + self.zero.len()
    }

    /// A checksum over all of them.
    pub fn sum(&self) -> u64 {
        checksum(
            self.common
                .iter()
                .chain(&self.own)
                .chain(&self.dup)
                .chain(&self.zero),
        )
    }

    /// Compares every page with what it should hold.
    ///
    /// # Errors
    ///
    /// The first page that differs.
    pub fn verify(&self) -> Result<(), Bad> {
        let keys = Keys(self.config.clone());
        let check = |region, pages: &[Page], key: &dyn Fn(usize) -> u64| {
            pages
                .iter()
                .enumerate()
                .try_for_each(|(index, page)| page.holds(key(index)).map_err(at(region, index)))
        };
        check("common", &self.common, &|index| keys.common(index))?;
        check("own", &self.own, &|index| keys.own(index))?;
        check("dup", &self.dup, &|index| keys.dup(index))?;
        self.zero
            .iter()
            .enumerate()
            .try_for_each(|(index, page)| page.is_zero().map_err(at("zero", index)))
    }

    /// Writes to `count` common pages, checks that only that word changed, and undoes it.
    ///
    /// # Errors
    ///
    /// The first page that differs.
    pub fn write(&mut self, count: usize) -> Result<usize, Bad> {
        let keys = Keys(self.config.clone());
        let count = count.min(self.common.len());
        for (index, page) in self.common.iter_mut().enumerate().take(count) {
            let word = mix(index as u64) as usize % page.0.len();
            let old = page.0[word];
            page.0[word] = !old;
            let expected = !old;
            let seen = std::hint::black_box(&*page).0[word];
            if seen != expected {
                let offset = word * 8;
                return Err(at("common", index)(Mismatch {
                    offset,
                    expected,
                    seen,
                }));
            }
            page.0[word] = old;
            page.holds(keys.common(index))
                .map_err(at("common", index))?;
        }
        Ok(count)
    }
}

/// Fills each page with the content of its key.
fn fill(pages: &mut [Page], key: impl Fn(usize) -> u64) {
    for (index, page) in pages.iter_mut().enumerate() {
        page.fill(key(index));
    }
}

/// Which key belongs to which page.
struct Keys(Config);

impl Keys {
    fn common(&self, index: usize) -> u64 {
        key(self.0.image, index as u64)
    }

    fn own(&self, index: usize) -> u64 {
        key(OWN + self.0.seed, index as u64)
    }

    fn dup(&self, index: usize) -> u64 {
        key(DUP + self.0.seed, (index / Config::REPEATS) as u64)
    }
}

/// Pages that never stop changing; each holds a sequence number of its own.
///
/// A page's whole content follows from its sequence number, so a lost or a foreign byte shows.
pub struct Churn {
    seed: u64,
    pages: Vec<Page>,
    sequence: Vec<u64>,
    next: usize,
}

impl Churn {
    /// Takes the memory and writes every page once.
    pub fn new(config: &Config) -> Churn {
        let count = Config::pages(config.churn);
        let mut churn = Churn {
            seed: CHURN + config.seed,
            pages: vec![Page::ZERO; count],
            sequence: vec![0; count],
            next: 0,
        };
        churn.step(count);
        churn
    }

    /// Rewrites the next `count` pages, each after checking it.
    ///
    /// # Errors
    ///
    /// A page that does not hold what was last written to it is left as it is.
    pub fn advance(&mut self, count: usize) -> Result<(), Bad> {
        for _ in 0..count.min(self.pages.len()) {
            self.check(self.next)?;
            self.step(1);
        }
        Ok(())
    }

    /// Compares every page with what was last written to it.
    ///
    /// # Errors
    ///
    /// The first page that differs.
    pub fn verify(&self) -> Result<(), Bad> {
        (0..self.pages.len()).try_for_each(|index| self.check(index))
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// How many pages were written so far.
    pub fn written(&self) -> u64 {
        self.sequence.iter().sum()
    }

    fn check(&self, index: usize) -> Result<(), Bad> {
        let key = self.key(index) ^ self.sequence[index];
        self.pages[index].holds(key).map_err(at("churn", index))
    }

    fn key(&self, index: usize) -> u64 {
        key(self.seed, index as u64)
    }

    fn step(&mut self, count: usize) {
        for _ in 0..count {
            let index = self.next;
            self.sequence[index] += 1;
            let key = self.key(index) ^ self.sequence[index];
            self.pages[index].fill(key);
            self.next = (index + 1) % self.pages.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(seed: u64) -> Config {
        Config {
            seed,
            common: 1,
            own: 1,
            dup: 1,
            zero: 1,
            churn: 1,
            ..Config::default()
        }
    }

    #[test]
    fn two_guests_of_an_image_share_the_common_pages_only() {
        let (a, b) = (Still::fill(&small(1)), Still::fill(&small(2)));
        assert_eq!(checksum(&a.common), checksum(&b.common));
        assert_ne!(checksum(&a.own), checksum(&b.own));
        assert_ne!(checksum(&a.dup), checksum(&b.dup));
        assert_ne!(a.sum(), b.sum());
        assert_eq!(a.pages(), 1024);
    }

    #[test]
    fn writing_leaves_the_sum_as_it_was() {
        let mut still = Still::fill(&small(1));
        let sum = still.sum();
        assert_eq!(still.write(100), Ok(100));
        assert_eq!(still.sum(), sum);
        assert_eq!(still.verify(), Ok(()));
    }

    #[test]
    fn a_foreign_byte_is_named() {
        let mut still = Still::fill(&small(1));
        still.dup[5].0[1] ^= 1;
        let bad = still.verify().unwrap_err();
        assert_eq!((bad.region, bad.page, bad.mismatch.offset), ("dup", 5, 8));
    }

    #[test]
    fn the_churn_checks_itself() {
        let mut churn = Churn::new(&small(1));
        assert_eq!(churn.advance(300), Ok(()));
        assert_eq!(churn.written(), 256 + 256);
        assert_eq!(churn.verify(), Ok(()));
        churn.pages[9].0[0] ^= 1;
        assert_eq!(churn.verify().unwrap_err().page, 9);
        assert_eq!(churn.advance(256).unwrap_err().page, 9);
    }
}
