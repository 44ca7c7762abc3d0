// SPDX-License-Identifier: GPL-2.0

//! What the programs on the two hosts say to each other, beside the migration itself.
//!
//! The source asks, the destination does it and answers: one line of JSON each, over TCP. The
//! answer to [`Ask::Ram`] is followed by the bytes that it announces.

use std::io::{
    self,
    BufRead,
    BufReader,
    Write, //
};
use std::net::{
    SocketAddr,
    TcpListener,
    TcpStream, //
};
use std::time::Duration;

use serde::{
    Deserialize,
    Serialize, //
};
use serde_json::Value;
use twinpage_lab::checks::Check;
use twinpage_lab::wait;

/// The longest the other host may take for anything: it is emulated.
const PATIENCE: Duration = Duration::from_secs(1200);

/// What the source wants of the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Have guests that share memory.
    Neighbours,
    /// Wait for a guest.
    Receive,
    /// Hand over the memory of the guest that came.
    Ram,
    /// Let it run, and ask it about its memory.
    Run,
    /// Let it share memory with its new neighbours.
    Merge,
    /// Stop everything and look at the kernel's log.
    End,
}

/// What the destination answers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// What was checked.
    pub checks: Vec<Check>,
    /// What was seen.
    pub seen: Value,
    /// Why it could not be done.
    pub error: Option<String>,
}

/// One end.
pub struct Talk(BufReader<TcpStream>);

impl Talk {
    /// Connects to the other host, as soon as it is up.
    ///
    /// # Errors
    ///
    /// It does not come up.
    pub fn connect(address: SocketAddr) -> Result<Talk, Box<dyn std::error::Error>> {
        let mut stream = None;
        wait::until("the other host", PATIENCE, || {
            let tried = TcpStream::connect_timeout(&address, Duration::from_secs(1));
            stream = tried.ok();
            Ok::<_, wait::Late>(stream.is_some())
        })?;
        Ok(Talk::over(stream.ok_or("no connection")?)?)
    }

    /// Takes the connection of the other host.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn accept(listener: &TcpListener) -> io::Result<Talk> {
        Talk::over(listener.accept()?.0)
    }

    fn over(stream: TcpStream) -> io::Result<Talk> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Talk(BufReader::new(stream)))
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    ///
    /// The connection is gone.
    pub fn ask(&mut self, ask: Ask) -> io::Result<Answer> {
        self.tell(&ask)?;
        self.hear()
    }

    /// Says something.
    ///
    /// # Errors
    ///
    /// The connection is gone.
    pub fn tell(&mut self, what: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line)
    }

    /// Hears something.
    ///
    /// # Errors
    ///
    /// The connection is gone, or it is something else.
    pub fn hear<T: for<'a> Deserialize<'a>>(&mut self) -> io::Result<T> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the other host is gone",
            ));
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// The bytes after a line.
    pub fn bytes(&mut self) -> &mut BufReader<TcpStream> {
        &mut self.0
    }
}
