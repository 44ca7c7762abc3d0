// SPDX-License-Identifier: GPL-2.0

//! TCP ports of this machine: one that is free, and whether somebody listens on one.

use std::io;
use std::net::TcpListener;

/// A port that nobody has just now.
///
/// # Errors
///
/// None is free.
pub fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    Ok(listener.local_addr()?.port())
}

/// Whether somebody listens on a port, without connecting to it: who listens may wait for just one.
pub fn heard(port: u16) -> bool {
    // `/proc/net/tcp`: local address and port in the second field, state 0A is LISTEN.
    let port = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|table| {
        // A kernel without IPv6 has no second table.
        let text = std::fs::read_to_string(table).unwrap_or_default();
        text.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            let local = words.next().unwrap_or_default();
            local.ends_with(&port) && words.nth(1) == Some("0A")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_seen_and_its_absence_too() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(heard(port));
        drop(listener);
        assert!(!heard(port));
    }
}
