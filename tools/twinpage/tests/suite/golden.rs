// SPDX-License-Identifier: GPL-2.0

//! Comparison with files of expected output.

use std::fs;
use std::path::Path;

/// First line of every golden file.
const LICENSE: &str = "SPDX-License-Identifier: GPL-2.0\n";

/// Compares `text` with the file `name`, or writes that with `TWINPAGE_BLESS` set.
pub fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(format!("{name}.golden"));
    let actual = format!("{LICENSE}{text}");
    if std::env::var_os("TWINPAGE_BLESS").is_some() {
        fs::write(&path, &actual).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        actual == expected,
        "{name} differs (accept it with TWINPAGE_BLESS=1):\n{expected}--- is now\n{actual}"
    );
}
