// SPDX-License-Identifier: GPL-2.0

//! The receiving proxy: gives the destination QEMU the stream as the source QEMU wrote it.

mod backlog;
mod channel;
mod decoder;
mod gather;
mod greet;
mod heals;
mod held;
mod offer;
mod resolve;
mod returns;
mod writer;

use std::path::PathBuf;
use std::sync::{
    Arc,
    Mutex, //
};
use std::time::Duration;

use twinpage_store::Sources;

use crate::net::{
    self,
    Address,
    Listener,
    Security, //
};
use crate::proxy::error::Error;
use crate::proxy::handle::Handle;
use crate::proxy::limits::Limits;
use crate::proxy::progress::SourceCount;
use crate::proxy::receive::greet::Host;
use crate::proxy::session::{
    no_thread,
    Session, //
};

/// Gives the sources of pages for a domain, or says why it does not.
pub type OfDomain = dyn Fn(&str) -> Result<Arc<Sources>, String> + Send + Sync;

/// How to receive.
pub struct Options {
    /// Where senders connect.
    pub listen: Address,
    /// How links are secured.
    pub security: Security,
    /// The socket of QEMU (`-incoming unix:PATH`); empty: only plan requests are answered.
    pub qemu: Option<PathBuf>,
    /// The sources of pages; called for each plan and for whoever may begin the migration, from a
    /// thread that is not waited for longer than a handshake may take. What it says when it refuses
    /// goes to the sender.
    pub sources: Arc<OfDomain>,
    /// How long QEMU may take to listen.
    pub connect_wait: Duration,
    /// Called with what went wrong with connections that came to nothing.
    pub notice: Arc<dyn Fn(&str) + Send + Sync>,
    /// Limits.
    pub limits: Limits,
}

impl Options {
    /// The usual options.
    pub fn new(
        listen: Address,
        security: Security,
        qemu: Option<PathBuf>,
        sources: Arc<OfDomain>,
    ) -> Self {
        Self {
            listen,
            security,
            qemu,
            sources,
            connect_wait: Duration::from_secs(10),
            notice: Arc::new(|_| ()),
            limits: Limits::default(),
        }
    }
}

/// Begins to receive. A sender may connect as soon as this returns.
///
/// # Errors
///
/// The limits cannot be used, or the address cannot be listened on.
pub fn start(options: Options) -> Result<Handle, Error> {
    let session = Session::new(options.limits)?;
    let notice = Arc::clone(&options.notice);
    let listener = Listener::bind(
        &options.listen,
        &options.security,
        session.limits.of_link(),
        move |error: &net::Error| notice(&error.chain()),
    );
    let listener = listener.map_err(|error| Error::Listen {
        address: options.listen.to_string(),
        reason: error.chain(),
    })?;
    let address = listener.address().to_string();
    let (stopper, waker) = (listener.stopper(), listener.stopper());
    session.stop.on_failure(move || stopper.stop());
    let host = Arc::new(Host {
        session: Arc::clone(&session),
        qemu: options.qemu,
        sources: options.sources,
        connect_wait: options.connect_wait,
        notice: options.notice,
        migration: Mutex::default(),
        guests: Arc::default(),
        filters: Arc::default(),
    });
    let counted = Arc::clone(&host);
    let thread = session.spawn(0, "listen", move || host.listen(&listener));
    let thread = thread.map_err(no_thread)?;
    Ok(Handle::new(session, address, thread)
        .waking(move || waker.stop())
        .counting(move || counts(&counted)))
}

/// What the sources of the migration did.
fn counts(host: &Host) -> Vec<SourceCount> {
    let Some(sources) = host.sources_in_use() else {
        return Vec::new();
    };
    let counts = sources.counts().into_iter();
    counts
        .map(|count| SourceCount {
            name: count.name.to_owned(),
            hits: count.hits,
            misses: count.misses,
            wrong: count.wrong,
            errors: count.errors,
        })
        .collect()
}
