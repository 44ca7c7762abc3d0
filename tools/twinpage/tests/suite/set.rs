// SPDX-License-Identifier: GPL-2.0

//! `twinpage set` and `twinpage version`.

use std::fs;

use twinpage::knobs::{
    Values,
    KNOBS, //
};
use twinpage_engine::engine::knobs::{
    Knob,
    Knobs,
    Range, //
};

use crate::golden;
use crate::machine::Machine;

/// What users are told of the module's files.
const ABI: &str = include_str!("../../../../Documentation/ABI/sysfs-kernel-mm-twinpage");

#[test]
fn knobs_are_those_of_the_module() {
    let names = Knob::ALL.map(Knob::name);
    assert_eq!(KNOBS.each_ref().map(|knob| knob.name), names);
    for (told, knob) in KNOBS.iter().zip(Knob::ALL) {
        let Range { min, max } = knob.range();
        let values = match knob {
            Knob::AdvisorMode => Values::Word(&["none", "cpu"]),
            _ => Values::Number(min.into(), max.into()),
        };
        assert_eq!(told.values, values, "{}", told.name);
    }
}

#[test]
fn documentation_has_ranges_and_defaults_of_the_module() {
    for knob in Knob::ALL {
        let title = format!("What:\t\t/sys/kernel/mm/twinpage/{}\n", knob.name());
        let (_, entry) = ABI.split_once(&title).unwrap_or_default();
        let entry = entry.split("What:").next().unwrap();
        let entry = entry.split_whitespace().collect::<Vec<_>>().join(" ");
        let (Range { min, max }, default) = (knob.range(), Knobs::DEFAULT.get(knob));
        let told = match knob {
            Knob::Run => format!("Default {default}"),
            Knob::AdvisorMode => format!("{} the default", ["none", "cpu"][default as usize]),
            _ if max == 1 => format!("{default}, the default"),
            _ => format!("{min} to {max}, default {default}"),
        };
        assert!(entry.contains(&told), "'{told}' is not in: {entry}");
    }
}

#[test]
fn knobs_are_listed() {
    golden::check("set", &Machine::new().run("set").good());
}

#[test]
fn knobs_are_written() {
    let machine = Machine::new();
    let ran = machine.run("set run=0 advisor_max_cpu=50");
    assert_eq!(ran.good(), "run: 1 -> 0\nadvisor_max_cpu: 5 -> 50\n");
    let run = machine.path("/sys/kernel/mm/twinpage/run");
    assert_eq!(fs::read_to_string(run).unwrap(), "0");
}

#[test]
fn nothing_is_written_when_one_is_wrong() {
    let table = [
        (
            "set run=0 runn=1",
            "There is no knob \"runn\"",
            "`twinpage set` lists the knobs",
        ),
        ("set run=0 run=3", "run cannot be \"3\"", "run takes 0..2"),
        (
            "set run=0 advisor_mode=fast",
            "advisor_mode cannot be \"fast\"",
            "takes none|cpu",
        ),
        (
            "set run=0 ../run=1",
            "There is no knob \"../run\"",
            "lists the knobs",
        ),
    ];
    for (line, message, remedy) in table {
        let machine = Machine::new();
        let ran = machine.run(line);
        let err = ran.bad(2);
        assert!(err.contains(message) && err.contains(remedy), "{err}");
        let run = machine.path("/sys/kernel/mm/twinpage/run");
        assert_eq!(fs::read_to_string(run).unwrap(), "1\n");
    }
}

#[test]
fn set_needs_the_module() {
    let machine = Machine::without_module();
    for line in ["set", "set run=1"] {
        assert!(machine
            .run(line)
            .bad(3)
            .contains("The module twinpage is not loaded"));
    }
}

#[test]
fn versions_are_shown() {
    golden::check("version", &Machine::new().run("version").good());
}

#[test]
fn own_version_is_shown_without_a_module() {
    let ran = Machine::without_module().run("version");
    assert!(ran.text().starts_with("program:   "));
    assert!(ran.bad(3).contains("The module twinpage is not loaded"));
}
