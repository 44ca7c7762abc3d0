// SPDX-License-Identifier: GPL-2.0

//! How long one end waits for the other, and what it does not keep waiting.

use std::io::{
    Read,
    Write, //
};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{
    AtomicUsize,
    Ordering, //
};
use std::sync::Arc;
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_migrate::net::Security;
use twinpage_migrate::proxy::{
    plan,
    receive,
    Handle, //
};
use twinpage_store::Sources;
use twinpage_wire::{
    Direction,
    Hello,
    Incoming,
    Message,
    Op,
    Purpose,
    Role,
    Sealer,
    SessionId, //
};

use crate::common::{
    finish,
    until,
    SHUT, //
};
use crate::hostile::{
    block,
    caller,
    enemy,
    hello,
    lair,
    limits,
    writer,
    Enemy, //
};
use crate::plan::Many;

/// More than a thread of a busy machine runs late.
const SILENCE: Duration = Duration::from_secs(5);

/// A receiver with a QEMU that a test plays.
fn receiver(
    dir: &Path,
    sources: Arc<receive::OfDomain>,
    silence: Duration,
) -> (Handle, UnixListener) {
    let qemu = dir.join("qemu.sock");
    let listener = UnixListener::bind(&qemu).unwrap();
    let link = format!("unix:{}", dir.join("link.sock").display());
    let link = link.parse().unwrap();
    let mut options = receive::Options::new(link, Security::Insecure, Some(qemu), sources);
    options.limits = limits();
    options.limits.silence = silence;
    options.limits.handshake = silence / 2;
    (receive::start(options).unwrap(), listener)
}

/// A sender of `session` at the receiver's door.
fn sender(dir: &Path, session: u8) -> Enemy {
    let mut enemy = caller(&dir.join("link.sock"));
    let session = SessionId([session; 16]);
    enemy.sealer = Sealer::new(Direction::ToReceiver, &session, 0);
    enemy.say(&Message::Hello(Hello {
        session,
        ..hello(Role::Sender)
    }));
    enemy
}

/// Whether HELLO comes next.
fn is_welcome(enemy: &mut Enemy) -> bool {
    matches!(enemy.hear(), Some(Incoming::Message(Message::Hello(_))))
}

#[test]
fn a_link_that_ends_late_leaves_time_for_the_return_path() {
    let dir = tempfile::tempdir().unwrap();
    let sources = |_: &str| Ok(Arc::new(Sources::new()));
    let (handle, listener) = receiver(dir.path(), Arc::new(sources), 4 * SILENCE);
    let mut enemy = sender(dir.path(), 7);
    assert!(is_welcome(&mut enemy));
    let (mut qemu, _) = listener.accept().unwrap();
    enemy.send(block(&mut writer(), &[Op::Literal(b"four")]));
    enemy.say(&Message::Eof { stream_bytes: 4 });
    qemu.read_to_end(&mut Vec::new()).unwrap();
    // Longer than the link may have ended without a return path that has.
    thread::sleep(Duration::from_secs(6));
    enemy.writer.finish().unwrap();
    // As late as a thread that tells of it may be.
    thread::sleep(Duration::from_secs(1));
    qemu.write_all(&SHUT).unwrap();
    drop(qemu);
    finish(handle).unwrap();
}

#[test]
fn a_host_that_only_says_that_it_is_there_is_not_asked_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("enemy.sock");
    let listener = lair(&link);
    thread::spawn(move || {
        let link = listener.accept(None).unwrap();
        let mut enemy = enemy(link, Direction::ToSender);
        let Some(Incoming::Message(Message::Hello(theirs))) = enemy.hear() else {
            panic!("no HELLO");
        };
        enemy.sealer = Sealer::new(Direction::ToSender, &theirs.session, 0);
        enemy.say(&Message::Hello(Hello {
            role: Role::Receiver,
            purpose: Purpose::Plan,
            ..theirs
        }));
        let end = Instant::now() + SILENCE;
        while Instant::now() < end {
            enemy.say(&Message::Ping);
            thread::sleep(Duration::from_millis(50));
        }
    });
    let query = plan::Query {
        to: format!("unix:{}", link.display()).parse().unwrap(),
        security: Security::Insecure,
        domain: String::new(),
        patience: Duration::from_millis(300),
        limits: limits(),
    };
    let start = Instant::now();
    let error = plan::holdings(&query).err().unwrap();
    assert!(start.elapsed() < SILENCE, "{error}");
    let text = "did not come within 0.3 s";
    assert!(error.to_string().contains(text), "{error}");
}

#[test]
fn sources_that_do_not_open_keep_nobody_else_out() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let dir = tempfile::tempdir().unwrap();
    let sources = Arc::new(move |_: &str| {
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            thread::sleep(2 * SILENCE);
        }
        Ok(Arc::new(Sources::new()))
    });
    let (handle, _listener) = receiver(dir.path(), sources, SILENCE);
    let mut first = sender(dir.path(), 7);
    until(|| asked.load(Ordering::SeqCst) == 1);
    let mut second = sender(dir.path(), 8);
    let start = Instant::now();
    assert!(is_welcome(&mut second));
    assert!(start.elapsed() < SILENCE);
    assert!(first.hear_error().contains("in time"));
    second.say(&Message::Ping);
    assert!(!handle.finished());
}

#[test]
fn an_acknowledgement_waits_for_one_part_of_the_filter_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let sources = |_: &str| {
        let mut sources = Sources::new();
        sources.push(Box::new(Many(3_000_000)));
        Ok(Arc::new(sources))
    };
    let (handle, listener) = receiver(dir.path(), Arc::new(sources), SILENCE);
    let mut enemy = sender(dir.path(), 7);
    assert!(is_welcome(&mut enemy));
    let (mut qemu, _) = listener.accept().unwrap();
    let progress = handle.progress();
    while progress.snapshot().filter_pages == 0 {
        enemy.say(&Message::Ping);
        thread::sleep(Duration::from_millis(50));
    }
    // The link takes no more now.
    thread::sleep(Duration::from_millis(300));
    let count = 100_000;
    let zeros = Op::Zeros { first: 0, count };
    enemy.send(block(&mut writer(), &[zeros]));
    qemu.read_exact(&mut vec![0; 9 * 100_000]).unwrap();
    // Then the acknowledgement waits for its turn.
    until(|| progress.snapshot().acked_bytes >= 9 * 100_000);
    let mut parts = 0;
    loop {
        match enemy.hear() {
            Some(Incoming::Message(Message::Ack { .. })) => break,
            Some(Incoming::Message(Message::Filter(_))) => parts += 1,
            _ => (),
        }
    }
    assert!(parts <= 2, "{parts} parts came first");
}
