// SPDX-License-Identifier: GPL-2.0

//! The chain of sources believes none of them.

use std::collections::HashMap;
use std::sync::{
    Arc,
    Mutex, //
};
use std::thread;
use std::time::Duration;

use twinpage_store::{
    Digest,
    Error,
    Notice,
    Page,
    PageSource,
    SourceCount,
    Sources, //
};

use crate::pages::{
    digest,
    page, //
};

/// What a source does when it is asked.
enum Habit {
    Honest(HashMap<Digest, Page>),
    Wrong,
    Fails,
    Hangs,
}

/// A source of a habit.
struct Fake(&'static str, Habit);

impl PageSource for Fake {
    fn name(&self) -> &'static str {
        self.0
    }

    fn digests(&self, each: &mut dyn FnMut(Digest)) -> Result<(), Error> {
        match &self.1 {
            Habit::Honest(pages) => pages.keys().copied().for_each(each),
            Habit::Wrong => [digest(7), Digest::ZERO_PAGE].into_iter().for_each(each),
            Habit::Fails | Habit::Hangs => return Err(Error::other("Cannot list", "no list")),
        }
        Ok(())
    }

    fn fetch(&self, digest: &Digest, into: &mut Page) -> Result<bool, Error> {
        into.fill(0x5a);
        match &self.1 {
            Habit::Honest(pages) => Ok(pages.get(digest).map(|page| *into = *page).is_some()),
            Habit::Wrong => Ok(true),
            Habit::Fails => Err(Error::other("Cannot read", "no disk")),
            Habit::Hangs => {
                thread::sleep(Duration::from_secs(1));
                Err(Error::other("Cannot read", "no answer"))
            }
        }
    }
}

fn honest(name: &'static str, numbers: &[u64]) -> Fake {
    let pages = numbers
        .iter()
        .map(|number| (digest(*number), page(*number)))
        .collect();
    Fake(name, Habit::Honest(pages))
}

fn chain(sources: Vec<Fake>) -> (Sources, Arc<Mutex<Vec<Notice>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    let mut chain = Sources::new()
        .with_error_limit(3)
        .with_notices(move |notice| ear.lock().unwrap().push(notice.clone()));
    for source in sources {
        chain.push(Box::new(source));
    }
    (chain, heard)
}

#[test]
fn the_first_that_has_a_page_gives_it() {
    let (chain, _) = chain(vec![honest("module", &[1]), honest("store", &[1, 2])]);
    let mut into = [0; 4096];
    assert_eq!(chain.names(), ["module", "store"]);
    assert_eq!(chain.fetch(&digest(1), &mut into), Some("module"));
    assert_eq!(into, page(1));
    assert_eq!(chain.fetch(&digest(2), &mut into), Some("store"));
    assert_eq!(into, page(2));
    assert_eq!(chain.fetch(&digest(3), &mut into), None);
    assert_eq!(into, [0; 4096]);
    let of = |name, hits, misses| SourceCount {
        name,
        enabled: true,
        set_aside: false,
        hits,
        misses,
        wrong: 0,
        errors: 0,
    };
    assert_eq!(chain.counts(), [of("module", 1, 2), of("store", 1, 1)]);
}

#[test]
fn wrong_pages_are_never_handed_out() {
    let (chain, heard) = chain(vec![Fake("module", Habit::Wrong), honest("store", &[1])]);
    let mut into = [0; 4096];
    assert_eq!(chain.fetch(&digest(1), &mut into), Some("store"));
    assert_eq!(into, page(1));
    for _ in 0..5 {
        assert_eq!(chain.fetch(&digest(9), &mut into), None);
        assert_eq!(into, [0; 4096]);
    }
    let module = chain.counts()[0];
    assert_eq!((module.hits, module.wrong, module.set_aside), (0, 3, true));
    let heard = heard.lock().unwrap();
    assert!(
        matches!(heard[0], Notice::Wrong { asked, .. } if asked == digest(1)),
        "{heard:?}"
    );
    assert!(
        matches!(
            heard[1],
            Notice::SetAside {
                name: "module",
                after: 3
            }
        ),
        "{heard:?}"
    );
    assert_eq!(heard.len(), 2);
}

#[test]
fn a_source_that_fails_is_set_aside_and_said_once() {
    let (chain, heard) = chain(vec![Fake("fleet", Habit::Fails), honest("store", &[1])]);
    let mut into = [0; 4096];
    for _ in 0..10 {
        assert_eq!(chain.fetch(&digest(1), &mut into), Some("store"));
    }
    assert_eq!(chain.counts()[0].errors, 3);
    let texts: Vec<_> = heard
        .lock()
        .unwrap()
        .iter()
        .map(Notice::to_string)
        .collect();
    let expected = [
        "Pages from the fleet: Cannot read: no disk",
        "Pages from the fleet: not asked any more after 3 failures",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn a_source_that_hangs_is_set_aside_after_two_failures() {
    let (chain, heard) = chain(vec![Fake("fleet", Habit::Hangs)]);
    let chain = chain.with_error_limit(8);
    let mut into = [0; 4096];
    for _ in 0..3 {
        assert_eq!(chain.fetch(&digest(1), &mut into), None);
    }
    assert_eq!(chain.counts()[0].errors, 2);
    let (name, after) = ("fleet", 2);
    assert_eq!(
        heard.lock().unwrap().last(),
        Some(&Notice::SetAside { name, after })
    );
}

#[test]
fn a_source_that_cannot_be_opened_is_said_and_counted_and_never_asked() {
    let (mut chain, heard) = chain(Vec::new());
    chain.leave_out("fleet", "no answer".to_owned());
    chain.push(Box::new(honest("store", &[1])));
    let mut into = [0; 4096];
    assert_eq!(chain.fetch(&digest(1), &mut into), Some("store"));
    let mut wanted = [0; 8192];
    assert_eq!(chain.fetch_all(&[digest(1), digest(2)], &mut wanted), [1]);
    let mut all = Vec::new();
    chain.digests(&mut |digest| all.push(digest));
    assert_eq!(all, [digest(1)]);
    let fleet = chain.counts()[0];
    assert_eq!((fleet.name, fleet.set_aside), ("fleet", true));
    assert_eq!((fleet.errors, fleet.misses), (1, 0));
    let heard = heard.lock().unwrap();
    assert_eq!(heard.len(), 1, "{heard:?}");
    let text = "Pages from the fleet: left out, it cannot be opened: no answer";
    assert_eq!(heard[0].to_string(), text);
}

#[test]
fn sources_are_switched_by_name() {
    let (chain, _) = chain(vec![honest("module", &[1]), honest("store", &[1])]);
    let mut into = [0; 4096];
    assert!(chain.set_enabled("module", false));
    assert!(!chain.set_enabled("fleet", false));
    assert_eq!(chain.fetch(&digest(1), &mut into), Some("store"));
    assert!(chain.set_enabled("module", true));
    assert_eq!(chain.fetch(&digest(1), &mut into), Some("module"));
}

#[test]
fn digests_are_those_of_all_sources_but_no_zeros() {
    let (chain, heard) = chain(vec![
        honest("module", &[1]),
        Fake("fleet", Habit::Fails),
        Fake("store", Habit::Wrong),
    ]);
    let mut all = Vec::new();
    chain.digests(&mut |digest| all.push(digest));
    assert_eq!(all, [digest(1), digest(7)]);
    assert_eq!(chain.counts()[1].errors, 1);
    assert_eq!(heard.lock().unwrap().len(), 1);
}

#[test]
fn many_at_once_are_fetched_as_each_by_itself() {
    let fails = Fake("fleet", Habit::Fails);
    let (chain, _) = chain(vec![
        honest("module", &[1, 4, 5, 8]),
        Fake("liar", Habit::Wrong),
        fails,
        honest("store", &[2, 3, 4, 6]),
    ]);
    let wanted = [1, 2, 9, 3, 4, 4, 77, 5, 6, 8, 1];
    let digests = wanted.map(digest);
    let mut into = vec![0xff; 10 * 4096 + 7];
    assert_eq!(chain.fetch_all(&digests, &mut into), [2, 6, 10]);
    for (bytes, number) in into.chunks_exact(4096).zip(wanted) {
        let expected = match number {
            9 | 77 => [0; 4096],
            number => page(number),
        };
        assert!(bytes == expected, "page {number}");
    }
    let counts = chain.counts();
    let [module, liar, fleet, store] = [counts[0], counts[1], counts[2], counts[3]];
    assert_eq!((module.hits, module.misses), (5, 5));
    // Two pages are looked at together, so one more may be taken than by itself.
    assert!(liar.set_aside && (3..=4).contains(&liar.wrong), "{liar:?}");
    assert!(fleet.set_aside && fleet.errors == 3, "{fleet:?}");
    assert_eq!((store.hits, store.misses), (3, 2));
    assert!(chain.fetch_all(&[], &mut into).is_empty());
    assert_eq!(chain.fetch_all(&digests[..1], &mut []), [0]);
}
