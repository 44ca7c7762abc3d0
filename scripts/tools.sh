#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Builds the userspace programs in the root and puts them into build/bin/.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

lock "build-$(hash_of <<<"$TOP/build/bin")"
cd "$TOP/tools"
say "userspace programs in build/bin"
"$TOP/scripts/root.sh" cargo build --release --locked --workspace --bins
mkdir -p "$TOP/build/bin"
# shellcheck disable=SC2016
"$TOP/scripts/root.sh" bash -euo pipefail -c '
cargo metadata --locked --offline --no-deps --format-version 1 |
	jq -r ".packages[].targets[] | select(.kind[] == \"bin\") | .name" |
	while read -r name; do
		# Whoever boots a machine with the old one goes on reading that.
		cp "$CARGO_TARGET_DIR/release/$name" "$1/.$name"
		mv "$1/.$name" "$1/$name"
	done' bash "$TOP/build/bin"
