// SPDX-License-Identifier: GPL-2.0

//! Migrates a guest by digests of its pages.
