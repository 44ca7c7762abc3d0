// SPDX-License-Identifier: GPL-2.0

//! A sender and a receiver in this process, and sources of pages made up.

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod certificates;
pub mod relay;
pub mod synth;

use std::collections::HashMap;
use std::io::{
    Read,
    Write, //
};
use std::os::unix::net::{
    UnixListener,
    UnixStream, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::{
    Arc,
    Mutex, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_migrate::net::{
    Address,
    RateLimit,
    Security, //
};
use twinpage_migrate::proxy::{
    receive,
    send,
    Error,
    Handle,
    Limits,
    Report, //
};
use twinpage_store::{
    Digest,
    Page,
    PageSource,
    Sources, //
};

/// Nothing in a test may take longer.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Pages by digest. Some of them may be lies.
#[derive(Default)]
pub struct Shelf {
    /// The pages that it says it has.
    pub pages: HashMap<Digest, Page>,
    /// Digests that it says it has and then has not.
    pub missing: Vec<Digest>,
    /// Gives no page, and no answer.
    pub stuck: bool,
    /// Panics instead of telling its digests.
    pub panics: bool,
}

impl Shelf {
    /// A shelf of these pages.
    pub fn of<'a>(pages: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let pages = pages.into_iter().map(|page| {
            let page: Page = page.try_into().unwrap();
            (Digest::of(&page), page)
        });
        Self {
            pages: pages.collect(),
            missing: Vec::new(),
            stuck: false,
            panics: false,
        }
    }
}

impl PageSource for Shelf {
    fn name(&self) -> &'static str {
        "shelf"
    }

    fn digests(&self, each: &mut dyn FnMut(Digest)) -> Result<(), twinpage_store::Error> {
        assert!(!self.panics, "on purpose");
        self.pages.keys().copied().for_each(&mut *each);
        self.missing.iter().copied().for_each(each);
        Ok(())
    }

    fn fetch(&self, digest: &Digest, into: &mut Page) -> Result<bool, twinpage_store::Error> {
        if self.stuck {
            loop {
                thread::park();
            }
        }
        Ok(match self.pages.get(digest) {
            Some(page) => {
                *into = *page;
                true
            }
            None => false,
        })
    }
}

/// How a pair of proxies is set up.
pub struct Setup {
    /// What the receiver holds.
    pub sources: Arc<Sources>,
    /// How the link is secured.
    pub security: (Security, Security),
    /// Limits of the sender.
    pub send: Limits,
    /// Limits of the receiver.
    pub receive: Limits,
    /// Level of zstd.
    pub compression: Option<u8>,
    /// The address the sender connects to, from that of the receiver.
    pub via: Box<dyn Fn(&str) -> String>,
    /// How long RAM waits for the filter.
    pub filter_wait: Duration,
    /// Bytes a second.
    pub rate: Option<RateLimit>,
    /// Whether the sender knows that QEMU asks for a return path.
    pub return_path_is_on: bool,
}

impl Default for Setup {
    fn default() -> Self {
        let limits = Limits {
            threads: 2,
            ..Limits::default()
        };
        Self {
            sources: Arc::new(Sources::new()),
            security: (Security::Insecure, Security::Insecure),
            send: limits.clone(),
            receive: limits,
            compression: Some(1),
            via: Box::new(str::to_owned),
            filter_wait: Duration::from_secs(10),
            rate: None,
            return_path_is_on: false,
        }
    }
}

impl Setup {
    /// With a receiver that holds what `shelf` has.
    pub fn holding(mut self, shelf: Shelf) -> Self {
        let mut sources = Sources::new();
        sources.push(Box::new(shelf));
        self.sources = Arc::new(sources);
        self
    }

    /// Starts the receiver for the QEMU socket `qemu`, and the sender.
    pub fn start(self, dir: &Path, qemu: &Path) -> Pair {
        let path = dir.join("send.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let input = send::Input::Listener(listener, path.clone());
        self.start_with(dir, qemu, input, path)
    }

    /// The same with another input.
    pub fn start_with(self, dir: &Path, qemu: &Path, input: send::Input, path: PathBuf) -> Pair {
        let sources = Arc::clone(&self.sources);
        let listen: Address = format!("unix:{}", dir.join("link.sock").display())
            .parse()
            .unwrap();
        let mut options = receive::Options::new(
            listen,
            self.security.1,
            Some(qemu.to_owned()),
            Arc::new(move |_| Ok(Arc::clone(&sources))),
        );
        options.limits = self.receive;
        options.notice = Arc::new(|text| eprintln!("receiver: {text}"));
        let receiver = receive::start(options).unwrap();
        let to = (self.via)(&receiver.address()).parse().unwrap();
        let mut options = send::Options::new(input, to, self.security.0);
        options.limits = self.send;
        options.compression = self.compression;
        options.filter_wait = self.filter_wait;
        options.rate = self.rate;
        options.return_path_is_on = self.return_path_is_on;
        let sender = send::start(options).unwrap();
        Pair {
            sender,
            receiver,
            path,
        }
    }
}

/// A sender and a receiver at work.
pub struct Pair {
    /// The sender.
    pub sender: Handle,
    /// The receiver.
    pub receiver: Handle,
    /// Where QEMU connects.
    pub path: PathBuf,
}

/// What a made-up destination QEMU got.
pub struct Got {
    /// Its bytes, of each connection.
    pub streams: Vec<Vec<u8>>,
}

/// A destination QEMU that takes everything and answers in the end.
pub struct Destination {
    /// Its socket.
    pub path: PathBuf,
    /// What has come so far, by connection.
    pub streams: Arc<Mutex<Vec<Vec<u8>>>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What the destination says when it has everything.
pub const SHUT: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];

impl Destination {
    /// Takes `connections` connections on a socket in `dir`; the first gets SHUT when its stream
    /// has `end` bytes.
    pub fn start(dir: &Path, connections: usize, end: usize) -> Self {
        let path = dir.join("qemu.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let streams = Arc::new(Mutex::new(vec![Vec::new(); connections]));
        let shared = Arc::clone(&streams);
        let thread = thread::spawn(move || {
            let workers: Vec<_> = (0..connections)
                .map(|n| {
                    let (socket, _) = listener.accept().unwrap();
                    let streams = Arc::clone(&shared);
                    thread::spawn(move || take(socket, n, end, &streams))
                })
                .collect();
            workers
                .into_iter()
                .for_each(|worker| worker.join().unwrap());
        });
        Self {
            path,
            streams,
            thread: Some(thread),
        }
    }

    /// Waits for the end of all connections.
    pub fn wait(mut self) -> Vec<Vec<u8>> {
        self.thread.take().unwrap().join().unwrap();
        std::mem::take(&mut *self.streams.lock().unwrap())
    }

    /// What has come so far.
    pub fn so_far(&self, n: usize) -> Vec<u8> {
        self.streams.lock().unwrap()[n].clone()
    }
}

fn take(mut socket: UnixStream, n: usize, end: usize, streams: &Mutex<Vec<Vec<u8>>>) {
    let mut buffer = vec![0; 64 << 10];
    let mut said = n != 0;
    loop {
        let got = socket.read(&mut buffer).unwrap_or(0);
        let mut streams = streams.lock().unwrap();
        streams[n].extend_from_slice(&buffer[..got]);
        if !said && streams[n].len() >= end {
            said = true;
            let _ = socket.write_all(&SHUT);
        }
        if got == 0 {
            return;
        }
    }
}

/// A source QEMU that writes `stream` in pieces of at most `step` bytes, waits for SHUT if
/// `await_shut`, and closes. Gives what it heard.
pub fn source(path: &Path, stream: &[u8], step: usize, await_shut: bool) -> Vec<u8> {
    let mut socket = UnixStream::connect(path).unwrap();
    let mut reader = socket.try_clone().unwrap();
    let heard = thread::spawn(move || {
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let got = reader.read(&mut buffer).unwrap_or(0);
            heard.extend_from_slice(&buffer[..got]);
            if got == 0 || (await_shut && heard.ends_with(&SHUT)) {
                return heard;
            }
        }
    });
    for part in stream.chunks(step.max(1)) {
        if socket.write_all(part).is_err() {
            break;
        }
    }
    if !await_shut {
        let _ = socket.shutdown(std::net::Shutdown::Write);
    }
    heard.join().unwrap()
}

/// Waits until `what` is so, but not for ever.
pub fn until(what: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !what() {
        assert!(Instant::now() < end, "it does not come to that");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for `handle`, but not for ever.
pub fn finish(handle: Handle) -> Result<Report, Error> {
    let end = Instant::now() + LIMIT;
    while !handle.finished() {
        assert!(Instant::now() < end, "the proxy does not come to an end");
        thread::sleep(Duration::from_millis(2));
    }
    handle.wait()
}

/// Moves `stream` through a pair and checks that it arrives. Gives both reports.
pub fn moves(setup: Setup, stream: &[u8]) -> (Report, Report) {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::start(dir.path(), 1, stream.len());
    let pair = setup.start(dir.path(), &destination.path);
    let heard = source(&pair.path, stream, usize::MAX, true);
    assert_eq!(heard, SHUT);
    let sent = finish(pair.sender).unwrap();
    let received = finish(pair.receiver).unwrap();
    assert!(destination.wait()[0] == stream, "other bytes arrived");
    (sent, received)
}
