// SPDX-License-Identifier: GPL-2.0

//! Sources of pages that are not there, or not any more when a sender comes.

use std::fs;
use std::thread;

use serde_json::Value;

use crate::machine::Machine;
use crate::qemu;

/// Migrates to a receiver with these options; `lost` happens when it listens already. Gives what
/// the receiver says, and its result.
fn migrate(destination: &Machine, options: &str, lost: impl FnOnce()) -> (String, Value) {
    let source = Machine::new();
    let link = destination.path("/link.sock");
    let (from, to) = (source.path("/from.sock"), destination.path("/to.sock"));
    let stream = qemu::stream(1);
    let qemu_to = qemu::destination(to.clone());
    let qemu_from = qemu::source(from.clone(), stream.clone());
    let receive = format!(
        "migrate receive --listen unix:{} --connect unix:{} --insecure --json --quiet --domain 7 \
         {options}",
        link.display(),
        to.display()
    );
    let send = format!(
        "migrate send --listen unix:{} --to unix:{} --insecure --quiet --domain 7",
        from.display(),
        link.display()
    );
    let (sent, received) = thread::scope(|scope| {
        let received = scope.spawn(|| destination.live(&receive));
        qemu::appears(&link);
        lost();
        let sent = source.live(&send);
        // A receiver that refused it would wait for another one.
        destination.state.lock().unwrap().interrupted = sent.code != 0;
        (sent, received.join().unwrap())
    });
    sent.good();
    assert!(qemu::is_good(&qemu_from.join().unwrap()));
    assert!(qemu_to.join().unwrap() == stream);
    assert_eq!(received.code, 0, "{received:?}");
    let report = serde_json::from_str(&received.text()).unwrap();
    (received.err, report)
}

/// Checks that the source `name` was left out, and that this was said once and counted.
fn check_left_out(name: &str, (said, report): &(String, Value)) {
    let text = format!("Pages from the {name}: left out");
    assert_eq!(said.matches(&text).count(), 1, "{said}");
    let sources = report["sources"].as_array().unwrap();
    let source = sources.iter().find(|source| source["name"] == name);
    assert_eq!(source.unwrap()["errors"], 1, "{report}");
}

#[test]
fn a_store_that_is_lost_stops_no_migration() {
    let machine = Machine::new();
    machine.file("/image", qemu::content(1));
    let store = machine.path("/store");
    let image = machine.path("/image");
    let (at, from) = (store.display(), image.display());
    let build = format!("store build --public --store {at} --raw-image {from}");
    machine.run(&build).good();
    let lost = || fs::remove_dir_all(&store).unwrap();
    let told = migrate(&machine, &format!("--store {at}"), lost);
    check_left_out("store", &told);
}

#[test]
fn a_module_that_goes_stops_no_migration() {
    for options in ["", "--sources stream,module"] {
        let machine = Machine::new();
        let lost = || fs::remove_file(machine.path("/dev/twinpage")).unwrap();
        let told = migrate(&machine, options, lost);
        check_left_out("module", &told);
    }
}

#[test]
fn a_module_must_be_there_in_the_beginning_only_if_it_is_named() {
    let machine = Machine::without_module();
    let told = migrate(&machine, "", || ());
    check_left_out("module", &told);
    let line = "migrate receive --listen unix:/tmp/x --insecure --sources module";
    let ran = machine.run(line);
    assert!(ran.bad(3).contains("is not loaded"), "{ran:?}");
}
