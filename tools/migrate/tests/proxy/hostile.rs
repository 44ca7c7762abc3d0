// SPDX-License-Identifier: GPL-2.0

//! One of the two ends is an enemy that keeps to the frames but not to the rules.

use std::io::{
    Read,
    Write, //
};
use std::net::Shutdown;
use std::os::unix::net::{
    UnixListener,
    UnixStream, //
};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use rustix::event::{
    poll,
    PollFd,
    PollFlags, //
};
use twinpage_migrate::net::{
    self,
    connect,
    Link,
    LinkReader,
    LinkWriter,
    Listener,
    Security, //
};
use twinpage_migrate::proxy::{
    receive,
    send,
    Error,
    Handle,
    Limits, //
};
use twinpage_store::Sources;
use twinpage_wire::{
    write_zeros,
    BlockWriter,
    Compression,
    Digest,
    Direction,
    FilterKey,
    Frame,
    FrameReader,
    Hello,
    Incoming,
    Message,
    Op,
    Page,
    Purpose,
    Role,
    Sealer,
    SessionId,
    HEADER_BYTES, //
};

use crate::common::{
    finish,
    until,
    LIMIT, //
};
use crate::{
    pages,
    stream, //
};

/// Silence where a test waits for its end.
const SILENCE: Duration = Duration::from_secs(2);

/// A link spoken by hand.
pub struct Enemy {
    pub reader: LinkReader,
    pub writer: LinkWriter,
    pub sealer: Sealer,
    pub frames: FrameReader,
}

impl Enemy {
    pub fn say(&mut self, message: &Message) {
        let frame = message.frame().unwrap();
        self.send(frame);
    }

    pub fn send(&mut self, frame: Frame) {
        let bytes = self.sealer.seal(frame);
        // The other end may have had enough.
        let _ = self
            .writer
            .write_all(&bytes)
            .and_then(|()| self.writer.flush());
    }

    pub fn hear(&mut self) -> Option<Incoming> {
        let mut header = [0; HEADER_BYTES];
        self.reader.read_exact(&mut header).ok()?;
        let header = self.frames.header(header).unwrap();
        let mut body = vec![0; header.body_bytes()];
        self.reader.read_exact(&mut body).ok()?;
        Some(self.frames.accept(header, body).unwrap())
    }

    /// Hears until the other end says ERROR.
    pub fn hear_error(&mut self) -> String {
        while let Some(incoming) = self.hear() {
            if let Incoming::Message(Message::Error(error)) = incoming {
                return error.text;
            }
        }
        panic!("no ERROR came");
    }
}

pub fn hello(role: Role) -> Hello {
    Hello {
        role,
        purpose: Purpose::Migrate,
        session: SessionId([7; 16]),
        channel: 0,
        domain: String::new(),
        dictionary_pages: 16,
        window_stream: 4 << 20,
        window_wire: 4 << 20,
        zstd: true,
        filter_key: FilterKey([3; 16]),
        software: "enemy".to_owned(),
    }
}

/// Limits with time for an enemy that does not say that it is there.
pub fn limits() -> Limits {
    Limits {
        silence: Duration::from_secs(10),
        ping: Duration::from_millis(100),
        threads: 1,
        ..Limits::default()
    }
}

/// The same but for the silence.
fn limits_with(silence: Duration) -> Limits {
    Limits {
        silence,
        ..limits()
    }
}

/// A receiver, and what its QEMU has got in the end.
struct Victim {
    handle: Handle,
    got: thread::JoinHandle<Vec<u8>>,
    _dir: tempfile::TempDir,
}

/// A receiver that an enemy sends to.
fn receiver() -> (Victim, Enemy) {
    receiver_within(limits())
}

/// The same with other limits.
fn receiver_within(limits: Limits) -> (Victim, Enemy) {
    let dir = tempfile::tempdir().unwrap();
    let qemu = dir.path().join("qemu.sock");
    let listener = UnixListener::bind(&qemu).unwrap();
    let got = thread::spawn(move || {
        let mut got = Vec::new();
        let (mut socket, _) = listener.accept().unwrap();
        let _ = socket.read_to_end(&mut got);
        got
    });
    let sources = Arc::new(Sources::new());
    let link = dir.path().join("link.sock");
    let mut options = receive::Options::new(
        format!("unix:{}", link.display()).parse().unwrap(),
        Security::Insecure,
        Some(qemu),
        Arc::new(move |_| Ok(Arc::clone(&sources))),
    );
    options.limits = limits;
    let handle = receive::start(options).unwrap();
    let mut enemy = caller(&link);
    enemy.say(&Message::Hello(hello(Role::Sender)));
    assert!(matches!(
        enemy.hear(),
        Some(Incoming::Message(Message::Hello(_)))
    ));
    let victim = Victim {
        handle,
        got,
        _dir: dir,
    };
    (victim, enemy)
}

/// An enemy that connects to `link`.
pub fn caller(link: &Path) -> Enemy {
    let address = format!("unix:{}", link.display()).parse().unwrap();
    let link = connect(&address, &Security::Insecure, net::Limits::default()).unwrap();
    enemy(link, Direction::ToReceiver)
}

/// Asks the host at `link` what it holds, and leaves.
pub fn asks_and_leaves(link: &Path) {
    let mut enemy = caller(link);
    enemy.say(&Message::Hello(Hello {
        purpose: Purpose::Plan,
        ..hello(Role::Sender)
    }));
    // Nothing comes where there are too many.
    let mut header = [0; HEADER_BYTES];
    let _answered = enemy.reader.read_exact(&mut header);
}

/// A listener for senders, for an enemy.
pub fn lair(link: &Path) -> Listener {
    let address = format!("unix:{}", link.display()).parse().unwrap();
    let limits = net::Limits::default();
    Listener::bind(&address, &Security::Insecure, limits, |_| ()).unwrap()
}

pub fn enemy(link: Link, says: Direction) -> Enemy {
    let (reader, writer) = link.split();
    let hears = match says {
        Direction::ToReceiver => Direction::ToSender,
        Direction::ToSender => Direction::ToReceiver,
    };
    Enemy {
        reader,
        writer,
        sealer: Sealer::new(says, &SessionId([7; 16]), 0),
        frames: FrameReader::new(hears),
    }
}

impl Victim {
    /// Checks that it ended with an error that says `what`, and that QEMU got nothing but `bytes`
    /// or the first of them.
    fn ended(self, what: &str, bytes: &[u8]) {
        let error = finish(self.handle).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        let got = self.got.join().unwrap();
        assert!(bytes.starts_with(&got), "{got:?}");
    }
}

/// A block of ops.
pub fn block(blocks: &mut BlockWriter, ops: &[Op<'_>]) -> Frame {
    for op in ops {
        assert_eq!(blocks.push(*op).left, 0);
    }
    blocks.finish().unwrap().unwrap()
}

pub fn writer() -> BlockWriter {
    BlockWriter::new(Compression::Off).unwrap()
}

#[test]
fn a_page_under_the_digest_of_another_does_not_come_out() {
    let page = [1; 4096];
    for op in [
        Op::Page {
            header: None,
            digest: &Digest::of(&[2; 4096]),
            page: &page,
        },
        Op::Page {
            header: Some(4096),
            digest: &Digest([0; 32]),
            page: &page,
        },
    ] {
        let (victim, mut enemy) = receiver();
        let mut blocks = writer();
        enemy.send(block(&mut blocks, &[Op::Literal(b"good")]));
        enemy.send(block(&mut blocks, &[Op::Literal(b"bad"), op]));
        let said = enemy.hear_error();
        assert!(said.contains("offset 4"), "{said}");
        victim.ended("running hash does not match", b"good");
    }
}

#[test]
fn a_reference_healed_with_another_page_does_not_come_out() {
    let (victim, mut enemy) = receiver();
    let digest = Digest::of(&[1; 4096]);
    let reference = Op::Reference {
        header: None,
        digest: &digest,
    };
    enemy.send(block(&mut writer(), &[Op::Literal(b"good"), reference]));
    while !matches!(
        enemy.hear(),
        Some(Incoming::Message(Message::Miss { reference: 0 }))
    ) {}
    enemy.send(Frame::heal(0, &[2; 4096]));
    enemy.hear_error();
    victim.ended("reference 0 is to page", b"good");
}

#[test]
fn a_page_that_nobody_asked_for_is_refused() {
    let (victim, mut enemy) = receiver();
    enemy.send(Frame::heal(0, &[2; 4096]));
    enemy.hear_error();
    victim.ended("not asked for", b"");
}

/// Refers to a page that nobody has.
fn refer(enemy: &mut Enemy, blocks: &mut BlockWriter, page: &Page) {
    let reference = Op::Reference {
        header: None,
        digest: &Digest::of(page),
    };
    enemy.send(block(blocks, &[reference]));
}

#[test]
fn a_page_that_never_comes_is_not_waited_for_without_end() {
    // Much longer than a thread of a busy machine may be late with a ping.
    let (victim, mut enemy) = receiver_within(limits_with(Duration::from_secs(5)));
    refer(&mut enemy, &mut writer(), &[1; 4096]);
    let end = Instant::now() + LIMIT;
    while !victim.handle.finished() {
        assert!(Instant::now() < end, "it is waited for without end");
        enemy.say(&Message::Ping);
        thread::sleep(Duration::from_millis(100));
    }
    enemy.hear_error();
    victim.ended("was asked for and did not come", b"");
}

/// Sends the page that was asked for, and leaves once QEMU has all that is expected.
fn heal_and_end(victim: Victim, mut enemy: Enemy, page: &Page, expected: &[u8]) {
    let bytes = expected.len() as u64;
    enemy.send(Frame::heal(0, page));
    loop {
        match enemy.hear().expect("an ACK") {
            Incoming::Message(Message::Ack { stream_bytes, .. }) if stream_bytes >= bytes => break,
            _ => (),
        }
    }
    enemy.writer.finish().unwrap();
    victim.ended("too early", expected);
}

#[test]
fn a_page_behind_a_slow_backlog_is_waited_for() {
    // Much longer than a thread of a busy machine may be late.
    let silence = Duration::from_secs(5);
    let (victim, mut enemy) = receiver_within(limits_with(silence));
    let (page, mut blocks) = ([1; 4096], writer());
    refer(&mut enemy, &mut blocks, &page);
    let mut expected = page.to_vec();
    let end = Instant::now() + silence + silence / 2;
    while Instant::now() < end {
        enemy.send(block(&mut blocks, &[Op::Literal(b"x")]));
        expected.push(b'x');
        thread::sleep(Duration::from_millis(200));
    }
    heal_and_end(victim, enemy, &page, &expected);
}

#[test]
fn blocks_that_take_much_memory_wait_and_arrive() {
    const RECORDS: u64 = 20_000;
    let (victim, mut enemy) = receiver();
    let (page, mut blocks) = ([1; 4096], writer());
    refer(&mut enemy, &mut blocks, &page);
    let mut expected = page.to_vec();
    // Within the windows, but twice the memory of two windows of 4 MiB.
    for n in 0..20 {
        let offsets = n * RECORDS..(n + 1) * RECORDS;
        let zeros = offsets.map(|n| Op::Zeros {
            first: n * 0x2000,
            count: 1,
        });
        enemy.send(block(&mut blocks, &zeros.collect::<Vec<_>>()));
        for n in n * RECORDS..(n + 1) * RECORDS {
            write_zeros(n * 0x2000, 1, &mut expected);
        }
    }
    heal_and_end(victim, enemy, &page, &expected);
}

#[test]
fn a_page_of_the_dictionary_that_is_not_there_is_refused() {
    let (victim, mut enemy) = receiver();
    let digest = Digest::of(&[1; 4096]);
    let back = Op::Back {
        header: None,
        distance: 5,
        digest: &digest,
    };
    enemy.send(block(&mut writer(), &[back]));
    enemy.hear_error();
    victim.ended("Channel 0", b"");
}

#[test]
fn more_than_the_window_is_refused() {
    let (victim, mut enemy) = receiver();
    // The first reference is missing, so nothing is acknowledged and all that follows piles up.
    let mut blocks = writer();
    refer(&mut enemy, &mut blocks, &[1; 4096]);
    for n in 0..40u64 {
        let zeros = Op::Zeros {
            first: n << 32,
            count: 100_000,
        };
        enemy.send(block(&mut blocks, &[zeros]));
    }
    let said = enemy.hear_error();
    assert!(said.contains("bytes of the stream under way"), "{said}");
    victim.ended("bytes of the stream under way", b"");
}

#[test]
fn more_blocks_than_the_window_are_refused_even_if_small() {
    let (victim, mut enemy) = receiver();
    let mut blocks = writer();
    refer(&mut enemy, &mut blocks, &[1; 4096]);
    for _ in 0..8000 {
        enemy.send(block(&mut blocks, &[Op::Literal(b"x")]));
    }
    enemy.hear_error();
    victim.ended("bytes of blocks under way", b"");
}

#[test]
fn a_stream_that_ends_elsewhere_than_said_is_refused() {
    let (victim, mut enemy) = receiver();
    enemy.send(block(&mut writer(), &[Op::Literal(b"four")]));
    enemy.say(&Message::Eof { stream_bytes: 5 });
    enemy.hear_error();
    victim.ended("ends after 5 bytes, but 4 have come", b"four");
}

#[test]
fn nothing_comes_out_after_the_end_of_the_stream() {
    let (victim, mut enemy) = receiver();
    let mut blocks = writer();
    enemy.send(block(&mut blocks, &[Op::Literal(b"four")]));
    enemy.say(&Message::Eof { stream_bytes: 4 });
    enemy.send(block(&mut blocks, &[Op::Literal(b"more")]));
    enemy.hear_error();
    victim.ended("after the end of the stream", b"four");
}

#[test]
fn silence_after_hello_ends_a_receiver() {
    let (victim, enemy) = receiver_within(limits_with(SILENCE));
    victim.ended("silent for 2 s", b"");
    drop(enemy);
}

#[test]
fn a_link_closed_in_order_but_too_early_ends_a_receiver() {
    let (victim, mut enemy) = receiver();
    enemy.writer.finish().unwrap();
    victim.ended("too early", b"");
}

#[test]
fn what_is_no_hello_comes_to_nothing_and_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let destination = crate::common::Destination::start(dir.path(), 1, usize::MAX);
    let setup = crate::common::Setup {
        send: limits(),
        receive: limits(),
        ..crate::common::Setup::default()
    };
    let pair = setup.start(dir.path(), &destination.path);
    let link = dir.path().join("link.sock");
    for junk in [
        &b"GET / HTTP/1.0\r\n\r\n"[..],
        &[0xff; 200],
        &[],
        &[1, 0, 0, 0, 255, 255, 255, 255],
    ] {
        let mut socket = UnixStream::connect(&link).unwrap();
        socket.write_all(junk).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut said = Vec::new();
        let _ = socket.read_to_end(&mut said);
        let mut link = caller(&link);
        link.writer.write_all(junk).unwrap();
        let _ = link.writer.finish();
        let _ = link.reader.read_to_end(&mut said);
    }
    let mut busy = caller(&link);
    let mut wrong = hello(Role::Sender);
    wrong.channel = 3;
    busy.sealer = Sealer::new(Direction::ToReceiver, &SessionId([7; 16]), 3);
    busy.say(&Message::Hello(wrong));
    busy.hear_error();
    // The migration that is meant still works.
    let mut meant = UnixStream::connect(&pair.path).unwrap();
    meant.write_all(b"QEVM").unwrap();
    until(|| destination.so_far(0) == b"QEVM");
    drop(meant);
    finish(pair.sender).unwrap_err();
    finish(pair.receiver).unwrap_err();
    assert_eq!(destination.wait()[0], b"QEVM");
}

/// A source QEMU that writes `stream`, and stays until nobody is at the other end. Gives what it
/// heard.
fn staying_source(path: &Path, stream: &[u8]) -> Vec<u8> {
    let mut socket = UnixStream::connect(path).unwrap();
    let mut reader = socket.try_clone().unwrap();
    let heard = thread::spawn(move || {
        let mut heard = Vec::new();
        let _ = reader.read_to_end(&mut heard);
        heard
    });
    let _ = socket.write_all(stream);
    let heard = heard.join().unwrap();
    let mut gone = [PollFd::new(&socket, PollFlags::empty())];
    poll(&mut gone, None).unwrap();
    heard
}

/// A sender that has called an enemy; the source QEMU writes `stream`.
fn calling(
    dir: &Path,
    stream: Vec<u8>,
    limits: Limits,
) -> (Handle, Enemy, thread::JoinHandle<Vec<u8>>) {
    let link = dir.join("enemy.sock");
    let listener = lair(&link);
    let path = dir.join("send.sock");
    let input = send::Input::Listener(UnixListener::bind(&path).unwrap(), path.clone());
    let to = format!("unix:{}", link.display()).parse().unwrap();
    let mut options = send::Options::new(input, to, Security::Insecure);
    options.limits = limits;
    options.filter_wait = Duration::ZERO;
    options.compression = None;
    let handle = send::start(options).unwrap();
    let heard = thread::spawn(move || staying_source(&path, &stream));
    let link = listener.accept(None).unwrap();
    (handle, enemy(link, Direction::ToSender), heard)
}

/// Has an enemy answer the sender's HELLO with one that is right but for `change`.
fn answer(enemy: &mut Enemy, change: impl Fn(&mut Hello)) {
    let Some(Incoming::Message(Message::Hello(theirs))) = enemy.hear() else {
        panic!("no HELLO");
    };
    enemy.sealer = Sealer::new(Direction::ToSender, &theirs.session, 0);
    let mut answer = Hello {
        session: theirs.session,
        ..hello(Role::Receiver)
    };
    change(&mut answer);
    enemy.say(&Message::Hello(answer));
}

#[test]
fn a_receiver_that_breaks_the_rules_is_refused_and_the_source_hears_nothing() {
    let stream = stream(&pages(100, 50), 3);
    type Lie = fn(&mut Enemy);
    let lies: [(&str, Lie); 5] = [
        ("was not sent", |enemy| {
            enemy.say(&Message::Ack {
                stream_bytes: u64::MAX,
                wire_bytes: 1,
            })
        }),
        ("no open reference", |enemy| {
            enemy.say(&Message::Miss { reference: 0 })
        }),
        ("goes on after its end", |enemy| {
            enemy.say(&Message::ReturnEof);
            enemy.send(Frame::return_bytes(b"x").unwrap());
        }),
        ("too early", |enemy| enemy.writer.finish().unwrap()),
        ("silent", |_| ()),
    ];
    for (what, lie) in lies {
        let dir = tempfile::tempdir().unwrap();
        let limits = match what {
            "silent" => limits_with(SILENCE),
            _ => limits(),
        };
        let (handle, mut enemy, heard) = calling(dir.path(), stream.clone(), limits);
        answer(&mut enemy, |_| ());
        lie(&mut enemy);
        let error = finish(handle).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
        assert_eq!(heard.join().unwrap(), b"");
    }
}

/// As one of another version does.
#[test]
fn a_receiver_that_ends_the_link_without_an_answer_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, mut enemy, heard) = calling(dir.path(), b"QEVM".to_vec(), limits());
    assert!(enemy.hear().is_some());
    drop(enemy);
    let error = finish(handle).unwrap_err();
    assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    assert_eq!(heard.join().unwrap(), b"");
}

#[test]
fn a_receiver_with_other_ideas_is_refused() {
    for change in [
        |hello: &mut Hello| hello.role = Role::Sender,
        |hello: &mut Hello| hello.purpose = Purpose::Plan,
        |hello: &mut Hello| hello.domain = "other".to_owned(),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (handle, mut enemy, heard) = calling(dir.path(), b"QEVM".to_vec(), limits());
        answer(&mut enemy, change);
        finish(handle).unwrap_err();
        assert_eq!(heard.join().unwrap(), b"");
    }
}
