// SPDX-License-Identifier: GPL-2.0

//! Asking a host what it holds.

use std::sync::atomic::{
    AtomicUsize,
    Ordering, //
};
use std::sync::{
    Arc,
    RwLock, //
};
use std::time::{
    Duration,
    Instant, //
};

use twinpage_migrate::net::Security;
use twinpage_migrate::proxy::{
    plan,
    receive,
    Error,
    Limits, //
};
use twinpage_store::{
    Digest,
    Sources, //
};

use crate::common::{
    finish,
    source,
    Setup,
    Shelf, //
};
use crate::pages;

fn host(dir: &std::path::Path, shelf: Shelf) -> twinpage_migrate::proxy::Handle {
    let mut sources = Sources::new();
    sources.push(Box::new(shelf));
    let sources = Arc::new(sources);
    let listen = format!("unix:{}", dir.join("plan.sock").display());
    let options = receive::Options::new(
        listen.parse().unwrap(),
        Security::Insecure,
        None,
        Arc::new(move |domain| match domain {
            "web" => Ok(Arc::clone(&sources)),
            other => Err(format!("no domain {other:?} here")),
        }),
    );
    receive::start(options).unwrap()
}

fn query(to: &str, domain: &str) -> plan::Query {
    plan::Query {
        to: to.parse().unwrap(),
        security: Security::Insecure,
        domain: domain.to_owned(),
        patience: crate::common::LIMIT,
        limits: Limits::default(),
    }
}

#[test]
fn a_host_tells_what_it_holds_to_any_number_of_askers() {
    let dir = tempfile::tempdir().unwrap();
    let all = pages(3000, 40);
    let held = &all[..2000];
    let host = host(dir.path(), Shelf::of(held.iter().map(Vec::as_slice)));
    for _ in 0..3 {
        let holdings = plan::holdings(&query(&host.address(), "web")).unwrap();
        assert_eq!(holdings.pages(), 2000);
        assert!(holdings.software().starts_with("twinpage"));
        let has = |page: &Vec<u8>| {
            let page = page.as_slice().try_into().unwrap();
            holdings.contains(&Digest::of(page))
        };
        assert!(held.iter().all(has));
        assert!(all[2000..].iter().filter(|page| has(page)).count() < 5);
        assert!(holdings.bytes() < 2000 * 4);
    }
    host.cancel();
    assert!(matches!(finish(host), Err(Error::Cancelled)));
}

#[test]
fn a_host_without_pages_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), Shelf::default());
    let holdings = plan::holdings(&query(&host.address(), "web")).unwrap();
    assert_eq!(holdings.pages(), 0);
    assert!(!holdings.contains(&Digest::of(&[1; 4096])));
}

#[test]
fn what_is_refused_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), Shelf::default());
    let Err(error) = plan::holdings(&query(&host.address(), "other")) else {
        panic!("domain other was not refused");
    };
    assert!(
        error.to_string().contains("no domain \"other\" here"),
        "{error}"
    );
    let mut small = query(&host.address(), "web");
    small.to = format!("unix:{}", dir.path().join("nobody").display())
        .parse()
        .unwrap();
    assert!(plan::holdings(&small).is_err());
}

#[test]
fn a_filter_that_is_too_large_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let all = pages(2000, 41);
    let host = host(dir.path(), Shelf::of(all.iter().map(Vec::as_slice)));
    let mut small = query(&host.address(), "web");
    small.limits.filter_bytes = 1000;
    assert!(plan::holdings(&small).is_err());
    let mut setup = Setup::default().holding(Shelf::of(all.iter().map(Vec::as_slice)));
    setup.send.filter_bytes = 1000;
    let (sent, _) = crate::common::moves(setup, &crate::stream(&all, 1));
    assert_eq!(sent.totals.pages_referenced, 0);
    assert_eq!(sent.totals.pages_sent, 2000);
}

#[test]
fn a_host_for_plans_takes_no_migration() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), Shelf::default());
    let path = dir.path().join("send.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let input = twinpage_migrate::proxy::send::Input::Listener(listener, path.clone());
    let mut options = twinpage_migrate::proxy::send::Options::new(
        input,
        host.address().parse().unwrap(),
        Security::Insecure,
    );
    options.domain = "web".to_owned();
    let sender = twinpage_migrate::proxy::send::start(options).unwrap();
    source(&path, b"QEVM", 100, true);
    let error = finish(sender).unwrap_err().to_string();
    assert!(error.contains("only answers plan requests"), "{error}");
}

/// More than a thread of a busy machine runs late.
const SILENCE: Duration = Duration::from_secs(5);

/// A source that takes its time before it says anything.
struct Slow;

impl twinpage_store::PageSource for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn digests(&self, each: &mut dyn FnMut(Digest)) -> Result<(), twinpage_store::Error> {
        std::thread::sleep(SILENCE + Duration::from_secs(1));
        each(Digest::of(&[1; 4096]));
        Ok(())
    }

    fn fetch(
        &self,
        _: &Digest,
        _: &mut twinpage_store::Page,
    ) -> Result<bool, twinpage_store::Error> {
        Ok(false)
    }
}

#[test]
fn a_host_that_takes_long_to_look_says_that_it_is_there() {
    let listen = "127.0.0.1:0".parse().unwrap();
    let mut options = receive::Options::new(
        listen,
        Security::Insecure,
        None,
        Arc::new(|_| {
            let mut sources = Sources::new();
            sources.push(Box::new(Slow));
            Ok(Arc::new(sources))
        }),
    );
    options.limits.ping = Duration::from_millis(100);
    let host = receive::start(options).unwrap();
    let mut query = query(&host.address(), "");
    query.limits.silence = SILENCE;
    query.limits.ping = Duration::from_millis(100);
    assert_eq!(plan::holdings(&query).unwrap().pages(), 1);
}

/// A source of many digests.
pub struct Many(pub u64);

impl twinpage_store::PageSource for Many {
    fn name(&self) -> &'static str {
        "many"
    }

    fn digests(&self, each: &mut dyn FnMut(Digest)) -> Result<(), twinpage_store::Error> {
        let mut dice = crate::common::synth::Dice(1);
        for _ in 0..self.0 {
            let mut digest = [0; 32];
            dice.fill(&mut digest);
            each(Digest(digest));
        }
        Ok(())
    }

    fn fetch(
        &self,
        _: &Digest,
        _: &mut twinpage_store::Page,
    ) -> Result<bool, twinpage_store::Error> {
        Ok(false)
    }
}

#[test]
fn no_answer_is_lost_at_its_end() {
    for security in [
        Security::Insecure,
        Security::Psk(twinpage_migrate::net::Psk::generate().unwrap()),
    ] {
        let options = receive::Options::new(
            "127.0.0.1:0".parse().unwrap(),
            security.clone(),
            None,
            Arc::new(|_| {
                let mut sources = Sources::new();
                sources.push(Box::new(Many(700_000)));
                Ok(Arc::new(sources))
            }),
        );
        let host = receive::start(options).unwrap();
        for _ in 0..10 {
            let mut query = query(&host.address(), "");
            query.security = security.clone();
            let holdings = plan::holdings(&query).unwrap();
            assert_eq!(holdings.pages(), 700_000);
            assert!(holdings.bytes() > 1 << 20);
        }
    }
}

/// A source that says nothing while a test holds the lock, and counts who waits for it.
struct Held(Arc<RwLock<()>>, Arc<AtomicUsize>);

impl twinpage_store::PageSource for Held {
    fn name(&self) -> &'static str {
        "held"
    }

    fn digests(&self, each: &mut dyn FnMut(Digest)) -> Result<(), twinpage_store::Error> {
        self.1.fetch_add(1, Ordering::SeqCst);
        drop(self.0.read().unwrap());
        self.1.fetch_sub(1, Ordering::SeqCst);
        each(Digest::of(&[1; 4096]));
        Ok(())
    }

    fn fetch(
        &self,
        _: &Digest,
        _: &mut twinpage_store::Page,
    ) -> Result<bool, twinpage_store::Error> {
        Ok(false)
    }
}

/// A host whose pages are such a source's.
fn held_host(
    path: &std::path::Path,
    lock: &Arc<RwLock<()>>,
    waiting: &Arc<AtomicUsize>,
) -> twinpage_migrate::proxy::Handle {
    let (shared, counted) = (Arc::clone(lock), Arc::clone(waiting));
    let mut options = receive::Options::new(
        format!("unix:{}", path.display()).parse().unwrap(),
        Security::Insecure,
        None,
        Arc::new(move |_| {
            let mut sources = Sources::new();
            sources.push(Box::new(Held(Arc::clone(&shared), Arc::clone(&counted))));
            Ok(Arc::new(sources))
        }),
    );
    options.limits.ping = Duration::from_millis(50);
    receive::start(options).unwrap()
}

#[test]
fn filters_are_made_one_after_the_other() {
    let (lock, waiting) = (Arc::new(RwLock::new(())), Arc::new(AtomicUsize::new(0)));
    let dir = tempfile::tempdir().unwrap();
    let host = held_host(&dir.path().join("plan.sock"), &lock, &waiting);
    let address = host.address();
    std::thread::scope(|scope| {
        let held = lock.write().unwrap();
        let askers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| plan::holdings(&query(&address, "")).unwrap().pages()))
            .collect();
        crate::common::until(|| waiting.load(Ordering::SeqCst) > 0);
        // Time for the others to begin as well.
        std::thread::sleep(Duration::from_millis(500));
        let most = waiting.load(Ordering::SeqCst);
        drop(held);
        for asker in askers {
            assert_eq!(asker.join().unwrap(), 1);
        }
        assert_eq!(most, 1);
    });
}

#[test]
fn askers_that_leave_do_not_pile_up_work() {
    const CONNECTIONS: usize = 64;
    let (lock, waiting) = (Arc::new(RwLock::new(())), Arc::new(AtomicUsize::new(0)));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plan.sock");
    let host = held_host(&path, &lock, &waiting);
    let held = lock.write().unwrap();
    for _ in 0..3 {
        for _ in 0..CONNECTIONS / 2 {
            crate::hostile::asks_and_leaves(&path);
        }
        // Long enough for the host to see that nobody is there any more.
        std::thread::sleep(Duration::from_millis(500));
    }
    let most = waiting.load(Ordering::SeqCst);
    assert!((1..=CONNECTIONS).contains(&most), "{most}");
    drop(held);
    let end = Instant::now() + crate::common::LIMIT;
    let mut query = query(&host.address(), "");
    query.limits.ping = Duration::from_millis(50);
    while plan::holdings(&query).is_err() {
        assert!(Instant::now() < end, "the host does not recover");
    }
}
