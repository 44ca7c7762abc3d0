// SPDX-License-Identifier: GPL-2.0

//! A relay between the proxies changes bytes, stalls or cuts the link: never does a wrong byte come
//! out, and always does it end.

use std::sync::atomic::{
    AtomicU64,
    Ordering, //
};
use std::sync::Arc;
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_migrate::proxy::Error;

use crate::common::relay::{
    Harm,
    Relay,
    Way, //
};
use crate::common::synth::PAGE;
use crate::common::{
    finish,
    source,
    Destination,
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

/// How a session under harm ended.
struct End {
    /// Whether everything came through.
    whole: bool,
    /// What both ends said.
    said: [Result<(), Error>; 2],
    /// Bytes that went forth and back.
    bytes: [u64; 2],
    /// How long it took.
    took: Duration,
}

/// How long the ends wait for each other. Where everything must come through, that is longer than a
/// thread of a busy machine runs late.
fn patience(harm: Harm) -> Duration {
    match harm {
        Harm::None => Duration::from_secs(10),
        _ => Duration::from_millis(600),
    }
}

/// A session under `harm`. Panics if a wrong byte comes out on either side.
fn suffer(stream: &[u8], shelf: Shelf, harm: Harm) -> End {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::start(dir.path(), 1, stream.len());
    let mut setup = Setup::default().holding(shelf);
    for limits in [&mut setup.send, &mut setup.receive] {
        limits.silence = patience(harm);
        limits.ping = Duration::from_millis(100);
        limits.handshake = patience(harm);
        limits.threads = 1;
    }
    setup.filter_wait = Duration::from_secs(2);
    let place = dir.path().to_owned();
    let relay = Arc::new(std::sync::Mutex::new(None));
    let made = Arc::clone(&relay);
    setup.via = Box::new(move |to| {
        let relay = Relay::start(&place, to, harm);
        let via = format!("unix:{}", relay.path.display());
        *made.lock().unwrap() = Some(relay);
        via
    });
    let began = Instant::now();
    let pair = setup.start(dir.path(), &destination.path);
    let heard = source(&pair.path, stream, usize::MAX, true);
    let sent = finish(pair.sender).map(drop);
    let begun = pair.receiver.progress().snapshot().channels > 0;
    if !begun {
        // It has heard of no migration and would wait for one.
        pair.receiver.cancel();
    }
    let received = finish(pair.receiver).map(drop);
    let took = began.elapsed();
    // If the receiver never connected, there is nobody to wait for.
    let came = if begun {
        destination.wait().remove(0)
    } else {
        Vec::new()
    };
    assert!(stream.starts_with(&came), "{harm:?}: a wrong byte came out");
    assert!(
        SHUT.starts_with(&heard),
        "{harm:?}: the source heard {heard:?}"
    );
    let whole = came.len() == stream.len();
    assert!(
        heard.is_empty() || whole,
        "{harm:?}: an answer out of nowhere"
    );
    assert!(
        sent.is_err() || heard == SHUT,
        "{harm:?}: success out of nowhere"
    );
    assert!(
        received.is_err() || whole,
        "{harm:?}: success out of nowhere"
    );
    let relay = relay.lock().unwrap().take().unwrap();
    let bytes = relay.bytes.map(|bytes| bytes.load(Ordering::SeqCst));
    End {
        whole,
        said: [sent, received],
        bytes,
        took,
    }
}

/// A short session in which everything occurs: a page sent, one twice, one referenced, one that is
/// missing, zero pages, state of devices.
fn short() -> (Vec<u8>, impl Fn() -> Shelf) {
    let page = |fill: u8| {
        let mut page = vec![fill; PAGE];
        page[7] = 1;
        page
    };
    let all = [page(1), page(2), page(3), page(1), vec![0; PAGE]];
    let stream = stream_with(&all, 3, b"state of devices");
    let shelf = move || {
        let mut shelf = Shelf::of([&all[1][..], &all[2][..]]);
        let lost = *Shelf::of([&all[2][..]]).pages.keys().next().unwrap();
        shelf.pages.remove(&lost);
        shelf.missing.push(lost);
        shelf
    };
    (stream, shelf)
}

#[test]
fn the_short_session_has_it_all() {
    let (stream, shelf) = short();
    let end = suffer(&stream, shelf(), Harm::None);
    assert!(end.whole);
    for said in end.said {
        said.unwrap();
    }
    println!("{:?} bytes in {:?}", end.bytes, end.took);
}

/// Whether a frame was given up that did not come to its end.
fn is_late(said: &Result<(), Error>) -> bool {
    matches!(said, Err(error) if error.to_string().contains("come to its end in time"))
}

#[test]
fn no_flipped_byte_comes_out() {
    let (stream, shelf) = short();
    let [forth, back] = suffer(&stream, shelf(), Harm::None).bytes;
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let (stream, shelf, next) = (&stream, &shelf, &next);
    let survived = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| loop {
                let n = next.fetch_add(1, Ordering::SeqCst);
                let (way, at) = match n.checked_sub(forth) {
                    None => (Way::Forth, n),
                    Some(at) if at < back => (Way::Back, at),
                    Some(_) => return,
                };
                let harm = Harm::Flip(way, at, 1 << (n % 8));
                let end = suffer(stream, shelf(), harm);
                // A frame whose length was made greater is waited for at 16 KiB/s.
                let most = if end.said.iter().any(is_late) {
                    200
                } else {
                    20
                };
                assert!(
                    end.took < Duration::from_secs(most),
                    "{harm:?}: {:?}",
                    end.took
                );
                // There may have been fewer pings and acknowledgements this time.
                let sent = end.bytes[way as usize] > at;
                if sent && end.said.iter().all(Result::is_ok) {
                    survived.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    // A byte may have come when all was over.
    let survived = survived.load(Ordering::SeqCst);
    assert!(
        survived < (forth + back) / 50,
        "{survived} of {forth} + {back} changed nothing"
    );
    println!(
        "{forth} bytes forth and {back} back, in {:?}",
        began.elapsed()
    );
}

#[test]
fn a_link_cut_anywhere_ends_both() {
    let pages = pages(800, 11);
    let shelf = || Shelf::of(pages.iter().step_by(3).map(Vec::as_slice));
    let stream = stream(&pages, 100);
    let [forth, back] = suffer(&stream, shelf(), Harm::None).bytes;
    for step in 0..12 {
        for (at, way) in [(forth, Way::Forth), (back, Way::Back)] {
            let at = at * step / 12 + step;
            let harm = Harm::Cut(way, at);
            let end = suffer(&stream, shelf(), harm);
            // There may have been fewer acknowledgements this time.
            let cut = end.bytes[way as usize] > at;
            assert!(end.said[0].is_err() || !cut, "{harm:?}");
            assert!(end.took < LIMIT, "{harm:?}: {:?}", end.took);
        }
    }
}

#[test]
fn silence_is_noticed() {
    let pages = pages(800, 12);
    let stream = stream(&pages, 100);
    for harm in [
        Harm::Stall(Way::Forth, 0),
        Harm::Stall(Way::Forth, 500_000),
        Harm::Stall(Way::Back, 0),
        Harm::Stall(Way::Back, 300),
    ] {
        let end = suffer(&stream, Shelf::default(), harm);
        assert!(
            !end.whole || matches!(harm, Harm::Stall(Way::Back, _)),
            "{harm:?}"
        );
        let is_silence = |said: &Result<(), Error>| {
            let text = said.as_ref().map_err(ToString::to_string);
            text.is_err_and(|text| text.contains("silent"))
        };
        let noticed = match harm {
            // Whoever loses patience first, there is no session.
            Harm::Stall(_, 0) => matches!(
                end.said[0],
                Err(Error::Connect { .. } | Error::NoAnswer { .. })
            ),
            Harm::Stall(Way::Forth, _) => {
                let stalled = matches!(end.said[0], Err(Error::Stalled { .. }));
                stalled || end.said.iter().any(is_silence)
            }
            // The receiver has everything, and closes the link.
            _ => end.said[0].is_err(),
        };
        assert!(noticed, "{harm:?}: {:?}", end.said);
        assert!(end.took < LIMIT, "{harm:?}: {:?}", end.took);
    }
}
