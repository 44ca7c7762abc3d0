// SPDX-License-Identifier: GPL-2.0

//! The parser, fed with what real QEMUs send: every stream must be understood to its end, and its
//! pages must be as many as QEMU says.

mod record;
#[path = "../replay/mod.rs"]
mod replay;

use std::fs;

use serde_json::{
    json,
    Value, //
};
use twinpage_rig::{
    Boot,
    Build,
    Guest,
    Migration,
    Options,
    Write, //
};
use twinpage_stream::{
    Channel,
    Mark,
    Parser, //
};

use record::{
    record,
    Finish,
    Recorded,
    Scenario, //
};
use replay::{
    replay,
    replay_all,
    Replay, //
};

/// Lengths of chunks.
const CHUNKS: [usize; 5] = [1, 7, 4095, 4096, 65536];
/// Memory of the guests, in MiB.
const MIB: u32 = 16;

/// A migration over a return path, with further capabilities.
fn migration(capabilities: &[&'static str], parameters: Value) -> Migration {
    let all = [&["return-path"], capabilities].concat();
    Migration::new(&all, parameters)
}

/// Migrates `guest` on `machine`.
fn scenario(build: Build, machine: &str, guest: &Guest, migration: Migration) -> Scenario {
    Scenario {
        options: Options::new(build, machine, guest),
        migration,
        finish: Finish::Completed,
    }
}

/// What came of a main channel.
struct Main {
    /// What the parser made of it.
    replay: Replay,
    /// What QEMU says of the migration's RAM.
    ram: Value,
}

impl Main {
    /// Marks of one kind.
    fn count(&self, mark: Mark) -> usize {
        self.replay
            .marks()
            .iter()
            .filter(|found| **found == mark)
            .count()
    }
}

/// The kind of the channel that starts with `stream`.
fn kind(stream: &[u8]) -> Option<Channel> {
    let mut parser = Parser::new();
    parser.feed(stream, &mut Vec::new());
    parser.kind()
}

/// Parses all channels and checks what holds for each migration: nothing is left ununderstood, and
/// the pages are as many as QEMU has sent.
fn judge(recorded: &Recorded) -> Main {
    let mut main = None;
    let mut pages = 0;
    for stream in &recorded.streams {
        let replay = replay_all(stream, &CHUNKS);
        pages += replay.events.pages.len() as u64;
        if kind(stream) == Some(Channel::Main) {
            assert_eq!(replay.opaque(), None);
            assert_eq!(replay.marks().last(), Some(&Mark::Ended));
            assert!(main.is_none(), "there are two main channels");
            main = Some(replay);
        } else {
            assert_eq!(kind(stream), Some(Channel::Multifd));
            assert_eq!(replay.marks(), []);
        }
    }
    let ram = recorded.info["ram"].clone();
    let replay = main.expect("there is no main channel");
    println!(
        "{} zero records, {} pages, {} literal bytes; {ram}",
        replay.zeros, pages, replay.literal
    );
    if !recorded.compressed {
        let said = ram["normal"].as_u64().unwrap();
        let found = said..=said + recorded.sent_twice;
        assert!(
            found.contains(&pages),
            "{pages} pages that are not zero, QEMU says {said}"
        );
    }
    Main { replay, ram }
}

impl Main {
    /// Zero pages are as many as QEMU has sent; those that name their block are literal.
    fn judge_zeros(self) -> Self {
        let duplicate = self.ram["duplicate"].as_u64().unwrap();
        let sections = self.count(Mark::RamSection) as u64;
        let named = duplicate.checked_sub(self.replay.zeros).unwrap();
        assert!(
            named <= 12 * sections,
            "{named} of {duplicate} zero pages are literal"
        );
        self
    }

    /// What holds for a migration that is switched over once, with RAM before.
    fn judge_precopy(self) -> Self {
        for mark in [Mark::ReturnPath, Mark::Switchover, Mark::RamEnd] {
            assert_eq!(self.count(mark), 1, "{mark:?}");
        }
        self.judge_zeros()
    }
}

/// A guest that keeps some pages dirty.
fn writing() -> Guest {
    Guest::idle(MIB).writing(512, Write::FirstWord, 1000)
}

/// Runs `test` with both QEMUs.
fn each_build(test: impl Fn(Build)) {
    for build in Build::ALL {
        println!("{build:?}");
        test(build);
    }
}

/// Slow at first, so that there are several rounds; then as fast as it goes.
fn rounds() -> Value {
    json!({ "max-bandwidth": 6 << 20, "downtime-limit": 1 })
}

#[test]
fn pc_and_q35_with_firmware() {
    each_build(|build| {
        for machine in ["pc", "q35"] {
            let mut scenario =
                scenario(build, machine, &Guest::idle(MIB), migration(&[], json!({})));
            let devices = ["-vga", "std", "-device", "virtio-net-pci"];
            scenario.options = scenario.options.boot(Boot::Sector).with(devices);
            judge(&record(&scenario)).judge_precopy();
        }
    });
}

#[test]
fn microvm_and_its_damaged_stream() {
    each_build(|build| {
        let scenario = scenario(
            build,
            "microvm",
            &Guest::idle(MIB),
            migration(&[], json!({})),
        );
        let recorded = record(&scenario);
        judge(&recorded).judge_precopy();
        let mut stream = recorded.streams[0].clone();
        let pages = replay(&stream, stream.len()).events.pages;
        let end = stream.len().min(300_000);
        stream.truncate(end);
        let in_page = |place: usize| {
            pages
                .iter()
                .any(|page| (*page..page + 4096).contains(&(place as u64)))
        };
        for place in (0..end).filter(|place| !in_page(*place)).take(1500) {
            stream[place] ^= 0x41;
            replay_all(&stream, &[65536]);
            stream[place] ^= 0x41;
        }
    });
}

#[test]
fn several_rounds() {
    each_build(|build| {
        let mut scenario = scenario(build, "pc", &writing(), migration(&[], rounds()));
        scenario.finish = Finish::AfterRounds(6);
        let main = judge(&record(&scenario)).judge_precopy();
        assert!(main.ram["dirty-sync-count"].as_u64().unwrap() >= 6);
    });
}

#[test]
fn old_machine_on_new_qemu() {
    let migration = migration(&[], json!({}));
    let scenario = scenario(
        Build::Trixie,
        "pc-i440fx-7.2",
        &Guest::writing_all(MIB),
        migration,
    );
    judge(&record(&scenario)).judge_precopy();
}

#[test]
fn xbzrle() {
    each_build(|build| {
        let mut parameters = rounds();
        parameters["xbzrle-cache-size"] = json!(32 << 20);
        let migration = migration(&["xbzrle"], parameters);
        let mut scenario = scenario(build, "pc", &writing(), migration);
        scenario.finish = Finish::AfterRounds(6);
        let recorded = record(&scenario);
        judge(&recorded).judge_precopy();
        let encoded = recorded.info["xbzrle-cache"]["pages"].as_u64().unwrap();
        assert!(encoded > 100, "only {encoded} pages were sent as changes");
    });
}

#[test]
fn compressed_pages_of_the_old_qemu() {
    let migration = migration(&["compress"], json!({}));
    let scenario = scenario(Build::Bookworm, "pc", &Guest::idle(MIB), migration);
    let mut recorded = record(&scenario);
    recorded.compressed = true;
    judge(&recorded);
    let compressed = recorded.info["compression"]["pages"].as_u64().unwrap();
    assert!(compressed > 100, "only {compressed} pages were compressed");
}

/// With multifd and the parameter multifd-compression.
fn multifd(build: Build, compression: &str) -> Recorded {
    let parameters = json!({ "multifd-channels": 2, "multifd-compression": compression });
    let guest = Guest::writing_slowly(MIB);
    let mut recorded = record(&scenario(
        build,
        "pc",
        &guest,
        migration(&["multifd"], parameters),
    ));
    recorded.compressed = compression != "none";
    if build == Build::Bookworm {
        // A race of that version: a page that fills a packet may also begin the next one.
        recorded.sent_twice = 40;
    }
    assert_eq!(recorded.streams.len(), 3);
    recorded
}

#[test]
fn multifd_without_compression() {
    each_build(|build| {
        let main = judge(&multifd(build, "none"));
        assert_eq!(
            main.replay.events.pages.len(),
            0,
            "pages travel on the other channels"
        );
        assert_eq!(main.count(Mark::Switchover), 1);
    });
}

#[test]
fn multifd_with_zstd() {
    each_build(|build| {
        let recorded = multifd(build, "zstd");
        judge(&recorded);
        for stream in &recorded.streams[1..] {
            assert!(replay(stream, 65536).events.pages.is_empty());
        }
    });
}

#[test]
fn postcopy() {
    each_build(|build| {
        let migration = migration(&["postcopy-ram"], json!({ "max-bandwidth": 4 << 20 }));
        let mut scenario = scenario(build, "pc", &Guest::writing_slowly(MIB), migration);
        scenario.finish = Finish::Postcopy;
        let main = judge(&record(&scenario)).judge_precopy();
        assert_eq!(main.count(Mark::Packaged), 1);
        let marks = main.replay.marks();
        let place = |mark| marks.iter().position(|found| *found == mark).unwrap();
        assert!(place(Mark::Switchover) < place(Mark::Packaged));
        assert!(place(Mark::Packaged) < place(Mark::RamEnd));
    });
}

#[test]
fn postcopy_with_a_channel_for_urgent_pages() {
    // Only since 8.0 does QEMU connect that channel after the main one.
    let capabilities = ["postcopy-ram", "postcopy-preempt"];
    let migration = migration(&capabilities, json!({ "max-bandwidth": 4 << 20 }));
    let guest = Guest::writing_slowly(MIB);
    let mut scenario = scenario(Build::Trixie, "pc", &guest, migration);
    scenario.finish = Finish::Postcopy;
    let recorded = record(&scenario);
    assert_eq!(recorded.streams.len(), 2);
    let main = replay_all(&recorded.streams[0], &CHUNKS);
    assert_eq!(main.opaque(), None);
    assert_eq!(main.marks().last(), Some(&Mark::Ended));
    let urgent = replay_all(&recorded.streams[1], &CHUNKS);
    let urgent_kind = kind(&recorded.streams[1]);
    assert_eq!(urgent_kind.unwrap_or(Channel::Raw), Channel::Raw);
    assert_eq!(urgent.literal, recorded.streams[1].len() as u64);
}

#[test]
fn virtio_mem() {
    each_build(|build| {
        let mut scenario = scenario(build, "pc", &Guest::idle(MIB), migration(&[], json!({})));
        scenario.options = scenario.options.with([
            "-m",
            "maxmem=1G",
            "-object",
            "memory-backend-ram,id=more,size=128M",
            "-device",
            "virtio-mem-pci,memdev=more,requested-size=0",
        ]);
        let recorded = record(&scenario);
        judge(&recorded).judge_precopy();
        let early = b"/virtio-mem-device-early";
        let found = recorded.streams[0]
            .windows(early.len())
            .any(|window| window == early);
        // Machines from 8.0 on have it.
        assert_eq!(found, build == Build::Trixie);
    });
}

#[test]
fn shared_memory_is_not_sent() {
    each_build(|build| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory");
        let backend = format!(
            "memory-backend-file,id=m0,size={MIB}M,share=on,mem-path={}",
            file.display()
        );
        let migration = migration(&["x-ignore-shared"], json!({}));
        let mut scenario = scenario(build, "pc,memory-backend=m0", &Guest::idle(MIB), migration);
        scenario.options = scenario.options.with(["-object", &backend]);
        let main = judge(&record(&scenario)).judge_precopy();
        assert!(
            main.replay.events.pages.len() < 1000,
            "the shared memory was sent"
        );
    });
}

#[test]
fn uuid_of_the_machine_is_sent() {
    each_build(|build| {
        let uuid = "c0ffee00-1234-4321-abcd-0123456789ab";
        let mut scenario = scenario(
            build,
            "q35",
            &Guest::idle(MIB),
            migration(&["validate-uuid"], json!({})),
        );
        scenario.options = scenario.options.with(["-uuid", uuid]);
        let recorded = record(&scenario);
        judge(&recorded).judge_precopy();
        let name = b"configuration/uuid";
        assert!(recorded.streams[0]
            .windows(name.len())
            .any(|window| window == name));
    });
}

#[test]
fn dirty_bitmaps_of_disks() {
    each_build(|build| {
        let mut scenario = scenario(
            build,
            "pc",
            &Guest::idle(MIB),
            migration(&["dirty-bitmaps"], json!({})),
        );
        scenario.options = scenario
            .options
            .with(["-blockdev", "null-co,node-name=disk,size=1073741824"]);
        scenario.finish = Finish::WithBitmap;
        let recorded = record(&scenario);
        judge(&recorded).judge_precopy();
        let name = b"dirty-bitmap";
        assert!(recorded.streams[0]
            .windows(name.len())
            .any(|window| window == name));
    });
}

#[test]
fn no_return_path() {
    each_build(|build| {
        let migration = Migration::new(&[], json!({}));
        let mut scenario = scenario(build, "pc", &Guest::writing_slowly(MIB), migration);
        scenario.finish = Finish::IntoFile;
        let main = judge(&record(&scenario)).judge_zeros();
        assert_eq!(main.count(Mark::ReturnPath), 0);
        assert_eq!(main.count(Mark::Switchover), 1);
        assert_eq!(main.count(Mark::RamEnd), 1);
    });
}

#[test]
fn background_snapshot() {
    each_build(|build| {
        let migration = Migration::new(&["background-snapshot"], json!({}));
        let mut scenario = scenario(build, "pc", &Guest::writing_slowly(MIB), migration);
        scenario.finish = Finish::IntoFile;
        let main = judge(&record(&scenario)).judge_zeros();
        assert_eq!(main.count(Mark::RamEnd), 0);
    });
}

#[test]
fn both_qemus_are_there() {
    for build in Build::ALL {
        let program = build.program().unwrap_or_else(|error| panic!("{error}"));
        assert!(fs::metadata(program).unwrap().len() > 0);
    }
}
