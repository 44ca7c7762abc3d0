/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Userspace interface of twinpage.ko: ioctls of /dev/twinpage and the binary
 * record format of debugfs twinpage/<id>/digests.
 *
 * This header is the only definition of the interface. The module and the
 * tools both generate their Rust types from it with bindgen. It includes
 * nothing but <linux/types.h> and <linux/ioctl.h>, so it serves C programs as
 * it is.
 *
 * Rules for every ioctl: the caller needs the device node open (mode 0600) and
 * CAP_SYS_ADMIN, else -EPERM. Another number is -ENOTTY, an argument that cannot
 * be read or written -EFAULT, a reserved field or an unknown flag bit that is not
 * zero in what is read -EINVAL, and -ENOMEM that the module has no memory to answer with. All
 * integers are in host order. The numbers beside fields are byte offsets.
 */
#ifndef _UAPI_TWINPAGE_H
#define _UAPI_TWINPAGE_H

#include <linux/types.h>
#include <linux/ioctl.h>

/* Raised by one when something is added; nothing is ever removed or changed. */
#define TWINPAGE_UAPI_VERSION 1

#define TWINPAGE_PAGE_SIZE 4096
#define TWINPAGE_DIGEST_SIZE 32

/* The domain of a VM that shares with no other VM. */
#define TWINPAGE_DOMAIN_PRIVATE 0

/**
 * struct twinpage_version - what the loaded module speaks.
 * @uapi: out: TWINPAGE_UAPI_VERSION of the module.
 * @features: out: TWINPAGE_FEATURE_* bits that work on this kernel.
 */
struct twinpage_version {
	__u32 uapi;		/*  0 */
	__u32 features;		/*  4 */
	__u64 reserved[3];	/*  8: zero */
};

/* Huge pages can be split (mm has the symbol). */
#define TWINPAGE_FEATURE_THP_SPLIT (1U << 0)
/* The swap slot of a merged page is given back at once. */
#define TWINPAGE_FEATURE_FREE_SWAP (1U << 1)
/* Freshly written pages are taken from the per-CPU LRU batches each round. */
#define TWINPAGE_FEATURE_LRU_DRAIN (1U << 2)

/**
 * struct twinpage_attach - start merging the memory of one VM.
 * @vm_fd: in: a KVM VM file descriptor of the caller (KVM_CREATE_VM, or taken
 *	out of a running VMM with pidfd_getfd()).
 * @flags: in: zero.
 * @domain: in: TWINPAGE_DOMAIN_PRIVATE, or the number of a sharing domain.
 *	Pages are shared only between VMs of the same non-zero domain. What the
 *	VM still shares with VMs of another one, or from before the module was
 *	loaded, gets its own copy before this returns.
 * @id: out: number of the attachment, never reused while the module is loaded.
 *
 * Errors: -EBADF: @vm_fd is not an open file; -EINVAL: it is not a KVM VM, or a
 * field that must be zero is not; -EEXIST: this VM is attached; -ESRCH: its
 * address space is exiting; -EOPNOTSUPP: its memory is encrypted (SEV, TDX);
 * -ENOSPC: no number is left for the VM or its domain, or its memslots have more
 * than 2^21 blocks of 2 MiB; -ENOMEM: so little memory is free that it would
 * fall under the floor; -EINTR: a signal; -EBUSY: pages stayed busy for too long,
 * or a part of its memory belongs to another attached VM of the same process,
 * too. In all of these cases the VM is not attached.
 */
struct twinpage_attach {
	__s32 vm_fd;		/*  0 */
	__u32 flags;		/*  4 */
	__u64 domain;		/*  8 */
	__u32 id;		/* 16 */
	__u32 pad;		/* 20: zero */
	__u64 reserved[4];	/* 24: zero */
};

/* Give every merged page of the VM its own copy back before detaching. */
#define TWINPAGE_DETACH_UNMERGE (1U << 0)

/**
 * struct twinpage_detach - stop merging the memory of one VM.
 * @id: in: what TWINPAGE_ATTACH returned.
 * @flags: in: TWINPAGE_DETACH_*. Without TWINPAGE_DETACH_UNMERGE merged pages
 *	stay merged: safely mapped, read-only, copied on write.
 * @unmerged: out: pages that got their own copy back.
 * @remaining: out: pages still merged.
 *
 * Errors: -ENOENT: no such attachment; -ENOMEM with TWINPAGE_DETACH_UNMERGE:
 * free memory would have fallen under the floor; the VM is still attached, its
 * rest still merged and @unmerged and @remaining say how far it got; -EINTR: the
 * same, after a signal; -EBUSY: the same, as pages stayed busy for too long, or
 * as somebody else attaches or detaches it just now.
 */
struct twinpage_detach {
	__u32 id;		/*  0 */
	__u32 flags;		/*  4 */
	__u64 unmerged;		/*  8 */
	__u64 remaining;	/* 16 */
	__u64 reserved[3];	/* 24: zero */
};

/**
 * struct twinpage_read - the bytes of a merged page, asked for by digest.
 * @domain: in: a non-zero sharing domain.
 * @digest: in: SHA-256 of the 4096 bytes.
 * @buffer: in: address of 4096 writable bytes of the caller.
 *
 * Errors: -ENOENT: no page of that domain with that digest is merged on this
 * host; -EFAULT: @buffer is not writable; -EINVAL: @domain is 0; -EINTR: a signal
 * came before all of that domain's merged pages were looked at.
 */
struct twinpage_read {
	__u64 domain;		/*  0 */
	__u8 digest[TWINPAGE_DIGEST_SIZE]; /*  8 */
	__u64 buffer;		/* 40 */
	__u64 reserved[2];	/* 48: zero */
};

#define TWINPAGE_IOC_MAGIC 0xBC
#define TWINPAGE_VERSION _IOR(TWINPAGE_IOC_MAGIC, 0x00, struct twinpage_version)
#define TWINPAGE_ATTACH _IOWR(TWINPAGE_IOC_MAGIC, 0x01, struct twinpage_attach)
#define TWINPAGE_DETACH _IOWR(TWINPAGE_IOC_MAGIC, 0x02, struct twinpage_detach)
#define TWINPAGE_READ _IOW(TWINPAGE_IOC_MAGIC, 0x03, struct twinpage_read)

/*
 * debugfs twinpage/<id>/digests: one header, then one record for each page of
 * the VM's memslots of address space 0, in ascending gfn order. Both are
 * little-endian. Record n is at byte 64 + 64 * n, so a reader can seek.
 */
#define TWINPAGE_DIGESTS_MAGIC 0x3154534744505754ULL /* bytes "TWPDGST1" */

struct twinpage_digests_header {
	__u64 magic;		/*  0: TWINPAGE_DIGESTS_MAGIC */
	__u32 version;		/*  8: 1 */
	__u32 header_size;	/* 12: 64 */
	__u32 record_size;	/* 16: 64 */
	__u32 id;		/* 20: attachment */
	__u64 domain;		/* 24 */
	__u64 records;		/* 32: how many records follow */
	__u64 layout;		/* 40: changes when a memslot does; compare at the end */
	__u64 reserved[2];	/* 48: zero */
};

enum twinpage_page_state {
	/* No page is mapped: reads as zeroes, or is swapped out. No digest. */
	TWINPAGE_PAGE_ABSENT = 0,
	/* Private page; the digest was true at some moment during the read. */
	TWINPAGE_PAGE_UNMERGED = 1,
	/* Maps a merged page, which cannot change: the digest is exact. */
	TWINPAGE_PAGE_MERGED = 2,
	/* Maps the shared zero page. */
	TWINPAGE_PAGE_ZERO = 3,
	/* Cannot be read here (shared or file memory, KSM, ...). No digest. */
	TWINPAGE_PAGE_SKIPPED = 4,
};

struct twinpage_digest {
	__u64 gfn;		/*  0 */
	__u32 state;		/*  8: enum twinpage_page_state */
	__u32 reserved0;	/* 12: zero */
	__u64 generation;	/* 16: serial number of the merged copy, never reused; else 0 */
	__u8 digest[TWINPAGE_DIGEST_SIZE]; /* 24: SHA-256 of the page, or zeroes */
	__u64 reserved1;	/* 56: zero */
};

#endif /* _UAPI_TWINPAGE_H */
