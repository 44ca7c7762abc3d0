// SPDX-License-Identifier: GPL-2.0

//! Frames that are not blocks.

use proptest::prelude::*;
use twinpage_wire::{
    limits,
    Direction,
    Error,
    ErrorCode,
    Fault,
    FilterKey,
    FilterPart,
    Frame,
    FrameReader,
    Hello,
    Incoming,
    Kind,
    Message,
    PeerError,
    Purpose,
    Role,
    Sealer,
    SessionId,
    HEADER_BYTES,
    PAGE_BYTES, //
};

use crate::common::{
    chain_start,
    hello,
    raw_frame, //
};

/// What a reader makes of `frames`.
pub fn read(direction: Direction, frames: &[Vec<u8>]) -> Result<Vec<Incoming>, Error> {
    let mut reader = FrameReader::new(direction);
    let mut all = Vec::new();
    for frame in frames {
        let (header, body) = frame.split_first_chunk::<HEADER_BYTES>().expect("a header");
        let header = reader.header(*header)?;
        all.push(reader.accept(header, body.to_vec())?);
    }
    let bytes = frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
    assert_eq!(reader.position(), bytes);
    Ok(all)
}

/// What arrives of `message` after a HELLO.
fn after_hello(direction: Direction, message: &Message) -> Result<Incoming, Error> {
    let hello = hello();
    let mut sealer = Sealer::new(direction, &hello.session, hello.channel);
    let first = sealer.seal(Message::Hello(hello).frame()?);
    let second = sealer.seal(message.frame()?);
    read(direction, &[first, second]).map(|mut all| all.remove(1))
}

#[test]
fn every_message_arrives() {
    use Direction::{
        ToReceiver,
        ToSender, //
    };
    let table = [
        (ToReceiver, Message::Ping),
        (ToSender, Message::Ping),
        (
            ToSender,
            Message::Error(PeerError::new(ErrorCode::LIMIT, "too much")),
        ),
        (
            ToReceiver,
            Message::Heal {
                reference: 1 << 40,
                page: Box::new([9; PAGE_BYTES]),
            },
        ),
        (ToReceiver, Message::Eof { stream_bytes: 77 }),
        (ToReceiver, Message::Handover),
        (
            ToSender,
            Message::Filter(FilterPart {
                total: 5,
                offset: 6,
                bytes: vec![1, 2, 3],
            }),
        ),
        (ToSender, Message::Return(vec![4; limits::RETURN_BYTES])),
        (ToSender, Message::ReturnEof),
        (
            ToSender,
            Message::Ack {
                stream_bytes: 1,
                wire_bytes: 2,
            },
        ),
        (ToSender, Message::Miss { reference: 3 }),
    ];
    for (direction, message) in table {
        let arrived = after_hello(direction, &message);
        assert_eq!(arrived, Ok(Incoming::Message(message)));
    }
}

#[test]
fn what_is_too_long_is_not_sent() {
    let long = vec![0; limits::RETURN_BYTES + 1];
    assert!(matches!(
        Frame::return_bytes(&long),
        Err(Error::TooLong { .. })
    ));
    let text = "\u{e4}".repeat(1000);
    let error = PeerError::new(ErrorCode::INTERNAL, &text);
    assert_eq!(error.text.len(), limits::ERROR_TEXT);
    assert!(Message::Error(error).frame().is_ok());
    for change in [
        |hello: &mut Hello| hello.domain = "x".repeat(256),
        |hello: &mut Hello| hello.software = "x".repeat(256),
        |hello: &mut Hello| hello.dictionary_pages = limits::DICTIONARY_PAGES + 1,
    ] {
        let mut long = hello();
        change(&mut long);
        let result = Message::Hello(long).frame().map(|frame| frame.kind());
        assert!(matches!(result, Err(Error::TooLong { .. })));
    }
}

#[test]
fn the_text_of_a_peer_does_nothing_to_a_terminal() {
    let mut chain = chain_start(Direction::ToSender, &hello());
    let payload = Message::Hello(hello()).frame().expect("a frame");
    let mut sealer = Sealer::new(Direction::ToSender, &hello().session, hello().channel);
    let first = sealer.seal(payload);
    chain.copy_from_slice(&first[first.len() - 32..]);
    let frame = raw_frame(2, b"\x01\x00a\x1b[2Jb\nc\xff", &mut chain);
    let all = read(Direction::ToSender, &[first, frame]).expect("an error");
    let Incoming::Message(Message::Error(error)) = &all[1] else {
        panic!("{all:?}");
    };
    assert_eq!(error.text, "a [2Jb c\u{fffd}");
    assert_eq!(error.to_string(), "a [2Jb c\u{fffd} (protocol error)");
}

#[test]
fn an_error_may_come_first_and_nothing_else_before_the_hello() {
    let error = Message::Error(PeerError::new(ErrorCode::DISAGREE, "no"));
    let mut sealer = Sealer::new(Direction::ToSender, &SessionId::NONE, 0);
    let frame = sealer.seal(error.frame().expect("a frame"));
    let arrived = read(Direction::ToSender, &[frame]);
    assert_eq!(arrived, Ok(vec![Incoming::Message(error)]));
    for kind in Kind::all() {
        for direction in [Direction::ToReceiver, Direction::ToSender] {
            let mut header = [0; HEADER_BYTES];
            header[0] = kind.code();
            header[4..].copy_from_slice(&(kind.min_payload() as u32).to_le_bytes());
            let result = FrameReader::new(direction).header(header);
            let first = matches!(kind, Kind::Hello | Kind::Error);
            assert_eq!(result.is_ok(), first, "{kind}");
        }
    }
}

#[test]
fn a_second_hello_is_refused() {
    let result = after_hello(Direction::ToSender, &Message::Hello(hello()));
    let Err(Error::Peer { place, fault }) = result else {
        panic!("{result:?}");
    };
    assert_eq!(fault, Fault::SecondHello);
    assert_eq!(place.frame, 1);
}

#[test]
fn peers_agree_on_the_lesser() {
    let ours = hello();
    let theirs = Hello {
        role: Role::Receiver,
        dictionary_pages: 10,
        filter_key: FilterKey([7; 16]),
        window_wire: 5 << 20,
        ..hello()
    };
    for (ours, theirs) in [(&ours, &theirs), (&theirs, &ours)] {
        let agreed = ours.agree(theirs).expect("an agreement");
        assert_eq!(agreed.dictionary_pages, 10);
        assert_eq!(agreed.filter_key, FilterKey([7; 16]));
        assert!(agreed.zstd);
        assert_eq!(
            (agreed.window_stream, agreed.window_wire),
            (64 << 20, 5 << 20)
        );
    }
    let changes: [fn(&mut Hello); 5] = [
        |hello| hello.role = Role::Sender,
        |hello| hello.purpose = Purpose::Plan,
        |hello| hello.session = SessionId([1; 16]),
        |hello| hello.channel += 1,
        |hello| hello.domain = "db".to_owned(),
    ];
    for change in changes {
        let mut other = theirs.clone();
        change(&mut other);
        let result = ours.agree(&other);
        assert!(matches!(result, Err(Error::Disagree { .. })), "{other:?}");
    }
}

#[test]
fn a_hello_with_anything_else_in_it_is_refused() {
    let first = Message::Hello(hello()).frame().expect("a frame");
    let sealed = Sealer::new(Direction::ToReceiver, &SessionId::NONE, 0).seal(first);
    let good = &sealed[HEADER_BYTES..sealed.len() - 32];
    let table: [(usize, u8, &str); 10] = [
        (0, b'X', "Not a twinpage peer"),
        (8, 3, "version 3"),
        (10, 3, "Role"),
        (11, 0, "Purpose"),
        (30, 2, "Flags"),
        (35, 1, "Dictionary"),
        (59, 1, "Window"),
        (67, 1, "Window"),
        (68, 200, "inside of The name of the domain"),
        (69, 0x1b, "The name of the domain is not printable"),
    ];
    for (at, byte, expected) in table {
        let mut payload = good.to_vec();
        payload[at] = byte;
        let mut chain = chain_start(Direction::ToReceiver, &hello());
        let frame = raw_frame(1, &payload, &mut chain);
        let error = read(Direction::ToReceiver, &[frame]).expect_err("a bad HELLO");
        let text = error.to_string();
        assert!(text.starts_with("Frame 0 at byte 0: "), "{text}");
        assert!(text.contains(expected), "byte {at}: {text}");
    }
    let mut chain = chain_start(Direction::ToReceiver, &hello());
    let frame = raw_frame(1, &[good, b"!"].concat(), &mut chain);
    let error = read(Direction::ToReceiver, &[frame]).expect_err("a bad HELLO");
    assert!(error.to_string().contains("1 unexpected bytes"), "{error}");
}

proptest! {
    #[test]
    fn every_hello_arrives(
        session: [u8; 16],
        channel: u16,
        domain in "[a-z0-9-]{0,255}",
        software in "[ -~]{0,255}",
        dictionary_pages in 0..=limits::DICTIONARY_PAGES,
        flags: [bool; 3],
        window_stream in limits::WINDOW,
        window_wire in limits::WINDOW,
        key: [u8; 16],
    ) {
        let hello = Hello {
            role: if flags[0] { Role::Sender } else { Role::Receiver },
            purpose: if flags[1] { Purpose::Migrate } else { Purpose::Plan },
            session: SessionId(session),
            channel,
            domain,
            dictionary_pages,
            zstd: flags[2],
            filter_key: FilterKey(key),
            window_stream,
            window_wire,
            software,
        };
        let message = Message::Hello(hello.clone());
        let frame = message.frame().expect("a frame");
        let sealed = Sealer::new(Direction::ToSender, &hello.session, channel).seal(frame);
        // The first value follows from the documentation, too.
        let mut chain = chain_start(Direction::ToSender, &hello);
        let payload = &sealed[HEADER_BYTES..sealed.len() - 32];
        prop_assert_eq!(&raw_frame(1, payload, &mut chain), &sealed);
        let arrived = read(Direction::ToSender, &[sealed]);
        prop_assert_eq!(arrived, Ok(vec![Incoming::Message(message)]));
    }
}
