// SPDX-License-Identifier: GPL-2.0

//! Who may ask for something, and for whose VM.

use std::os::fd::AsRawFd;

use nix::sched::{
    unshare,
    CloneFlags, //
};
use nix::unistd::{
    setuid,
    Uid, //
};
use tinyvm::Backing;
use twinpage_lab::ensure;
use twinpage_lab::module::{
    uapi,
    Device,
    Merged, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::wait;

use crate::host::{
    fails_with,
    in_child,
    key,
    Guest,
    Host,
    CONVERGE,
    DOMAIN, //
};
use crate::owner::Owner;

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
