// SPDX-License-Identifier: GPL-2.0

//! Pages are found in files, dumps and a real QEMU's memory.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Command,
    Stdio, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_store::build::{
    load,
    load_pages,
    read_pages,
    Input,
    Read, //
};
use twinpage_store::{
    Admit,
    Digest,
    Error,
    PageSource,
    SourceId,
    Trust, //
};

use crate::pages::{
    self,
    digest,
    go_on,
    page, //
};

/// The digests of the pages of an input, in order, and what was read.
pub fn digests_of(input: &Input) -> Result<(Vec<Digest>, Read), Error> {
    let mut digests = Vec::new();
    let read = read_pages(
        input,
        &mut |page| {
            digests.push(Digest::of(page));
            Ok(())
        },
        &mut go_on,
    )?;
    Ok((digests, read))
}

/// The digests of pages with these numbers.
pub fn digests(numbers: impl IntoIterator<Item = u64>) -> Vec<Digest> {
    numbers.into_iter().map(digest).collect()
}

/// A program header of a core: type, offset in the file, bytes there, physical address.
pub type Header = (u32, u64, u64, u64);

/// An ELF core with these program headers, followed by `rest`.
pub fn core(headers: &[Header], rest: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Core, x86-64, version 1.
    file.extend([4, 0, 62, 0, 1, 0, 0, 0]);
    file.extend(0u64.to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend([0; 12]);
    file.extend([64, 0, 56, 0]);
    file.extend((headers.len() as u16).to_le_bytes());
    file.extend([64, 0, 0, 0, 0, 0]);
    for (kind, offset, bytes, address) in headers {
        file.extend(kind.to_le_bytes());
        file.extend(4u32.to_le_bytes());
        for field in [offset, &0, address, bytes, bytes, &0] {
            file.extend(field.to_le_bytes());
        }
    }
    file.extend(rest);
    file
}

/// Writes a file of a test.
fn write(directory: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    path
}

#[test]
fn raw_images_are_read_with_holes_and_without_their_tail() {
    let directory = pages::directory();
    let path = directory.path().join("image");
    let file = fs::File::create(&path).unwrap();
    // Holes at the start, between and at the end, and a page that is not at a whole page.
    for (number, at) in [
        (1, 5 << 20),
        (2, (5 << 20) + 4096),
        (3, 40 << 20),
        (4, (40 << 20) + 8192),
    ] {
        file.write_all_at(&page(number), at).unwrap();
    }
    file.set_len((90 << 20) + 4095).unwrap();
    for input in [Input::RawImage(path.clone()), Input::Dump(path.clone())] {
        let (found, read) = digests_of(&input).unwrap();
        assert_eq!(found, digests(1..=4));
        assert_eq!((read.bytes, read.pages), ((90 << 20) + 4095, 4));
        assert_eq!(
            (&read.format[..], read.zero),
            ("raw", (90 << 20) / 4096 - 4)
        );
    }
}

#[test]
fn files_of_any_length_are_read() {
    let directory = pages::directory();
    let content: Vec<u8> = (0..3).flat_map(page).collect();
    for len in [0, 1, 4095, 4096, 4097, 12287, 12288] {
        let path = write(directory.path(), "image", &content[..len]);
        let (found, _) = digests_of(&Input::RawImage(path)).unwrap();
        assert_eq!(found, digests(0..len as u64 / 4096), "{len} bytes");
    }
}

#[test]
fn what_is_no_file_is_refused() {
    let directory = pages::directory();
    for path in [directory.path().to_owned(), PathBuf::from("/dev/zero")] {
        for input in [
            Input::RawImage(path.clone()),
            Input::Dump(path.clone()),
            Input::Image(path.clone()),
        ] {
            let error = digests_of(&input).unwrap_err();
            assert!(matches!(error, Error::Input { .. }), "{error}");
        }
    }
}

#[test]
fn a_core_has_pages_where_addresses_are_whole() {
    let directory = pages::directory();
    let rest: Vec<u8> = [
        &[9; 10][..],
        &page(1),
        &page(2),
        &[8; 100],
        &page(3),
        &page(4),
    ]
    .concat();
    let start = 64 + 3 * 56;
    let headers = [
        (4, start, 10, 0),
        (1, start, 10 + 8192 + 100, 0x1000 - 10),
        (1, start + 10 + 8192 + 100, 8192, 0x10_0000),
    ];
    let path = write(directory.path(), "core", &core(&headers, &rest));
    let (found, read) = digests_of(&Input::Dump(path)).unwrap();
    assert_eq!(found, digests(1..=4));
    assert_eq!((&read.format[..], read.bytes, read.zero), ("elf", 16384, 0));
}

#[test]
fn a_core_that_maps_bytes_twice_is_read_once() {
    let directory = pages::directory();
    let rest: Vec<u8> = (1..=4).flat_map(page).collect();
    let start = 64 + 2000 * 56;
    let headers: Vec<_> = (0..2000).map(|_| (1, start, 4 * 4096, 0)).collect();
    let path = write(directory.path(), "core", &core(&headers, &rest));
    assert_eq!(digests_of(&Input::Dump(path)).unwrap().0, digests(1..=4));
}

#[test]
fn hostile_cores_are_refused_with_the_place() {
    let directory = pages::directory();
    let table = [
        (core(&[(1, 120, u64::MAX, 0)], &[]), "beyond the end"),
        (core(&[(1, u64::MAX, 1, 0)], &[]), "beyond the end"),
        (core(&[(1, 0, 121, 0)], &[]), "beyond the end"),
        (b"\x7fELF".to_vec(), "offset 0"),
        (core(&[], &[])[..63].to_vec(), "offset 0"),
        (b"KDUMP   x".to_vec(), "a kdump"),
        (b"PAGEDU64".to_vec(), "a Windows dump"),
    ];
    for (content, expected) in table {
        let path = write(directory.path(), "core", &content);
        let error = digests_of(&Input::Dump(path)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let mut program = core(&[], &[]);
    program[16] = 2;
    let path = write(directory.path(), "program", &program);
    assert!(digests_of(&Input::Dump(path))
        .unwrap_err()
        .to_string()
        .contains("no core"));
}

#[test]
fn a_load_can_be_stopped_and_hashes_what_it_offers() {
    let directory = pages::directory();
    let content: Vec<u8> = (0..3000).flat_map(page).collect();
    let path = write(directory.path(), "image", &content);
    let mut store = pages::store(directory.path(), 2);
    let input = Input::RawImage(path);
    let mut into = store.load().unwrap();
    let stopped = load(&input, Trust::Public, &mut [&mut into], &mut |_| {
        ControlFlow::Break(())
    });
    assert!(stopped.unwrap_err().is_stopped());
    let mut steps = Vec::new();
    let mut watch = |progress: twinpage_store::Progress| {
        steps.push(progress);
        ControlFlow::Continue(())
    };
    let read = load(&input, Trust::Public, &mut [&mut into], &mut watch).unwrap();
    assert_eq!(read.pages, 3000);
    into.finish().unwrap();
    drop(into);
    assert!(steps.windows(2).all(|two| two[0].done <= two[1].done));
    let last = steps.last().unwrap();
    assert_eq!((last.done, last.total), (3000 * 4096, 3000 * 4096));
    let mut bytes = [0; 4096];
    for number in 0..3000 {
        assert!(store.fetch(&digest(number), &mut bytes).unwrap());
        assert_eq!(bytes, page(number));
    }
}

#[test]
fn one_file_is_one_source_by_whatever_name() {
    let directory = pages::directory();
    let path = write(directory.path(), "image", &page(1));
    let link = directory.path().join("link");
    fs::hard_link(&path, &link).unwrap();
    let copy = directory.path().join("copy");
    fs::copy(&path, &copy).unwrap();
    let mut store = pages::store(directory.path(), 2);
    let mut into = store.load().unwrap();
    for (path, admitted) in [(&path, 0), (&link, 0), (&path, 0), (&copy, 1)] {
        load(
            &Input::RawImage(path.clone()),
            Trust::Counted,
            &mut [&mut into],
            &mut go_on,
        )
        .unwrap();
        assert_eq!(into.loaded().admitted, admitted, "{}", path.display());
    }
}

#[test]
fn running_vms_are_loaded_from_an_iterator() {
    let directory = pages::directory();
    let mut store = pages::store(directory.path(), 2);
    let mut into = store.load().unwrap();
    let vm = |name: &str, number| Ok((SourceId::new(name), digest(number), Box::new(page(number))));
    let pages = vec![
        vm("one", 1),
        vm("one", 2),
        vm("one", 1),
        vm("two", 1),
        vm("two", 3),
    ];
    let count = load_pages(&mut pages.into_iter(), Trust::Counted, &mut [&mut into]).unwrap();
    assert_eq!((count, into.loaded().admitted), (5, 1));
    let gone = vec![vm("two", 2), Err(Error::Stopped)];
    assert!(load_pages(&mut gone.into_iter(), Trust::Counted, &mut [&mut into]).is_err());
    into.finish().unwrap();
    drop(into);
    assert!(store.fetch(&digest(1), &mut [0; 4096]).unwrap());
    assert!(store.fetch(&digest(2), &mut [0; 4096]).unwrap());
    assert!(!store.fetch(&digest(3), &mut [0; 4096]).unwrap());
}

/// Bytes of memory of the QEMU whose dumps are read.
const MEMORY: u64 = 32 << 20;

/// More pages than its memory has before its firmware has run.
const FILLED: usize = 50;

/// How long the firmware may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets a QEMU write its memory to `raw` again and again, until its firmware has filled some of it.
fn until_filled(monitor: &mut impl Write, raw: &Path) {
    let start = Instant::now();
    let mut pages = 0;
    while pages <= FILLED {
        assert!(start.elapsed() < PATIENCE, "{pages} pages");
        thread::sleep(Duration::from_secs(2));
        writeln!(monitor, "pmemsave 0 {MEMORY} \"{}\"", raw.display()).unwrap();
        while fs::metadata(raw).map_or(0, |file| file.len()) < MEMORY {
            assert!(start.elapsed() < PATIENCE, "QEMU writes no memory");
            thread::sleep(Duration::from_millis(20));
        }
        let input = Input::Dump(raw.to_owned());
        pages = digests_of(&input).unwrap().0.len();
        fs::remove_file(raw).unwrap();
    }
}

#[test]
fn dumps_of_a_real_qemu_agree() {
    let directory = pages::directory();
    let [elf, raw] = ["elf", "raw"].map(|name| directory.path().join(name));
    let mut qemu = Command::new("timeout")
        .args([
            "-k",
            "5",
            "300",
            "qemu-system-x86_64",
            "-M",
            "pc",
            "-m",
            "32M",
            "-accel",
            "tcg",
        ])
        .args(["-nodefaults", "-display", "none", "-monitor", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut monitor = qemu.stdin.take().unwrap();
    until_filled(&mut monitor, &raw);
    let commands = format!(
        "stop\ndump-guest-memory {}\npmemsave 0 {MEMORY} \"{}\"\nquit\n",
        elf.display(),
        raw.display()
    );
    monitor.write_all(commands.as_bytes()).unwrap();
    assert!(qemu.wait().unwrap().success());
    let (elf, read) = digests_of(&Input::Dump(elf)).unwrap();
    assert_eq!(read.format, "elf");
    let (raw, _) = digests_of(&Input::Dump(raw)).unwrap();
    assert!(raw.len() > FILLED, "{} pages", raw.len());
    let elf: HashSet<_> = elf.into_iter().collect();
    // The video memory's hole is not RAM; all else is in both.
    let missing = raw.iter().filter(|digest| !elf.contains(digest)).count();
    assert!(
        missing * 20 <= raw.len(),
        "{missing} of {} pages",
        raw.len()
    );
}
