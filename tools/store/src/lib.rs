// SPDX-License-Identifier: GPL-2.0

//! Where the receiver of a migration finds pages.
