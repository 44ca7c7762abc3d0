// SPDX-License-Identifier: GPL-2.0

//! The memory of real guests, one on each disk of this host: four Debian guests of one image, each of
//! which did something else (`twinpage-bench-migrate --guests`).

use std::fs::File;
use std::io::{
    Read,
    Seek,
    SeekFrom, //
};

use tinyvm::{
    Backing,
    Memory,
    Vm,
    PAGE_BYTES,
    WORDS, //
};
use twinpage_lab::module;
use twinpage_lab::place;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

use crate::data::Guest;
use crate::rows::Row;
use crate::watched::Watched;

/// The driver of the disks, which the stock kernel has as a module.
const DRIVER: &str = "virtio_blk";

/// A huge page.
const HUGE_BYTES: usize = 2 << 20;

/// Guests that do nothing more.
pub fn real(_size: usize) -> Result<Vec<Row>, Failure> {
    let watched = Watched::of(guest)?;
    watched.draw("real.svg", "memory of real guests")?;
    Ok(watched.rows("D4 real", "instructions"))
}

/// Makes the disks of this host usable.
pub fn load_disks() -> Outcome {
    if module::users(DRIVER).is_none() {
        let driver = place::stock_module(DRIVER);
        module::load_file(driver.ok_or_else(|| Failure::Failed(format!("no {DRIVER}")))?)?;
    }
    Ok(())
}

/// A VM that holds what the guest of this number held. It has huge pages where that guest had used
/// any memory; a huge page's worth of zeroes was never touched.
fn guest(number: usize) -> Result<Guest, Failure> {
    load_disks()?;
    let letter = char::from(b'a' + number as u8);
    let mut disk = File::open(format!("/dev/vd{letter}"))?;
    let bytes = disk.seek(SeekFrom::End(0))? as usize;
    disk.rewind()?;
    let memory = Memory::new(bytes / PAGE_BYTES, Backing::Huge)?;
    let mut chunk = vec![0; HUGE_BYTES];
    for start in (0..bytes).step_by(HUGE_BYTES) {
        disk.read_exact(&mut chunk)?;
        if chunk.iter().any(|&byte| byte != 0) {
            write(&memory, start / PAGE_BYTES, &chunk);
        }
    }
    let vm = Vm::over(&memory)?;
    Ok(Guest { vm, memory })
}

fn write(memory: &Memory, first: usize, chunk: &[u8]) {
    for (page, bytes) in chunk.chunks_exact(PAGE_BYTES).enumerate() {
        let mut content = [0; WORDS];
        for (word, bytes) in content.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
        }
        memory.write_page(first + page, &content);
    }
}
