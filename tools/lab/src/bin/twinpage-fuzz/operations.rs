// SPDX-License-Identifier: GPL-2.0

//! The kinds of operations.

use twinpage_lab::tap::Failure;

use crate::worker::Worker;
use crate::{
    code,
    debugfs,
    fields,
    files,
    foreign,
    herd,
    ioctls,
    nobody,
    pointers,
    sysfs,
    timing, //
};

/// How many operations a call was; none if there was nothing to do it to.
pub type Done = Result<u64, Failure>;

/// One kind of operation.
pub struct Operation {
    /// What it is called in the table at the end.
    pub name: &'static str,
    /// How often it is done, compared with others: one that takes long, seldom.
    pub weight: usize,
    /// Does it.
    pub run: fn(&mut Worker) -> Done,
}

impl Operation {
    /// The first word of its name.
    pub fn family(&self) -> &'static str {
        self.name.split('.').next().unwrap_or_default()
    }

    /// Whether other users do it, or root without the capability, instead of root.
    pub fn without_rights(&self) -> bool {
        self.family() == "nobody"
    }
}

/// Short for a table of operations.
pub const fn operation(
    name: &'static str,
    weight: usize,
    run: fn(&mut Worker) -> Done,
) -> Operation {
    Operation { name, weight, run }
}

/// All of them.
pub fn operations() -> impl Iterator<Item = &'static Operation> {
    let tables: [&'static [Operation]; 11] = [
        herd::OPERATIONS,
        code::OPERATIONS,
        ioctls::OPERATIONS,
        fields::OPERATIONS,
        pointers::OPERATIONS,
        timing::OPERATIONS,
        files::OPERATIONS,
        foreign::OPERATIONS,
        nobody::OPERATIONS,
        sysfs::OPERATIONS,
        debugfs::OPERATIONS,
    ];
    tables.into_iter().flatten()
}
