// SPDX-License-Identifier: GPL-2.0

//! Nothing is held back, and no more is under way than allowed.

use std::io::{
    ErrorKind,
    Read,
    Write, //
};
use std::net::Shutdown;
use std::num::NonZeroU64;
use std::os::unix::net::{
    UnixListener,
    UnixStream, //
};
use std::process::{
    Command,
    Stdio, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_migrate::net::RateLimit;
use twinpage_migrate::proxy::{
    send,
    Error,
    Phase, //
};

use crate::common::synth::{
    Synth,
    PAGE, //
};
use crate::common::{
    finish,
    source,
    until,
    Destination,
    Pair,
    Setup,
    Shelf,
    LIMIT,
    SHUT, //
};
use crate::{
    pages,
    stream,
    stream_with, //
};

/// Between two pings where a test waits for silence.
const PING: Duration = Duration::from_millis(100);

/// Silence that means that the other end has gone: threads of a machine with twenty times more work
/// than processors were seen to run 2 s late.
const SILENCE: Duration = Duration::from_secs(5);

/// A destination under the test's control, and the pair in front of it.
fn manual(setup: Setup) -> (tempfile::TempDir, UnixListener, Pair) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qemu.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let pair = setup.start(dir.path(), &path);
    (dir, listener, pair)
}

/// The connection of the receiver to the destination; empty if the sender gives up before that,
/// since then none may ever come.
fn taken(listener: &UnixListener, pair: &Pair) -> Option<UnixStream> {
    listener.set_nonblocking(true).unwrap();
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        let over = pair.sender.finished();
        match listener.accept() {
            Ok((socket, _)) => return Some(socket),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        if over {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
    panic!("the receiver does not connect to the destination");
}

#[test]
fn every_byte_but_those_of_an_unfinished_page_arrives_at_once() {
    let stream = stream(&pages(3, 30), 3);
    let (_dir, listener, pair) = manual(Setup::default());
    let mut source = UnixStream::connect(&pair.path).unwrap();
    let mut destination = taken(&listener, &pair).unwrap();
    destination.set_read_timeout(Some(LIMIT)).unwrap();
    let mut came = 0;
    let mut buffer = vec![0; 1 << 16];
    for (n, part) in stream.chunks(97).enumerate() {
        source.write_all(part).unwrap();
        let sent = n * 97 + part.len();
        // Whatever is not in the middle of a page must come without anything further.
        while came + PAGE <= sent {
            came += destination.read(&mut buffer).unwrap();
        }
    }
    while came < stream.len() {
        came += destination.read(&mut buffer).unwrap();
    }
    destination.write_all(&SHUT).unwrap();
    let mut heard = [0; 8];
    source.read_exact(&mut heard).unwrap();
    drop((source, destination));
    finish(pair.sender).unwrap();
    finish(pair.receiver).unwrap();
}

#[test]
fn question_and_answer_take_no_time() {
    let (_dir, listener, pair) = manual(Setup::default());
    let mut source = UnixStream::connect(&pair.path).unwrap();
    let mut destination = taken(&listener, &pair).unwrap();
    let mut head = Vec::new();
    Synth::begin(&mut head, 1 << 20).unwrap();
    let (first, answers) = head.split_at(30);
    source.write_all(first).unwrap();
    destination.read_exact(&mut [0; 30]).unwrap();
    let mut fastest = Duration::MAX;
    let mut word = [0; 8];
    for answer in answers[..50].chunks(1) {
        let began = Instant::now();
        destination.write_all(&[0, 2, 0, 4, 0, 0, 0, 1]).unwrap();
        source.read_exact(&mut word).unwrap();
        source.write_all(answer).unwrap();
        destination.read_exact(&mut word[..1]).unwrap();
        fastest = fastest.min(began.elapsed());
    }
    // A busy machine holds up some of them, and what waits for more to come holds up each.
    println!("{fastest:?} for a question and its answer");
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
    pair.sender.cancel();
    assert!(matches!(finish(pair.sender), Err(Error::Cancelled)));
    assert!(matches!(finish(pair.receiver), Err(Error::Peer { .. })));
}

#[test]
fn a_destination_that_does_not_read_holds_the_source_back() {
    let mut setup = Setup {
        compression: None,
        ..Setup::default()
    };
    setup.send.stream_window = 4 << 20;
    setup.send.silence = SILENCE;
    setup.send.ping = PING;
    setup.receive.silence = SILENCE;
    setup.receive.ping = PING;
    let (_dir, listener, pair) = manual(setup);
    let stream = stream(&pages(8000, 31), 3);
    let (path, whole) = (pair.path.clone(), stream.clone());
    let writer = thread::spawn(move || source(&path, &whole, usize::MAX, true));
    let mut destination = taken(&listener, &pair).unwrap();
    // Longer than silence may be: both proxies are alive and say so.
    thread::sleep(SILENCE + Duration::from_secs(1));
    let seen = pair.sender.progress().snapshot();
    assert!(seen.in_flight_bytes <= 4 << 20, "{seen:?}");
    // The window, what is before it in the encoder, and what the sockets hold.
    assert!(seen.stream_bytes < 16 << 20, "{seen:?}");
    assert!(!writer.is_finished());
    let mut came = vec![0; stream.len()];
    destination.read_exact(&mut came).unwrap();
    assert!(came == stream);
    destination.write_all(&SHUT).unwrap();
    assert_eq!(writer.join().unwrap(), SHUT);
    drop(destination);
    finish(pair.sender).unwrap();
    finish(pair.receiver).unwrap();
}

/// Both ends notice silence in a time that a test can wait for, and are never silent themselves.
fn alive() -> Setup {
    let mut setup = Setup::default();
    for limits in [&mut setup.send, &mut setup.receive] {
        limits.silence = SILENCE;
        limits.ping = PING;
    }
    setup
}

#[test]
fn a_guest_that_stands_still_does_not_wait_for_a_destination_that_hangs() {
    let (_dir, listener, pair) = manual(alive());
    let mut source = UnixStream::connect(&pair.path).unwrap();
    let _destination = taken(&listener, &pair).unwrap();
    source.write_all(&stream(&pages(1000, 45), 3)).unwrap();
    let error = finish(pair.sender).unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
    finish(pair.receiver).unwrap_err();
}

#[test]
fn a_guest_that_stands_still_waits_for_a_destination_that_is_slow() {
    let mut setup = alive();
    // So small that each block is acknowledged, and all of RAM fits in it.
    setup.send.stream_window = 4 << 20;
    let (_dir, listener, pair) = manual(setup);
    let mut source = UnixStream::connect(&pair.path).unwrap();
    let mut destination = taken(&listener, &pair).unwrap();
    let stream = stream(&pages(900, 46), 3);
    source.write_all(&stream).unwrap();
    let progress = pair.sender.progress();
    until(|| progress.phase() == Phase::Switchover);
    // All together take longer than nothing may be taken.
    for part in stream.chunks(stream.len() / 10) {
        thread::sleep(SILENCE / 8);
        destination.read_exact(&mut vec![0; part.len()]).unwrap();
    }
    destination.write_all(&SHUT).unwrap();
    source.read_exact(&mut [0; 8]).unwrap();
    drop((source, destination));
    finish(pair.sender).unwrap();
    finish(pair.receiver).unwrap();
}

#[test]
fn a_guest_that_may_leave_by_postcopy_waits_for_a_destination_that_hangs() {
    let mut synth = Synth::begin(Vec::new(), 1 << 30).unwrap();
    synth.part().unwrap();
    for (n, page) in pages(1000, 47).iter().enumerate() {
        synth.page((n * PAGE) as u64, page).unwrap();
    }
    synth.close().unwrap();
    synth.last().unwrap();
    let mut stream = synth.cut();
    // Only the command: what follows may be a package.
    stream.truncate(stream.len() - 5);
    let (_dir, listener, pair) = manual(alive());
    let mut source = UnixStream::connect(&pair.path).unwrap();
    let _destination = taken(&listener, &pair).unwrap();
    source.write_all(&stream).unwrap();
    let progress = pair.sender.progress();
    until(|| progress.phase() == Phase::Switchover);
    thread::sleep(SILENCE + Duration::from_secs(1));
    assert!(!pair.sender.finished());
    pair.sender.cancel();
    finish(pair.sender).unwrap_err();
    finish(pair.receiver).unwrap_err();
}

#[test]
fn a_source_of_pages_that_hangs_is_not_waited_for() {
    let all = pages(100, 44);
    let shelf = Shelf {
        stuck: true,
        ..Shelf::of(all.iter().map(Vec::as_slice))
    };
    let mut setup = Setup::default().holding(shelf);
    // The sender is there all the time, and says so.
    setup.send.ping = PING;
    setup.receive.silence = SILENCE;
    setup.receive.ping = PING;
    let (_dir, listener, pair) = manual(setup);
    let mut source = UnixStream::connect(&pair.path).unwrap();
    let _destination = taken(&listener, &pair).unwrap();
    source.write_all(&stream(&all, 3)).unwrap();
    let error = finish(pair.receiver).unwrap_err();
    assert!(matches!(error, Error::PagesStuck { .. }), "{error}");
    finish(pair.sender).unwrap_err();
}

#[test]
fn a_thread_that_panics_ends_the_session() {
    let shelf = Shelf {
        panics: true,
        ..Shelf::default()
    };
    let (_dir, listener, pair) = manual(Setup::default().holding(shelf));
    let _source = UnixStream::connect(&pair.path).unwrap();
    let _destination = taken(&listener, &pair);
    let error = finish(pair.receiver).unwrap_err();
    assert!(matches!(error, Error::Bug { channel: 0 }), "{error}");
    finish(pair.sender).unwrap_err();
}

#[test]
fn a_sender_removes_no_socket_but_its_own() {
    let (_dir, _listener, pair) = manual(Setup::default());
    std::fs::remove_file(&pair.path).unwrap();
    let _other = UnixListener::bind(&pair.path).unwrap();
    pair.sender.cancel();
    finish(pair.sender).unwrap_err();
    assert!(pair.path.exists());
}

#[test]
fn a_source_that_gives_up_while_the_destination_stands_still_is_noticed() {
    let mut setup = Setup::default();
    setup.send.silence = SILENCE;
    setup.send.ping = PING;
    setup.receive.ping = PING;
    setup.send.stream_window = 4 << 20;
    let (_dir, listener, pair) = manual(setup);
    let stream = stream(&pages(8000, 32), 3);
    let mut source = UnixStream::connect(&pair.path).unwrap();
    let _destination = taken(&listener, &pair).unwrap();
    // Gone only when all is full on the way to the destination, not when somebody was late.
    source.set_write_timeout(Some(SILENCE / 2)).unwrap();
    source.write_all(&stream).unwrap_err();
    drop(source);
    let error = finish(pair.sender).unwrap_err();
    assert!(
        matches!(error, Error::SourceGone { .. } | Error::Source { .. }),
        "{error}"
    );
    assert!(finish(pair.receiver).is_err());
}

/// What comes to a destination from now on.
fn rest(mut destination: UnixStream) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut came = Vec::new();
        let _ = destination.read_to_end(&mut came);
        came
    })
}

#[test]
fn what_a_source_gave_up_does_not_get_through() {
    for half in [false, true] {
        let stream = stream(&pages(1000, 37), 3);
        let mut setup = Setup::default();
        // It must not need that long to notice.
        setup.send.silence = 2 * LIMIT;
        let (_dir, listener, pair) = manual(setup);
        let mut source = UnixStream::connect(&pair.path).unwrap();
        let destination = taken(&listener, &pair).unwrap();
        source.write_all(&stream).unwrap();
        let progress = pair.sender.progress();
        until(|| progress.snapshot().in_flight_bytes > 3 << 20);
        // As with `migrate_cancel`, or when QEMU ends.
        source.shutdown(Shutdown::Write).unwrap();
        if !half {
            source.shutdown(Shutdown::Both).unwrap();
        }
        until(|| pair.sender.finished());
        let rest = rest(destination);
        let error = finish(pair.sender).unwrap_err();
        assert!(matches!(error, Error::SourceGone { .. }), "{error}");
        finish(pair.receiver).unwrap_err();
        assert!(rest.join().unwrap().len() < stream.len());
    }
}

#[test]
fn what_waits_for_a_slow_link_is_dropped_when_the_source_gives_up() {
    let stream = stream_with(&pages(10, 38), 3, &pages(2000, 39).concat());
    let setup = Setup {
        compression: None,
        rate: Some(RateLimit::new(NonZeroU64::new(1 << 20).unwrap())),
        ..Setup::default()
    };
    let (_dir, listener, pair) = manual(setup);
    let mut source = UnixStream::connect(&pair.path).unwrap();
    let rest = rest(taken(&listener, &pair).unwrap());
    source.write_all(&stream).unwrap();
    assert!(pair.sender.handed_over());
    drop(source);
    let error = finish(pair.sender).unwrap_err();
    assert!(matches!(error, Error::Unsure { .. }), "{error}");
    finish(pair.receiver).unwrap_err();
    assert!(rest.join().unwrap().len() < stream.len());
}

#[test]
fn the_state_of_devices_waits_until_the_destination_has_all_of_ram() {
    let stream = stream(&pages(1000, 40), 3);
    let (_dir, listener, pair) = manual(Setup::default());
    let mut source = UnixStream::connect(&pair.path).unwrap();
    let mut destination = taken(&listener, &pair).unwrap();
    let mut other = UnixStream::connect(&pair.path).unwrap();
    let mut there = taken(&listener, &pair).unwrap();
    // More than sockets hold.
    let plain = [&[0x11, 0x22, 0x33, 0x44][..], &pages(1000, 41).concat()].concat();
    other.write_all(&plain).unwrap();
    source.write_all(&stream).unwrap();
    let quiet = || {
        thread::sleep(Duration::from_millis(200));
        assert!(!pair.sender.handed_over() && !pair.receiver.handed_over());
    };
    quiet();
    let mut came = vec![0; stream.len() - 30_000];
    destination.read_exact(&mut came).unwrap();
    quiet();
    there.read_exact(&mut vec![0; plain.len()]).unwrap();
    let mut left = vec![0; 30_000];
    destination.read_exact(&mut left).unwrap();
    assert!(pair.sender.handed_over());
    assert!([came, left].concat() == stream);
    // It may run there: nobody breaks that off unasked, at neither side.
    for handle in [&pair.sender, &pair.receiver] {
        assert!(handle.handed_over());
        assert!(!handle.cancel_early());
    }
    destination.write_all(&SHUT).unwrap();
    source.read_exact(&mut [0; 8]).unwrap();
    drop((source, other, destination, there));
    finish(pair.sender).unwrap();
    finish(pair.receiver).unwrap();
}

#[test]
fn an_answer_that_the_source_does_not_hear_is_no_success() {
    let stream = stream(&pages(10, 42), 3);
    let (_dir, listener, pair) = manual(Setup::default());
    let mut source = UnixStream::connect(&pair.path).unwrap();
    let mut destination = taken(&listener, &pair).unwrap();
    source.shutdown(Shutdown::Read).unwrap();
    source.write_all(&stream).unwrap();
    destination.read_exact(&mut vec![0; stream.len()]).unwrap();
    destination.write_all(&SHUT).unwrap();
    until(|| pair.receiver.handed_over());
    // It ends by what it cannot say, not as its QEMU goes.
    let sender = finish(pair.sender);
    drop((source, destination));
    for said in [sender, finish(pair.receiver)] {
        let error = said.unwrap_err();
        assert!(matches!(error, Error::Unsure { .. }), "{error}");
    }
}

#[test]
fn an_answer_that_cannot_be_read_leaves_doubt() {
    for status in [0, 7] {
        let stream = stream(&pages(10, 43), 3);
        let (_dir, listener, pair) = manual(Setup::default());
        let mut source = UnixStream::connect(&pair.path).unwrap();
        let mut destination = taken(&listener, &pair).unwrap();
        source.write_all(&stream).unwrap();
        destination.read_exact(&mut vec![0; stream.len()]).unwrap();
        // A message of unknown length comes before it.
        let said = [&[0, 5, 0, 1, 0][..], &SHUT[..7], &[status]].concat();
        destination.write_all(&said).unwrap();
        let mut heard = vec![0; said.len()];
        source.read_exact(&mut heard).unwrap();
        assert_eq!(heard, said);
        drop((source, destination));
        let error = finish(pair.sender).unwrap_err();
        assert!(matches!(error, Error::Unsure { .. }), "{error}");
        finish(pair.receiver).unwrap_err();
    }
}

#[test]
fn a_receiver_that_does_not_answer_is_given_up() {
    let mut setup = Setup::default();
    setup.send.silence = Duration::from_millis(500);
    setup.send.ping = PING;
    let mute = tempfile::tempdir().unwrap();
    let path = mute.path().join("mute.sock");
    let _mute = UnixListener::bind(&path).unwrap();
    setup.via = Box::new(move |_| format!("unix:{}", path.display()));
    let (_dir, listener, pair) = manual(setup);
    assert!(source(&pair.path, b"QEVM", usize::MAX, true).is_empty());
    // The receiver has heard of nothing and connects to nobody.
    assert!(taken(&listener, &pair).is_none());
    let error = finish(pair.sender).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert!(error.to_string().contains("mute.sock"), "{error}");
}

#[test]
fn a_stream_without_a_return_path_is_refused() {
    let mut synth = Synth::begin(Vec::new(), 1 << 20).unwrap();
    synth.part().unwrap();
    synth.page(0, &[1; PAGE]).unwrap();
    let mut stream = synth.cut();
    // The command that opens the return path.
    stream.drain(20..25);
    // What is seen counts, whatever is said to be known.
    for return_path_is_on in [false, true] {
        let (_dir, _listener, pair) = manual(Setup {
            return_path_is_on,
            ..Setup::default()
        });
        assert!(source(&pair.path, &stream, usize::MAX, true).is_empty());
        let error = finish(pair.sender).unwrap_err();
        assert!(matches!(error, Error::NoReturnPath { channel: 0 }));
        assert!(error.to_string().contains("return-path"), "{error}");
        let error = finish(pair.receiver).unwrap_err();
        assert!(error.to_string().contains("return-path"), "{error}");
    }
}

#[test]
fn a_stream_that_is_not_understood_is_refused_without_a_return_path() {
    let raw = vec![0x16; 5000];
    let mut head = b"QEVM\0\0\0\x03\x07\0\0\0\x07pc-10.0".to_vec();
    head.extend(b"\x05\x15configuration/strange\0\0\0\x01");
    for stream in [raw, head] {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination::start(dir.path(), 1, usize::MAX);
        let pair = Setup::default().start(dir.path(), &destination.path);
        assert!(source(&pair.path, &stream, usize::MAX, false).is_empty());
        for said in [finish(pair.sender), finish(pair.receiver)] {
            let error = said.unwrap_err().to_string();
            assert!(error.contains("return path"), "{error}");
        }
        assert!(destination.wait()[0].is_empty());
    }
}

#[test]
fn a_newer_configuration_passes_where_the_return_path_is_known_to_be_on() {
    let strange = b"\x05\x15configuration/strange\0\0\0\x01\x05ab";
    let known = b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x07multifd";
    for added in [
        [&strange[..], known].concat(),
        [&known[..], strange].concat(),
    ] {
        let mut stream = stream(&pages(20, 49), 3);
        // Behind the name of the machine.
        stream.splice(20..20, added);
        let setup = Setup {
            return_path_is_on: true,
            ..Setup::default()
        };
        let (sent, received) = crate::common::moves(setup, &stream);
        assert_eq!(sent.opaque.len(), 1, "{:?}", sent.opaque);
        let reason = &sent.opaque[0].reason;
        assert!(reason.contains("unknown subsection"), "{reason}");
        assert_eq!(sent.totals.opaque_channels, 1);
        assert_eq!(sent.totals.pages_sent, 0);
        assert_eq!(received.totals.stream_bytes, stream.len() as u64);
    }
}

#[test]
fn a_stream_that_is_not_understood_may_be_complete_at_any_time() {
    let mut synth = Synth::begin(Vec::new(), 1 << 20).unwrap();
    synth.part().unwrap();
    synth.page(0, &[1; PAGE]).unwrap();
    synth.close().unwrap();
    let mut stream = synth.cut();
    stream.extend(b"a section of no known type");
    let (_dir, listener, pair) = manual(Setup::default());
    let mut source = UnixStream::connect(&pair.path).unwrap();
    source.write_all(&stream).unwrap();
    let mut destination = taken(&listener, &pair).unwrap();
    destination.set_read_timeout(Some(LIMIT)).unwrap();
    destination.read_exact(&mut vec![0; stream.len()]).unwrap();
    pair.receiver.cancel();
    let error = finish(pair.sender).unwrap_err();
    assert!(matches!(error, Error::Unsure { .. }), "{error}");
    finish(pair.receiver).unwrap_err();
}

#[test]
fn a_helper_of_exec_moves_a_stream_between_pipes() {
    let stream = stream(&pages(500, 33), 100);
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::start(dir.path(), 1, stream.len());
    let cat = || {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().unwrap()
    };
    let (mut forth, mut back) = (cat(), cat());
    let input = send::Input::Streams {
        input: forth.stdout.take().unwrap().into(),
        output: back.stdin.take().unwrap().into(),
    };
    let pair = Setup::default().start_with(
        dir.path(),
        &destination.path,
        input,
        dir.path().join("unused"),
    );
    let mut into = forth.stdin.take().unwrap();
    into.write_all(&stream).unwrap();
    let mut heard = [0; 8];
    let mut out = back.stdout.take().unwrap();
    out.read_exact(&mut heard).unwrap();
    assert_eq!(heard, SHUT);
    drop(into);
    finish(pair.sender).unwrap();
    finish(pair.receiver).unwrap();
    assert!(destination.wait()[0] == stream);
    // The return path was closed too.
    assert_eq!(out.read(&mut heard).unwrap(), 0);
    forth.wait().unwrap();
    back.wait().unwrap();
}

#[test]
fn a_destination_that_leaves_in_the_middle_ends_the_source() {
    let stream = stream(&pages(5000, 34), 3);
    let (_dir, listener, pair) = manual(Setup::default());
    let (path, whole) = (pair.path.clone(), stream.clone());
    let writer = thread::spawn(move || source(&path, &whole, usize::MAX, true));
    let mut destination = taken(&listener, &pair).unwrap();
    destination.read_exact(&mut vec![0; 1 << 20]).unwrap();
    drop(destination);
    assert!(writer.join().unwrap().is_empty());
    let said = [
        finish(pair.sender).unwrap_err(),
        finish(pair.receiver).unwrap_err(),
    ];
    assert!(said[1].to_string().contains("destination"), "{said:?}");
}

#[test]
fn a_missing_destination_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::default();
    setup.send.silence = Duration::from_secs(40);
    let pair = setup.start(dir.path(), &dir.path().join("nothing.sock"));
    assert!(source(&pair.path, b"QEVM", usize::MAX, true).is_empty());
    for said in [finish(pair.sender), finish(pair.receiver)] {
        let error = said.unwrap_err().to_string();
        assert!(error.contains("nothing.sock"), "{error}");
    }
}

#[test]
fn after_the_switchover_only_certain_references_are_used() {
    let pages = pages(4, 35);
    let shelf = Shelf::of(pages.iter().map(Vec::as_slice));
    let mut synth = Synth::begin(Vec::new(), 1 << 20).unwrap();
    synth.part().unwrap();
    synth.page(0, &pages[0]).unwrap();
    synth.close().unwrap();
    synth.last().unwrap();
    for (n, page) in pages.iter().enumerate() {
        synth.page((n * PAGE) as u64, page).unwrap();
    }
    synth.close().unwrap();
    let stream = synth.devices(b"state").unwrap();
    let (sent, _) = crate::common::moves(Setup::default().holding(shelf), &stream);
    assert_eq!(sent.totals.pages_referenced, 1);
    assert_eq!(sent.totals.pages_back, 1);
    assert_eq!(sent.totals.pages_sent, 3);
    assert_eq!(sent.totals.phase, Phase::Ended);
    assert!(sent.totals.switchover_ms > 0);
}

#[test]
fn what_the_filter_took_is_known_at_both_ends() {
    let pages = pages(4, 44);
    let shelf = Shelf::of(pages.iter().map(Vec::as_slice));
    let stream = stream(&pages, 3);
    let (sent, received) = crate::common::moves(Setup::default().holding(shelf), &stream);
    assert!(sent.totals.filter_bytes > 0);
    assert_eq!(sent.totals.filter_bytes, received.totals.filter_bytes);
}

/// The end of a section of RAM.
const RAM_ENDS: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0x10, 0x7e, 0, 0, 0, 1];

/// The state of a device, and the end of the stream.
const DEVICES: &[u8] = b"\x04\0\0\0\x09\x03cpu\0\0\0\0\0\0\0\x01state\x7e\0\0\0\x09\0";

/// How a channel of multifd begins.
fn channel_head() -> Vec<u8> {
    let mut head = vec![0; 64];
    head[..8].copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1]);
    head
}

/// A packet of multifd with this page.
fn packet(page: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 1344];
    for (at, word) in [(0, 0x1122_3344u32), (4, 1), (12, 128), (16, 1), (20, 4096)] {
        packet[at..at + 4].copy_from_slice(&word.to_be_bytes());
    }
    packet[64..70].copy_from_slice(b"pc.ram");
    packet.extend(page);
    packet
}

#[test]
fn after_the_switchover_no_channel_uses_uncertain_references() {
    let pages = pages(3, 36);
    let shelf = Shelf::of(pages.iter().map(Vec::as_slice));
    let mut synth = Synth::begin(Vec::new(), 1 << 20).unwrap();
    synth.part().unwrap();
    synth.page(0, &pages[0]).unwrap();
    synth.close().unwrap();
    synth.last().unwrap();
    let stopped = synth.cut();
    let rest = [RAM_ENDS, DEVICES].concat();
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::start(dir.path(), 2, stopped.len() + rest.len());
    let pair = Setup::default()
        .holding(shelf)
        .start(dir.path(), &destination.path);
    let mut main = UnixStream::connect(&pair.path).unwrap();
    main.write_all(&stopped[..stopped.len() - 10]).unwrap();
    let mut other = UnixStream::connect(&pair.path).unwrap();
    other.write_all(&channel_head()).unwrap();
    other.write_all(&packet(&pages[1])).unwrap();
    let progress = pair.sender.progress();
    let reaches = |what: &dyn Fn() -> bool| {
        let end = Instant::now() + LIMIT;
        while !what() {
            assert!(Instant::now() < end, "{:?}", progress.snapshot());
            thread::sleep(Duration::from_millis(2));
        }
    };
    reaches(&|| progress.snapshot().pages_referenced == 2);
    main.write_all(&stopped[stopped.len() - 10..]).unwrap();
    reaches(&|| progress.snapshot().phase == Phase::Switchover);
    other.write_all(&packet(&pages[2])).unwrap();
    other.shutdown(std::net::Shutdown::Write).unwrap();
    reaches(&|| progress.snapshot().literal_bytes >= 64 + 2 * 1344);
    main.write_all(&rest).unwrap();
    main.read_exact(&mut [0; 8]).unwrap();
    drop((main, other));
    let sent = finish(pair.sender).unwrap();
    finish(pair.receiver).unwrap();
    assert_eq!(destination.wait()[0], [stopped, rest].concat());
    assert!(sent.opaque.is_empty(), "{:?}", sent.opaque);
    assert_eq!(sent.totals.pages_referenced, 2);
    assert_eq!(sent.totals.pages_sent, 1);
}

#[test]
fn a_guest_that_stands_still_does_not_wait_for_another_channel_that_hangs() {
    let mut synth = Synth::begin(Vec::new(), 1 << 20).unwrap();
    synth.last().unwrap();
    let stopped = synth.cut();
    let (before, switchover) = stopped.split_at(stopped.len() - 10);
    let (_dir, listener, pair) = manual(alive());
    let mut main = UnixStream::connect(&pair.path).unwrap();
    main.write_all(before).unwrap();
    let _there = taken(&listener, &pair).unwrap();
    let mut other = UnixStream::connect(&pair.path).unwrap();
    let _other_there = taken(&listener, &pair).unwrap();
    other.write_all(&channel_head()).unwrap();
    for page in pages(500, 48) {
        other.write_all(&packet(&page)).unwrap();
    }
    // QEMU ends RAM on the main channel when the others have taken theirs.
    main.write_all(switchover).unwrap();
    let error = finish(pair.sender).unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
    finish(pair.receiver).unwrap_err();
}

#[test]
fn the_state_of_devices_waits_for_the_ram_of_all_channels() {
    let mut synth = Synth::begin(Vec::new(), 1 << 20).unwrap();
    synth.last().unwrap();
    let before = synth.cut();
    let mut ram = channel_head();
    ram.extend(pages(2000, 37).iter().flat_map(|page| packet(page)));
    let (_dir, listener, pair) = manual(Setup::default());
    let mut main = UnixStream::connect(&pair.path).unwrap();
    main.write_all(&before).unwrap();
    let mut there = taken(&listener, &pair).unwrap();
    let mut other = UnixStream::connect(&pair.path).unwrap();
    let total = ram.len();
    let source = thread::spawn(move || {
        other.write_all(&ram).unwrap();
        main.write_all(&[RAM_ENDS, DEVICES].concat()).unwrap();
        (main, other)
    });
    let mut other_there = taken(&listener, &pair).unwrap();
    other_there.set_nonblocking(true).unwrap();
    there.read_exact(&mut vec![0; before.len()]).unwrap();
    there.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let (mut of_main, mut came) = (0, 0);
    let end = Instant::now() + LIMIT;
    loop {
        assert!(Instant::now() < end, "{came} bytes of {total}");
        of_main += there.read(&mut buffer).unwrap_or(0);
        while let Ok(got @ 1..) = other_there.read(&mut buffer) {
            came += got;
        }
        if of_main > RAM_ENDS.len() {
            break;
        }
        thread::sleep(Duration::from_micros(100));
    }
    assert_eq!(came, total);
    pair.sender.cancel();
    drop((source.join().unwrap(), there, other_there));
    finish(pair.sender).unwrap_err();
    finish(pair.receiver).unwrap_err();
}
