// SPDX-License-Identifier: GPL-2.0

//! The device refuses what it must.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Barrier;

use tinyvm::{
    Backing,
    Memory,
    Slot,
    Vm, //
};
use twinpage_lab::module::{
    self,
    uapi,
    Detached,
    Merged,
    Stats, //
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
    fails_with,
    Guest,
    Host,
    CONVERGE,
    DOMAIN,
    PRIVATE, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "the_version_names_features_of_this_kernel",
        seconds: 60,
        run: the_version_names_features_of_this_kernel,
    },
    Test {
        name: "attaching_refuses_what_is_no_vm",
        seconds: 60,
        run: attaching_refuses_what_is_no_vm,
    },
    Test {
        name: "fields_that_must_be_zero_must_be_zero",
        seconds: 60,
        run: fields_that_must_be_zero_must_be_zero,
    },
    Test {
        name: "a_detach_beside_another_says_what_is_still_merged",
        seconds: 600,
        run: a_detach_beside_another_says_what_is_still_merged,
    },
    Test {
        name: "memory_of_an_attached_vm_is_refused",
        seconds: 300,
        run: memory_of_an_attached_vm_is_refused,
    },
    Test {
        name: "a_vm_is_attached_once_and_ids_are_never_reused",
        seconds: 60,
        run: a_vm_is_attached_once_and_ids_are_never_reused,
    },
];

fn the_version_names_features_of_this_kernel() -> Outcome {
    let host = Host::new()?;
    let version = host.device().version()?;
    ensure!(version.uapi == uapi::TWINPAGE_UAPI_VERSION, "{version:?}");
    let features = twinpage_lab::module::knob("features")?;
    for line in features.lines() {
        let state = line.split(' ').nth(1);
        let known = matches!(state, Some("available" | "missing"));
        ensure!(known, "features has the line '{line}'");
    }
    let available = features.lines().filter(|line| line.ends_with(" available"));
    println!("{} features available", available.count());
    Ok(())
}

fn attaching_refuses_what_is_no_vm() -> Outcome {
    let host = Host::new()?;
    let device = host.device();
    fails_with("no file", device.attach(-1, PRIVATE), libc::EBADF)?;
    fails_with("a closed file", device.attach(999, PRIVATE), libc::EBADF)?;
    let others = [
        "/dev/null",
        "/dev/kvm",
        "/proc/self/mem",
        "/dev/twinpage",
        "/tmp",
    ];
    for path in others {
        let file = File::open(path)?;
        let result = device.attach(file.as_raw_fd(), PRIVATE);
        fails_with(path, result, libc::EINVAL)?;
    }
    // A memfd and a pipe have no path and other file operations again.
    let memory = tinyvm::Memory::new(1, Backing::Shared)?;
    let memfd = memory.file().unwrap_or(-1);
    fails_with("a memfd", device.attach(memfd, PRIVATE), libc::EINVAL)?;
    let (reader, _writer) = crate::host::pipe()?;
    fails_with(
        "a pipe",
        device.attach(reader.as_raw_fd(), PRIVATE),
        libc::EINVAL,
    )?;
    let mut unknown = uapi::twinpage_version::default();
    let number = uapi::IOC_VERSION & !0xff | 0x7f;
    fails_with(
        "an unknown ioctl",
        device.ioctl(number, &mut unknown),
        libc::ENOTTY,
    )
}

fn fields_that_must_be_zero_must_be_zero() -> Outcome {
    let host = Host::new()?;
    let mut guest = Guest::detached(16, Backing::Small)?;
    let vm_fd = guest.vm()?.as_raw_fd();
    let fresh = || uapi::twinpage_attach {
        vm_fd,
        domain: PRIVATE,
        ..Default::default()
    };
    let mut wrong = [fresh(), fresh(), fresh(), fresh()];
    wrong[0].flags = 1;
    wrong[1].pad = 1;
    wrong[2].reserved[0] = 1;
    wrong[3].reserved[3] = 1 << 63;
    for argument in &mut wrong {
        let result = host.device().ioctl(uapi::IOC_ATTACH, argument);
        fails_with(&format!("{argument:?}"), result, libc::EINVAL)?;
    }
    guest.attach(&host, DOMAIN)?;
    let fresh = || uapi::twinpage_detach {
        id: guest.id(),
        ..Default::default()
    };
    let mut wrong = [fresh(), fresh(), fresh()];
    wrong[0].flags = 2;
    wrong[1].flags = 1 << 31;
    wrong[2].reserved[2] = 1;
    for argument in &mut wrong {
        let result = host.device().ioctl(uapi::IOC_DETACH, argument);
        fails_with(&format!("{argument:?}"), result, libc::EINVAL)?;
    }
    let mut page = [0_u8; 4096];
    let mut read = uapi::twinpage_read {
        domain: DOMAIN,
        buffer: page.as_mut_ptr() as u64,
        ..Default::default()
    };
    read.reserved[1] = 1;
    let result = host.device().ioctl(uapi::IOC_READ, &mut read);
    fails_with("a read with a reserved field", result, libc::EINVAL)?;
    ensure!(guest.stats()?.get("domain")? == DOMAIN, "{}", guest.told());
    Ok(())
}

/// How a detach ended.
type Ended = Result<Detached, (std::io::Error, Detached)>;

/// Two detaches of a VM that begin at once.
fn detach_twice(host: &Host, id: u32) -> Result<[Ended; 2], Failure> {
    let both = Barrier::new(2);
    let detach = || {
        both.wait();
        host.device().detach(id, Merged::Unmerge)
    };
    let results = std::thread::scope(|scope| {
        let other = scope.spawn(detach);
        let own = detach();
        other.join().map(|other| [own, other])
    });
    results.map_err(|_| Failure::Failed("a thread has panicked".into()))
}

/// Giving many pages back takes long enough for a second detach to come in between, unless its
/// thread is held up: then it is tried again.
fn a_detach_beside_another_says_what_is_still_merged() -> Outcome {
    const PAGES: usize = 16_384;
    const TRIES: usize = 5;
    let host = Host::new()?;
    let mut guest = Guest::detached(PAGES, Backing::Small)?;
    guest.fill_with(|page| page as u64 % 16 + 1);
    for _ in 0..TRIES {
        guest.attach(&host, PRIVATE)?;
        module::set("run", 1)?;
        // A copy serves 256 pages at most.
        host.until_saved(&[&guest], PAGES * 99 / 100)?;
        module::set("run", 0)?;
        let results = detach_twice(&host, guest.id())?;
        println!("{results:?}");
        let (done, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        let ([Ok(done)], [Err((error, refused))]) = (&done[..], &refused[..]) else {
            return Err(Failure::Failed("not one of them was refused".into()));
        };
        ensure!(done.remaining == 0, "{done:?}");
        ensure!(refused.unmerged == 0, "it has unmerged: {refused:?}");
        let errno = error.raw_os_error();
        let late = matches!(errno, Some(libc::EBUSY | libc::ENOENT)) && refused.remaining == 0;
        if late {
            continue;
        }
        ensure!(errno == Some(libc::EBUSY), "{error}");
        ensure!(
            refused.remaining <= PAGES as u64,
            "{refused:?} of {PAGES} pages"
        );
        ensure!(
            done.unmerged >= refused.remaining,
            "{done:?} after {refused:?}"
        );
        return Ok(());
    }
    Err(Failure::Failed("each second detach was late".into()))
}

/// A page that two VMs show would be its own twin, or be in two domains.
fn memory_of_an_attached_vm_is_refused() -> Outcome {
    let host = Host::new()?;
    let mut guest = host.guest(1024, Backing::Small, DOMAIN)?;
    let second = Vm::new()?;
    let slot = Slot {
        host: guest.memory().page_address(1023),
        pages: 1,
        ..Slot::default()
    };
    second.set_slot(slot)?;
    for domain in [DOMAIN, PRIVATE] {
        let attached = host.device().attach(second.as_raw_fd(), domain);
        fails_with("memory in two VMs", attached, libc::EBUSY)?;
    }
    // What is not shared yet may become so later: then the old memory is what counts.
    let own = Memory::new(1, Backing::Small)?;
    second.set_slot(Slot { pages: 0, ..slot })?;
    second.set_slot(Slot {
        host: own.address(),
        ..slot
    })?;
    let id = host.device().attach(second.as_raw_fd(), PRIVATE)?;
    second.set_slot(Slot {
        number: 1,
        guest: 1 << 30,
        host: guest.memory().address(),
        pages: 1024,
        ..slot
    })?;
    guest.fill_with(|_| 5);
    host.looks(3)?;
    let pages = Stats::of(id)?.get("pages")?;
    ensure!(pages == 1, "{pages} pages");
    // Once the first VM has gone, the memory is the second one's.
    guest.close_vm();
    wait::until("the rest of its memory", CONVERGE, || {
        Ok::<_, Failure>(Stats::of(id)?.get("pages")? == 1025)
    })?;
    guest.fill_with(|_| 6);
    // A copy serves 256 pages at most.
    host.until_saved(&[&guest], 1024 * 99 / 100)?;
    guest.check_with(|_| 6)
}

fn a_vm_is_attached_once_and_ids_are_never_reused() -> Outcome {
    let host = Host::new()?;
    let mut guest = host.guest(16, Backing::Small, DOMAIN)?;
    let first = guest.id();
    let again = host.device().attach(guest.vm()?.as_raw_fd(), DOMAIN);
    fails_with("a second attach", again, libc::EEXIST)?;
    let other = host.device().attach(guest.vm()?.as_raw_fd(), PRIVATE);
    fails_with("an attach to another domain", other, libc::EEXIST)?;
    guest.detach(&host, Merged::Keep)?;
    let twice = host.device().detach(first, Merged::Keep);
    fails_with(
        "a second detach",
        twice.map_err(|(error, _)| error),
        libc::ENOENT,
    )?;
    let unknown = host.device().detach(first + 1000, Merged::Unmerge);
    fails_with(
        "an unknown id",
        unknown.map_err(|(error, _)| error),
        libc::ENOENT,
    )?;
    guest.attach(&host, DOMAIN)?;
    ensure!(
        guest.id() > first,
        "the id {first} came again: {}",
        guest.id()
    );
    Ok(())
}
