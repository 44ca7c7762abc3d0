// SPDX-License-Identifier: GPL-2.0

//! Who may ask for something, and for whose VM.

use std::io::{
    Read,
    Write, //
};
use std::os::fd::{
    AsRawFd,
    OwnedFd, //
};

use nix::sched::{
    unshare,
    CloneFlags, //
};
use nix::unistd::{
    setuid,
    Uid, //
};
use tinyvm::Backing;
use twinpage_guest::pattern::Stream;
use twinpage_lab::ensure;
use twinpage_lab::files::{
    borrow,
    handle, //
};
use twinpage_lab::module::{
    uapi,
    Device,
    Merged, //
};
use twinpage_lab::pagemap::{
    Entry,
    Frame,
    Pagemap, //
};
use twinpage_lab::process::Bytes;
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::wait;

use crate::host::{
    fails_with,
    in_child,
    pipe,
    Child,
    Guest,
    Host,
    CONVERGE,
    DOMAIN, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "a_vm_whose_process_is_gone_is_refused",
        seconds: 120,
        run: a_vm_whose_process_is_gone_is_refused,
    },
    Test {
        name: "a_vm_of_another_user_namespace_can_be_attached",
        seconds: 120,
        run: a_vm_of_another_user_namespace_can_be_attached,
    },
    Test {
        name: "an_open_device_serves_nobody_without_rights",
        seconds: 120,
        run: an_open_device_serves_nobody_without_rights,
    },
];

const PAGES: usize = 64;

/// The content of each page of an [`Owner`].
pub fn key(page: usize) -> u64 {
    page as u64 + 1
}

/// A VM in a process of its own, which waits.
pub struct Owner {
    /// Its process.
    pub child: Child,
    /// A copy of its file.
    pub vm: OwnedFd,
    /// Where its memory is in its process.
    address: u64,
    pages: usize,
}

impl Owner {
    /// The frame of each page of its memory.
    pub fn frames(&self) -> Result<Vec<Option<Frame>>, Failure> {
        let entries = Pagemap::of(self.child.pid())?.read(self.address, self.pages)?;
        Ok(entries.into_iter().map(Entry::frame).collect())
    }

    /// Compares every page with what was written to it.
    pub fn check(&self) -> Outcome {
        let bytes = Bytes::of(self.child.pid())?;
        let mut seen = [0; 4096];
        for page in 0..self.pages {
            bytes.page(self.address + page as u64 * 4096, &mut seen)?;
            let mut stream = Stream::new(key(page));
            let mut words = seen.chunks_exact(8);
            let wrong = words.position(|word| word != stream.next().to_le_bytes());
            ensure!(wrong.is_none(), "page {page} is wrong from word {wrong:?}");
        }
        Ok(())
    }

    /// Advises the kernel about its memory.
    pub fn advise(&self, advice: libc::c_int) -> Outcome {
        let process = handle(self.child.pid())?;
        let bytes = self.pages * 4096;
        let range = libc::iovec {
            iov_base: self.address as *mut libc::c_void,
            iov_len: bytes,
        };
        // SAFETY: the kernel reads one range, whose addresses are of the other process.
        let advised = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                process.as_raw_fd(),
                &raw const range,
                1_usize,
                advice,
                0,
            )
        };
        let error = std::io::Error::last_os_error();
        ensure!(
            advised == bytes as libc::c_long,
            "advice {advice} was taken for {advised} of {bytes} bytes: {error}"
        );
        Ok(())
    }

    /// Starts it in new namespaces, unless the kernel lacks them.
    pub fn start(namespaces: CloneFlags, pages: usize) -> Result<Owner, Failure> {
        let (mut reader, mut writer) = pipe()?;
        let child = in_child(|| {
            let unshared = unshare(namespaces).is_ok();
            let Ok(guest) = Guest::detached(pages, Backing::Small) else {
                return false;
            };
            guest.fill_with(key);
            let vm = guest.vm().map_or(-1, AsRawFd::as_raw_fd);
            let told = if unshared { vm } else { -1 };
            let address = guest.memory().address();
            let words = [i64::from(told).to_ne_bytes(), address.to_ne_bytes()];
            if writer.write_all(&words.concat()).is_err() {
                return false;
            }
            loop {
                std::thread::park();
            }
        })?;
        let (mut vm, mut address) = ([0; 8], [0; 8]);
        reader.read_exact(&mut vm)?;
        reader.read_exact(&mut address)?;
        match i64::from_ne_bytes(vm) as i32 {
            -1 => {
                child.kill()?;
                Err(Failure::Skipped(format!(
                    "this kernel has no {namespaces:?}"
                )))
            }
            vm => {
                let vm = borrow(child.pid(), vm)?;
                let address = u64::from_ne_bytes(address);
                Ok(Owner {
                    child,
                    vm,
                    address,
                    pages,
                })
            }
        }
    }
}

fn a_vm_whose_process_is_gone_is_refused() -> Outcome {
    let host = Host::new()?;
    let owner = Owner::start(CloneFlags::empty(), PAGES)?;
    owner.child.kill()?;
    let attached = host.device().attach(owner.vm.as_raw_fd(), DOMAIN);
    fails_with("a VM without memory", attached, libc::ESRCH)?;
    let left = std::fs::read_dir(twinpage_lab::module::DEBUGFS)?.count();
    ensure!(left == 0, "{left} VMs are attached");
    Ok(())
}

fn a_vm_of_another_user_namespace_can_be_attached() -> Outcome {
    let host = Host::new()?;
    let owner = Owner::start(CloneFlags::CLONE_NEWUSER, PAGES)?;
    let guest = host.guest(PAGES, Backing::Small, DOMAIN)?;
    guest.fill_with(key);
    let id = host.device().attach(owner.vm.as_raw_fd(), DOMAIN)?;
    let common = || -> Result<usize, Failure> {
        let own = guest.frame_set()?;
        let frames = owner.frames()?.into_iter().flatten();
        Ok(frames.filter(|frame| own.contains(frame)).count())
    };
    wait::until("merging", CONVERGE, || Ok::<_, Failure>(common()? == PAGES))?;
    let detached = host.device().detach(id, Merged::Unmerge);
    let detached = detached.map_err(|(error, _)| error)?;
    ensure!(detached.remaining == 0, "{detached:?}");
    let common = common()?;
    ensure!(common == 0, "{common} frames are still shared");
    owner.child.kill()?;
    guest.check_with(key)
}

/// Each ioctl, as it would go well with rights.
fn every_ioctl_is_refused(device: &Device, guest: &Guest, digest: [u8; 32]) -> Outcome {
    let error = libc::EPERM;
    fails_with("version", device.version(), error)?;
    let vm = guest.vm()?.as_raw_fd();
    fails_with("attach", device.attach(vm, DOMAIN), error)?;
    let detached = device.detach(guest.id(), Merged::Unmerge);
    fails_with("detach", detached.map_err(|(error, _)| error), error)?;
    fails_with("read", device.read(DOMAIN, digest), error)?;
    let mut unknown = uapi::twinpage_version::default();
    let number = uapi::IOC_VERSION & !0xff | 0x7f;
    fails_with(
        "an unknown ioctl",
        device.ioctl(number, &mut unknown),
        error,
    )
}

fn an_open_device_serves_nobody_without_rights() -> Outcome {
    let host = Host::new()?;
    let [a, _b] = host.twins(PAGES)?;
    let digest = a.digest(3);
    host.device().read(DOMAIN, digest)?;
    for namespaces in [CloneFlags::empty(), CloneFlags::CLONE_NEWUSER] {
        in_child(|| {
            let gave_up = setuid(Uid::from_raw(65534)).is_ok();
            // Root of a namespace of its own, where there is such a thing, is nobody here.
            let _ = unshare(namespaces);
            gave_up
                && every_ioctl_is_refused(host.device(), &a, digest)
                    .inspect_err(|failure| println!("{failure}"))
                    .is_ok()
        })?
        .join()?;
    }
    ensure!(a.stats().is_ok(), "VM {} was detached", a.id());
    Ok(())
}
