// SPDX-License-Identifier: GPL-2.0

//! `/dev/twinpage`: the ioctls of `rust/uapi/twinpage.h`.

use super::{
    shared::Shared,
    state::Bytes, //
};
use crate::{
    engine::{
        digests::Search,
        world::GuestId, //
    },
    sys::{
        misc::Ioctl,
        thread,
        uapi,
        vm::Vm, //
    },
};
use kernel::{
    alloc::KBox,
    current,
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc, //
};

/// Serves the ioctls of an open `/dev/twinpage`.
pub(crate) struct Control(pub(crate) Arc<Shared>);

impl Ioctl for Control {
    fn ioctl(&self, cmd: u32, arg: usize) -> Result<isize> {
        if !thread::is_admin() {
            return Err(EPERM);
        }
        match cmd {
            uapi::TWINPAGE_VERSION => self.version(arg),
            uapi::TWINPAGE_ATTACH => self.attach(arg),
            uapi::TWINPAGE_DETACH => self.detach(arg),
            uapi::TWINPAGE_READ => self.read(arg),
            _ => Err(ENOTTY),
        }?;
        Ok(0)
    }
}

impl Control {
    fn version(&self, arg: usize) -> Result {
        let symbols = self.0.symbols;
        let feature = |has, bit| if has { bit } else { 0 };
        uapi::write(
            arg,
            uapi::twinpage_version {
                uapi: uapi::TWINPAGE_UAPI_VERSION,
                features: feature(symbols.has_split(), uapi::TWINPAGE_FEATURE_THP_SPLIT)
                    | feature(symbols.has_free_swap(), uapi::TWINPAGE_FEATURE_FREE_SWAP)
                    | feature(symbols.has_lru_drain(), uapi::TWINPAGE_FEATURE_LRU_DRAIN),
                ..Default::default()
            },
        )
    }

    fn attach(&self, arg: usize) -> Result {
        let mut attach: uapi::twinpage_attach = uapi::read(arg)?;
        must_be_zero(attach.flags == 0 && attach.pad == 0 && attach.reserved == [0; 4])?;
        let vm = Vm::from_fd(attach.vm_fd)?;
        let id = self.0.attach(vm, attach.domain)?;
        attach.id = id.0;
        uapi::write(arg, attach).inspect_err(|_| {
            // Nobody would know the number. It may have ended by itself meanwhile.
            let _ = self.0.detach(id);
        })
    }

    fn detach(&self, arg: usize) -> Result {
        let mut detach: uapi::twinpage_detach = uapi::read(arg)?;
        let unmerge = detach.flags & uapi::TWINPAGE_DETACH_UNMERGE != 0;
        must_be_zero(
            detach.flags & !uapi::TWINPAGE_DETACH_UNMERGE == 0 && detach.reserved == [0; 3],
        )?;
        let id = GuestId(detach.id);
        let (returned, result) = if unmerge {
            self.0.unmerge_to_leave(id)?
        } else {
            (self.0.merged(id)?, Ok(()))
        };
        detach.unmerged = returned.unmerged;
        detach.remaining = returned.remaining;
        if result.is_ok() {
            self.0.detach(id)?;
        }
        uapi::write(arg, detach)?;
        result
    }

    fn read(&self, arg: usize) -> Result {
        let read: uapi::twinpage_read = uapi::read(arg)?;
        must_be_zero(read.domain != 0 && read.reserved == [0; 2])?;
        let mut bytes = KBox::new([0_u8; PAGE_SIZE], GFP_KERNEL)?;
        let mut search = Search::new(read.digest);
        loop {
            let found = self
                .0
                .state
                .lock()
                .read_digest(read.domain, &mut search, &mut bytes)?;
            match found {
                Bytes::Read => return uapi::write_bytes(read.buffer as usize, &bytes[..]),
                Bytes::None => return Err(ENOENT),
                Bytes::More if current!().signal_pending() => return Err(EINTR),
                Bytes::More => {}
            }
        }
    }
}

/// What an older or newer program may not have set, it has not set.
fn must_be_zero(is_so: bool) -> Result {
    is_so.then_some(()).ok_or(EINVAL)
}
