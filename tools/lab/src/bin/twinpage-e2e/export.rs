// SPDX-License-Identifier: GPL-2.0

//! What the digests file says is true, and never older than it says.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{
    Duration,
    Instant, //
};

use tinyvm::{
    Backing,
    Slot, //
};
use twinpage_lab::ensure;
use twinpage_lab::module::{
    self,
    uapi,
    DEBUGFS, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::wait;

use crate::host::{
    fails_with,
    fill,
    goes_on,
    Guest,
    Host,
    CONVERGE,
    DOMAIN,
    PRIVATE, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "digests_are_those_of_the_pages",
        seconds: 120,
        run: digests_are_those_of_the_pages,
    },
    Test {
        name: "records_do_not_depend_on_how_they_are_read",
        seconds: 120,
        run: records_do_not_depend_on_how_they_are_read,
    },
    Test {
        name: "a_merged_digest_is_never_stale",
        seconds: 240,
        run: a_merged_digest_is_never_stale,
    },
    Test {
        name: "a_merged_page_can_be_read_by_its_digest",
        seconds: 120,
        run: a_merged_page_can_be_read_by_its_digest,
    },
    Test {
        name: "slots_are_shown_as_they_are",
        seconds: 120,
        run: slots_are_shown_as_they_are,
    },
];

/// Bytes of the header and of a record.
const RECORD: usize = 64;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    gfn: u64,
    state: u32,
    generation: u64,
    digest: [u8; 32],
}

/// Part of a record at a fixed place.
fn bytes<const N: usize>(record: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&record[at..at + N]);
    part
}

impl Record {
    fn parse(record: &[u8]) -> Result<Record, Failure> {
        let reserved = u64::from(u32::from_le_bytes(bytes(record, 12)))
            | u64::from_le_bytes(bytes(record, 56));
        ensure!(
            reserved == 0,
            "a reserved field of a record is {reserved:#x}"
        );
        Ok(Record {
            gfn: u64::from_le_bytes(bytes(record, 0)),
            state: u32::from_le_bytes(bytes(record, 8)),
            generation: u64::from_le_bytes(bytes(record, 16)),
            digest: bytes(record, 24),
        })
    }
}

/// The file of one VM.
struct Digests(File);

impl Digests {
    fn of(guest: &Guest) -> Result<Digests, Failure> {
        Ok(Digests(File::open(format!(
            "{DEBUGFS}/{}/digests",
            guest.id()
        ))?))
    }

    fn header(&self) -> Result<[u8; RECORD], Failure> {
        let mut header = [0; RECORD];
        self.0.read_exact_at(&mut header, 0)?;
        Ok(header)
    }

    /// How many records there are.
    fn records(&self) -> Result<usize, Failure> {
        Ok(u64::from_le_bytes(bytes(&self.header()?, 32)) as usize)
    }

    fn all(&self) -> Result<Vec<Record>, Failure> {
        let mut content = vec![0; self.records()? * RECORD];
        self.0.read_exact_at(&mut content, RECORD as u64)?;
        content.chunks_exact(RECORD).map(Record::parse).collect()
    }

    fn one(&self, index: usize) -> Result<Record, Failure> {
        let mut record = [0; RECORD];
        self.0
            .read_exact_at(&mut record, (RECORD + RECORD * index) as u64)?;
        Record::parse(&record)
    }
}

fn digests_are_those_of_the_pages() -> Outcome {
    const PAGES: usize = 600;
    let host = Host::new()?;
    let a = host.guest(PAGES, Backing::Small, DOMAIN)?;
    let b = host.guest(PAGES, Backing::Small, DOMAIN)?;
    // Merged pages first, then zeroes, then pages of its own; the last ones are never touched.
    for (guest, own) in [(&a, 1 << 32), (&b, 2 << 32)] {
        for page in 0..200 {
            fill(guest.memory(), page, page as u64 + 1);
        }
        for page in 200..300 {
            guest.memory().write_page(page, &[0; tinyvm::WORDS]);
        }
        for page in 300..400 {
            fill(guest.memory(), page, own + page as u64);
        }
    }
    host.until_saved(&[&a, &b], 400)?;
    module::set("run", 0)?;
    let digests = Digests::of(&a)?;
    let header = digests.header()?;
    let (magic, version) = (
        u64::from_le_bytes(bytes(&header, 0)),
        u32::from_le_bytes(bytes(&header, 8)),
    );
    ensure!(magic == uapi::TWINPAGE_DIGESTS_MAGIC, "magic {magic:#x}");
    ensure!(
        &header[..8] == b"TWPDGST1",
        "magic bytes {:?}",
        &header[..8]
    );
    ensure!(version == 1, "version {version}");
    ensure!(bytes(&header, 12) == 64_u32.to_le_bytes(), "header size");
    ensure!(bytes(&header, 16) == 64_u32.to_le_bytes(), "record size");
    ensure!(bytes(&header, 20) == a.id().to_le_bytes(), "id");
    ensure!(bytes(&header, 24) == DOMAIN.to_le_bytes(), "domain");
    ensure!(bytes(&header, 48) == [0_u8; 16], "reserved");
    let records = digests.all()?;
    ensure!(records.len() == PAGES, "{} records", records.len());
    for (page, record) in records.iter().enumerate() {
        let expected = match page {
            0..200 => uapi::TWINPAGE_PAGE_MERGED,
            200..300 => uapi::TWINPAGE_PAGE_ZERO,
            300..400 => uapi::TWINPAGE_PAGE_UNMERGED,
            _ => uapi::TWINPAGE_PAGE_ABSENT,
        };
        ensure!(
            record.state == expected,
            "page {page} has state {}",
            record.state
        );
        ensure!(
            record.gfn == page as u64,
            "page {page} has gfn {}",
            record.gfn
        );
        let known = match page < 400 {
            true => a.digest(page),
            false => [0; 32],
        };
        ensure!(record.digest == known, "page {page}: {record:?}");
        let serial = record.generation != 0;
        ensure!(serial == (page < 200), "page {page}: {record:?}");
        ensure!(
            digests.one(page)? == *record,
            "page {page} differs when read alone"
        );
    }
    end_of_file(&digests, PAGES)
}

/// Reading at odd offsets and past the end.
fn end_of_file(digests: &Digests, pages: usize) -> Outcome {
    let mut odd = [0; 100];
    digests.0.read_exact_at(&mut odd, 33)?;
    let mut whole = [0; 133];
    digests.0.read_exact_at(&mut whole, 0)?;
    ensure!(odd == whole[33..], "a read at an odd offset differs");
    let end = (RECORD + RECORD * pages) as u64;
    for offset in [end, end + 1, end * 1000] {
        let read = digests.0.read_at(&mut odd, offset)?;
        ensure!(read == 0, "{read} bytes at {offset}, past the end {end}");
    }
    let read = digests.0.read_at(&mut odd, end - 10)?;
    ensure!(read == 10, "{read} of the last 10 bytes");
    Ok(())
}

fn records_do_not_depend_on_how_they_are_read() -> Outcome {
    // More than two page tables, and than one read gives.
    const PAGES: usize = 1301;
    const MOST: usize = 512 * RECORD;
    let host = Host::new()?;
    let a = host.guest(PAGES, Backing::Small, DOMAIN)?;
    let b = host.guest(PAGES, Backing::Small, DOMAIN)?;
    // Of three pages one is merged, one never touched, and one private: more than are hashed at
    // once.
    for page in (0..PAGES).step_by(3) {
        fill(a.memory(), page, page as u64 + 1);
        fill(b.memory(), page, page as u64 + 1);
        fill(a.memory(), page + 1, (1 << 32) + page as u64);
    }
    host.until_saved(&[&a, &b], PAGES.div_ceil(3))?;
    module::set("run", 0)?;
    let file = Digests::of(&a)?.0;
    let mut whole = vec![0; RECORD * (PAGES + 1)];
    let mut rest = vec![0; 3 * MOST];
    let header = file.read_at(&mut rest, 0)?;
    ensure!(header == RECORD, "{header} bytes of the header");
    let most = file.read_at(&mut rest, RECORD as u64)?;
    ensure!(most == MOST, "{most} bytes at once");
    file.read_exact_at(&mut whole, 0)?;
    ensure!(
        rest[..most] == whole[RECORD..][..most],
        "it reads otherwise"
    );
    for (page, record) in whole.chunks_exact(RECORD).skip(1).enumerate() {
        let record = Record::parse(record)?;
        let known = match page % 3 {
            0 | 1 => a.digest(page),
            _ => [0; 32],
        };
        ensure!(
            record.gfn == page as u64,
            "page {page} has gfn {}",
            record.gfn
        );
        ensure!(record.digest == known, "page {page}: {record:?}");
    }
    let all = whole.len();
    for (size, until) in [(1, 200), (63, 9999), (64, 9999), (100, 40_000), (8191, all)] {
        let mut at = 0;
        while at < until {
            let read = file.read_at(&mut rest[..size], at as u64)?;
            ensure!(read > 0, "no bytes at {at}, of {size}");
            ensure!(
                rest[..read] == whole[at..][..read],
                "{read} bytes at {at} differ"
            );
            at += read;
        }
    }
    Ok(())
}

fn a_merged_digest_is_never_stale() -> Outcome {
    const PAGES: usize = 32;
    const TIME: Duration = Duration::from_secs(15);
    let host = Host::new()?;
    let a = host.guest(PAGES, Backing::Small, DOMAIN)?;
    let b = host.guest(PAGES, Backing::Small, DOMAIN)?;
    let digests = Digests::of(&a)?;
    let mut known = std::collections::HashMap::new();
    let (mut round, mut merged_seen) = (1, 0);
    let start = Instant::now();
    while goes_on(start, TIME, merged_seen > 100) {
        // What the page holds while this thread does not write is known, so a record that says
        // MERGED must say exactly that.
        for page in 0..PAGES {
            fill(a.memory(), page, round);
            fill(b.memory(), page, round);
        }
        let truth = a.digest(0);
        let pause = Instant::now() + Duration::from_millis(200);
        while Instant::now() < pause {
            for record in digests.all()? {
                if record.state != uapi::TWINPAGE_PAGE_MERGED {
                    continue;
                }
                merged_seen += 1;
                ensure!(record.digest == truth, "stale in round {round}: {record:?}");
                let first = known.entry(record.generation).or_insert(record.digest);
                ensure!(
                    *first == record.digest,
                    "serial number used twice: {record:?}"
                );
            }
        }
        round += 1;
    }
    println!("{round} rounds, {merged_seen} merged records");
    ensure!(
        merged_seen > 100,
        "only {merged_seen} merged records were seen"
    );
    Ok(())
}

fn a_merged_page_can_be_read_by_its_digest() -> Outcome {
    let host = Host::new()?;
    let [a, _b] = host.twins(64)?;
    let device = host.device();
    for page in 0..64 {
        let content = device.read(DOMAIN, a.digest(page))?;
        let words: Vec<_> = content
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(bytes(word, 0)))
            .collect();
        ensure!(
            words == a.memory().read_page(page),
            "page {page} reads differently"
        );
    }
    let known = a.digest(3);
    let other = device.read(DOMAIN + 1, known);
    fails_with("another domain", other.map(|_| ()), libc::ENOENT)?;
    let mut unknown = known;
    unknown[0] ^= 1;
    let none = device.read(DOMAIN, unknown);
    fails_with("an unknown digest", none.map(|_| ()), libc::ENOENT)?;
    let private = device.read(PRIVATE, known);
    ensure!(private.is_err(), "domain 0 gave a page away");
    let mut bad = uapi::twinpage_read {
        domain: DOMAIN,
        digest: known,
        buffer: 4096,
        ..Default::default()
    };
    let result = device.ioctl(uapi::IOC_READ, &mut bad);
    fails_with("a bad buffer", result, libc::EFAULT)?;
    // A page that nobody maps any more is no longer given out.
    drop((a, _b));
    wait::until("forgetting a page that is gone", CONVERGE, || {
        let gone = device.read(DOMAIN, known).map(|_| ());
        Ok(gone.is_err_and(|error| error.raw_os_error() == Some(libc::ENOENT)))
    })
    .map(|_| ())
}

fn slots_are_shown_as_they_are() -> Outcome {
    let host = Host::new()?;
    let guest = host.guest(64, Backing::Small, PRIVATE)?;
    let second = tinyvm::Memory::new(32, Backing::Small)?;
    let slot = Slot {
        number: 5,
        guest: 0x40_0000,
        host: second.address(),
        pages: 32,
        flags: kvm_log(),
        ..Slot::default()
    };
    guest.vm()?.set_slot(slot)?;
    let digests = Digests::of(&guest)?;
    let layout = bytes::<8>(&digests.header()?, 40);
    let slots = module::slots(guest.id())?;
    println!("{slots:?}");
    ensure!(slots.len() == 2, "{} slots", slots.len());
    ensure!(
        (slots[0].as_id, slots[0].slot, slots[0].base_gfn) == (0, 0, 0),
        "first"
    );
    ensure!(slots[0].npages == 64, "first");
    ensure!(slots[0].userspace_addr == guest.memory().address(), "first");
    ensure!(
        (slots[1].slot, slots[1].base_gfn, slots[1].npages) == (5, 0x400, 32),
        "second"
    );
    ensure!(slots[1].userspace_addr == second.address(), "second");
    ensure!(slots[1].flags == u64::from(kvm_log()), "second");
    ensure!(digests.records()? == 96, "{} records", digests.records()?);
    ensure!(
        digests.one(64)?.gfn == 0x400,
        "records are not in the order of gfn"
    );
    guest.vm()?.set_slot(Slot { pages: 0, ..slot })?;
    host.looks(1)?;
    ensure!(
        module::slots(guest.id())?.len() == 1,
        "the slot is still shown"
    );
    let fresh = Digests::of(&guest)?;
    ensure!(fresh.records()? == 64, "{} records", fresh.records()?);
    ensure!(
        bytes::<8>(&fresh.header()?, 40) != layout,
        "layout did not change"
    );
    Ok(())
}

/// The flag that turns the dirty log of a slot on.
fn kvm_log() -> u32 {
    1
}
