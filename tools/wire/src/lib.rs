// SPDX-License-Identifier: GPL-2.0

//! What travels between the two ends of a migration.
