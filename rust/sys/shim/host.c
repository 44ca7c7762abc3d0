// SPDX-License-Identifier: GPL-2.0
/* The scanner's thread, the sysfs files and the shrinker. */
#include <linux/capability.h>
#include <linux/freezer.h>
#include <linux/kernfs.h>
#include <linux/kobject.h>
#include <linux/kthread.h>
#include <linux/random.h>
#include <linux/sched/task.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/sysfs.h>

#include "shim.h"

/**
 * twinpage_shim_thread_run - start the scanner's thread.
 * @fn: runs in it, ends with twinpage_shim_thread_wait_for_stop().
 * @arg: handed to @fn.
 *
 * Low priority (nice 5, as ksmd). Sleeps.
 *
 * Return: the thread, or NULL.
 */
void *twinpage_shim_thread_run(int (*fn)(void *arg), void *arg)
{
	struct task_struct *task = kthread_create(fn, arg, "twinpaged");

	if (IS_ERR(task))
		return NULL;
	get_task_struct(task);
	set_user_nice(task, 5);
	wake_up_process(task);
	return task;
}

/**
 * twinpage_shim_thread_stop - wait until the thread has ended.
 * @thread: what twinpage_shim_thread_run() returned; gone afterwards.
 *
 * Sleeps.
 */
void twinpage_shim_thread_stop(void *thread)
{
	kthread_stop(thread);
	put_task_struct(thread);
}

/**
 * twinpage_shim_thread_set_freezable - let the calling thread be frozen when
 * the system suspends; else it would never be.
 */
void twinpage_shim_thread_set_freezable(void)
{
	set_freezable();
}

/**
 * twinpage_shim_thread_freeze_point - freeze the calling thread while the
 * system suspends. Sleeps.
 */
void twinpage_shim_thread_freeze_point(void)
{
	try_to_freeze();
}

/**
 * twinpage_shim_thread_wait_for_stop - wait until somebody stops the calling
 * thread, which has to exist for that. Sleeps.
 */
void twinpage_shim_thread_wait_for_stop(void)
{
	for (;;) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (kthread_should_stop())
			break;
		schedule();
		__set_current_state(TASK_RUNNING);
		try_to_freeze();
	}
	__set_current_state(TASK_RUNNING);
}

/**
 * twinpage_shim_thread_yield - let other threads run if they should. Sleeps.
 *
 * A thread that never rests is not waited for by who frees code that threads
 * may have been preempted in (kernel/rcu/tasks.h): it has none of that here.
 */
void twinpage_shim_thread_yield(void)
{
	cond_resched_tasks_rcu_qs();
}

/**
 * twinpage_shim_thread_cpu_ns - CPU time of the calling thread, nanoseconds.
 */
unsigned long long twinpage_shim_thread_cpu_ns(void)
{
	return current->se.sum_exec_runtime;
}

/**
 * twinpage_shim_random - a random number that nobody outside can guess.
 */
unsigned long long twinpage_shim_random(void)
{
	return get_random_u64();
}

/**
 * twinpage_shim_capable - may the caller administer the system?
 */
int twinpage_shim_capable(void)
{
	return capable(CAP_SYS_ADMIN);
}

static struct kobject *dir;
static struct kobj_attribute attrs[TWINPAGE_SHIM_ATTR_MAX];
static struct attribute *attr_list[TWINPAGE_SHIM_ATTR_MAX + 1];
static const struct attribute_group group = { .attrs = attr_list };
static void *attr_data;
static long (*show_attr)(void *data, unsigned int attr, char *page);
static long (*store_attr)(void *data, unsigned int attr, const char *text,
			  unsigned long len);

static ssize_t show(struct kobject *kobj, struct kobj_attribute *attr, char *page)
{
	return show_attr(attr_data, attr - attrs, page);
}

static ssize_t store(struct kobject *kobj, struct kobj_attribute *attr,
		     const char *text, size_t len)
{
	return store_attr(attr_data, attr - attrs, text, len);
}

/*
 * The kobject of /sys/kernel/mm, where KSM's files are too. Its variable is not
 * exported, so it is looked up by name, and held.
 */
static struct kobject *get_mm_dir(void)
{
	struct kernfs_node *node = kernfs_find_and_get(kernel_kobj->sd, "mm");
	struct kobject *mm;

	if (!node)
		return NULL;
	/* For a directory of sysfs it is the kobject (fs/sysfs/dir.c). */
	mm = kobject_get(node->priv);
	kernfs_put(node);
	return mm;
}

/**
 * twinpage_shim_sysfs_add - create /sys/kernel/mm/twinpage and its files.
 * @names: name of each file, kept as long as the files exist.
 * @modes: permissions of each.
 * @n: how many, at most TWINPAGE_SHIM_ATTR_MAX.
 * @data: handed to the callbacks.
 * @show_fn: writes the text of file number @attr to a page, returns its length.
 * @store_fn: takes what was written to file number @attr.
 *
 * Both callbacks may sleep. Sleeps.
 */
int twinpage_shim_sysfs_add(const char *const *names,
			    const unsigned short *modes, unsigned int n,
			    void *data,
			    long (*show_fn)(void *data, unsigned int attr,
					    char *page),
			    long (*store_fn)(void *data, unsigned int attr,
					     const char *text,
					     unsigned long len))
{
	struct kobject *mm;
	unsigned int i;
	int err;

	if (n > TWINPAGE_SHIM_ATTR_MAX)
		return -E2BIG;
	attr_data = data;
	show_attr = show_fn;
	store_attr = store_fn;
	for (i = 0; i < n; i++) {
		sysfs_attr_init(&attrs[i].attr);
		attrs[i].attr.name = names[i];
		attrs[i].attr.mode = modes[i];
		attrs[i].show = show;
		attrs[i].store = store;
		attr_list[i] = &attrs[i].attr;
	}
	attr_list[n] = NULL;
	mm = get_mm_dir();
	if (!mm)
		return -ENOENT;
	dir = kobject_create_and_add("twinpage", mm);
	kobject_put(mm);
	if (!dir)
		return -ENOMEM;
	err = sysfs_create_group(dir, &group);
	if (err) {
		kobject_put(dir);
		dir = NULL;
	}
	return err;
}

/**
 * twinpage_shim_sysfs_remove - remove them; no callback runs afterwards.
 *
 * Sleeps until those that run have ended.
 */
void twinpage_shim_sysfs_remove(void)
{
	if (!dir)
		return;
	sysfs_remove_group(dir, &group);
	kobject_put(dir);
	dir = NULL;
}

static struct shrinker *shrinker;
static unsigned long (*count_objects)(void *data);
static unsigned long (*scan_objects)(void *data, unsigned long want);

static unsigned long shrink_count(struct shrinker *s, struct shrink_control *sc)
{
	return count_objects(s->private_data);
}

static unsigned long shrink_scan(struct shrinker *s, struct shrink_control *sc)
{
	unsigned long freed = scan_objects(s->private_data, sc->nr_to_scan);

	return freed ? freed : SHRINK_STOP;
}

/**
 * twinpage_shim_shrinker_add - be asked when memory is short.
 * @data: handed to the callbacks.
 * @count: how many pages could be given back; must not sleep.
 * @scan: give back what @want of those counted stand for; must not wait for a
 *	lock that is held over an allocation. Returns how many were freed.
 *
 * Sleeps.
 */
int twinpage_shim_shrinker_add(void *data,
			       unsigned long (*count)(void *data),
			       unsigned long (*scan)(void *data,
						     unsigned long want))
{
	count_objects = count;
	scan_objects = scan;
	shrinker = shrinker_alloc(0, "twinpage");
	if (!shrinker)
		return -ENOMEM;
	shrinker->count_objects = shrink_count;
	shrinker->scan_objects = shrink_scan;
	shrinker->private_data = data;
	shrinker_register(shrinker);
	return 0;
}

/**
 * twinpage_shim_shrinker_remove - end of it; no callback runs afterwards.
 */
void twinpage_shim_shrinker_remove(void)
{
	shrinker_free(shrinker);
	shrinker = NULL;
}
