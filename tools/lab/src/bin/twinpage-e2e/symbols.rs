// SPDX-License-Identifier: GPL-2.0

//! Kernel functions that another kernel might not have.
//!
//! The module finds unexported functions by name at load. Each test loads a copy of the module's
//! file in which one of those names is misspelt, which is what a kernel without the function would
//! look like to it.

use std::path::{
    Path,
    PathBuf, //
};

use tinyvm::Backing;
use twinpage_lab::dmesg::Log;
use twinpage_lab::module::{
    self,
    DEBUGFS,
    DEVICE,
    SYSFS, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::{
    ensure,
    place, //
};

use crate::host::{
    huge_pages,
    Host,
    PRIVATE, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "a_missing_symbol_is_named_and_nothing_is_left_behind",
        seconds: 180,
        run: a_missing_symbol_is_named_and_nothing_is_left_behind,
    },
    Test {
        name: "a_missing_optional_symbol_turns_its_feature_off",
        seconds: 180,
        run: a_missing_optional_symbol_turns_its_feature_off,
    },
];

/// Without these nothing works. Of the two in one entry a kernel needs the first or the second.
const HARD: &[[&str; 2]] = &[
    ["flush_tlb_mm_range", ""],
    ["__mmu_notifier_invalidate_range_start", ""],
    ["__mmu_notifier_invalidate_range_end", ""],
    ["folio_remove_rmap_ptes", ""],
    ["folio_add_file_rmap_ptes", "folio_add_anon_rmap_ptes"],
    ["file_is_kvm", ""],
    ["kallsyms_lookup_name", ""],
];

/// Without these a feature is off.
const OPTIONAL: &[(&str, &str)] = &[
    ("__split_huge_page_to_list_to_order", "thp_split"),
    ("folio_free_swap", "free_swap"),
    ("lru_add_drain_all", "lru_drain"),
];

/// The module's file with the last letter of a name changed, and the name that was found.
fn misspelt(names: &[&str]) -> Result<(PathBuf, String), Failure> {
    let mut file = std::fs::read(place::module())?;
    for name in names.iter().filter(|name| !name.is_empty()) {
        // A string of C: neither part of another name, nor a symbol that is called.
        let string = [name.as_bytes(), &[0]].concat();
        let places: Vec<_> = (1..file.len().saturating_sub(string.len()))
            .filter(|&at| file[at] == string[0] && file[at..].starts_with(&string))
            .filter(|&at| !file[at - 1].is_ascii_alphanumeric() && file[at - 1] != b'_')
            .collect();
        for &at in &places {
            file[at + name.len() - 1] = b'?';
        }
        if !places.is_empty() {
            let path = PathBuf::from("/tmp/misspelt.ko");
            std::fs::write(&path, file)?;
            let name = format!("{}?", &name[..name.len() - 1]);
            return Ok((path, name));
        }
    }
    Err(Failure::Failed(format!("the module has none of {names:?}")))
}

fn a_missing_symbol_is_named_and_nothing_is_left_behind() -> Outcome {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let release = release.trim();
    for names in HARD {
        let (path, missing) = misspelt(names)?;
        let mut log = Log::from_now()?;
        let loaded = module::load_file(path);
        let lines = log.lines()?;
        let error = loaded.err().and_then(|error| error.raw_os_error());
        ensure!(
            error == Some(libc::ENOENT),
            "without {missing}: error {error:?}\n{lines:?}"
        );
        let told = lines.iter().any(|line| {
            let about = missing.starts_with("kallsyms") || line.contains(&missing);
            line.starts_with("twinpage: ") && line.contains(release) && about
        });
        ensure!(told, "without {missing} the log says\n{lines:?}");
        for left in ["/sys/module/twinpage", SYSFS, DEBUGFS, DEVICE] {
            ensure!(
                !Path::new(left).exists(),
                "without {missing}: {left} exists"
            );
        }
        let probes = std::fs::read_to_string("/sys/kernel/debug/kprobes/list")?;
        ensure!(probes.trim().is_empty(), "kprobes are left:\n{probes}");
    }
    // Nothing that is left stands in the way of the right file.
    let host = Host::new()?;
    host.twins(64).map(|_| ())
}

fn a_missing_optional_symbol_turns_its_feature_off() -> Outcome {
    for &(name, feature) in OPTIONAL {
        let (path, missing) = misspelt(&[name])?;
        let mut log = Log::from_now()?;
        let host = Host::of_file(path)?;
        let lines = log.lines()?;
        let told = lines.iter().any(|line| line.contains(&missing));
        ensure!(told, "without {missing} the log says\n{lines:?}");
        let features = module::knob("features")?;
        for line in features.lines() {
            let expected = match line.starts_with(&format!("{feature} ")) {
                true => "missing",
                false => "available",
            };
            ensure!(line.ends_with(expected), "without {missing}: {features}");
        }
        let told = host.device().version()?.features.count_ones();
        ensure!(told == 2, "the device names {told} features");
        // Everything else goes on.
        module::set("thp_split_threshold", 1)?;
        module::set("run", 0)?;
        let small = host.guest(512, Backing::Small, PRIVATE)?;
        small.fill_with(|page| page as u64 % 8);
        let huge = host.guest(1024, Backing::Huge, PRIVATE)?;
        huge.fill_with(|page| page as u64 % 8);
        let whole = huge_pages(&huge)?;
        ensure!(whole > 0, "the memory has no huge pages");
        module::set("run", 1)?;
        host.until_saved(&[&small], 500)?;
        if feature == "thp_split" {
            host.looks(2)?;
            let left = huge_pages(&huge)?;
            ensure!(left == whole, "{left} of {whole} are left in huge pages");
        } else {
            host.until_saved(&[&huge], 1000)?;
        }
        huge.check_with(|page| page as u64 % 8)?;
        drop((small, huge, host));
        module::unload()?;
    }
    Ok(())
}
