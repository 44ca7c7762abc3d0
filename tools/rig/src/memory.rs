// SPDX-License-Identifier: GPL-2.0

//! Comparing memory that two QEMUs have written to files.

use std::fs::File;
use std::io::{
    BufReader,
    Read, //
};
use std::path::Path;

use crate::error::Error;
use crate::guest::PAGE_BYTES;

/// How much is compared at once.
const STEP: usize = 256 * PAGE_BYTES;

/// How many pages of the files differ, and the address of the first. A page that only one file has
/// differs.
///
/// # Errors
///
/// A file cannot be read.
pub fn differences(one: &Path, other: &Path) -> Result<(u64, Option<u64>), Error> {
    let open = |path: &Path| {
        File::open(path)
            .map(BufReader::new)
            .map_err(Error::io(format!("Cannot open {}", path.display())))
    };
    let (mut one, mut other) = (open(one)?, open(other)?);
    let (mut pages, mut first, mut place) = (0, None, 0_u64);
    loop {
        let (a, b) = (step(&mut one)?, step(&mut other)?);
        if a.is_empty() && b.is_empty() {
            return Ok((pages, first));
        }
        if a != b {
            let longest = a.len().max(b.len());
            for start in (0..longest).step_by(PAGE_BYTES) {
                let page = |bytes: &[u8]| -> Vec<u8> {
                    bytes.iter().skip(start).take(PAGE_BYTES).copied().collect()
                };
                if page(&a) != page(&b) {
                    pages += 1;
                    first.get_or_insert(place + start as u64);
                }
            }
        }
        place += STEP as u64;
    }
}

/// Makes sure that both files hold the same.
///
/// # Errors
///
/// [`Error::Differ`], or a file cannot be read.
pub fn compare(one: &Path, other: &Path) -> Result<(), Error> {
    match differences(one, other)? {
        (_, None) => Ok(()),
        (pages, Some(first)) => Err(Error::Differ { pages, first }),
    }
}

/// The next bytes of a file, fewer only at its end.
fn step(file: &mut impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = file.take(STEP as u64).read_to_end(&mut bytes);
    read.map_err(Error::io("Cannot read memory"))?;
    Ok(bytes)
}
