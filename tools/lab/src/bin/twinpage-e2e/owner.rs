// SPDX-License-Identifier: GPL-2.0

//! A VM whose monitor is another process.

use std::io::{
    Read,
    Write, //
};
use std::ops::Range;
use std::os::fd::{
    AsRawFd,
    OwnedFd, //
};

use nix::sched::{
    unshare,
    CloneFlags, //
};
use tinyvm::Backing;
use twinpage_guest::pattern::Stream;
use twinpage_lab::files::{
    borrow,
    handle, //
};
use twinpage_lab::pagemap::{
    Entry,
    Frame,
    Pagemap, //
};
use twinpage_lab::process::Bytes;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};
use twinpage_lab::{
    ensure,
    module,
    wait, //
};

use crate::host::{
    in_child,
    key,
    pipe,
    Child,
    Guest,
    Host,
    CONVERGE,
    DOMAIN, //
};

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

    /// Where its memory is in its process.
    pub fn range(&self) -> Range<u64> {
        self.address..self.address + self.pages as u64 * 4096
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

/// Such a VM and one of this process: the first half of their pages is merged, the second is each
/// VM's own, and nothing merges any more.
pub struct Pair {
    /// The one of another process.
    pub owner: Owner,
    twin: Guest,
    copies: Vec<Option<Frame>>,
}

impl Pair {
    /// Starts both and waits until they are merged.
    pub fn start(host: &Host, pages: usize) -> Result<Pair, Failure> {
        let half = pages / 2;
        let owner = Owner::start(CloneFlags::empty(), pages)?;
        host.device().attach(owner.vm.as_raw_fd(), DOMAIN)?;
        let twin = host.guest(pages, Backing::Small, DOMAIN)?;
        twin.fill_with(|page| twins_key(page, pages));
        wait::until("merging", CONVERGE, || {
            Ok::<_, Failure>(owner.frames()?[..half] == twin.frames()?[..half])
        })?;
        module::set("run", 0)?;
        let copies = twin.frames()?[..half].to_vec();
        Ok(Pair {
            owner,
            twin,
            copies,
        })
    }

    /// Fails unless both map the same copies as at first.
    pub fn still_merged(&self, after: &str) -> Outcome {
        let half = self.copies.len();
        for frames in [self.owner.frames()?, self.twin.frames()?] {
            ensure!(
                frames[..half] == self.copies[..],
                "a copy is gone after {after}"
            );
        }
        Ok(())
    }

    /// Fails unless some of the other process's own pages were paged out.
    pub fn others_were_paged_out(&self) -> Outcome {
        let half = self.copies.len();
        let there = self.owner.frames()?[half..].iter().flatten().count();
        println!("{there} of {half} pages that are no copies are still there");
        ensure!(there < half, "nothing was paged out");
        Ok(())
    }

    /// Compares every page with what was written to it, and ends both.
    pub fn finish(self) -> Outcome {
        let pages = self.twin.memory().pages();
        self.owner.check()?;
        self.twin.check_with(|page| twins_key(page, pages))?;
        self.owner.child.kill()
    }
}

/// The content of each page of the VM beside an [`Owner`].
fn twins_key(page: usize, pages: usize) -> u64 {
    match page < pages / 2 {
        true => key(page),
        false => key(page + pages),
    }
}
