// SPDX-License-Identifier: GPL-2.0

//! How a session fails. Each error is one line that says what and where.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use twinpage_wire::ErrorCode;

/// Why a session ended before the migration was complete.
///
/// The guest still runs at the source, or runs there again, after all of them but
/// [`Error::Unsure`].
#[derive(Debug, Error)]
pub enum Error {
    /// Whoever started the session ended it.
    #[error("The migration was cancelled")]
    Cancelled,
    /// The other proxy failed and said why.
    #[error("Channel {channel}: the other end gave up (code {code}): {text}")]
    Peer {
        /// Number of the connection.
        channel: u16,
        /// Its code.
        code: u16,
        /// Its words, without control characters.
        text: String,
    },
    /// No connection to the other proxy came about.
    #[error("No connection to the receiver at {address}: {reason}")]
    Connect {
        /// Where it should listen.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The other proxy ended the connection before it said anything.
    #[error("The receiver at {address} ended the connection without an answer")]
    NoAnswer {
        /// Where it listens.
        address: String,
    },
    /// Listening failed.
    #[error("Cannot listen on {address}: {reason}")]
    Listen {
        /// Where.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The connection between the proxies broke.
    #[error("Channel {channel}, stream offset {offset}: the link failed: {reason}")]
    Link {
        /// Number of the connection.
        channel: u16,
        /// How far the stream was.
        offset: u64,
        /// What happened.
        reason: String,
    },
    /// The other proxy said nothing for too long.
    #[error("Channel {channel}, stream offset {offset}: the other end was silent for {} s", silence.as_secs_f64())]
    Silence {
        /// Number of the connection.
        channel: u16,
        /// How far the stream was.
        offset: u64,
        /// For how long.
        silence: Duration,
    },
    /// The other proxy sent something that it must not send.
    #[error("Channel {channel}, stream offset {offset}: {what}")]
    Protocol {
        /// Number of the connection.
        channel: u16,
        /// How far the stream was.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The other proxy did not send a page that was asked for.
    #[error("Channel {channel}, stream offset {offset}: page {reference} was asked for and did not come, nor anything else of the stream, within {} s", waited.as_secs_f64())]
    Unhealed {
        /// Number of the connection.
        channel: u16,
        /// How far the stream was.
        offset: u64,
        /// Number of the reference.
        reference: u64,
        /// For how long.
        waited: Duration,
    },
    /// A source of pages did not answer.
    #[error("Channel {channel}, stream offset {offset}: no answer from the sources of pages within {} s", waited.as_secs_f64())]
    PagesStuck {
        /// Number of the connection.
        channel: u16,
        /// How far the stream was.
        offset: u64,
        /// For how long.
        waited: Duration,
    },
    /// The guest stands still, and the destination takes nothing.
    #[error("Channel {channel}, stream offset {offset}: the guest stood still, and the destination took nothing for {} s", waited.as_secs_f64())]
    Stalled {
        /// Number of the connection.
        channel: u16,
        /// How far the stream was.
        offset: u64,
        /// For how long.
        waited: Duration,
    },
    /// QEMU at the source would take the end of the stream for success.
    #[error(
        "Channel {channel}: QEMU does not ask for a return path; turn its capability \
         return-path on (without it QEMU would call a lost migration complete)"
    )]
    NoReturnPath {
        /// Number of the connection.
        channel: u16,
    },
    /// QEMU's stream does not tell whether the end of it would be taken for success.
    #[error(
        "Channel {channel}, stream offset {offset}: QEMU's stream is not understood ({reason}), \
         and it did not ask for a return path before (without it QEMU would call a lost \
         migration complete)"
    )]
    Unguarded {
        /// Number of the connection.
        channel: u16,
        /// Where it is not understood.
        offset: u64,
        /// What was found there.
        reason: String,
    },
    /// QEMU at the source could not be read.
    #[error("Channel {channel}, stream offset {offset}: QEMU's stream cannot be read")]
    Source {
        /// Number of the connection.
        channel: u16,
        /// How far the stream was.
        offset: u64,
        /// What happened.
        source: io::Error,
    },
    /// QEMU at the source closed its socket before the destination's answer was there.
    #[error("Channel {channel}, stream offset {offset}: QEMU at the source gave up or has ended")]
    SourceGone {
        /// Number of the connection.
        channel: u16,
        /// How far the stream was.
        offset: u64,
    },
    /// QEMU at the destination does not take connections.
    #[error("QEMU at the destination does not take a connection on {}", path.display())]
    Destination {
        /// Its socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// QEMU at the destination stopped taking the stream.
    #[error("Channel {channel}, stream offset {offset}: QEMU at the destination takes no more")]
    DestinationGone {
        /// Number of the connection.
        channel: u16,
        /// How much it took.
        offset: u64,
        /// What happened.
        source: io::Error,
    },
    /// QEMU at the destination did not close its end.
    #[error("Channel {channel}: QEMU at the destination did not end within {} s", waited.as_secs_f64())]
    DestinationStuck {
        /// Number of the connection.
        channel: u16,
        /// For how long.
        waited: Duration,
    },
    /// The stream ended before the destination said that it has everything.
    #[error("The stream ended after {stream_bytes} bytes, and the destination {}", status(*destination))]
    Incomplete {
        /// Bytes of the stream.
        stream_bytes: u64,
        /// What the destination said.
        destination: Option<u32>,
    },
    /// It broke when the destination may already have had everything.
    #[error(
        "The migration broke after RAM was complete; ask both QEMUs where the guest runs ({cause})"
    )]
    Unsure {
        /// The error that ended the session.
        cause: Box<Error>,
    },
    /// The receiver was started to answer plan requests only.
    #[error("This receiver only answers plan requests")]
    PlanOnly,
    /// The receiver has another migration.
    #[error("This receiver is busy with another migration")]
    Busy,
    /// Too many connections.
    #[error("QEMU opened more than {limit} connections")]
    Channels {
        /// How many are allowed.
        limit: u16,
    },
    /// The pages of this domain cannot be offered.
    #[error("Pages for domain {domain:?}: {reason}")]
    Sources {
        /// Which domain.
        domain: String,
        /// What happened.
        reason: String,
    },
    /// A limit that cannot be used.
    #[error("{what} is {value}, which is not within {low} to {high}")]
    Limit {
        /// Which limit.
        what: &'static str,
        /// What was asked for.
        value: u64,
        /// The least.
        low: u64,
        /// The most.
        high: u64,
    },
    /// The system refused something.
    #[error("Cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What happened.
        source: io::Error,
    },
    /// A thread of this program panicked.
    #[error("Channel {channel}: a thread failed; this is a bug")]
    Bug {
        /// Number of the connection.
        channel: u16,
    },
}

impl Error {
    /// The code of the ERROR that tells the other end.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::Cancelled => ErrorCode::CANCELLED,
            Self::Silence { .. }
            | Self::Unhealed { .. }
            | Self::PagesStuck { .. }
            | Self::Stalled { .. } => ErrorCode::SILENCE,
            Self::Protocol { .. }
            | Self::Link { .. }
            | Self::Connect { .. }
            | Self::NoAnswer { .. } => ErrorCode::PROTOCOL,
            Self::NoReturnPath { .. } | Self::Unguarded { .. } => ErrorCode::NO_RETURN_PATH,
            Self::Source { .. } | Self::SourceGone { .. } | Self::Incomplete { .. } => {
                ErrorCode::SOURCE_QEMU
            }
            Self::Destination { .. }
            | Self::DestinationGone { .. }
            | Self::DestinationStuck { .. } => ErrorCode::DESTINATION_QEMU,
            Self::Sources { .. } => ErrorCode::DISAGREE,
            Self::PlanOnly | Self::Busy | Self::Channels { .. } => ErrorCode::LIMIT,
            Self::Unsure { cause } => cause.code(),
            Self::Peer { .. }
            | Self::Listen { .. }
            | Self::Limit { .. }
            | Self::System { .. }
            | Self::Bug { .. } => ErrorCode::INTERNAL,
        }
    }
}

/// What the destination said, in words.
fn status(destination: Option<u32>) -> String {
    match destination {
        None => "did not say that it has everything".to_owned(),
        Some(status) => format!("said that it failed (status {status})"),
    }
}
