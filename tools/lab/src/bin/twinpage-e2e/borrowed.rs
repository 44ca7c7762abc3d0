// SPDX-License-Identifier: GPL-2.0

//! Copies that get out by a pipe: to who receives them, and into the cache of a file.

use std::fs::{
    self,
    File,
    OpenOptions, //
};
use std::io::{
    self,
    Read,
    Write, //
};
use std::net::{
    TcpListener,
    TcpStream, //
};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::ptr::null_mut;

use nix::mount::{
    mount,
    umount2,
    MntFlags,
    MsFlags, //
};
use tinyvm::WORDS;
use twinpage_guest::pattern::Stream;
use twinpage_lab::module::{
    self,
    Merged, //
};
use twinpage_lab::pagemap::{
    Entry,
    Frame,
    Frames,
    Pagemap, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::{
    ensure,
    wait, //
};

use crate::host::{
    fill,
    key,
    pipe,
    saved_pages,
    Guest,
    Host,
    CONVERGE, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "a_copy_that_tcp_maps_for_a_receiver_stays_as_it_was",
        seconds: 240,
        run: a_copy_that_tcp_maps_for_a_receiver_stays_as_it_was,
    },
    Test {
        name: "fuse_takes_a_copy_once_nobody_else_has_it",
        seconds: 240,
        run: fuse_takes_a_copy_once_nobody_else_has_it,
    },
];

const PAGES: usize = 64;

/// The bytes of a page of twins.
fn bytes_of(page: usize) -> Vec<u8> {
    let mut stream = Stream::new(key(page));
    let words = (0..WORDS).map(|_| stream.next());
    words.flat_map(u64::to_le_bytes).collect()
}

/// Pages of a file that are mapped to be read.
struct Window {
    base: *mut u8,
    pages: usize,
}

impl Window {
    fn over(file: &impl AsRawFd, pages: usize) -> io::Result<Window> {
        let (length, access, flags) = (pages * 4096, libc::PROT_READ, libc::MAP_SHARED);
        // SAFETY: the kernel chooses where nothing is, so the mapping takes nobody's place.
        let base = unsafe { libc::mmap(null_mut(), length, access, flags, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = base.cast();
        Ok(Window { base, pages })
    }

    fn address(&self) -> u64 {
        self.base as u64
    }

    fn frames(&self) -> io::Result<Vec<Option<Frame>>> {
        let entries = Pagemap::own()?.read(self.address(), self.pages)?;
        Ok(entries.into_iter().map(Entry::frame).collect())
    }

    /// Fails unless its pages are those of twins, from this one on.
    fn check(&self, first: usize) -> Outcome {
        for at in 0..self.pages {
            let page = self.base.wrapping_add(at * 4096).cast::<u64>();
            let word = |word: usize| {
                // SAFETY: `at` and `word` are of the mapping, which is aligned and lives as long as
                // `self`. The kernel may show another page there at any time: the read is volatile.
                unsafe { page.wrapping_add(word).read_volatile() }
            };
            let seen: Vec<u8> = (0..WORDS).map(word).flat_map(u64::to_le_bytes).collect();
            ensure!(seen == bytes_of(first + at), "page {at} has other bytes");
        }
        Ok(())
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody uses it after `drop`.
        unsafe { libc::munmap(self.base.cast(), self.pages * 4096) };
    }
}

/// A pipe that has merged pages of a guest, and gets nothing else.
fn pipe_with(
    guest: &Guest,
    page: usize,
    pages: usize,
    flags: libc::c_uint,
) -> Result<File, Failure> {
    let (reader, writer) = pipe()?;
    let vector = libc::iovec {
        iov_base: guest.memory().page(page).cast(),
        iov_len: pages * 4096,
    };
    // SAFETY: the vector points into the VM's memory, which outlives the call. Nobody ever writes
    // to what is given away: the pages are merged, so a write goes elsewhere.
    let spliced = unsafe { libc::vmsplice(writer.as_raw_fd(), &vector, 1, flags) };
    ensure!(
        spliced == (pages * 4096) as isize,
        "vmsplice returned {spliced}"
    );
    Ok(reader)
}

/// Moves what a pipe has into a socket, a device or another pipe.
fn splice(from: &File, to: &impl AsRawFd, bytes: usize) -> io::Result<()> {
    let (from, to, none) = (from.as_raw_fd(), to.as_raw_fd(), null_mut());
    // SAFETY: both files are open until the call returns, and no offsets are given.
    let moved = unsafe { libc::splice(from, none, to, none, bytes, libc::SPLICE_F_MOVE) };
    match usize::try_from(moved) {
        Ok(moved) if moved == bytes => Ok(()),
        Ok(moved) => Err(io::Error::other(format!("only {moved} bytes were moved"))),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Both ends of a connection: who receives, who sends.
fn connection() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let sender = TcpStream::connect(listener.local_addr()?)?;
    let (receiver, _) = listener.accept()?;
    receiver.set_read_timeout(Some(CONVERGE))?;
    Ok((receiver, sender))
}

/// `struct tcp_zerocopy_receive` of `include/uapi/linux/tcp.h`, as far as it is needed.
#[repr(C)]
struct Receive {
    address: u64,
    length: u32,
    recv_skip_hint: u32,
}

/// Has what came mapped; how many bytes are, and how many have to be read.
fn receive(socket: &TcpStream, window: &Window) -> io::Result<(usize, usize)> {
    let mut told = Receive {
        address: window.address(),
        length: (window.pages * 4096) as u32,
        recv_skip_hint: 0,
    };
    let mut size = size_of::<Receive>() as libc::socklen_t;
    // SAFETY: `told` has `size` bytes, and both outlive the call. The kernel maps pages in the
    // window alone, which lives as long, and to which nobody holds a reference.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_ZEROCOPY_RECEIVE,
            (&raw mut told).cast(),
            &raw mut size,
        )
    };
    match result {
        0 => Ok((told.length as usize, told.recv_skip_hint as usize)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A copy is mapped like a page of a network driver, but where it has a mapping, as those of files
/// have (net/ipv4/tcp.c:can_map_frag).
fn a_copy_that_tcp_maps_for_a_receiver_stays_as_it_was() -> Outcome {
    // Few enough to come in one packet.
    const SENT: usize = 4;
    const BYTES: usize = SENT * 4096;
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    module::set("run", 0)?;
    let copies = a.frames()?;
    let frame = copies[0].ok_or_else(|| Failure::Failed("not mapped".into()))?;
    let (mut receiver, sender) = connection()?;
    splice(&pipe_with(&a, 0, SENT, 0)?, &sender, BYTES)?;
    let mut received = vec![0; BYTES];
    wait::until("receiving", CONVERGE, || {
        Ok::<_, Failure>(receiver.peek(&mut received)? == BYTES)
    })?;
    let window = Window::over(&receiver, SENT)?;
    let (mapped, left) = receive(&receiver, &window)?;
    println!("{mapped} bytes are mapped, {left} have to be read");
    ensure!(
        a.frames()? == copies && b.frames()? == copies,
        "sending gave pages other frames"
    );
    if Frames::open()?.flags(frame)?.anonymous() {
        ensure!((mapped, left) == (0, BYTES), "copies are not refused");
        receiver.read_exact(&mut received)?;
        let sent: Vec<u8> = (0..SENT).flat_map(bytes_of).collect();
        ensure!(received == sent, "other bytes came than were sent");
        return Ok(());
    }
    ensure!((mapped, left) == (BYTES, 0), "copies are refused");
    let stays = |when: &str| -> Outcome {
        ensure!(
            window.frames()? == copies[..SENT],
            "the receiver does not map the copies {when}"
        );
        window.check(0)
    };
    stays("at first")?;
    let mappings = Frames::open()?.mappings(frame)?;
    ensure!(mappings == 3, "a copy is mapped {mappings} times");
    a.fill_with(|page| key(page) + 5000);
    stays("after a guest wrote")?;
    b.check_with(key)?;
    module::set("run", 2)?;
    let saved = saved_pages(&[&a, &b])?;
    ensure!(saved == 0, "{saved} pages are still merged");
    stays("after all was unmerged")?;
    a.fill_with(key);
    module::set("run", 1)?;
    host.until_saved(&[&a, &b], PAGES)?;
    a.detach(&host, Merged::Unmerge)?;
    drop(host);
    module::unload()?;
    stays("without the module")?;
    a.check_with(key)?;
    b.check_with(key)?;
    drop((a, b));
    stays("without guests")
}

/// What FUSE asks for (`include/uapi/linux/fuse.h`).
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const READ: u32 = 15;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// `struct fuse_out_header`, for an answer with so many bytes.
fn header(unique: u64, error: i32, bytes: usize) -> Vec<u8> {
    let length = (16 + bytes) as u32;
    let mut header = length.to_le_bytes().to_vec();
    header.extend(error.to_le_bytes());
    header.extend(unique.to_le_bytes());
    header
}

/// `struct fuse_init_out`, the beginning: version 7.31, pages are read ahead, and 4096 bytes are
/// written at once.
fn version() -> Vec<u8> {
    let words = [7_u32, 31, 1 << 17, 0, 0, 4096];
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// `struct fuse_attr_out`: one page, in a regular file with one name, for the next hour.
fn attributes() -> Vec<u8> {
    let mode = u64::from(libc::S_IFREG | 0o600) | (1 << 32);
    let mut bytes = vec![0; 104];
    for (at, word) in [(0, 3600), (16, 1), (24, 4096), (32, 8), (76, mode)] {
        bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(word));
    }
    bytes
}

/// Answers what FUSE asks about a file until it is gone. Its page is what comes from the pipe; the
/// kernel does by itself what it hears nobody else can, such as to open it.
fn serve(mut device: File, page: &File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = match device.read(&mut buffer) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            length => length?,
        };
        let request = &buffer[..length];
        let operation = u32::from_le_bytes(request[4..8].try_into().unwrap_or_default());
        let unique = u64::from_le_bytes(request[8..16].try_into().unwrap_or_default());
        let (error, bytes) = match operation {
            FORGET | BATCH_FORGET | INTERRUPT => continue,
            READ => {
                let (reader, mut writer) = pipe()?;
                writer.write_all(&header(unique, 0, 4096))?;
                splice(page, &writer, 4096)?;
                splice(&reader, &device, 16 + 4096)?;
                continue;
            }
            INIT => (0, version()),
            GETATTR => (0, attributes()),
            _ => (-libc::ENOSYS, Vec::new()),
        };
        let mut answer = header(unique, error, bytes.len());
        answer.extend(bytes);
        device.write_all(&answer)?;
    }
}

/// A file system of one file, of one page.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts it; the page is what comes from the pipe.
    fn new(name: &str, page: File) -> Result<Mounted, Failure> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let device = device.map_err(|error| Failure::Skipped(format!("no FUSE: {error}")))?;
        let path = std::env::temp_dir().join(name);
        File::create(&path)?;
        let options = format!(
            "fd={},rootmode={:o},user_id=0,group_id=0",
            device.as_raw_fd(),
            libc::S_IFREG
        );
        let (source, kind) = (Some("twinpage-e2e"), Some("fuse"));
        mount(
            source,
            &path,
            kind,
            MsFlags::empty(),
            Some(options.as_str()),
        )?;
        // It ends with the mount, or with the process.
        std::thread::spawn(move || {
            if let Err(error) = serve(device, &page) {
                println!("answering FUSE: {error}");
            }
        });
        Ok(Mounted(path))
    }

    /// Reads the file and compares it with a page of twins; shows what the kernel has of it then.
    fn read(&self, page: usize) -> Result<Window, Failure> {
        let mut file = File::open(&self.0)?;
        let mut bytes = vec![0; 4096];
        file.read_exact(&mut bytes)?;
        ensure!(bytes == bytes_of(page), "the file has other bytes");
        let window = Window::over(&file, 1)?;
        window.check(page)?;
        Ok(window)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What went wrong before is what is told.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.0);
    }
}

/// fs/fuse/dev.c:fuse_try_move_folio. Whose frame it is then would take a token for a pointer
/// (fs/iomap/buffered-io.c:iomap_finish_folio_read).
fn fuse_takes_a_copy_once_nobody_else_has_it() -> Outcome {
    const MAPPED: usize = 40;
    const LEFT: usize = 41;
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    let copies = a.frames()?;
    let frame = copies[LEFT].ok_or_else(|| Failure::Failed("not mapped".into()))?;
    let page = pipe_with(&a, MAPPED, 1, libc::SPLICE_F_GIFT)?;
    let mounted = Mounted::new("twinpage-mapped", page)?;
    let copied = mounted.read(MAPPED)?;
    ensure!(
        copied.frames()?[0] != copies[MAPPED],
        "a frame that guests map was taken"
    );
    let page = pipe_with(&a, LEFT, 1, libc::SPLICE_F_GIFT)?;
    ensure!(
        a.frames()? == copies && b.frames()? == copies,
        "giving pages away gave them other frames"
    );
    fill(a.memory(), LEFT, 5001);
    fill(b.memory(), LEFT, 5002);
    // The module lets go of the copy.
    host.looks(2)?;
    // One that has a mapping is copied.
    let dressed = Frames::open()?.flags(frame)?.anonymous();
    let mounted = Mounted::new("twinpage-left", page)?;
    let taken = mounted.read(LEFT)?;
    ensure!(
        (taken.frames()?[0] == Some(frame)) != dressed,
        "the file has {:?}, the copy was {frame:?}",
        taken.frames()?
    );
    fill(a.memory(), LEFT, key(LEFT));
    fill(b.memory(), LEFT, key(LEFT));
    host.until_saved(&[&a, &b], PAGES)?;
    ensure!(
        a.frames()?[LEFT] != taken.frames()?[0],
        "guests map a page of a file"
    );
    drop(host);
    module::unload()?;
    copied.check(MAPPED)?;
    taken.check(LEFT)?;
    a.check_with(key)?;
    b.check_with(key)
}
