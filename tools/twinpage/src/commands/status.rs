// SPDX-License-Identifier: GPL-2.0

//! `twinpage status`: what each VM shares, once or again and again.

use std::time::Duration;

use crate::cli::Status;
use crate::clock::Pause;
use crate::console::{
    Console,
    Format,
    Screen, //
};
use crate::error::Error;
use crate::host::Host;
use crate::settle::Settling;
use crate::snapshot::Snapshot;
use crate::status_text;

/// How often to look, unless told.
const INTERVAL: Duration = Duration::from_secs(2);

/// Runs the command.
pub fn run(arguments: &Status, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    let watching = arguments.watch.is_some() || arguments.count.is_some() || arguments.until_stable;
    if watching {
        return watch(arguments, host, console);
    }
    let snapshot = Snapshot::take(host, None)?;
    match Format::of(arguments.json) {
        Format::Json => console.json(&snapshot),
        Format::Text => {
            let text = status_text::render(&snapshot, console.screen, usize::MAX);
            Ok(write!(console.out, "{text}")?)
        }
    }
}

/// Shows snapshots until an end is reached.
fn watch(arguments: &Status, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    host.clock().catch_signals();
    let start = host.clock().now();
    let mut display = Display::new(Format::of(arguments.json));
    let mut settling = Settling::default();
    let mut before = None;
    for shown in 1.. {
        let snapshot = Snapshot::take(host, before.as_ref())?;
        display.show(&snapshot, console)?;
        if arguments.until_stable && settling.observe(&snapshot)? {
            return Ok(());
        }
        if arguments.count.is_some_and(|count| shown >= count) {
            return Ok(());
        }
        let timeout = arguments.timeout.unwrap_or(u64::MAX);
        if host.clock().now().saturating_sub(start) >= Duration::from_secs(timeout) {
            return Err(Error::NotStable(timeout));
        }
        if host.clock().pause(arguments.watch.unwrap_or(INTERVAL)) == Pause::Interrupted {
            return Ok(());
        }
        before = Some(snapshot);
    }
    Ok(())
}

/// Where one snapshot after the other is shown.
struct Display {
    /// How they are written.
    format: Format,
    /// Lines that the last one took on the terminal.
    lines: usize,
}

impl Display {
    /// Nothing has been shown yet.
    fn new(format: Format) -> Self {
        Self { format, lines: 0 }
    }

    /// Shows a snapshot: over the one before if that is a terminal, else below it.
    fn show(&mut self, snapshot: &Snapshot, console: &mut Console<'_>) -> Result<(), Error> {
        if self.format == Format::Json {
            console.json_line(snapshot)?;
            return Ok(console.out.flush()?);
        }
        let text = fitting(snapshot, console.screen);
        match (console.screen, self.lines) {
            (_, 0) => (),
            // Up to the first line of the last one, then clear to the end of the screen.
            (Some(_), lines) => write!(console.out, "\x1b[{lines}A\x1b[J")?,
            (None, _) => writeln!(console.out)?,
        }
        write!(console.out, "{text}")?;
        self.lines = height(&text, console.screen);
        Ok(console.out.flush()?)
    }
}

/// A snapshot with as many VMs as `screen` has room for, at least one: what has left the screen
/// cannot be written over.
fn fitting(snapshot: &Snapshot, screen: Option<Screen>) -> String {
    let room = screen.map_or(usize::MAX, |screen| {
        usize::from(screen.rows).saturating_sub(1)
    });
    let mut most = snapshot.vms.len();
    loop {
        let text = status_text::render(snapshot, screen, most);
        let over = height(&text, screen).saturating_sub(room);
        if over == 0 || most <= 1 {
            return text;
        }
        // A VM may take several lines, on a narrow screen: not too many at once.
        most = most.saturating_sub(over.div_ceil(4)).max(1);
    }
}

/// How many lines of `screen` the lines of `text` take.
fn height(text: &str, screen: Option<Screen>) -> usize {
    let columns = screen.map_or(usize::MAX, |screen| usize::from(screen.columns).max(1));
    text.lines()
        .map(|line| line.chars().count().div_ceil(columns).max(1))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_take_several_on_a_screen() {
        let screen = Screen {
            columns: 4,
            rows: 9,
        };
        assert_eq!(height("abcd\n\nabcde\n", Some(screen)), 4);
        assert_eq!(height("abcd\n\nabcde\n", None), 3);
    }
}
