// SPDX-License-Identifier: GPL-2.0

//! Asks a receiver which pages its host holds, before anything moves.

use std::time::{
    Duration,
    Instant, //
};

use twinpage_wire::{
    Digest,
    Filter,
    Incoming,
    Message,
    Purpose,
    SessionId, //
};

use crate::net::{
    Address,
    Security, //
};
use crate::proxy::error::Error;
use crate::proxy::filter::{
    FilterGate,
    Taken, //
};
use crate::proxy::handshake::{
    self,
    Opened, //
};
use crate::proxy::inbox::Broken;
use crate::proxy::limits::Limits;
use crate::proxy::stop::Stop;

/// How long the receiver may take to close the link.
const FAREWELL: Duration = Duration::from_secs(1);

/// Whom to ask for what.
pub struct Query {
    /// Where the receiver listens.
    pub to: Address,
    /// How the link is secured.
    pub security: Security,
    /// Name of the domain.
    pub domain: String,
    /// How long the receiver may take to answer, however often it says that it is there.
    pub patience: Duration,
    /// Limits.
    pub limits: Limits,
}

/// What a host holds.
pub struct Holdings {
    /// Its filter.
    filter: std::sync::Arc<Filter>,
    /// Bytes that came over the link.
    bytes: u64,
    /// Software of the receiver.
    software: String,
}

impl Holdings {
    /// How many pages the host holds.
    pub fn pages(&self) -> u64 {
        self.filter.keys()
    }

    /// How many bytes came over the link to learn that.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the host holds the page; one in 65536 others is taken for one that it holds.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.filter.contains(digest)
    }

    /// What the receiver calls its software.
    pub fn software(&self) -> &str {
        &self.software
    }
}

/// Asks the receiver of `query`.
///
/// # Errors
///
/// There is no receiver, it refuses the domain, or its filter is larger than allowed.
pub fn holdings(query: &Query) -> Result<Holdings, Error> {
    query.limits.check()?;
    let limits = &query.limits;
    let session = SessionId(handshake::random()?);
    let hello = handshake::of_sender(Purpose::Plan, session, 0, &query.domain, false, limits);
    let stop = Stop::default();
    let opened = handshake::open(&query.to, &query.security, &hello, limits, &stop)?;
    let Opened {
        handle,
        mut inbox,
        mut writer,
        agreed,
        theirs,
        ..
    } = opened;
    let failed = |reason: String| Error::Connect {
        address: query.to.to_string(),
        reason,
    };
    let gate = FilterGate::new(limits.filter_bytes);
    let end = Instant::now().checked_add(query.patience);
    inbox.set_deadline(end);
    while gate.is_open() {
        let incoming = inbox.next().map_err(|broken| match broken {
            Broken::Slow if end.is_some_and(|end| Instant::now() >= end) => {
                let waited = query.patience.as_secs_f64();
                failed(format!("Its filter did not come within {waited} s"))
            }
            _ => failed(broken.to_string()),
        })?;
        match incoming {
            Some(Incoming::Message(Message::Ping)) => (),
            Some(Incoming::Message(Message::Filter(part))) => {
                let taken = gate.push(&agreed.filter_key, &part);
                if taken.map_err(|error| failed(error.to_string()))? == Taken::TooLarge {
                    let limit = limits.filter_bytes;
                    return Err(failed(format!("Its filter has more than {limit} bytes")));
                }
            }
            Some(Incoming::Message(Message::Error(error))) => {
                return Err(Error::Peer {
                    channel: 0,
                    code: error.code.0,
                    text: error.text,
                })
            }
            Some(_) => return Err(failed("It sent something else than a filter".to_owned())),
            None => return Err(failed("It closed the link without a filter".to_owned())),
        }
    }
    // The answer is complete; how the link ends changes nothing.
    let _ = writer.finish();
    inbox.set_deadline(Some(Instant::now() + FAREWELL));
    while let Ok(Some(_)) = inbox.next() {}
    handle.abort();
    let filter = gate
        .now()
        .ok_or_else(|| failed("It sent no filter".to_owned()))?;
    Ok(Holdings {
        filter,
        bytes: inbox.bytes(),
        software: theirs.software,
    })
}
