// SPDX-License-Identifier: GPL-2.0

//! Every file of `/sys/kernel/mm/twinpage`, read and written in every way.

use std::fs::{
    File,
    OpenOptions, //
};
use std::os::fd::AsRawFd;

use twinpage_lab::ensure;
use twinpage_lab::module::{
    self,
    SYSFS, //
};
use twinpage_lab::random::Random;

use crate::call;
use crate::expect::{
    either,
    refused,
    well, //
};
use crate::operations::{
    operation,
    Done,
    Operation, //
};
use crate::pointers::Place;
use crate::poke::{
    offset,
    poke, //
};
use crate::worker::Worker;

pub const OPERATIONS: &[Operation] = &[
    operation("sysfs.hurry", 10, hurry),
    operation("sysfs.read", 20, read),
    operation("sysfs.write", 25, write),
    operation("sysfs.garbage", 80, garbage),
    operation("sysfs.write-pointer", 20, write_pointer),
    operation("sysfs.write-counter", 20, write_counter),
    operation("sysfs.poke", 60, poke_any),
];

/// The knobs and their ranges, as the documentation has them.
const KNOBS: [(&str, u32, u32); 12] = [
    ("run", 0, 2),
    ("pages_to_scan", 1, 1_048_576),
    ("sleep_millisecs", 0, 60_000),
    ("use_zero_pages", 0, 1),
    ("smart_scan", 0, 1),
    ("max_page_sharing", 2, 65_536),
    ("merge_across_nodes", 0, 1),
    ("advisor_max_cpu", 1, 100),
    ("thp_split_threshold", 1, 512),
    ("merge_batch", 1, 512),
    ("max_break_rate", 0, 1_000_000),
    ("unmerge_on_exit", 0, 1),
];

const COUNTERS: [&str; 12] = [
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_volatile",
    "pages_skipped",
    "pages_scanned",
    "zero_pages",
    "full_scans",
    "general_profit",
    "cpu_ns",
    "metadata_bytes",
    "features",
];

/// Offsets that the kernel lets a write have; the files do not care.
const REACH: i64 = i64::MAX >> 1;

/// What a write that is not refused outright may fail with: copies across nodes are in the way, or
/// pages stay busy.
const BUSY: [i32; 1] = [libc::EBUSY];

/// Sets what lets VMs merge soon.
fn hurry(_: &mut Worker) -> Done {
    for (name, value) in [
        ("run", 1),
        ("sleep_millisecs", 1),
        ("pages_to_scan", 65_536),
        ("max_break_rate", 0),
    ] {
        well(name, module::set(name, value))?;
    }
    well("advisor_mode", module::set("advisor_mode", "none"))?;
    Ok(1)
}

fn name(random: &mut Random) -> &'static str {
    match random.below(KNOBS.len() + COUNTERS.len() + 1) {
        0 => "advisor_mode",
        at if at <= KNOBS.len() => KNOBS[at - 1].0,
        at => COUNTERS[at - 1 - KNOBS.len()],
    }
}

fn open(name: &str, write: bool) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(!write)
        .write(write)
        .open(format!("{SYSFS}/{name}"))
}

fn read(worker: &mut Worker) -> Done {
    let name = name(&mut worker.random);
    let text = module::knob(name)?;
    match name {
        "advisor_mode" => ensure!(text == "none [cpu]" || text == "[none] cpu", "{text}"),
        "features" => ensure!(text.lines().count() == 3, "features: {text}"),
        _ => ensure!(text.parse::<i64>().is_ok(), "{name} reads {text}"),
    }
    // In parts it is the same text, unless it has changed.
    let whole = std::fs::read(format!("{SYSFS}/{name}"))?;
    let mut part = vec![0; 1 + worker.random.below(3)];
    let at = worker.random.below(whole.len()) as u64;
    let read = std::os::unix::fs::FileExt::read_at(&open(name, false)?, &mut part, at)?;
    ensure!(read <= part.len(), "{read} bytes of {name} at {at}");
    Ok(1)
}

/// Values that are in range, some with white space around.
fn write(worker: &mut Worker) -> Done {
    let random = &mut worker.random;
    let (name, from, to) = random.pick(&KNOBS);
    let value = match random.below(3) {
        0 => from,
        1 => to,
        _ => from + random.below((to - from + 1) as usize) as u32,
    };
    // Merging shall be on most of the time.
    let value = if name == "run" && random.one_in(2) {
        1
    } else {
        value
    };
    let mut text = format!("{value}");
    match random.below(4) {
        0 => text = format!(" \t{text} \n"),
        1 => text = format!("{}{text}", "0".repeat(random.below(4000))),
        2 => text += &" ".repeat(random.below(10_000)),
        _ => {}
    }
    let offset = offset(random) & REACH;
    let (at, length) = (text.as_ptr() as u64, text.len());
    let result = call::write_at(open(name, true)?.as_raw_fd(), at, length, offset);
    let what = format!("{name}={value} in {length} bytes at {offset:#x}");
    if let Some(written) = either(&what, result, &BUSY)? {
        // The kernel takes a page at a time.
        ensure!(written == length.min(4096), "{written} of {length}");
    }
    Ok(1)
}

/// Texts that are no value of any knob.
fn wrong(random: &mut Random, from: u32, to: u32) -> Vec<u8> {
    match random.below(9) {
        0 if from > 0 => (from - 1).to_string().into(),
        0 | 1 => (to + 1).to_string().into(),
        2 => format!("-{}", random.below(3)).into(),
        3 => format!("+{to}").into(),
        4 => format!("{:#x}", random.word()).into(),
        5 => (u128::from(random.word()) + (1 << 64)).to_string().into(),
        6 => b" ".repeat(1 + random.below(9000)),
        7 => format!("{to}\0{to}").into(),
        _ => {
            let length = 1 + random.below(6000);
            let mut bytes = random.bytes(length);
            bytes[0] = 0xff;
            bytes
        }
    }
}

fn garbage(worker: &mut Worker) -> Done {
    let random = &mut worker.random;
    let (name, text) = match random.below(KNOBS.len() + 1) {
        0 => {
            let words = ["No", "none cpu", "[none] cpu", "CPU", "scan-time", "0", "1"];
            let word = random.pick(&words);
            ("advisor_mode", word.as_bytes().to_vec())
        }
        at => {
            let (name, from, to) = KNOBS[at - 1];
            (name, wrong(random, from, to))
        }
    };
    let result = call::write_at(
        open(name, true)?.as_raw_fd(),
        text.as_ptr() as u64,
        text.len(),
        offset(random) & REACH,
    );
    let shown = String::from_utf8_lossy(&text[..text.len().min(40)]);
    refused(&format!("{name}={shown:?}"), result, &[libc::EINVAL])?;
    Ok(1)
}

fn write_pointer(worker: &mut Worker) -> Done {
    let random = &mut worker.random;
    let (name, _, _) = random.pick(&KNOBS);
    let place = random.pick(&[Place::Straddling, Place::Nowhere]);
    let at = worker.scratch.place(random, place, b"1\n      ")?;
    let length = 8 + random.below(8000);
    let result = call::write_at(open(name, true)?.as_raw_fd(), at, length, 0);
    refused(&format!("{name} from nowhere"), result, &[libc::EFAULT])?;
    Ok(1)
}

fn write_counter(worker: &mut Worker) -> Done {
    let name = worker.random.pick(&COUNTERS);
    let opened = open(name, true);
    refused(&format!("writing {name}"), opened, &[libc::EACCES])?;
    Ok(1)
}

fn poke_any(worker: &mut Worker) -> Done {
    let name = name(&mut worker.random);
    let file = open(name, false)?;
    poke(worker, &file)
}
