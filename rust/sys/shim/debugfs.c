// SPDX-License-Identifier: GPL-2.0
/*
 * Files of debugfs whose open descriptors keep the module loaded. Those of the
 * kernel crate do not (rust/kernel/debugfs/file_ops.rs, no owner): closing one
 * after the module has gone would call into where it was
 * (fs/debugfs/file.c:full_proxy_release).
 */
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/seq_file.h>

#include "shim.h"

static int print(struct seq_file *seq, void *unused)
{
	const struct twinpage_shim_file *file = seq->private;

	return file->print(file, seq);
}

static int open_text(struct inode *inode, struct file *file)
{
	return single_open(file, print, inode->i_private);
}

static ssize_t read_bytes(struct file *open, char __user *to, size_t len,
			  loff_t *at)
{
	const struct twinpage_shim_file *file = open->private_data;

	return file->read(file, (void __force *)to, len, at);
}

static const struct file_operations text_ops = {
	.owner = THIS_MODULE,
	.open = open_text,
	.read = seq_read,
	.llseek = seq_lseek,
	.release = single_release,
};

static const struct file_operations binary_ops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.read = read_bytes,
	.llseek = default_llseek,
};

/**
 * twinpage_shim_debugfs_dir - create a directory.
 * @parent: the directory that it is in, or NULL for the root of debugfs.
 * @name: its name, copied.
 *
 * Sleeps.
 *
 * Return: the directory, or an error that the other functions take for one.
 */
void *twinpage_shim_debugfs_dir(void *parent, const char *name)
{
	return debugfs_create_dir(name, parent);
}

/**
 * twinpage_shim_debugfs_file - create a file that only root can read.
 * @parent: the directory that it is in.
 * @name: its name, copied.
 * @file: serves it, until the file or the directory is removed.
 *
 * Sleeps.
 */
void twinpage_shim_debugfs_file(void *parent, const char *name,
				const struct twinpage_shim_file *file)
{
	debugfs_create_file(name, 0400, parent, (void *)file,
			    file->print ? &text_ops : &binary_ops);
}

/**
 * twinpage_shim_debugfs_remove - remove a directory and what is in it.
 * @dir: the directory.
 *
 * Sleeps until those who read have ended; nobody reads afterwards.
 */
void twinpage_shim_debugfs_remove(void *dir)
{
	debugfs_remove(dir);
}
