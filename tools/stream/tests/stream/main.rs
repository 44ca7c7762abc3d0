// SPDX-License-Identifier: GPL-2.0

//! The parser, fed with streams made by hand, changed and made up.

mod build;
mod hostile;
#[path = "../replay/mod.rs"]
mod replay;
mod table;
