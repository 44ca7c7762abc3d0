// SPDX-License-Identifier: GPL-2.0

//! How many bytes per second a link carries over loopback TCP.
//!
//! `cargo bench -p twinpage-migrate --bench link`. Both ends share this machine's processors with
//! each other and with whatever else runs. So besides the rate there is the processor time of
//! both ends and the kernel together for a gigabyte, which other work disturbs less.

use std::io::{
    Read,
    Write, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use rustix::time::{
    clock_gettime,
    ClockId, //
};
use twinpage_migrate::net::{
    connect,
    Limits,
    Link,
    LinkReader,
    LinkWriter,
    Listener,
    Psk,
    Security, //
};

/// How long each measurement lasts.
const TIME: Duration = Duration::from_secs(2);

/// Both ends of a link.
fn pair(security: &Security) -> (Link, Link) {
    let address = "127.0.0.1:0".parse().expect("an address");
    let limits = Limits::default();
    let listener = Listener::bind(&address, security, limits, |_| {}).expect("a listener");
    let near = connect(listener.address(), security, limits).expect("a link");
    (near, listener.accept(None).expect("a link"))
}

/// Writes for a while, `size` bytes at a time.
fn write(mut writer: LinkWriter, size: usize) {
    let piece = vec![0x5a; size];
    let start = Instant::now();
    while start.elapsed() < TIME {
        writer.write_all(&piece).expect("to write");
    }
    writer.finish().expect("to finish");
}

/// Reads to the end, `size` bytes at a time, and says how many there were.
fn read(mut reader: LinkReader, size: usize) -> u64 {
    let mut piece = vec![0; size];
    let mut bytes = 0;
    loop {
        match reader.read(&mut piece).expect("to read") {
            0 => return bytes,
            len => bytes += len as u64,
        }
    }
}

/// Seconds of processor time that this process has used.
fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The two halves of a link at work; gives megabytes per second, and processor seconds for each
/// gigabyte.
fn measure(security: &Security, size: usize, both: bool) -> (f64, f64) {
    let (near, far) = pair(security);
    let ((near_reader, near_writer), (far_reader, mut far_writer)) = (near.split(), far.split());
    let (start, used) = (Instant::now(), processor_seconds());
    let bytes: u64 = thread::scope(|scope| {
        scope.spawn(move || write(near_writer, size));
        let readers =
            [far_reader, near_reader].map(|reader| scope.spawn(move || read(reader, size)));
        match both {
            true => write(far_writer, size),
            false => far_writer.finish().expect("to finish"),
        }
        readers
            .into_iter()
            .map(|reader| reader.join().expect("no panic"))
            .sum()
    });
    let megabytes = bytes as f64 / 1e6;
    let used = processor_seconds() - used;
    (
        megabytes / start.elapsed().as_secs_f64(),
        used * 1000.0 / megabytes,
    )
}

fn main() {
    // cargo test runs benches too, with this argument missing.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let psk = Security::Psk(Psk::generate().expect("random numbers"));
    for security in [psk, Security::Insecure] {
        let name = pair(&security).0.security().to_owned();
        for size in [16 << 10, 64 << 10, 1 << 20] {
            for both in [false, true] {
                let directions = if both { "both ways" } else { "one way" };
                let (rate, seconds) = measure(&security, size, both);
                println!(
                    "{name}: {size} bytes at a time, {directions}: {rate:.0} MB/s, \
                     {seconds:.2} processor seconds for a GB"
                );
            }
        }
    }
}
