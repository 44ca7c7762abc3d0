// SPDX-License-Identifier: GPL-2.0

//! VMs of other processes, which die, and of other namespaces.

use std::fs::File;
use std::io::{
    IoSlice,
    IoSliceMut,
    Read,
    Write, //
};
use std::os::fd::{
    AsRawFd,
    FromRawFd,
    OwnedFd,
    RawFd, //
};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::cmsg_space;
use nix::sched::{
    setns,
    unshare,
    CloneFlags, //
};
use nix::sys::socket::{
    recvmsg,
    sendmsg,
    ControlMessage,
    ControlMessageOwned,
    MsgFlags, //
};
use twinpage_lab::child::{
    in_child,
    Child, //
};
use twinpage_lab::files::borrow;
use twinpage_lab::module::{
    Merged,
    Stats, //
};
use twinpage_lab::random::Random;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

use crate::call::die_with_parent;
use crate::expect::{
    either,
    refused, //
};
use crate::guest::Guest;
use crate::operations::{
    operation,
    Done,
    Operation, //
};
use crate::worker::Worker;

pub const OPERATIONS: &[Operation] = &[
    operation("foreign.borrowed", 1, borrowed),
    operation("foreign.passed", 1, passed),
    operation("foreign.dead", 1, dead),
    operation("foreign.attaching", 1, attaching),
];

/// Namespaces that a VM's process may be in.
const NAMESPACES: [CloneFlags; 4] = [
    CloneFlags::empty(),
    CloneFlags::CLONE_NEWUSER,
    CloneFlags::CLONE_NEWPID,
    CloneFlags::CLONE_NEWNS,
];

/// Runs `work` in a child in a namespace of its own, and tells it whether it is: a kernel without
/// these has it in the only one that there is.
fn child_in(namespace: CloneFlags, work: impl FnOnce(bool) -> Outcome) -> Result<Child, Failure> {
    // A process never changes its own PID namespace, only that of the children to come.
    let home = File::open("/proc/self/ns/pid")?;
    let for_children = namespace.contains(CloneFlags::CLONE_NEWPID);
    let apart = for_children && unshare(namespace).is_ok();
    let child = in_child(|| {
        die_with_parent();
        let apart = apart || (!for_children && unshare(namespace).is_ok());
        let first = !(apart && for_children) || std::process::id() == 1;
        let worked = match first {
            true => work(apart),
            false => Err(Failure::Failed("not the first of its namespace".into())),
        };
        worked
            .inspect_err(|failure| println!("in a namespace: {failure}"))
            .is_ok()
    });
    if apart {
        setns(&home, namespace)?;
    }
    child
}

/// A VM whose process goes on writing until it is told to go, or killed.
struct Owner {
    child: Child,
    socket: UnixStream,
    vm: RawFd,
    /// The only domain that its contents may be in.
    domain: u64,
}

impl Owner {
    fn start(random: &mut Random) -> Result<Owner, Failure> {
        let (mut socket, mut other) = UnixStream::pair()?;
        let namespace = random.pick(&NAMESPACES);
        let child = child_in(namespace, |_| own(random, &mut other))?;
        let (mut vm, mut domain) = ([0; 4], [0; 8]);
        socket.read_exact(&mut vm)?;
        socket.read_exact(&mut domain)?;
        Ok(Owner {
            child,
            socket,
            vm: RawFd::from_ne_bytes(vm),
            domain: u64::from_ne_bytes(domain),
        })
    }

    /// Its VM, as a file that it sent.
    fn received(&self) -> Result<OwnedFd, Failure> {
        let mut byte = [0];
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let mut room = cmsg_space!([RawFd; 1]);
        let file = self.socket.as_raw_fd();
        let message = recvmsg::<()>(file, &mut bytes, Some(&mut room), MsgFlags::empty())?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(files) = control {
                // SAFETY: the message just brought this file, and nobody else knows it.
                return Ok(unsafe { OwnedFd::from_raw_fd(files[0]) });
            }
        }
        Err(Failure::Failed("the message brought no file".into()))
    }
}

/// What the process of a VM does.
fn own(random: &mut Random, socket: &mut UnixStream) -> Outcome {
    let mut guest = Guest::new(random)?;
    let file = guest.file();
    socket.write_all(&file.to_ne_bytes())?;
    socket.write_all(&guest.domain().to_ne_bytes())?;
    let (files, byte) = ([file], [IoSlice::new(b"!")]);
    let control = [ControlMessage::ScmRights(&files)];
    sendmsg::<()>(socket.as_raw_fd(), &byte, &control, MsgFlags::empty(), None)?;
    socket.set_nonblocking(true)?;
    while socket.read(&mut [0]).is_err() {
        let page = random.below(guest.pages());
        guest.check_page(page)?;
        guest.rewrite(random, page);
    }
    Ok(())
}

/// What one may do with a VM while its process goes.
fn use_it(worker: &mut Worker, vm: &OwnedFd, domain: u64) -> Outcome {
    let attached = worker.device.attach(vm.as_raw_fd(), domain);
    let Some(id) = either("attach", attached, &[libc::ESRCH])? else {
        return Ok(());
    };
    std::thread::sleep(Duration::from_millis(worker.random.below(30) as u64));
    // It may be gone by now.
    let _ = Stats::of(id);
    let _ = std::fs::read(format!("{}/{id}/digests", twinpage_lab::module::DEBUGFS));
    let _ = std::fs::read(format!("{}/{id}/slots", twinpage_lab::module::DEBUGFS));
    if worker.random.one_in(2) {
        let merged = worker.random.pick(&[Merged::Keep, Merged::Unmerge]);
        let detached = worker.device.detach(id, merged).map_err(|(error, _)| error);
        either("detach", detached, &[libc::ENOENT, libc::EBUSY])?;
    }
    Ok(())
}

/// Ends the owner at once or soon, and uses the VM meanwhile.
fn while_it_goes(worker: &mut Worker, owner: Owner, vm: OwnedFd) -> Done {
    let Owner {
        child,
        mut socket,
        domain,
        ..
    } = owner;
    match worker.random.below(3) {
        0 => {
            // It leaves by itself, at the same time.
            socket.write_all(b"!")?;
            use_it(worker, &vm, domain)?;
            child.join()?;
        }
        1 => {
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(child.pid() as i32),
                nix::sys::signal::SIGKILL,
            )?;
            use_it(worker, &vm, domain)?;
            child.kill()?;
        }
        _ => {
            use_it(worker, &vm, domain)?;
            child.kill()?;
        }
    }
    Ok(1)
}

fn borrowed(worker: &mut Worker) -> Done {
    let owner = Owner::start(&mut worker.random)?;
    let vm = borrow(owner.child.pid(), owner.vm)?;
    while_it_goes(worker, owner, vm)
}

fn passed(worker: &mut Worker) -> Done {
    let owner = Owner::start(&mut worker.random)?;
    let vm = owner.received()?;
    while_it_goes(worker, owner, vm)
}

/// The VM of a process that is certainly gone.
fn dead(worker: &mut Worker) -> Done {
    let owner = Owner::start(&mut worker.random)?;
    let vm = owner.received()?;
    owner.child.kill()?;
    let attached = worker.device.attach(vm.as_raw_fd(), 1);
    refused("attaching a dead VM", attached, &[libc::ESRCH])?;
    Ok(1)
}

/// A process in other namespaces attaches its own VM: only its user namespace matters.
fn attaching(worker: &mut Worker) -> Done {
    let flags = worker.random.pick(&NAMESPACES);
    let device = &worker.device;
    let random = &mut worker.random;
    let child = child_in(flags, |unshared| {
        let guest = Guest::new(random)?;
        let attached = device.attach(guest.file(), guest.domain());
        if unshared && flags == CloneFlags::CLONE_NEWUSER {
            return refused("attach", attached, &[libc::EPERM]);
        }
        if let Some(id) = either("attach", attached, &[])? {
            let detached = device.detach(id, Merged::Unmerge);
            either(
                "detach",
                detached.map_err(|(error, _)| error),
                &[libc::EBUSY],
            )?;
        }
        guest.check()
    })?;
    child.join()?;
    Ok(1)
}
