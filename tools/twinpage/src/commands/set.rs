// SPDX-License-Identifier: GPL-2.0

//! `twinpage set`: the knobs of the module.

use crate::cli::Set;
use crate::console::Console;
use crate::error::Error;
use crate::host::Host;
use crate::knobs::{
    Setting,
    KNOBS, //
};
use crate::table::{
    Side,
    Table, //
};

/// Runs the command.
pub fn run(arguments: &Set, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    if arguments.settings.is_empty() {
        return list(host, console);
    }
    // All are checked before one is written.
    let knobs: Vec<_> = arguments
        .settings
        .iter()
        .map(Setting::knob)
        .collect::<Result<_, _>>()?;
    for (knob, setting) in knobs.into_iter().zip(&arguments.settings) {
        let before = knob.read(host)?;
        knob.write(host, &setting.value)?;
        let after = knob.read(host)?;
        writeln!(console.out, "{}: {before} -> {after}", knob.name)?;
    }
    Ok(())
}

/// Lists every knob.
fn list(host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    let columns = [
        ("NAME", Side::Left),
        ("VALUE", Side::Right),
        ("RANGE", Side::Left),
        ("MEANING", Side::Left),
    ];
    let mut table = Table::new(&columns, console.screen);
    for knob in &KNOBS {
        table.add([
            knob.name.to_owned(),
            knob.read(host)?,
            knob.values.to_string(),
            knob.meaning.to_owned(),
        ]);
    }
    Ok(write!(console.out, "{}", table.text())?)
}
