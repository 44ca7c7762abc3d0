// SPDX-License-Identifier: GPL-2.0

//! Throughput of the two proxies: a made-up QEMU stream through sender and receiver over loopback.
//!
//! `cargo bench -p twinpage-migrate --bench proxy`. `TWINPAGE_BENCH_MIB` is the guest's memory (1024
//! if not set), a word on the command line chooses workloads by their names. Both proxies, the
//! writer and the reader of the stream share this machine's processors with each other and with
//! whatever else runs, so besides the rate there is the processor time (user and kernel) of each
//! proxy's threads for a gigabyte of guest memory, which other work disturbs less. The times of
//! the made-up QEMUs are not in it.

#[path = "../tests/common/synth.rs"]
mod synth;

use std::collections::HashMap;
use std::env;
use std::io::{
    self,
    Read,
    Write, //
};
use std::os::unix::net::{
    UnixListener,
    UnixStream, //
};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_migrate::net::{
    Psk,
    Security, //
};
use twinpage_migrate::proxy::{
    receive,
    send,
    Report, //
};
use twinpage_store::{
    Digest,
    Page,
    PageSource,
    Sources, //
};

use synth::{
    Dice,
    Synth,
    PAGE, //
};

/// Distinct pages, which are used again and again.
const POOL: usize = 16384;
/// Pages that the proxies remember: fewer than the pool has, so that one round does not help the
/// next.
const DICTIONARY: u32 = 4096;
/// What the destination says in the end.
const SHUT: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];

/// What the guest's memory holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Workload {
    /// Zero pages.
    Zero,
    /// Pages that are all earlier in the stream.
    Duplicates,
    /// Pages that the receiver's host holds.
    References,
    /// Pages that are nowhere.
    Random,
}

/// Pages in memory.
struct Pool(HashMap<Digest, Page>);

impl PageSource for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn digests(&self, each: &mut dyn FnMut(Digest)) -> Result<(), twinpage_store::Error> {
        self.0.keys().copied().for_each(each);
        Ok(())
    }

    fn fetch(&self, digest: &Digest, into: &mut Page) -> Result<bool, twinpage_store::Error> {
        Ok(match self.0.get(digest) {
            Some(page) => {
                *into = *page;
                true
            }
            None => false,
        })
    }
}

/// Writes the stream of a guest with `pages` pages.
fn write(workload: Workload, pool: &[u8], pages: u64, socket: UnixStream) -> io::Result<()> {
    let out = io::BufWriter::with_capacity(256 << 10, socket);
    let mut synth = Synth::begin(out, pages * PAGE as u64)?;
    let mut unique = vec![0; PAGE];
    for n in 0..pages {
        if n % 12800 == 0 {
            if n > 0 {
                synth.close()?;
            }
            synth.part()?;
        }
        let offset = n * PAGE as u64;
        let place = |n: u64| {
            let at = n as usize % POOL * PAGE;
            &pool[at..at + PAGE]
        };
        match workload {
            Workload::Zero => synth.zero(offset)?,
            Workload::Duplicates => synth.page(offset, place(n % 2048))?,
            Workload::References => synth.page(offset, place(n))?,
            Workload::Random => {
                unique.copy_from_slice(place(n));
                unique[..8].copy_from_slice(&n.to_le_bytes());
                synth.page(offset, &unique)?;
            }
        }
    }
    synth.close()?;
    synth.last()?;
    synth.close()?;
    let mut out = synth.devices(&[7; 100_000])?;
    out.flush()?;
    let mut socket = out.into_inner().map_err(|error| error.into_error())?;
    socket.read_exact(&mut [0; 8])
}

/// Takes everything, and says so at the end of the device state.
fn take(listener: &UnixListener) -> io::Result<u64> {
    let (mut socket, _) = listener.accept()?;
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        let got = socket.read(&mut buffer)?;
        if got == 0 {
            return Ok(bytes);
        }
        bytes += got as u64;
        if buffer[..got].ends_with(&[0x7e, 0, 0, 0, 9, 0]) {
            socket.write_all(&SHUT)?;
        }
    }
}

/// Moves a guest; gives both reports and the time.
fn measure(
    workload: Workload,
    pool: &Arc<Vec<u8>>,
    sources: &Arc<Sources>,
    security: &Security,
    pages: u64,
    dir: &Path,
) -> (Report, Report, Duration) {
    let qemu = dir.join("qemu.sock");
    let listener = UnixListener::bind(&qemu).expect("a socket");
    let taker = thread::spawn(move || take(&listener).expect("to read"));
    let sources = Arc::clone(sources);
    let listen = "127.0.0.1:0".parse().expect("an address");
    let mut options = receive::Options::new(
        listen,
        security.clone(),
        Some(qemu),
        Arc::new(move |_| Ok(Arc::clone(&sources))),
    );
    options.limits.dictionary_pages = DICTIONARY;
    let receiver = receive::start(options).expect("a receiver");
    let path = dir.join("send.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let input = send::Input::Listener(listener, path.clone());
    let to = receiver.address().parse().expect("an address");
    let mut options = send::Options::new(input, to, security.clone());
    options.limits.dictionary_pages = DICTIONARY;
    let sender = send::start(options).expect("a sender");
    let socket = UnixStream::connect(&path).expect("a sender");
    let began = Instant::now();
    write(workload, pool, pages, socket).expect("to write");
    let took = began.elapsed();
    let sent = sender.wait().expect("to send");
    let received = receiver.wait().expect("to receive");
    taker.join().expect("to take");
    (sent, received, took)
}

/// Shows what was measured.
fn show(name: &str, link: &str, ram_gb: f64, sent: &Report, received: &Report, took: Duration) {
    let total = |report: &Report| -> f64 {
        report
            .threads
            .iter()
            .map(|time| time.cpu_seconds)
            .sum::<f64>()
            / ram_gb
    };
    let by_thread = |report: &Report| {
        let mut times = report.threads.clone();
        times.sort_by(|a, b| b.cpu_seconds.total_cmp(&a.cpu_seconds));
        let text = times
            .iter()
            .filter(|time| time.cpu_seconds / ram_gb >= 0.005);
        let text = text.map(|time| format!("{} {:.3}", time.name, time.cpu_seconds / ram_gb));
        text.collect::<Vec<_>>().join(", ")
    };
    let (send, receive) = (total(sent), total(received));
    let rate = ram_gb * 1000.0 / took.as_secs_f64();
    let wire = sent.totals.wire_bytes as f64 / sent.totals.stream_bytes as f64 * 100.0;
    println!(
        "{name:<11} {link:<5} {rate:>7.0} MB/s  wire {wire:>6.2} %  send {send:.3} s/GB \
         ({:.2} GB/s per core)  receive {receive:.3} s/GB ({:.2} GB/s per core)",
        1.0 / send,
        1.0 / receive
    );
    println!("    send:    {}", by_thread(sent));
    println!("    receive: {}", by_thread(received));
    println!(
        "    sent {} back {} referenced {} zero {} missed {}",
        sent.totals.pages_sent,
        sent.totals.pages_back,
        sent.totals.pages_referenced,
        sent.totals.pages_zero,
        sent.totals.misses
    );
}

fn main() {
    let mib = env::var("TWINPAGE_BENCH_MIB")
        .ok()
        .and_then(|text| text.parse().ok());
    let pages = mib.unwrap_or(1024) * 256;
    let ram_gb = pages as f64 * PAGE as f64 / 1e9;
    let wanted: Vec<String> = env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let mut pool = vec![0; POOL * PAGE];
    Dice(1).fill(&mut pool);
    let pool = Arc::new(pool);
    let held = pool.chunks_exact(PAGE).map(|page| {
        let page: Page = page.try_into().expect("a page");
        (Digest::of(&page), page)
    });
    let held = Pool(held.collect());
    let mut sources = Sources::new();
    sources.push(Box::new(held));
    let (some, none) = (Arc::new(sources), Arc::new(Sources::new()));
    let key = Psk::generate().expect("a key");
    for workload in [
        Workload::References,
        Workload::Duplicates,
        Workload::Random,
        Workload::Zero,
    ] {
        let name = format!("{workload:?}").to_lowercase();
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        for (link, security) in [
            ("plain", Security::Insecure),
            ("tls", Security::Psk(key.clone())),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            let sources = if workload == Workload::References {
                &some
            } else {
                &none
            };
            let (sent, received, took) =
                measure(workload, &pool, sources, &security, pages, dir.path());
            show(&name, link, ram_gb, &sent, &received, took);
        }
    }
}
