// SPDX-License-Identifier: GPL-2.0

//! Whatever is in a file, reading it ends, and gives bytes of that file or an error.

use std::fs;

use proptest::collection::vec;
use proptest::prelude::*;
use twinpage_store::build::{
    read_pages,
    Input, //
};

use crate::build::core;
use crate::pages::{
    self,
    go_on,
    page, //
};

/// Reads `content` as a dump and as a raw image, and checks what comes.
fn check(content: &[u8]) -> Result<(), TestCaseError> {
    let directory = pages::directory();
    let path = directory.path().join("file");
    fs::write(&path, content).unwrap();
    for input in [Input::Dump(path.clone()), Input::RawImage(path.clone())] {
        let mut pages = 0;
        let read = read_pages(
            &input,
            &mut |page| {
                pages += 1;
                assert!(
                    content.windows(4096).any(|window| window == page),
                    "not in the file"
                );
                Ok(())
            },
            &mut go_on,
        );
        prop_assert!(
            pages <= content.len() / 4096,
            "{pages} pages of {} bytes",
            content.len()
        );
        if let Ok(read) = read {
            prop_assert_eq!(read.pages, pages as u64);
            prop_assert!(read.bytes <= content.len() as u64);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes(content in vec(any::<u8>(), 0..20_000)) {
        check(&content)?;
    }

    #[test]
    fn random_bytes_behind_the_magic_of_elf(content in vec(any::<u8>(), 0..300)) {
        check(&[b"\x7fELF\x02\x01\x01", &content[..]].concat())?;
    }

    #[test]
    fn random_program_headers(
        headers in vec((0u32..3, 0u64..20_000, 0u64..20_000, 0u64..10_000), 0..20),
        wild in vec((0u32..3, any::<u64>(), any::<u64>(), any::<u64>()), 0..2),
        pages in 0u64..5,
    ) {
        let rest: Vec<u8> = (0..pages).flat_map(page).collect();
        check(&core(&[headers, wild].concat(), &rest))?;
    }

    #[test]
    fn flipped_bits_and_cut_ends(at in 0usize..232, bit in 0u32..8, keep in 0usize..12_520) {
        let rest: Vec<u8> = (0..3).flat_map(page).collect();
        let good = core(&[(1, 232, 4096, 0), (1, 4328, 8192, 0x1000), (4, 0, 64, 0)], &rest);
        let mut flipped = good.clone();
        flipped[at] ^= 1 << bit;
        check(&flipped)?;
        check(&good[..keep])?;
    }
}
