// SPDX-License-Identifier: GPL-2.0

//! The stores of canonical pages that the destination has.

use std::fs;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Command,
    Stdio, //
};

use sha2::{
    Digest,
    Sha256, //
};
use twinpage_lab::place;

use crate::state::{
    hex,
    State, //
};
use crate::Failure;

/// What a store was built from.
pub enum Seen {
    /// A guest's memory, as it is when it migrates: a copy that an earlier migration left, or a
    /// guest that holds the same.
    Guest(State),
    /// The public image, and what two other guests of it have in common.
    Others {
        /// The image.
        image: PathBuf,
        /// The guests.
        guests: [State; 2],
    },
}

/// A store, built when it is not in the cache.
///
/// # Errors
///
/// It cannot be built.
pub fn build(cache: &Path, seen: &Seen) -> Result<PathBuf, Failure> {
    let (name, steps) = match seen {
        Seen::Guest(state) => {
            // One owner's copy is not enough for a page to be admitted: it counts as two.
            let one = |owner| vec!["--dump".to_owned(), text(&state.ram), "--as".into(), owner];
            (
                "store-ideal",
                vec![one("first".into()), one("second".into())],
            )
        }
        Seen::Others { image, guests } => (
            "store-realistic",
            vec![
                vec!["--raw-image".into(), text(image), "--public".into()],
                vec!["--dump".into(), text(&guests[0].ram), text(&guests[1].ram)],
            ],
        ),
    };
    let mut hash = Sha256::new();
    steps.iter().flatten().for_each(|word| hash.update(word));
    let path = cache.join(format!("{name}-{}", hex(&hash.finalize()[..6])));
    if path.is_dir() {
        return Ok(path);
    }
    println!("building {name} (kept for later runs)");
    let making = cache.join(format!("{name}.making"));
    let _ = fs::remove_dir_all(&making);
    for step in &steps {
        let status = Command::new(place::tool())
            .args(["store", "build", "--quiet", "--store"])
            .arg(&making)
            .args(step)
            .stdin(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(format!("twinpage store build: {status}").into());
        }
    }
    fs::rename(&making, &path)?;
    Ok(path)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
