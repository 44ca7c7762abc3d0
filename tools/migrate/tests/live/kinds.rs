// SPDX-License-Identifier: GPL-2.0

//! All kinds of migration.

use serde_json::{
    json,
    Value, //
};
use twinpage_migrate::net::{
    Psk,
    Security, //
};
use twinpage_rig::{
    Boot,
    Build,
    Guest,
    Options,
    Write, //
};

use crate::common::{
    finish,
    Setup, //
};
use crate::world::{
    with,
    with_parameters,
    World,
    LIMIT, //
};

fn idle() -> Options {
    Options::new(Build::Trixie, "q35", &Guest::idle(64))
}

fn writing() -> Options {
    Options::new(Build::Trixie, "q35", &Guest::writing_slowly(64))
}

#[test]
fn an_idle_guest_arrives_and_the_second_time_nearly_all_is_there() {
    for options in [
        idle(),
        Options::new(Build::Trixie, "pc", &Guest::idle(64)).boot(Boot::Sector),
    ] {
        let mut world = World::start(&options, &with(&[]), Setup::default());
        world.migrate();
        let first = world.succeed();
        let totals = &first.sent.totals;
        assert!(totals.pages_sent > 64 * 100, "{totals:?}");
        assert!(totals.pages_back > 64 * 25, "{totals:?}");
        assert!(first.sent.opaque.is_empty(), "{:?}", first.sent.opaque);

        // QEMU must not believe that it can move the rest at once while the guest stands still:
        // what is sent then is not referenced.
        let parameters = json!({
            "max-bandwidth": 0,
            "avail-switchover-bandwidth": 10 << 20,
            "downtime-limit": 10,
        });
        let migration = with_parameters(&[], parameters);
        let mut world = World::start(&options, &migration, first.known());
        world.migrate();
        let second = world.succeed();
        let totals = &second.sent.totals;
        assert!(
            totals.wire_bytes * 20 < totals.stream_bytes,
            "more than 5 % went over the wire: {totals:?}"
        );
        println!("{} {}", totals.wire_bytes, totals.stream_bytes);
        assert_eq!(second.received.sources[0].hits, totals.pages_referenced);
    }
}

#[test]
fn a_writing_guest_arrives_after_several_rounds() {
    // So slow that even a guest that hardly gets to run writes to some pages in each round.
    let parameters = json!({ "max-bandwidth": 4 << 20, "downtime-limit": 1 });
    let migration = with_parameters(&[], parameters);
    let options = Options::new(Build::Trixie, "q35", &Guest::writing_slowly(32));
    let mut world = World::start(&options, &migration, Setup::default());
    world.migrate();
    world.here.wait_rounds(4, LIMIT).unwrap();
    let free = json!({ "max-bandwidth": 0, "downtime-limit": 2000 });
    world
        .here
        .qmp()
        .run("migrate-set-parameters", free)
        .unwrap();
    let outcome = world.succeed();
    assert!(
        outcome.info["ram"]["dirty-sync-count"].as_u64() >= Some(4),
        "{}",
        outcome.info
    );
    assert!(outcome.sent.totals.switchover_ms > 0);
}

#[test]
fn a_guest_that_writes_all_its_memory_arrives() {
    let guest = Guest::idle(48).writing(48 * 128, Write::WholePage, 1000);
    let options = Options::new(Build::Trixie, "q35", &guest);
    let parameters = json!({ "max-bandwidth": 0, "downtime-limit": 5000 });
    let mut world = World::start(
        &options,
        &with_parameters(&[], parameters),
        Setup::default(),
    );
    world.migrate();
    world.succeed();
}

#[test]
fn xbzrle_passes() {
    // So slow that even a guest that hardly gets to run has written to a page twice by the end.
    let parameters = json!({
        "max-bandwidth": 4 << 20,
        "downtime-limit": 1,
        "xbzrle-cache-size": 64 << 20,
    });
    let migration = with_parameters(&["xbzrle"], parameters);
    let mut world = World::start(&writing(), &migration, Setup::default());
    world.migrate();
    let sent = |info: &Value| info["xbzrle-cache"]["pages"].as_u64() > Some(0);
    world.here.wait_until("Deltas", LIMIT, sent).unwrap();
    let free = json!({ "max-bandwidth": 0, "downtime-limit": 2000 });
    world
        .here
        .qmp()
        .run("migrate-set-parameters", free)
        .unwrap();
    let outcome = world.succeed();
    assert!(sent(&outcome.info), "{}", outcome.info);
    assert!(outcome.sent.opaque.is_empty(), "{:?}", outcome.sent.opaque);
}

#[test]
fn postcopy_passes() {
    let parameters = json!({ "max-bandwidth": 20 << 20, "downtime-limit": 1 });
    let migration = with_parameters(&["postcopy-ram"], parameters);
    let mut world = World::start(&writing(), &migration, Setup::default());
    world.migrate();
    world.here.wait_rounds(1, LIMIT).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    world
        .here
        .qmp()
        .run("migrate-start-postcopy", json!({}))
        .unwrap();
    // The destination stands still at first (`-S`), so both have what the switchover left.
    let outcome = world.succeed();
    let bytes = &outcome.info["ram"]["postcopy-bytes"];
    assert!(bytes.as_u64() > Some(0), "{}", outcome.info);
    assert!(outcome.sent.opaque.is_empty(), "{:?}", outcome.sent.opaque);
}

#[test]
fn multifd_passes_and_is_deduplicated() {
    let parameters = json!({ "max-bandwidth": 0, "multifd-channels": 3 });
    let migration = with_parameters(&["multifd"], parameters);
    let mut world = World::start(&idle(), &migration, Setup::default());
    world.migrate();
    let first = world.succeed();
    assert_eq!(first.sent.totals.channels, 4);
    let mut world = World::start(&idle(), &migration, first.known());
    world.migrate();
    let second = world.succeed();
    let totals = &second.sent.totals;
    assert!(totals.pages_referenced > 64 * 100, "{totals:?}");
    assert!(totals.wire_bytes * 10 < totals.stream_bytes, "{totals:?}");
}

#[test]
fn multifd_with_compression_passes_as_bytes() {
    let parameters = json!({
        "max-bandwidth": 0,
        "multifd-channels": 2,
        "multifd-compression": "zlib",
    });
    let migration = with_parameters(&["multifd"], parameters);
    let mut world = World::start(&idle(), &migration, Setup::default());
    world.migrate();
    let outcome = world.succeed();
    assert_eq!(outcome.sent.totals.channels, 3);
}

#[test]
fn virtio_mem_passes() {
    let arguments = [
        "-object",
        "memory-backend-ram,id=vm0,size=64M",
        "-device",
        "virtio-mem-pci,id=v0,memdev=vm0,requested-size=32M,block-size=2M",
    ];
    let guest = Guest::idle(32);
    let options = Options::new(Build::Trixie, "q35", &guest);
    // The size with room for more comes after `-m` of the rig and wins.
    let options = options
        .with(["-m", "32M,maxmem=256M,slots=2"])
        .with(arguments);
    let mut world = World::start(&options, &with(&[]), Setup::default());
    world.migrate();
    let outcome = world.succeed();
    assert!(outcome.sent.opaque.is_empty(), "{:?}", outcome.sent.opaque);
}

#[test]
fn an_old_qemu_migrates_to_an_old_and_to_a_new_one() {
    let guest = Guest::writing_slowly(32);
    let old = Options::new(Build::Bookworm, "pc-q35-7.2", &guest);
    let new = Options::new(Build::Trixie, "pc-q35-7.2", &guest);
    for (from, to) in [(&old, &old), (&old, &new)] {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::start_in(dir, from, to, &with(&[]), |place, socket| {
            Setup::default().start(place, socket)
        });
        world.migrate();
        let outcome = world.succeed();
        assert!(outcome.sent.opaque.is_empty(), "{:?}", outcome.sent.opaque);
    }
}

#[test]
fn tls_with_a_key_passes() {
    let key = Psk::generate().unwrap();
    let setup = Setup {
        security: (Security::Psk(key.clone()), Security::Psk(key)),
        ..Setup::default()
    };
    let mut world = World::start(&writing(), &with(&[]), setup);
    world.migrate();
    world.succeed();
}

#[test]
fn tls_with_certificates_passes() {
    let place = tempfile::tempdir().unwrap();
    let (one, other) = crate::common::certificates::certificates(place.path());
    let setup = Setup {
        security: (Security::Certificates(one), Security::Certificates(other)),
        ..Setup::default()
    };
    let mut world = World::start(&idle(), &with(&[]), setup);
    world.migrate();
    world.succeed();
}

#[test]
fn a_cancelled_migration_leaves_the_guest_where_it_is() {
    let parameters = json!({ "max-bandwidth": 10 << 20 });
    let mut world = World::start(
        &writing(),
        &with_parameters(&[], parameters),
        Setup::default(),
    );
    world.migrate();
    world.here.wait_rounds(1, LIMIT).unwrap();
    world.here.qmp().run("migrate_cancel", json!({})).unwrap();
    world.stays();
}

#[test]
fn a_migration_without_return_path_is_refused() {
    let migration = twinpage_rig::Migration::new(&[], json!({}));
    let mut world = World::start(&writing(), &migration, Setup::default());
    world.migrate();
    world.here.wait_migration(&["failed"], LIMIT).unwrap();
    assert_eq!(world.here.state().unwrap(), "running");
    world.here.check_memory().unwrap();
    let error = finish(world.pair.sender).unwrap_err().to_string();
    assert!(error.contains("return-path"), "{error}");
}
