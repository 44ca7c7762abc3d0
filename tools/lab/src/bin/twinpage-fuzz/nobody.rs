// SPDX-License-Identifier: GPL-2.0

//! Users without rights: whatever they try is refused.

use std::fs::{
    self,
    OpenOptions, //
};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

use nix::sched::{
    unshare,
    CloneFlags, //
};
use nix::unistd::{
    setgid,
    setgroups,
    setuid,
    Gid,
    Uid, //
};
use twinpage_lab::child::in_child;
use twinpage_lab::module::{
    self,
    uapi,
    DEBUGFS,
    DEVICE,
    SYSFS, //
};
use twinpage_lab::tap::Outcome;

use crate::call;
use crate::expect::{
    refused,
    well, //
};
use crate::operations::{
    operation,
    Done,
    Operation, //
};
use crate::pointers::{
    self,
    Place, //
};
use crate::worker::Worker;

pub const OPERATIONS: &[Operation] = &[
    operation("nobody.paths", 6, paths),
    operation("nobody.ioctls", 6, ioctls),
];

/// What one process tries.
const TRIES: u64 = 48;

/// CAP_SYS_ADMIN.
const ADMIN: u32 = 21;

/// How a process has no rights.
#[derive(Clone, Copy, Debug)]
enum Who {
    /// Another user.
    User,
    /// Another user that is root in a namespace of its own.
    OwnRoot,
    /// Root, without the one capability.
    LessRoot,
}

/// Gives all rights up.
fn become_who(who: Who) -> io::Result<()> {
    if let Who::LessRoot = who {
        return call::without_capability(ADMIN);
    }
    setgroups(&[])?;
    setgid(Gid::from_raw(65534))?;
    setuid(Uid::from_raw(65534))?;
    if let Who::OwnRoot = who {
        // A kernel without user namespaces has nothing to try here.
        let _ = unshare(CloneFlags::CLONE_NEWUSER);
    }
    Ok(())
}

/// Files that nobody may touch: the device, those of sysfs, those of VMs.
fn secrets() -> io::Result<Vec<String>> {
    let mut secrets = vec![DEVICE.to_owned()];
    let directories = [SYSFS.to_owned(), DEBUGFS.to_owned()];
    let vms = fs::read_dir(DEBUGFS)?.flatten();
    let vms = vms.map(|vm| vm.path().display().to_string());
    for directory in directories.into_iter().chain(vms) {
        // A VM may go meanwhile.
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        secrets.extend(
            entries
                .flatten()
                .map(|entry| entry.path().display().to_string()),
        );
    }
    Ok(secrets)
}

/// One attempt at a path.
fn attempt(random: &mut twinpage_lab::random::Random, path: &str) -> Outcome {
    let what = random.below(9);
    let mut options = OpenOptions::new();
    let result: io::Result<()> = match what {
        0 => options.read(true).open(path).map(|_| ()),
        1 => options.write(true).open(path).map(|_| ()),
        2 => options.read(true).write(true).open(path).map(|_| ()),
        3 => options.append(true).open(path).map(|_| ()),
        4 => fs::read(path).map(|_| ()),
        5 => fs::write(path, random.bytes(8)),
        6 => fs::set_permissions(path, fs::Permissions::from_mode(0o777)),
        7 => module::unload(),
        _ => module::load(),
    };
    let errors = [libc::EACCES, libc::EPERM];
    // Its directory may be one that cannot be searched, whatever was there.
    refused(&format!("attempt {what} at {path}"), result, &errors)
}

/// Runs attempts as somebody without rights.
fn as_somebody(who: Who, work: impl FnOnce() -> Outcome) -> Done {
    let child = in_child(|| {
        call::die_with_parent();
        well("giving rights up", become_who(who))
            .and_then(|()| work())
            .inspect_err(|failure| println!("as {who:?}: {failure}"))
            .is_ok()
    })?;
    child.join()?;
    Ok(TRIES)
}

fn paths(worker: &mut Worker) -> Done {
    let secrets = secrets()?;
    let who = worker.random.pick(&[Who::User, Who::OwnRoot]);
    let random = &mut worker.random;
    as_somebody(who, || {
        call::close_all_but(3, None);
        (0..TRIES).try_for_each(|_| {
            let path = &secrets[random.below(secrets.len())];
            attempt(random, path)
        })
    })
}

fn ioctls(worker: &mut Worker) -> Done {
    let who = worker
        .random
        .pick(&[Who::User, Who::OwnRoot, Who::LessRoot]);
    let guest = worker.choose(|guest| guest.id.is_some());
    let (vm_fd, id) = guest.map_or((-1, 1), |at| {
        let guest = &worker.guests[at];
        (guest.file(), guest.id.unwrap_or(1))
    });
    let digest = worker.digest(crate::guest::Content::Key(1));
    let device = worker.device.as_raw_fd();
    let (random, scratch) = (&mut worker.random, &worker.scratch);
    as_somebody(who, || {
        (0..TRIES).try_for_each(|_| {
            let buffer = scratch.memory().page_address(0);
            let (number, argument) = match random.below(5) {
                0 => (uapi::IOC_VERSION, vec![0; 32]),
                1 => {
                    let attach = uapi::twinpage_attach {
                        vm_fd,
                        domain: random.number(),
                        ..Default::default()
                    };
                    (uapi::IOC_ATTACH, pointers::bytes(&attach))
                }
                2 => {
                    let detach = uapi::twinpage_detach {
                        id,
                        ..Default::default()
                    };
                    (uapi::IOC_DETACH, pointers::bytes(&detach))
                }
                3 => {
                    let read = uapi::twinpage_read {
                        domain: 1,
                        digest,
                        buffer,
                        ..Default::default()
                    };
                    (uapi::IOC_READ, pointers::bytes(&read))
                }
                _ => (uapi::IOC_READ & !0xff | 0x77, vec![0; 64]),
            };
            let place = match random.one_in(2) {
                true => Place::Good,
                false => pointers::any(random),
            };
            let at = scratch.place(random, place, &argument)?;
            refused("an ioctl", call::ioctl(device, number, at), &[libc::EPERM])
        })
    })
}
