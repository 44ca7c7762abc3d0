// SPDX-License-Identifier: GPL-2.0

//! Tables for people, and numbers in the units that people want.

use comfy_table::presets::NOTHING;
use comfy_table::{
    CellAlignment,
    ContentArrangement, //
};

use crate::console::Screen;
use crate::uapi::PAGE_BYTES;

/// Bytes in a MiB.
const MIB: f64 = (1 << 20) as f64;

/// On which side of its column a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table that is filled row by row.
pub struct Table(comfy_table::Table);

impl Table {
    /// A table with these columns, no wider than `screen`.
    pub fn new(columns: &[(&str, Side)], screen: Option<Screen>) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_preset(NOTHING);
        table.set_header(columns.iter().map(|(name, _)| *name));
        match screen {
            Some(screen) => {
                table.set_content_arrangement(ContentArrangement::Dynamic);
                table.set_width(screen.columns);
            }
            None => {
                table.set_content_arrangement(ContentArrangement::Disabled);
            }
        }
        for (column, (_, side)) in table.column_iter_mut().zip(columns) {
            column.set_padding((0, 2));
            column.set_cell_alignment(match side {
                Side::Left => CellAlignment::Left,
                Side::Right => CellAlignment::Right,
            });
        }
        Self(table)
    }

    /// Appends a row.
    pub fn add(&mut self, row: impl IntoIterator<Item = String>) {
        self.0.add_row(row);
    }

    /// The text, without blanks at the ends of lines, and a newline at the end of each.
    pub fn text(&self) -> String {
        let text = self.0.trim_fmt();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines.join("\n") + "\n"
    }
}

/// `bytes` in MiB.
pub fn mib_of_bytes(bytes: i64) -> String {
    // CAST: Rounded for display.
    format!("{:.1}", bytes as f64 / MIB)
}

/// `pages` in MiB.
pub fn mib(pages: u64) -> String {
    // CAST: Rounded for display.
    format!("{:.1}", pages as f64 * PAGE_BYTES as f64 / MIB)
}

/// `nanoseconds` in seconds.
pub fn seconds(nanoseconds: u64) -> String {
    // CAST: Rounded for display.
    format!("{:.1}", nanoseconds as f64 / 1e9)
}

/// What part `part` is of `whole`, in percent, rounded down.
pub fn percent(part: u64, whole: u64) -> u64 {
    let percent = u128::from(part) * 100 / u128::from(whole.max(1));
    u64::try_from(percent).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_on_the_right() {
        let mut table = Table::new(&[("NAME", Side::Left), ("PAGES", Side::Right)], None);
        table.add(["a".to_owned(), "7".to_owned()]);
        table.add(["longer".to_owned(), "1234567".to_owned()]);
        assert_eq!(
            table.text(),
            "NAME      PAGES\na             7\nlonger  1234567\n"
        );
    }

    #[test]
    fn units_are_right() {
        assert_eq!(mib(256), "1.0");
        assert_eq!(mib(u64::MAX), "72057594037927936.0");
        assert_eq!(mib_of_bytes(-1_572_864), "-1.5");
        assert_eq!(seconds(1_250_000_000), "1.2");
        assert_eq!(percent(1, 3), 33);
        assert_eq!(percent(u64::MAX, 1), u64::MAX);
        assert_eq!(percent(5, 0), 500);
    }
}
