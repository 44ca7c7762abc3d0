/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the Rust half asks of C: kernel inlines, macros and symbols that have no
 * Rust abstraction. Plain C types only, no state but the symbol table, no
 * policy. bindgen turns this header into the Rust declarations, so a
 * declaration exists once.
 *
 * Pointers to kernel objects are void pointers here; the Rust type that owns
 * each says what it points at. Functions return 0 or a negative errno unless
 * they say otherwise. "Sleeps" marks those that may.
 */
#ifndef TWINPAGE_SHIM_H
#define TWINPAGE_SHIM_H

#define TWINPAGE_SHIM_TABLE_PAGES 512
#define TWINPAGE_SHIM_RUN_MAX 64

/* ksym.c: kernel functions that are not exported. */

#define TWINPAGE_SHIM_HAS_SPLIT 1U
#define TWINPAGE_SHIM_HAS_FREE_SWAP 2U
#define TWINPAGE_SHIM_HAS_LRU_DRAIN 4U

int twinpage_shim_bind(unsigned int *features);
void twinpage_shim_lru_drain(void);

/* look.c: what page tables hold. Callers hold the mmap lock of mm for reading. */

enum twinpage_shim_class {
	TWINPAGE_SHIM_ABSENT,
	TWINPAGE_SHIM_ANON,	/* arg: NUMA node */
	TWINPAGE_SHIM_HUGE,	/* arg: NUMA node */
	TWINPAGE_SHIM_ZERO,
	TWINPAGE_SHIM_MERGED,	/* arg: token, pfn */
	TWINPAGE_SHIM_SKIP,	/* arg: enum twinpage_shim_skip */
};

enum twinpage_shim_skip {
	TWINPAGE_SHIM_SKIP_SHARED,
	TWINPAGE_SHIM_SKIP_HUGETLB,
	TWINPAGE_SHIM_SKIP_LOCKED,
	TWINPAGE_SHIM_SKIP_UFFD,
	TWINPAGE_SHIM_SKIP_SPECIAL,
	TWINPAGE_SHIM_SKIP_NO_VMA,
	TWINPAGE_SHIM_SKIP_KSM,
	TWINPAGE_SHIM_SKIP_POISON,
};

/* Neighbouring pages that are alike. */
struct twinpage_shim_seen {
	unsigned short class;
	unsigned short end;	/* index after the last one */
	unsigned int arg;
	unsigned long pfn;
};

unsigned int twinpage_shim_look(void *mm, unsigned long block,
				unsigned int first, unsigned int end,
				const unsigned long long *wanted,
				struct twinpage_shim_seen *seen, void **kept);
void *twinpage_shim_page_map(void *page);
void twinpage_shim_page_unmap(void *addr);
void twinpage_shim_page_put(void *page);

/* share.c: replacing page table entries. Same locking. All sleep. */

enum twinpage_shim_result {
	TWINPAGE_SHIM_DONE,
	TWINPAGE_SHIM_DIFFERS,
	TWINPAGE_SHIM_GONE,
	TWINPAGE_SHIM_PINNED,
	TWINPAGE_SHIM_POISONED,	/* the target has a hardware memory error */
	TWINPAGE_SHIM_REFUSED,	/* the mapping does not allow it */
	TWINPAGE_SHIM_BUSY,
	TWINPAGE_SHIM_NO_MEMORY,
};

void twinpage_shim_share(void *mm, unsigned long addr, unsigned int n,
			 unsigned int batch, void *const *targets,
			 unsigned char *results);
int twinpage_shim_unshare(void *mm, unsigned long addr, unsigned int n,
			  unsigned int *done);
int twinpage_shim_split(void *mm, unsigned long addr);

/* frame.c: merged copies. */

void *twinpage_shim_frame_copy(void *page);
void twinpage_shim_frame_put(void *frame);
void twinpage_shim_frame_set_token(void *frame, unsigned int token);
unsigned long twinpage_shim_frame_pfn(void *frame);
unsigned int twinpage_shim_frame_mappings(void *frame);
int twinpage_shim_frame_is_broken(void *frame);
int twinpage_shim_frame_read(void *frame, void *bytes);
void twinpage_shim_frame_sha256(void *frame, unsigned char *digest);

/* kvm.c: VMs and their memslots. */

struct twinpage_shim_slot {
	unsigned int as_id;
	int id;
	unsigned int flags;
	unsigned int gmem;
	unsigned long long base_gfn;
	unsigned long long npages;
	unsigned long long addr;
};

int twinpage_shim_vms_begin(void);
void twinpage_shim_vms_end(void);
int twinpage_shim_vm_get(int fd, void **held);
void twinpage_shim_vm_put(void *held);
int twinpage_shim_vm_same(void *a, void *b);
void *twinpage_shim_vm_mm(void *vm);
int twinpage_shim_vm_pid(void *vm);
int twinpage_shim_vm_closed(void *vm);
long twinpage_shim_vm_slots(void *vm, struct twinpage_shim_slot *slots,
			    unsigned long max);

/* memory.c: how much memory there is. */

unsigned long twinpage_shim_pages_total(void);
unsigned long twinpage_shim_pages_available(void);
unsigned long twinpage_shim_cgroup_pages_left(void *mm);

/* host.c: thread, shrinker, sysfs. */

void *twinpage_shim_thread_run(int (*fn)(void *arg), void *arg);
void twinpage_shim_thread_stop(void *thread);
void twinpage_shim_thread_set_freezable(void);
void twinpage_shim_thread_freeze_point(void);
void twinpage_shim_thread_wait_for_stop(void);
void twinpage_shim_thread_yield(void);
unsigned long long twinpage_shim_thread_cpu_ns(void);
unsigned long long twinpage_shim_random(void);
int twinpage_shim_capable(void);

#define TWINPAGE_SHIM_ATTR_MAX 64

int twinpage_shim_sysfs_add(const char *const *names,
			    const unsigned short *modes, unsigned int n,
			    void *data,
			    long (*show)(void *data, unsigned int attr,
					 char *page),
			    long (*store)(void *data, unsigned int attr,
					  const char *text, unsigned long len));
void twinpage_shim_sysfs_remove(void);

int twinpage_shim_shrinker_add(void *data, unsigned long (*count)(void *data),
			       unsigned long (*scan)(void *data,
						     unsigned long want));
void twinpage_shim_shrinker_remove(void);

/* debugfs.c: files that only root reads. */

/* Serves a file: one of both. Both sleep. */
struct twinpage_shim_file {
	/* Prints all of it to a struct seq_file. */
	int (*print)(const struct twinpage_shim_file *file, void *seq);
	/* Writes to a user's buffer from an offset on. */
	long (*read)(const struct twinpage_shim_file *file, void *to,
		     unsigned long len, long long *at);
};

void *twinpage_shim_debugfs_dir(void *parent, const char *name);
void twinpage_shim_debugfs_file(void *parent, const char *name,
				const struct twinpage_shim_file *file);
void twinpage_shim_debugfs_remove(void *dir);

#endif /* TWINPAGE_SHIM_H */
