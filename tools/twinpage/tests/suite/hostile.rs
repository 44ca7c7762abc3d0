// SPDX-License-Identifier: GPL-2.0

//! Files that say anything: the program must answer with an error or a result, never panic.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use twinpage::digest::Digest;
use twinpage::domain::DomainName;
use twinpage::slots::{
    Gfn,
    Slots, //
};
use twinpage::smaps;
use twinpage::stats::Stats;

use crate::digests::file;
use crate::machine::{
    Machine,
    SLOTS, //
};

/// Text that is nearly a file of words and numbers.
const NEARLY: &str = "([a-z_]{0,12}[ :=]{0,2}(0x)?[0-9a-f-]{0,20}[ \n]{0,2}){0,40}";

/// Lines that are nearly memslots.
const NEARLY_SLOTS: &str =
    "([01] [0-9]{1,2} [0-9]{1,20} [0-9]{1,20} 0x[0-9a-f]{1,16} 0x[0-7]\n){0,8}";

/// A machine with one VM.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.process(812, "vmm", 1);
    machine.vm(3, 812, 7, &[]);
    machine
}

proptest! {
    #[test]
    fn stats_never_panic(text in prop_oneof![NEARLY, any::<String>()]) {
        let _any_result = Stats::parse(Path::new("/stats"), &text);
    }

    #[test]
    fn smaps_never_panic(text in prop_oneof![NEARLY, any::<String>()]) {
        let _any_result = smaps::parse(Path::new("/smaps"), &text);
    }

    #[test]
    fn slots_never_panic(lines in prop_oneof![NEARLY, NEARLY_SLOTS], gfn: u64) {
        let header = SLOTS.lines().next().unwrap();
        if let Ok(slots) = Slots::parse(Path::new("/slots"), &format!("{header}\n{lines}")) {
            let _any_answer = slots.address_of(Gfn(gfn));
            slots.iter().for_each(|slot| assert!(slot.addresses().start <= slot.addresses().end));
        }
    }

    #[test]
    fn names_keep_their_number(name in "\\PC{1,60}") {
        let first = name.parse::<DomainName>();
        prop_assert_eq!(first, name.parse::<DomainName>());
    }

    #[test]
    fn digests_come_back(bytes: [u8; 32]) {
        prop_assert_eq!(Digest(bytes).to_string().parse(), Ok(Digest(bytes)));
    }

    #[test]
    fn digest_text_never_panics(text in any::<String>()) {
        let _any_result = text.parse::<Digest>();
    }
}

proptest! {
    // Each case runs whole commands.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn digest_files_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        head in 0_usize..=64,
        changes in prop::collection::vec((0_usize..400, any::<u8>()), 0..4),
    ) {
        let good = file(3, 7, &[]);
        bytes.splice(..head.min(bytes.len()), good[..head].iter().copied());
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        let machine = machine();
        machine.file("/sys/kernel/debug/twinpage/3/digests", &bytes);
        machine.file("/proc/812/mem", "");
        for line in ["digests --id 3", "digests --id 3 --verify", "shared --all"] {
            prop_assert!(machine.run(line).code <= 4);
        }
    }

    #[test]
    fn every_file_may_say_anything(which in 0_usize..64, text in prop_oneof![NEARLY, any::<String>()]) {
        let machine = machine();
        let mut files = Vec::new();
        collect(&machine.path("/"), &mut files);
        fs::write(&files[which % files.len()], &text).unwrap();
        for line in ["status", "status --json", "set", "attach --all", "digests --id 3"] {
            prop_assert!(machine.run(line).code <= 4);
        }
    }
}

/// Every file below `directory`.
fn collect(directory: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            continue;
        }
        match path.is_dir() {
            true => collect(&path, files),
            false => files.push(path),
        }
    }
}
