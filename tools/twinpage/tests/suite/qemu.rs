// SPDX-License-Identifier: GPL-2.0

//! Two QEMUs that are threads: one writes a stream, the other takes it and says whether it is good.

use std::io::{
    Read,
    Write, //
};
use std::net::Shutdown;
use std::os::unix::net::{
    UnixListener,
    UnixStream, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::thread::{
    self,
    JoinHandle, //
};
use std::time::{
    Duration,
    Instant, //
};

use crate::synth::Synth;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What a return path says when all is good: SHUT with status 0.
const GOOD: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];

/// Pages of the guest.
const PAGES: u64 = 512;

/// Content number `n`.
pub fn content(n: u64) -> [u8; 4096] {
    let mut page = [0; 4096];
    for (at, word) in page.chunks_exact_mut(8).enumerate() {
        let value = (n * 4096 + at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&value.to_le_bytes());
    }
    page
}

/// A stream of which the first page is written `repeats` times, then 100 pages of `content`, then
/// zeroes.
pub fn stream(repeats: u64) -> Vec<u8> {
    let mut synth = Synth::begin(Vec::new(), PAGES * 4096).unwrap();
    synth.part().unwrap();
    for n in 0..repeats {
        synth.page(n * 4096, &content(0)).unwrap();
    }
    for n in 0..100 {
        synth.page((200 + n) * 4096, &content(n)).unwrap();
    }
    for n in 300..PAGES {
        synth.zero(n * 4096).unwrap();
    }
    synth.close().unwrap();
    synth.last().unwrap();
    synth.close().unwrap();
    synth.devices(&[0x5a; 5000]).unwrap()
}

/// The QEMU at the destination, which waits at `path`. Gives what it got.
pub fn destination(path: PathBuf) -> JoinHandle<Vec<u8>> {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let mut got = Vec::new();
        let mut buffer = [0; 65536];
        loop {
            let read = socket.read(&mut buffer).unwrap();
            if read == 0 {
                return got;
            }
            got.extend(&buffer[..read]);
            // The byte before the description of devices, which these streams do not have.
            if got.ends_with(&[0x7e, 0, 0, 0, 9, 0]) {
                socket.write_all(&GOOD).unwrap();
                socket.shutdown(Shutdown::Write).unwrap();
            }
        }
    })
}

/// The QEMU at the source, which connects to `path`, once that is there, and writes `stream`. Gives
/// what came back.
pub fn source(path: PathBuf, stream: Vec<u8>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut socket = connected(&path);
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        // A proxy that fails closes the socket, which is the test's to judge.
        let _sent = socket.write_all(&stream);
        let mut back = vec![0; GOOD.len()];
        match socket.read_exact(&mut back) {
            Ok(()) => back,
            Err(_) => Vec::new(),
        }
    })
}

/// Whether that came back which says that all is good.
pub fn is_good(back: &[u8]) -> bool {
    back == GOOD
}

/// A connection to `path`, once somebody listens.
pub fn connected(path: &Path) -> UnixStream {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(socket) => return socket,
            Err(error) => assert!(start.elapsed() < LIMIT, "{}: {error}", path.display()),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until something is at `path`.
pub fn appears(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < LIMIT, "{}", path.display());
        thread::sleep(Duration::from_millis(10));
    }
}
