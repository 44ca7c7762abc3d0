// SPDX-License-Identifier: GPL-2.0

//! The store of a fleet, on real servers.

use std::collections::HashSet;
use std::io::{
    Read,
    Write, //
};
use std::net::TcpListener;
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_store::{
    Admit,
    Digest,
    Error,
    Fleet,
    FleetOptions,
    PageSource,
    SourceId,
    Sources,
    Trust, //
};

use crate::pages::{
    digest,
    offer,
    page, //
};
use crate::servers::{
    Access,
    Cluster,
    Maker, //
};

/// Makes a test of each function, with the servers of each maker.
macro_rules! with_servers_of_each_maker {
    ($($test:ident,)*) => {
        mod redis {
            $(#[test] fn $test() { super::$test(super::Maker::Redis) })*
        }

        mod valkey {
            $(#[test] fn $test() { super::$test(super::Maker::Valkey) })*
        }
    };
}

with_servers_of_each_maker! {
    one_server_has_all_slots,
    three_servers_share_the_slots,
    a_password_is_asked_for,
    tls_is_used_and_certificates_are_checked,
    enough_sources_admit_a_page_and_others_leave_a_tag_only,
    without_a_key_only_public_pages_are_taken,
    wrong_values_are_no_pages,
    keys_of_others_are_no_digests,
    a_server_that_dies_gives_errors_in_bounded_time,
}

/// How a cluster is reached.
fn open(cluster: &Cluster, access: Access) -> FleetOptions {
    let mut options = FleetOptions::new(cluster.url(access));
    options.plaintext = access != Access::Tls;
    // The servers share this machine with other tests.
    options.connect_timeout = Duration::from_secs(30);
    options.reply_timeout = Duration::from_secs(30);
    options
}

/// How a cluster is reached, with a key to count with.
fn options(cluster: &Cluster, access: Access) -> FleetOptions {
    let mut options = open(cluster, access);
    options.key = Some([3; 32]);
    if access == Access::Tls {
        options.ca = Some(cluster.authority());
    }
    options
}

/// Loads pages and checks that they, and no others, are there.
fn load_and_fetch(fleet: &Fleet, pages: u64) {
    let mut load = fleet.load().unwrap();
    for number in 0..pages {
        offer(&mut load, "public", Trust::Public, number);
    }
    load.finish().unwrap();
    assert_eq!(
        (load.loaded().offered, load.loaded().admitted),
        (pages, pages)
    );
    offer(&mut load, "public", Trust::Public, 0);
    load.finish().unwrap();
    assert_eq!(load.loaded().present, 1);
    let mut into = [0; 4096];
    for number in (0..pages).step_by(7) {
        assert!(
            fleet.fetch(&digest(number), &mut into).unwrap(),
            "page {number}"
        );
        assert_eq!(into, page(number));
    }
    assert!(!fleet.fetch(&digest(pages), &mut into).unwrap());
    let mut listed = HashSet::new();
    fleet
        .digests(&mut |digest| listed.extend([digest]))
        .unwrap();
    assert_eq!(listed, (0..pages).map(digest).collect());
}

fn one_server_has_all_slots(maker: Maker) {
    let cluster = Cluster::start(maker, 1, Access::Open);
    let fleet = Fleet::connect(options(&cluster, Access::Open)).unwrap();
    load_and_fetch(&fleet, 3000);
    let stat = fleet.stat().unwrap();
    assert_eq!((stat.servers, stat.keys), (1, 3000));
}

fn three_servers_share_the_slots(maker: Maker) {
    let cluster = Cluster::start(maker, 3, Access::Open);
    let fleet = Fleet::connect(options(&cluster, Access::Open)).unwrap();
    load_and_fetch(&fleet, 3000);
    let stat = fleet.stat().unwrap();
    assert_eq!((stat.servers, stat.keys), (3, 3000));
    for node in 0..3 {
        let keys: u64 = cluster
            .tell(node, Access::Open, &["DBSIZE"])
            .trim()
            .parse()
            .unwrap();
        assert!(
            (500..1500).contains(&keys),
            "{keys} keys of 3000 on server {node}"
        );
    }
    // Many ask at once.
    thread::scope(|scope| {
        for first in 0..8 {
            let fleet = &fleet;
            scope.spawn(move || {
                let mut into = [0; 4096];
                for number in (first..3000).step_by(8) {
                    assert!(fleet.fetch(&digest(number), &mut into).unwrap());
                    assert_eq!(into, page(number));
                }
            });
        }
    });
}

fn a_password_is_asked_for(maker: Maker) {
    let access = Access::Password("open-sesame");
    let cluster = Cluster::start(maker, 1, access);
    let fleet = Fleet::connect(options(&cluster, access)).unwrap();
    load_and_fetch(&fleet, 300);
    for access in [Access::Open, Access::Password("guess-me")] {
        let error = Fleet::connect(open(&cluster, access)).err().unwrap();
        assert!(!matches!(error, Error::Plaintext));
        let error = error.chain();
        assert!(!error.contains("guess-me"), "{error}");
    }
}

fn tls_is_used_and_certificates_are_checked(maker: Maker) {
    let cluster = Cluster::start(maker, 2, Access::Tls);
    let fleet = Fleet::connect(options(&cluster, Access::Tls)).unwrap();
    load_and_fetch(&fleet, 300);
    // The authority is unknown to the system, and the servers do not speak without TLS.
    let mut unknown = options(&cluster, Access::Tls);
    unknown.ca = None;
    assert!(Fleet::connect(unknown).is_err());
    assert!(Fleet::connect(options(&cluster, Access::Open)).is_err());
}

fn enough_sources_admit_a_page_and_others_leave_a_tag_only(maker: Maker) {
    let cluster = Cluster::start(maker, 1, Access::Open);
    let mut options = options(&cluster, Access::Open);
    options.sources_needed = 3;
    let fleet = Fleet::connect(options).unwrap();
    let mut into = [0; 4096];
    for (source, present) in [
        ("one", false),
        ("two", false),
        ("two", false),
        ("three", true),
    ] {
        // Each host of the fleet loads by itself.
        let mut load = fleet.load().unwrap();
        offer(&mut load, source, Trust::Counted, 1);
        offer(&mut load, source, Trust::Counted, 1);
        offer(&mut load, source, Trust::Counted, 100 + source.len() as u64);
        load.finish().unwrap();
        assert_eq!(load.loaded().offered, 3);
        assert_eq!(
            fleet.fetch(&digest(1), &mut into).unwrap(),
            present,
            "{source}"
        );
    }
    assert_eq!(into, page(1));
    // The page, and tags of 103 (seen by "one" and "two") and 105.
    assert_eq!(fleet.stat().unwrap().keys, 3);
    let keys = cluster.tell(0, Access::Open, &["--no-raw", "KEYS", "twinpage:1:seen:*"]);
    assert_eq!(keys.lines().count(), 2, "{keys}");
    let life: u64 = {
        let script = "return redis.call('TTL', redis.call('KEYS', 'twinpage:1:seen:*')[1])";
        cluster
            .tell(0, Access::Open, &["EVAL", script, "0"])
            .trim()
            .parse()
            .unwrap()
    };
    assert!((29 * 86_400..=30 * 86_400).contains(&life), "{life} s");
}

fn without_a_key_only_public_pages_are_taken(maker: Maker) {
    let cluster = Cluster::start(maker, 1, Access::Open);
    let fleet = Fleet::connect(open(&cluster, Access::Open)).unwrap();
    let mut load = fleet.load().unwrap();
    let refused = load.offer(&SourceId::new("a"), Trust::Counted, &digest(1), &page(1));
    assert!(matches!(refused, Err(Error::NoKey)));
    offer(&mut load, "a", Trust::Public, 2);
    load.offer(
        &SourceId::new("a"),
        Trust::Public,
        &Digest::ZERO_PAGE,
        &[0; 4096],
    )
    .unwrap();
    load.finish().unwrap();
    assert_eq!((load.loaded().admitted, load.loaded().zero), (1, 1));
    load.offer(&SourceId::new("a"), Trust::Public, &digest(3), &page(4))
        .unwrap();
    assert!(matches!(load.finish(), Err(Error::WrongDigest { .. })));
}

fn wrong_values_are_no_pages(maker: Maker) {
    let cluster = Cluster::start(maker, 1, Access::Open);
    let fleet = Fleet::connect(options(&cluster, Access::Open)).unwrap();
    let mut load = fleet.load().unwrap();
    for number in 0..3 {
        offer(&mut load, "public", Trust::Public, number);
    }
    load.finish().unwrap();
    let set = |script: &str| cluster.tell(0, Access::Open, &["EVAL", script, "0"]);
    let all = "for i, k in ipairs(redis.call('KEYS', 'twinpage:1:page:*')) do ";
    set(&format!(
        "{all} redis.call('SET', k, string.rep('x', 4096)) end return 1"
    ));
    let mut sources = Sources::new();
    sources.push(Box::new(fleet));
    let mut into = [0; 4096];
    assert_eq!(sources.fetch(&digest(0), &mut into), None);
    assert_eq!((sources.counts()[0].wrong, into), (1, [0; 4096]));
    // Much too long, too short, and of another type.
    for value in [
        "'SET', k, string.rep('x', 9999999)",
        "'SET', k, 'x'",
        "'HSET', k, 'x', 'x'",
    ] {
        set(&format!(
            "{all} redis.call('DEL', k) redis.call({value}) end return 1"
        ));
        assert_eq!(sources.fetch(&digest(1), &mut into), None);
    }
    assert_eq!(sources.counts()[0].errors, 3);
}

fn keys_of_others_are_no_digests(maker: Maker) {
    let cluster = Cluster::start(maker, 1, Access::Open);
    let fleet = Fleet::connect(options(&cluster, Access::Open)).unwrap();
    for key in ["twinpage:1:page:", "twinpage:1:page:short", "other"] {
        cluster.tell(0, Access::Open, &["SET", key, "x"]);
    }
    fleet.digests(&mut |digest| panic!("{digest}")).unwrap();
}

fn a_server_that_dies_gives_errors_in_bounded_time(maker: Maker) {
    let mut cluster = Cluster::start(maker, 3, Access::Open);
    let mut options = options(&cluster, Access::Open);
    options.connect_timeout = Duration::from_secs(5);
    options.reply_timeout = Duration::from_secs(5);
    let fleet = Fleet::connect(options).unwrap();
    load_and_fetch(&fleet, 300);
    cluster.nodes.iter_mut().for_each(|node| node.kill());
    let mut sources = Sources::new().with_error_limit(2);
    sources.push(Box::new(fleet));
    let since = Instant::now();
    for number in 0..100 {
        assert_eq!(sources.fetch(&digest(number), &mut [0; 4096]), None);
    }
    assert!(
        since.elapsed() < Duration::from_secs(60),
        "{:?}",
        since.elapsed()
    );
    assert!(sources.counts()[0].set_aside);
}

/// Serves every connection with `answer`, for as long as the test runs.
fn serve(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut request = [0; 4096];
                while stream.read(&mut request).is_ok_and(|count| count > 0) {
                    if stream.write_all(answer).is_err() {
                        break;
                    }
                }
            });
        }
    });
    format!("redis://{address}")
}

#[test]
fn plaintext_has_to_be_asked_for() {
    let options = FleetOptions::new("redis://:open-sesame@127.0.0.1:1");
    let error = Fleet::connect(options).err().unwrap();
    assert!(matches!(error, Error::Plaintext), "{}", error.chain());
}

#[test]
fn servers_that_are_none_give_errors_in_bounded_time() {
    let answers: [&[u8]; 7] = [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$99999999999999\r\n",
        b"*1000000000\r\n",
        b"*1\r\n*3\r\n:0\r\n:99999999\r\n$1\r\nx\r\n",
        b"+OK\r\n",
        b"-ERR This instance has cluster support disabled\r\n",
    ];
    for answer in answers {
        let mut options = FleetOptions::new(serve(answer));
        options.plaintext = true;
        options.connect_timeout = Duration::from_millis(300);
        options.reply_timeout = Duration::from_millis(300);
        let since = Instant::now();
        assert!(
            Fleet::connect(options).is_err(),
            "{}",
            answer.escape_ascii()
        );
        assert!(
            since.elapsed() < Duration::from_secs(60),
            "{}",
            answer.escape_ascii()
        );
    }
}
