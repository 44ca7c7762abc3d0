// SPDX-License-Identifier: GPL-2.0

//! A small KVM guest: the stock kernel, with the guest program as its only process.

use std::fs;
use std::path::Path;

use twinpage_guest::config::Config;

use crate::error::Error;
use crate::vmm::Vmm;
use crate::{
    payload,
    place, //
};

/// What kind of guest to start.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its name, which names its files too.
    pub name: String,
    /// Its memory.
    pub memory_mib: usize,
    /// What it holds in it.
    pub content: Config,
    /// Whether it has a balloon.
    pub balloon: bool,
}

impl Guest {
    /// Starts QEMU with files in `parent` and with more arguments; the guest boots meanwhile. A guest
    /// that boots again ends QEMU, since one that crashed does: QMP's `set-action` allows it.
    ///
    /// # Errors
    ///
    /// QEMU does not start.
    pub fn start(&self, parent: &Path, more: &[&str]) -> Result<Vmm, Error> {
        let initramfs = parent.join(format!("{}.initramfs", self.name));
        payload::initramfs(self.balloon)
            .and_then(|archive| fs::write(&initramfs, archive))
            .map_err(Error::of("make the guest's initramfs"))?;
        let mut arguments: Vec<String> = [
            "-enable-kvm",
            "-cpu",
            "qemu64",
            "-M",
            "q35",
            "-no-reboot",
            "-m",
            &self.memory_mib.to_string(),
            "-kernel",
            &place::kernel().display().to_string(),
            "-initrd",
            &initramfs.display().to_string(),
            "-append",
            &payload::command_line(&self.content),
        ]
        .map(str::to_owned)
        .to_vec();
        if self.balloon {
            arguments.extend(["-device", "virtio-balloon-pci"].map(str::to_owned));
        }
        arguments.extend(more.iter().map(|&word| word.to_owned()));
        let vmm = Vmm::start(parent, &self.name, &arguments);
        // The memory of the archive is the host's: QEMU has read it when it answers.
        fs::remove_file(&initramfs).map_err(Error::of("remove the guest's initramfs"))?;
        vmm
    }
}
