// SPDX-License-Identifier: GPL-2.0

//! The TLS connection of a link, between plain text and records; no socket.

use std::io::{
    self,
    IoSlice,
    Read,
    Write, //
};

use rustls::{
    Connection,
    ProtocolVersion, //
};

use super::tls::ALPN;

/// A TLS connection whose handshake is over.
pub(super) struct Records(Connection);

/// What [`Records::open`] did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened {
    /// Bytes of records that were taken.
    pub(super) taken: usize,
    /// Bytes of plain text that were given.
    pub(super) filled: usize,
    /// Whether the peer said that nothing follows.
    pub(super) closed: bool,
}

impl Records {
    /// Takes over a connection after its handshake.
    pub(super) fn new(mut connection: Connection) -> Self {
        // What is sealed is taken out at once, so the limit would only cut writes in pieces.
        connection.set_buffer_limit(None);
        Self(connection)
    }

    /// Version and cipher, for messages.
    pub(super) fn description(&self) -> String {
        let version = match self.0.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
            _ => "TLS",
        };
        let suite = self.0.negotiated_cipher_suite().map(|suite| suite.suite());
        let name = suite
            .and_then(|suite| suite.as_str())
            .unwrap_or("unknown cipher");
        let name = name
            .trim_start_matches("TLS13_")
            .trim_end_matches("_SHA256");
        format!(
            "{version}, {}",
            name.trim_end_matches("_SHA384").replace('_', "-")
        )
    }

    /// Whether both sides agreed on the protocol inside.
    pub(super) fn speaks_twinpage(&self) -> bool {
        self.0.alpn_protocol() == Some(ALPN)
    }

    /// Appends records with the bytes of `parts` to `out`.
    pub(super) fn seal(&mut self, parts: &[IoSlice<'_>], out: &mut Vec<u8>) -> io::Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let sealed = self.0.writer().write_vectored(parts)?;
        if sealed != len {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.take_records(out)
    }

    /// Appends the record that says that nothing follows.
    pub(super) fn close(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        self.0.send_close_notify();
        self.take_records(out)
    }

    /// Appends all records that wait.
    fn take_records(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        while self.0.wants_write() {
            self.0.write_tls(out)?;
        }
        Ok(())
    }

    /// Turns records into plain text until the one or the other buffer is used up.
    ///
    /// # Errors
    ///
    /// `InvalidData`, with a [`rustls::Error`] inside: the peer sent what it must not.
    pub(super) fn open(&mut self, records: &[u8], plain: &mut [u8]) -> io::Result<Opened> {
        let mut rest = records;
        let mut opened = Opened {
            taken: 0,
            filled: 0,
            closed: false,
        };
        while opened.filled < plain.len() {
            match self.0.reader().read(&mut plain[opened.filled..]) {
                Ok(0) => {
                    opened.closed = true;
                    break;
                }
                Ok(filled) => {
                    opened.filled += filled;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if rest.is_empty() {
                break;
            }
            self.0.read_tls(&mut rest)?;
            self.0
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        opened.taken = records.len() - rest.len();
        Ok(opened)
    }
}
