// SPDX-License-Identifier: GPL-2.0

//! What was measured, drawn.

pub use plotters::prelude::SeriesLabelPosition as Corner;
use plotters::prelude::*;
use twinpage_lab::place;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

/// What a file begins with.
const LICENCE: &str = "<!-- SPDX-License-Identifier: GPL-2.0 -->\n";

/// The size of a panel, in pixels.
const PANEL: (u32, u32) = (460, 280);

/// A line for each of those compared.
const COLOURS: [RGBColor; 3] = [
    RGBColor(0xc0, 0x39, 0x2b),
    RGBColor(0x1f, 0x4e, 0x9e),
    RGBColor(0x8a, 0x8a, 0x8a),
];

/// A line: its name, and its points from left to right.
pub struct Line {
    /// Its name, in the legend.
    pub name: &'static str,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// A part of a figure with axes of its own, both from zero.
pub struct Panel {
    /// What stands above it.
    pub title: String,
    /// What goes to the right, with its unit.
    pub x: &'static str,
    /// What goes up, with its unit.
    pub y: &'static str,
    /// Where the legend is.
    pub legend: Corner,
    /// What is compared.
    pub lines: Vec<Line>,
}

impl Panel {
    /// The largest value that some axis must show, with some room.
    fn end(&self, axis: impl Fn(&(f64, f64)) -> f64) -> f64 {
        let points = self.lines.iter().flat_map(|line| &line.points);
        let end = points.map(axis).fold(0.0, f64::max);
        if end > 0.0 {
            end * 1.05
        } else {
            1.0
        }
    }
}

/// Draws panels, so many beside each other, to the file of this name among the results.
pub fn draw(name: &str, columns: usize, panels: &[Panel]) -> Outcome {
    let rows = panels.len().div_ceil(columns);
    let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32);
    let failed = |error: &dyn std::fmt::Display| Failure::Failed(format!("{name}: {error}"));
    let mut text = LICENCE.to_owned();
    {
        let page = SVGBackend::with_string(&mut text, size).into_drawing_area();
        page.fill(&WHITE).map_err(|error| failed(&error))?;
        for (panel, area) in panels.iter().zip(page.split_evenly((rows, columns))) {
            draw_panel(panel, &area).map_err(|error| failed(&error))?;
        }
        page.present().map_err(|error| failed(&error))?;
    }
    Ok(std::fs::write(place::out().join(name), text)?)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_panel(panel: &Panel, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let ends = (panel.end(|point| point.0), panel.end(|point| point.1));
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(38)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..ends.0, 0.0..ends.1)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(panel.x)
        .y_desc(panel.y)
        .draw()?;
    for (line, colour) in panel.lines.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(
                line.points.iter().copied(),
                colour.stroke_width(2),
            ))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(panel.legend.clone())
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}
