# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Formatters, compilers and linters, all of the build root.

# What checkpatch must not say, and why:
# - SPDX_LICENSE_TAG, FILE_PATH_CHANGES: made for the kernel's own tree;
#   check_spdx does the first.
# - EMBEDDED_FILENAME: the usage text of a script names the script.
# - REPEATED_WORD: "mount -t proc proc" is meant.
# - CONFIG_DESCRIPTION, MAINTAINERS: there is no Kconfig and no such file here.
# - BIT_MACRO: a UAPI header has no BIT().
# - UNCOMMENTED_DEFINITION: taken for a definition, it is a parameter
#   "spinlock_t *ptl", the page-table lock of the code beside it.
CHECKPATCH_IGNORE=SPDX_LICENSE_TAG,FILE_PATH_CHANGES,EMBEDDED_FILENAME,REPEATED_WORD
CHECKPATCH_IGNORE+=,BIT_MACRO,CONFIG_DESCRIPTION,UNCOMMENTED_DEFINITION

check_rustfmt() {
	files 'rust/*.rs' 'kunit-tests/*.rs' |
		in_each rustfmt --check --edition 2021 --config-path "$TOP/.rustfmt.toml"
}

check_cargo_fmt() {
	(cd tools && "$TOP/scripts/root.sh" cargo fmt --all --check)
}

check_cargo_clippy() {
	(cd tools && "$TOP/scripts/root.sh" cargo clippy --quiet --workspace --all-targets \
		--locked -- -D warnings)
}

check_rustdoc() {
	(cd tools && "$TOP/scripts/root.sh" env RUSTDOCFLAGS='-D warnings' \
		cargo doc --quiet --workspace --no-deps --locked --document-private-items)
}

# kernel_lint KERNEL: both compilers with warnings as errors. Only what is
# compiled is looked at, so it compiles in a directory of its own.
kernel_lint() {
	OUTPUT="build/lint-$1" FRESH=1 "$TOP/scripts/module.sh" "$1" -s modules \
		CLIPPY=1 KRUSTFLAGS=-Dwarnings KCFLAGS=-Werror W=1
}

check_kernel_clippy() {
	kernel_lint stock
}

check_kernel_clippy_debug() {
	kernel_lint debug
}

check_checkpatch() {
	local source
	source=$("$TOP/scripts/prepare.sh" source)
	files 'rust/*.c' 'rust/*.h' 'rust/*.rs' 'kunit-tests/*.c' 'kunit-tests/*.rs' \
		'scripts/*.sh' |
		in_each perl "$source/src/scripts/checkpatch.pl" --strict --no-tree --terse \
			--no-summary --ignore "$CHECKPATCH_IGNORE" -f
}

check_shellcheck() {
	files 'scripts/*.sh' scripts/initrd/init .ci/run | in_each shellcheck -x
}
