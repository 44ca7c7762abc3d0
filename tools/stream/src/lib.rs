// SPDX-License-Identifier: GPL-2.0

//! Finds the pages in QEMU's migration stream.
