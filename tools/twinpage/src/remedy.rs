// SPDX-License-Identifier: GPL-2.0

//! What the user can do about an error.

use std::io;

use twinpage_migrate::proxy;

use crate::error::Error;

impl Error {
    /// What the user can do about it.
    pub fn remedy(&self) -> Option<String> {
        if let Self::Knob(error) = self {
            return Some(error.remedy());
        }
        let text = self.access_remedy().or_else(|| self.choice_remedy());
        text.or_else(|| self.failure_remedy()).map(str::to_owned)
    }

    /// What helps to get at the module.
    fn access_remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotLoaded => "load it: insmod twinpage.ko (or modprobe twinpage)",
            Self::NoDevice => "mount devtmpfs on /dev: mount -t devtmpfs none /dev",
            Self::NotPermitted { .. } => {
                "run as root, outside containers, with CAP_SYS_ADMIN and CAP_SYS_PTRACE"
            }
            Self::File(error) if error.kind() == io::ErrorKind::PermissionDenied => "run as root",
            Self::Interface { .. } => "load the module that was built with this program",
            Self::NoDebugfs => "mount it: mount -t debugfs none /sys/kernel/debug",
            Self::EmptyDebugfs => {
                "start the kernel without debugfs=off or debugfs=no-mount, or load the module again"
            }
            Self::OldKernel => "Linux 5.6 or later is needed (pidfd_getfd)",
            _ => return None,
        })
    }

    /// What to name instead.
    fn choice_remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoVm { .. } => {
                "name the VMM itself (qemu-system-x86_64 with -enable-kvm), not its parent; \
                 `twinpage attach --all` finds every one"
            }
            Self::NoVms => "start a VMM first (qemu-system-x86_64 with -enable-kvm)",
            Self::NotAttached(_) | Self::NoSuchId(_) => "`twinpage status` lists attached VMs",
            Self::SeveralVms { .. } => "choose one with --id",
            Self::OtherDomain { .. } => {
                "to move it to another domain, detach it first: twinpage detach"
            }
            Self::PrivateDomain => "name a domain that VMs were attached with",
            Self::NoSecurity => {
                "make a key with `twinpage migrate keygen`, copy it to the other host, name it \
                 with --key on both"
            }
            Self::Store(twinpage_store::Error::Plaintext) => {
                "write rediss:// for TLS, or allow it with --fleet-insecure"
            }
            Self::Terminal => "redirect it: twinpage read ... > page.bin",
            _ => return None,
        })
    }

    /// What to do when it was tried and failed.
    fn failure_remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::Encrypted(_) => "none: the host cannot compare what it cannot read",
            Self::UnmergeStopped { source, .. } if source.kind() == io::ErrorKind::OutOfMemory => {
                "free memory, then detach again; or detach without --unmerge, which needs none"
            }
            Self::UnmergeStopped { .. } => "detach again; it goes on where it stopped",
            Self::LayoutChanged(_) => "run it again",
            Self::WrongDigests { .. } | Self::TornCopy { .. } | Self::WrongPage { .. } => {
                "this is a bug: stop merging with `twinpage set run=0`, keep the output, report it"
            }
            Self::NothingToWaitFor(_) => "attach a VM, and `twinpage set run=1`",
            Self::NotStable(_) => "wait longer, or scan faster: twinpage set advisor_max_cpu=50",
            Self::Migration(error) => return migration_remedy(error),
            Self::NotMigrated { .. } => "the VM is where it was; try again",
            Self::Stopped(_) => "mend the cause at the destination, then tell its QEMU: cont",
            Self::Doubt { .. } => {
                "ask both QEMUs with query-status; end the one that does not run the VM"
            }
            Self::WrongPages(_) => "remove them: twinpage store verify --repair",
            Self::NoCandidate => "start `twinpage migrate receive` on the candidates",
            Self::Parse(_) => "use the module and the program of the same version",
            _ => return None,
        })
    }
}

/// What to do about a migration that failed.
fn migration_remedy(error: &proxy::Error) -> Option<&'static str> {
    Some(match error {
        proxy::Error::Unsure { .. } => {
            "ask both with the QMP command query-status; end the one that does not run the VM"
        }
        proxy::Error::NoReturnPath { .. } => {
            "turn it on at both ends: migrate-set-capabilities, return-path"
        }
        proxy::Error::Unguarded { .. } => {
            "begin a new migration, with return-path on at both ends and without TLS of QEMU's own"
        }
        proxy::Error::Destination { .. } => {
            "start QEMU there with -incoming unix:PATH, or -incoming defer and migrate-incoming"
        }
        proxy::Error::Cancelled => return None,
        proxy::Error::Connect { .. } => "start `twinpage migrate receive` there first",
        proxy::Error::NoAnswer { .. } => {
            "read what it says there; both ends must be of one version of twinpage"
        }
        _ => "the VM runs on where it was; try again",
    })
}
