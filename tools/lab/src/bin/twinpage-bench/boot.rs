// SPDX-License-Identifier: GPL-2.0

//! Debian guests of one image that boot one after the other, each of which does some work then. Their host
//! has several processors that count no instructions: with one that does, KVM guests hang or crash.

use std::fs;
use std::os::fd::{
    AsRawFd,
    OwnedFd,
    RawFd, //
};
use std::path::Path;
use std::sync::mpsc::{
    channel,
    Receiver,
    Sender, //
};
use std::thread::JoinHandle;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_lab::error::Error;
use twinpage_lab::oracle::Range;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};
use twinpage_lab::vmm::Vmm;
use twinpage_lab::{
    agent,
    ensure, //
};

use crate::merger::Mergeable;
use crate::real::load_disks;
use crate::rows::Row;
use crate::watched::{
    Watched,
    GUESTS, //
};

/// Where kernel and initramfs of the guests are, and their common disk.
const DEBIAN: &str = "/debian";
const DISK: &str = "/dev/vda";

/// Where QEMU keeps what guests write to it.
const WRITTEN: &str = "/var/tmp";

/// Memory of a guest.
const MEMORY_MIB: usize = 512;

/// How long a guest may take to boot, and for its work.
const LIMIT: Duration = Duration::from_secs(1500);

/// What each of them does.
const WORK: [&str; GUESTS] = [
    "systemctl start redis-server && redis-benchmark -q -t set -n 3000 -r 3000 -d 400 -c 4",
    "systemctl start nginx && grep -r -l copyright /usr/share/doc/python3* | wc -l",
    "cd /etc && git init -q && git add -A && git -c user.name=a -c user.email=a@b commit -q -m etc",
    "logrotate -f /etc/logrotate.conf; find /usr/bin -type f | head -n 200 | xargs cat | md5sum",
];

/// A guest, until it is dropped.
struct Booting {
    vm: OwnedFd,
    ram: Range,
    end: Option<Sender<()>>,
    life: Option<JoinHandle<()>>,
}

/// Seconds that a guest took to boot and for its work.
type Took = Result<f64, Error>;

impl Booting {
    fn start(number: usize, took: Sender<Took>) -> Result<Booting, Failure> {
        let parent = Path::new(WRITTEN);
        fs::create_dir_all(parent)?;
        let begin = Instant::now();
        let mut vmm = Vmm::start(parent, &format!("debian{number}"), &arguments())?;
        let (vm, ram) = (vmm.vm()?, vmm.ram()?);
        let (end, ended) = channel();
        let life = std::thread::spawn(move || {
            let done = agent::booted(&mut vmm, LIMIT)
                .and_then(|()| agent::run(&mut vmm, WORK[number], LIMIT));
            // Nobody waits for it when the measurement has failed.
            let _ = took.send(done.map(|()| begin.elapsed().as_secs_f64()));
            let _ = ended.recv();
            vmm.end();
        });
        Ok(Booting {
            vm,
            ram,
            end: Some(end),
            life: Some(life),
        })
    }
}

impl Drop for Booting {
    fn drop(&mut self) {
        drop(self.end.take());
        // A guest that panicked has said so.
        let _ = self.life.take().map(JoinHandle::join);
    }
}

impl Mergeable for Booting {
    fn vm(&self) -> RawFd {
        self.vm.as_raw_fd()
    }

    fn ram(&self) -> Range {
        self.ram
    }

    fn advise(&self) -> Outcome {
        // QEMU does, unless told otherwise.
        Ok(())
    }
}

fn arguments() -> Vec<String> {
    let drive = format!("file={DISK},format=raw,if=virtio,snapshot=on,cache.direct=on");
    let memory = MEMORY_MIB.to_string();
    let (kernel, initrd) = (format!("{DEBIAN}/vmlinuz"), format!("{DEBIAN}/initrd"));
    let machine = ["-enable-kvm", "-cpu", "host", "-M", "q35", "-m", &memory];
    let system = ["-kernel", &kernel, "-initrd", &initrd, "-drive", &drive];
    let append = ["-append", "console=ttyS0 quiet root=/dev/vda rw"];
    let words = machine.iter().chain(&system).chain(&append);
    words.map(|&word| word.to_owned()).collect()
}

/// Guests that boot and work.
pub fn boot(_size: usize) -> Result<Vec<Row>, Failure> {
    let (took, done) = channel();
    load_disks()?;
    let watched = Watched::of(|number| Booting::start(number, took.clone()))?;
    drop(took);
    watched.draw("boot.svg", "real guests from their boot")?;
    let mut rows = watched.rows("booted", "ns");
    let [ksmd, twinpage, ksmtuned, alone] = averages(&done)?;
    for (peer, data) in [(ksmd, "booted"), (ksmtuned, "booted, ksmtuned")] {
        let part = [peer, twinpage].map(|took| 100.0 * took / alone);
        let metric = "boot and work of a guest";
        rows.push(Row::of(metric, data, rows[0].size, "% of unmerged", part));
    }
    Ok(rows)
}

/// How long the guests took on average, with each of four methods.
fn averages(done: &Receiver<Took>) -> Result<[f64; 4], Failure> {
    let took: Vec<f64> = done.iter().collect::<Result<_, _>>()?;
    ensure!(
        took.len() == 4 * GUESTS,
        "some guests did not end their work: {took:?}"
    );
    println!("seconds of the guests: {took:.1?}");
    let average = |method: usize| {
        let took = &took[method * GUESTS..][..GUESTS];
        took.iter().sum::<f64>() / GUESTS as f64
    };
    Ok([0, 1, 2, 3].map(average))
}
