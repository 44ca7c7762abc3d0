// SPDX-License-Identifier: GPL-2.0

//! What the engine costs, beside what others do.
//!
//! `cargo bench -p twinpage-engine [NAME...]` runs the groups whose name contains one of `NAME`.
//! Each number is the best time of several runs. With `--counted` it is called instructions, for a
//! machine on which each takes a nanosecond (`make bench`).

mod hashes;
mod report;
mod searches;
mod steps;

use report::Report;

type Group = fn(&Report);

fn main() {
    let (options, wanted): (Vec<_>, Vec<_>) = std::env::args()
        .skip(1)
        .partition(|argument| argument.starts_with('-'));
    let counted = options.iter().any(|option| option == "--counted");
    let report = Report {
        unit: if counted { "instructions" } else { "ns" },
    };
    let groups: [(&str, Group); 3] = [
        ("hashes", hashes::hashes),
        ("searches", searches::searches),
        ("steps", steps::steps),
    ];
    for (name, group) in groups {
        if wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str())) {
            group(&report);
        }
    }
}
