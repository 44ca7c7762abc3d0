// SPDX-License-Identifier: GPL-2.0

//! The first frame of each direction.

use std::io::{
    self,
    Write, //
};
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::sync::Arc;

use ring::rand::{
    SecureRandom,
    SystemRandom, //
};
use twinpage_wire::{
    Agreed,
    Direction,
    FilterKey,
    Hello,
    Incoming,
    Message,
    Purpose,
    Role,
    Sealer,
    SessionId, //
};

use crate::net::{
    self,
    Address,
    LinkHandle,
    LinkWriter,
    Security, //
};
use crate::proxy::error::Error;
use crate::proxy::inbox::{
    Broken,
    Inbox, //
};
use crate::proxy::limits::Limits;
use crate::proxy::stop::Stop;

/// What this software calls itself.
pub const SOFTWARE: &str = concat!("twinpage-migrate ", env!("CARGO_PKG_VERSION"));

/// Random bytes.
///
/// # Errors
///
/// The system has none.
pub fn random() -> Result<[u8; 16], Error> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::System {
            what: "take random bytes",
            source: io::ErrorKind::Unsupported.into(),
        })?;
    Ok(bytes)
}

/// The HELLO of a sender.
pub fn of_sender(
    purpose: Purpose,
    session: SessionId,
    channel: u16,
    domain: &str,
    zstd: bool,
    limits: &Limits,
) -> Hello {
    Hello {
        role: Role::Sender,
        purpose,
        session,
        channel,
        domain: domain.to_owned(),
        dictionary_pages: limits.dictionary_pages,
        window_stream: limits.stream_window,
        window_wire: limits.wire_window,
        zstd,
        filter_key: FilterKey([0; 16]),
        software: SOFTWARE.to_owned(),
    }
}

/// The answer of a receiver to `theirs`.
pub fn of_receiver(theirs: &Hello, key: FilterKey, limits: &Limits) -> Hello {
    Hello {
        role: Role::Receiver,
        dictionary_pages: limits.dictionary_pages,
        window_stream: limits.stream_window,
        window_wire: limits.wire_window,
        zstd: true,
        filter_key: key,
        software: SOFTWARE.to_owned(),
        ..theirs.clone()
    }
}

/// A link on which both ends have said HELLO.
pub struct Opened {
    /// Breaks it.
    pub handle: LinkHandle,
    /// What comes.
    pub inbox: Inbox,
    /// What goes.
    pub writer: LinkWriter,
    /// The chain of what goes.
    pub sealer: Sealer,
    /// What both ends agree on.
    pub agreed: Agreed,
    /// What the other end said.
    pub theirs: Hello,
}

/// Opens a link to the receiver with `hello`. `stop` may end that early.
///
/// # Errors
///
/// There is no receiver, it refuses, or it does not answer in time.
pub fn open(
    to: &Address,
    security: &Security,
    hello: &Hello,
    limits: &Limits,
    stop: &Stop,
) -> Result<Opened, Error> {
    let failed = |reason: String| Error::Connect {
        address: to.to_string(),
        reason,
    };
    let link = net::connect(to, security, limits.of_link());
    let link = link.map_err(|error| failed(error.chain()))?;
    let handle = link.handle();
    let greeting = Arc::new(AtomicBool::new(true));
    stop.on_failure({
        let (handle, greeting) = (handle.clone(), Arc::clone(&greeting));
        move || {
            if greeting.load(Ordering::SeqCst) {
                handle.abort();
            }
        }
    });
    let (reader, mut writer) = link.split();
    let mut sealer = Sealer::new(Direction::ToReceiver, &hello.session, hello.channel);
    let mut inbox = Inbox::new(reader, Direction::ToSender, limits.silence);
    write(&mut writer, &mut sealer, &Message::Hello(hello.clone()))
        .map_err(|error| failed(error.to_string()))?;
    let unheard = |broken| match broken {
        Broken::Link(error) if is_end(&error) => Error::NoAnswer {
            address: to.to_string(),
        },
        broken => failed(broken.to_string()),
    };
    let theirs = match read(&mut inbox).map_err(unheard)? {
        Greeting::Hello(theirs) => theirs,
        Greeting::Refused(code, text) => {
            return Err(Error::Peer {
                channel: hello.channel,
                code,
                text,
            })
        }
    };
    let agreed = hello
        .agree(&theirs)
        .map_err(|error| failed(error.to_string()))?;
    greeting.store(false, Ordering::SeqCst);
    Ok(Opened {
        handle,
        inbox,
        writer,
        sealer,
        agreed,
        theirs,
    })
}

/// Whether a connection has ended, however abruptly.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
    )
}

/// Writes a frame of this thread.
///
/// # Errors
///
/// The message has no frame, or the link broke.
pub fn write(link: &mut LinkWriter, sealer: &mut Sealer, message: &Message) -> io::Result<()> {
    let frame = message
        .frame()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    link.write_all(&sealer.seal(frame))?;
    link.flush()
}

/// What the other end began with.
pub enum Greeting {
    /// HELLO.
    Hello(Hello),
    /// ERROR: it refuses.
    Refused(u16, String),
}

/// Reads the first frame.
///
/// # Errors
///
/// The link broke, or the frame is another.
pub fn read(inbox: &mut Inbox) -> Result<Greeting, Broken> {
    match inbox.next()? {
        Some(Incoming::Message(Message::Hello(hello))) => Ok(Greeting::Hello(hello)),
        Some(Incoming::Message(Message::Error(error))) => {
            Ok(Greeting::Refused(error.code.0, error.text))
        }
        // A first frame of another kind is refused by the frame reader already.
        Some(_) | None => Err(Broken::Link(io::ErrorKind::UnexpectedEof.into())),
    }
}
