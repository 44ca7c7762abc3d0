// SPDX-License-Identifier: GPL-2.0

//! Why pages cannot be merged, and what can be done about it.
//!
//! The reasons are those of `Documentation/export.rst`; a reason that is not known here is shown
//! with its bare name.

/// What a reason means.
#[derive(Debug)]
pub struct Meaning {
    /// The word in `skip_<reason>`.
    reason: &'static str,
    /// What it means.
    pub text: &'static str,
    /// What the user can do.
    pub remedy: Option<&'static str>,
}

/// Every reason that is known.
const MEANINGS: [Meaning; 15] = [
    Meaning {
        reason: "shared",
        text: "shared or file-backed memory",
        remedy: Some(
            "start the VMM with private memory (QEMU: no share=on, no memory-backend-memfd)",
        ),
    },
    Meaning {
        reason: "hugetlb",
        text: "hugetlbfs memory",
        remedy: Some("start the VMM without hugetlbfs (QEMU: no hugetlb=on, no -mem-path)"),
    },
    Meaning {
        reason: "gmem",
        text: "memory that only the guest may see (guest_memfd)",
        remedy: None,
    },
    Meaning {
        reason: "locked",
        text: "mlocked memory",
        remedy: Some("start the VMM without locking (QEMU: -overcommit mem-lock=off)"),
    },
    Meaning {
        reason: "uffd",
        text: "watched by userfaultfd",
        remedy: Some("wait until the snapshot or migration that watches it is over"),
    },
    Meaning {
        reason: "special",
        text: "device memory, or not both readable and writable",
        remedy: None,
    },
    Meaning {
        reason: "no_vma",
        text: "memslots that point at nothing",
        remedy: None,
    },
    Meaning {
        reason: "pinned",
        text: "in use by a device or by I/O, or plain SEV",
        remedy: Some("VFIO pins all memory of a guest: such guests cannot be merged"),
    },
    Meaning {
        reason: "ksm",
        text: "owned by ksmd",
        remedy: Some(
            "let only one merge (QEMU: -machine mem-merge=off; echo 2 > /sys/kernel/mm/ksm/run)",
        ),
    },
    Meaning {
        reason: "zero",
        text: "the kernel's zero page already",
        remedy: None,
    },
    Meaning {
        reason: "huge",
        text: "in huge pages of which too few pages would merge",
        remedy: Some("split them earlier: twinpage set thp_split_threshold=1"),
    },
    Meaning {
        reason: "poison",
        text: "hardware memory error",
        remedy: None,
    },
    Meaning {
        reason: "orphan",
        text: "merged in another domain or by an earlier load of the module",
        remedy: None,
    },
    Meaning {
        reason: "collision",
        text: "same hash as a merged page, but other content",
        remedy: None,
    },
    Meaning {
        reason: "paused",
        text: "the VM is being migrated (dirty logging is on)",
        remedy: Some("it goes on when the migration is over"),
    },
];

/// What `reason` means, if it is known.
pub fn meaning(reason: &str) -> Option<&'static Meaning> {
    MEANINGS.iter().find(|meaning| meaning.reason == reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_reason_has_a_meaning() {
        let document = include_str!("../../../Documentation/export.rst");
        let table = document
            .lines()
            .skip_while(|line| !line.starts_with("reason "));
        let reasons: Vec<&str> = table
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.strip_prefix("``")?.split("``").next())
            .collect();
        assert_eq!(reasons.len(), MEANINGS.len());
        for reason in reasons {
            assert!(meaning(reason).is_some(), "{reason}");
        }
    }
}
