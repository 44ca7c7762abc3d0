// SPDX-License-Identifier: GPL-2.0

//! The client of the monitor against monitors that behave in all ways.

use std::time::{
    Duration,
    Instant, //
};

use serde_json::{
    json,
    Value, //
};
use twinpage_migrate::net::Address;
use twinpage_migrate::qmp::{
    Client,
    Error,
    Version,
    PATIENCE, //
};

use crate::fake::{
    Fake,
    Reply,
    GREETING, //
};

fn greeting() -> String {
    format!("{}\n", GREETING.replace('\n', ""))
}

/// A client of a monitor that answers all but the first command with `reply`.
fn client(mut reply: impl FnMut() -> Reply + Send + 'static) -> (Fake, Client) {
    let fake = Fake::new(greeting(), move |command, _| match command {
        "qmp_capabilities" => Reply::Return(json!({})),
        _ => reply(),
    });
    let client = Client::connect_within(fake.address(), Duration::from_secs(5)).unwrap();
    (fake, client)
}

#[test]
fn the_greeting_tells_the_version() {
    let (_fake, client) = client(|| Reply::Hang);
    let version = Version {
        major: 10,
        minor: 0,
        micro: 3,
    };
    assert_eq!(client.version(), version);
    assert_eq!(client.version().to_string(), "10.0.3");
    assert_eq!(client.user(), Some(rustix::process::geteuid().as_raw()));
}

#[test]
fn what_is_no_monitor_is_recognised() {
    let long = vec![b'['; 6 << 20];
    let deep = [vec![b'['; 100_000], b"\n".to_vec()].concat();
    for (greeting, reason) in [
        (
            &b"SSH-2.0-OpenSSH_9.2p1\r\n"[..],
            "\"SSH-2.0-OpenSSH_9.2p1\\r\" is no JSON",
        ),
        (b"\xff\x00\n", "\"\\xff\\x00\" is no JSON"),
        (b"{}\n", "no greeting"),
        (b"[1]\n", "no greeting"),
        (b"{\"QMP\": 5}\n", "no greeting"),
        (&long, "longer than 4 MiB"),
        (&deep, "no JSON"),
    ] {
        let fake = Fake::new(greeting, |_, _| Reply::Hang);
        let error = Client::connect(fake.address()).err().unwrap().to_string();
        assert!(error.contains(reason), "{error}");
        assert!(error.len() < 400);
    }
}

#[test]
fn a_silent_or_absent_monitor_is_given_up() {
    let fake = Fake::new("", |_, _| Reply::Hang);
    let start = Instant::now();
    let error = Client::connect_within(fake.address(), Duration::from_millis(200));
    let error = error.err().unwrap();
    assert!(
        error
            .to_string()
            .contains("did not answer with its greeting within 0.2 s"),
        "{error}"
    );
    assert!(start.elapsed() < PATIENCE);
    let nobody: Address = "unix:/nonexistent/qmp".parse().unwrap();
    let error = Client::connect(&nobody).err().unwrap();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert!(error.is_gone());
}

#[test]
fn a_refusal_has_class_and_description() {
    let (_fake, mut client) = client(|| Reply::Refuse("no such thing"));
    match client.execute("stop", Value::Null) {
        Err(Error::Refused {
            command,
            class,
            desc,
        }) => assert_eq!(
            (&*command, &*class, &*desc),
            ("stop", "GenericError", "no such thing")
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_that_comes_too_late_is_not_taken_for_another() {
    let mut turn = 0;
    let (_fake, mut client) = client(move || {
        turn += 1;
        match turn {
            1 => Reply::Hang,
            _ => Reply::Raw(
                b"{\"return\": \"late\", \"id\": 2}\n{\"return\": 7, \"id\": ID}\n".into(),
            ),
        }
    });
    let limit = Duration::from_millis(100);
    let error = client
        .execute_within("query-status", Value::Null, limit)
        .unwrap_err();
    assert!(matches!(error, Error::Slow { .. }), "{error}");
    assert!(!error.is_gone());
    assert_eq!(client.execute("query-status", Value::Null).unwrap(), 7);
}

#[test]
fn an_answer_in_pieces_is_put_together() {
    let text = "x".repeat(300_000);
    let expected = text.clone();
    let (_fake, mut client) = client(move || Reply::Return(text.clone().into()));
    assert_eq!(
        client.execute("query-qmp-schema", Value::Null).unwrap(),
        expected
    );
}

#[test]
fn answers_without_sense_are_errors() {
    for (bytes, reason) in [
        (&b"{\"id\": ID}\n"[..], "neither"),
        (
            b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"bad\"}}\n",
            "no id",
        ),
        (b"nonsense\n", "no JSON"),
    ] {
        let (_fake, mut client) = client(move || Reply::Raw(bytes.to_vec()));
        let error = client.execute("stop", Value::Null).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert!(error.is_gone());
    }
}

#[test]
fn a_monitor_that_closes_is_gone() {
    let (_fake, mut client) = client(|| Reply::Close);
    let error = client.execute("quit", Value::Null).unwrap_err();
    assert!(matches!(error, Error::Closed(_)), "{error}");
}

#[test]
fn events_are_kept_and_the_oldest_dropped() {
    let (_fake, mut client) = client(|| {
        let events = (0..300).map(|i| format!("{{\"event\": \"E\", \"data\": {{\"n\": {i}}}}}\n"));
        let text = events.chain(["{\"return\": {}, \"id\": ID}\n".to_owned()]);
        Reply::Raw(text.collect::<String>().into_bytes())
    });
    client.execute("stop", Value::Null).unwrap();
    assert_eq!(client.lost_events(), 44);
    let event = client.next_event(Duration::ZERO).unwrap().unwrap();
    assert_eq!((event.name.as_str(), &event.data["n"]), ("E", &json!(44)));
    for _ in 0..255 {
        client.next_event(Duration::ZERO).unwrap().unwrap();
    }
    assert_eq!(client.next_event(Duration::from_millis(50)).unwrap(), None);
}
