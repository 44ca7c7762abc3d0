// SPDX-License-Identifier: GPL-2.0

//! What was measured: rows for programs, a table for people.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::{
    Deserialize,
    Serialize, //
};
use twinpage_lab::place;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

/// One measurement, of both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub metric: String,
    /// What the memory held.
    pub data: String,
    /// Pages of all guests together.
    pub size: usize,
    /// What it was with ksmd. Absent for what ksmd does not do, or did not reach.
    pub ksmd: Option<f64>,
    /// What it was with Twinpage. Absent if that did not get there either.
    pub twinpage: Option<f64>,
    /// Twinpage's part of ksmd's.
    pub ratio: Option<f64>,
    /// Of what.
    pub unit: String,
}

/// What JSON and the table can show: a number, or none.
fn number(value: f64) -> Option<f64> {
    Some(value).filter(|value| value.is_finite())
}

impl Row {
    /// A measurement of both.
    pub fn of(metric: &str, data: &str, size: usize, unit: &str, both: [f64; 2]) -> Row {
        let [ksmd, twinpage] = both;
        Row {
            metric: metric.into(),
            data: data.into(),
            size,
            ksmd: number(ksmd),
            twinpage: number(twinpage),
            ratio: number(twinpage / ksmd),
            unit: unit.into(),
        }
    }

    /// A measurement of what ksmd does not do.
    pub fn alone(metric: &str, data: &str, size: usize, unit: &str, twinpage: f64) -> Row {
        Row {
            ksmd: None,
            ratio: None,
            ..Row::of(metric, data, size, unit, [0.0, twinpage])
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |number: Option<f64>, digits: usize| {
            number.map_or_else(|| "-".into(), |number| format!("{number:.digits$}"))
        };
        write!(
            f,
            "| {} | {} | {} | {} | {} | {} | {} |",
            self.metric,
            self.data,
            self.size,
            or_none(self.ksmd, 1),
            or_none(self.twinpage, 1),
            or_none(self.ratio, 3),
            self.unit
        )
    }
}

/// All measurements.
#[derive(Default)]
pub struct Rows(Vec<Row>);

impl Rows {
    /// Those of an earlier run.
    pub fn read(path: &Path) -> Result<Rows, Failure> {
        Ok(Rows(serde_json::from_slice(&fs::read(path)?)?))
    }

    /// Adds a row, in the place of an earlier one of the same measurement.
    pub fn put(&mut self, row: Row) {
        let same = |old: &&mut Row| {
            (&old.metric, &old.data, old.size) == (&row.metric, &row.data, row.size)
        };
        match self.0.iter_mut().find(same) {
            Some(old) => *old = row,
            None => self.0.push(row),
        }
    }

    /// Writes all of it to where results go.
    pub fn write(&self) -> Outcome {
        let out = place::out();
        fs::write(
            out.join("bench.json"),
            serde_json::to_string_pretty(&self.0)? + "\n",
        )?;
        Ok(fs::write(out.join("bench.md"), self.table())?)
    }

    /// A table in Markdown.
    pub fn table(&self) -> String {
        let head = "| metric | data | pages | ksmd | Twinpage | ratio | unit |\n\
                    | --- | --- | --: | --: | --: | --: | --- |\n";
        let rows = self.0.iter().map(|row| format!("{row}\n"));
        head.to_owned() + &rows.collect::<String>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_that_is_made_again_replaces_its_row() {
        let mut rows = Rows::default();
        for (size, value) in [(1, 2.0), (2, 3.0), (1, 4.0)] {
            rows.put(Row::of("look", "zero", size, "pages", [1.0, value]));
        }
        let kept: Vec<_> = rows.0.iter().map(|row| (row.size, row.twinpage)).collect();
        assert_eq!(kept, [(1, Some(4.0)), (2, Some(3.0))]);
    }

    #[test]
    fn what_was_not_reached_can_be_kept() -> serde_json::Result<()> {
        let row = Row::of("to 90 %", "D4", 1, "s", [f64::NAN, f64::NAN]);
        let text = serde_json::to_string(&row)?;
        assert_eq!(serde_json::from_str::<Row>(&text)?, row);
        assert_eq!(row.to_string(), "| to 90 % | D4 | 1 | - | - | - | s |");
        Ok(())
    }
}
