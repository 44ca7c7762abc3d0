// SPDX-License-Identifier: GPL-2.0

//! Lines over a unix socket, each with a limit for how long it may take.

use std::io::{
    self,
    BufRead,
    BufReader, //
};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{
    Duration,
    Instant, //
};

use crate::error::Error;
use crate::wait;

/// The longest a listener may take to come up.
const LISTENS: Duration = Duration::from_secs(300);

/// Connects as soon as somebody listens.
///
/// # Errors
///
/// Nobody does in time.
pub fn connect(path: &Path) -> Result<UnixStream, Error> {
    let mut stream = UnixStream::connect(path);
    wait::until(
        &format!("a listener at {}", path.display()),
        LISTENS,
        || {
            if stream.is_err() {
                stream = UnixStream::connect(path);
            }
            Ok::<_, wait::Late>(stream.is_ok())
        },
    )?;
    stream.map_err(Error::of(format!("connect to {}", path.display())))
}

/// Reads one line, with its end.
///
/// # Errors
///
/// The other side is gone, or the line is not there when `end` comes.
pub fn read_line(reader: &mut BufReader<UnixStream>, end: Instant) -> io::Result<String> {
    let mut line = String::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        reader
            .get_ref()
            .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match reader.read_line(&mut line) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if line.ends_with('\n') => return Ok(line),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_line_that_does_not_come_is_waited_for_no_longer_than_said() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut reader = BufReader::new(here);
        there.write_all(b"one\ntw").unwrap();
        let soon = || Instant::now() + Duration::from_millis(50);
        assert_eq!(read_line(&mut reader, soon()).unwrap(), "one\n");
        let error = read_line(&mut reader, soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
