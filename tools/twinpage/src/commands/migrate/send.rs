// SPDX-License-Identifier: GPL-2.0

//! `twinpage migrate send`: the end at the source, for a QEMU that somebody else drives.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    chownat,
    fstat,
    open,
    AtFlags,
    FileType,
    Mode,
    OFlags, //
};
use rustix::process::{
    geteuid,
    Uid, //
};
use rustix::stdio::{
    dup2_stdin,
    dup2_stdout, //
};
use twinpage_migrate::net::{
    self,
    Node,
    Security, //
};
use twinpage_migrate::proxy::{
    send,
    Limits, //
};

use crate::account;
use crate::cli::migrate::{
    Send,
    SendOptions, //
};
use crate::console::Console;
use crate::error::Error;
use crate::host::Host;
use crate::notices::{
    Notices,
    Speaker, //
};
use crate::report::{
    printable,
    Role, //
};
use crate::security;
use crate::session;

use super::domain_text;

/// Runs the command.
pub fn run(arguments: &Send, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    let prepared = Prepared::new(&arguments.options)?;
    let input = match &arguments.listen {
        Some(path) => listen(path, arguments.socket_user.as_deref(), host)?,
        None => standard_streams()?,
    };
    let (speaker, notices) = Notices::new();
    let handle = send::start(prepared.options(input, speaker))?;
    if let (Some(path), false) = (&arguments.listen, arguments.show.quiet) {
        let path = path.display();
        writeln!(
            console.err,
            "twinpage: waiting for QEMU: migrate unix:{path}"
        )?;
    }
    let finished = session::follow(handle, arguments.show, &notices, host, console);
    match arguments.stdio {
        // Standard output is QEMU's return path.
        true => session::conclude(finished.verdict, finished.shown, console),
        false => session::tell(Role::Send, finished, arguments.show, console),
    }
}

/// Options that were looked at, but for QEMU's end, which exists last.
pub struct Prepared {
    /// What was asked for.
    options: SendOptions,
    /// Who the peer is.
    security: Security,
    /// What it may take.
    limits: Limits,
}

impl Prepared {
    /// Looks at `options`.
    ///
    /// # Errors
    ///
    /// An option is out of bounds, or a file of the identity cannot be used.
    pub fn new(options: &SendOptions) -> Result<Self, Error> {
        Ok(Self {
            options: options.clone(),
            security: security::load(&options.security)?,
            limits: session::send_limits(options)?,
        })
    }

    /// What the proxy is to do with `input`; the `speaker` says what it notices.
    pub fn options(self, input: send::Input, speaker: Speaker) -> send::Options {
        let mut send = send::Options::new(input, self.options.to.clone(), self.security);
        send.rate = session::rate_limit(self.options.limit_rate);
        send.compression = self.options.level.0;
        send.domain = domain_text(self.options.domain.as_ref());
        send.notice = Arc::new(move |text| speaker.say(printable(text)));
        send.limits = self.limits;
        send
    }
}

/// QEMU on a socket at `path`, which `user` may connect to.
fn listen(path: &Path, user: Option<&str>, host: &Host) -> Result<send::Input, Error> {
    let owner = user.map(|user| account::number(host, user)).transpose()?;
    let listener = net::listen_unix(path)?;
    if let Some(owner) = owner {
        let node = Node::at(path);
        give(path, owner).inspect_err(|_| {
            // Nobody is to find a socket at which nobody listens.
            let _gone = node.and_then(|node| node.remove());
        })?;
    }
    Ok(send::Input::Listener(listener, path.to_owned()))
}

/// QEMU on standard input and output, which become `/dev/null`: QEMU sees that the return path has
/// ended when its last descriptor is closed, and only that of the proxy is closed in time.
fn standard_streams() -> Result<send::Input, Error> {
    let take = || -> io::Result<send::Input> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        let nothing = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&nothing)?;
        dup2_stdout(&nothing)?;
        Ok(send::Input::Streams { input, output })
    };
    take().map_err(|source| Error::call("use standard input and output", source))
}

/// Makes `owner` the user that may connect to the socket at `path`. Whoever may write to the
/// directory could have put something else there meanwhile, a link or another file of ours; that is
/// given to nobody.
fn give(path: &Path, owner: u32) -> Result<(), Error> {
    let give = || -> io::Result<()> {
        let node = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = open(path, node, Mode::empty())?;
        let found = fstat(&node)?;
        let socket = FileType::from_raw_mode(found.st_mode) == FileType::Socket;
        if !socket || found.st_nlink != 1 || found.st_uid != geteuid().as_raw() {
            return Err(io::Error::other("Something else was put in its place"));
        }
        let owner = Some(Uid::from_raw(owner));
        Ok(chownat(&node, "", owner, None, AtFlags::EMPTY_PATH)?)
    };
    give().map_err(|source| Error::call(format!("give {} to its user", path.display()), source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_is_in_place_of_the_socket_is_given_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let there = |name| dir.path().join(name);
        let _socket = net::listen_unix(&there("socket")).unwrap();
        fs::write(there("file"), "").unwrap();
        std::os::unix::fs::symlink(there("socket"), there("link")).unwrap();
        let me = fs::metadata(there("socket")).unwrap().uid();
        give(&there("socket"), me).unwrap();
        for name in ["file", "link"] {
            give(&there(name), me).unwrap_err();
        }
        // One with another name may have been linked here from elsewhere.
        fs::hard_link(there("socket"), there("other")).unwrap();
        give(&there("socket"), me).unwrap_err();
    }
}
