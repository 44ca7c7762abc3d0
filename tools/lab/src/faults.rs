// SPDX-License-Identifier: GPL-2.0

//! Settings of the kernel's fault injection (`Documentation/fault-injection` of the kernel), for as
//! long as somebody wants them.

use std::fs;
use std::io;
use std::path::{
    Path,
    PathBuf, //
};

/// Where they are.
const DEBUGFS: &str = "/sys/kernel/debug";

/// The kinds of allocations that can.
pub const KINDS: [&str; 2] = ["failslab", "fail_page_alloc"];

/// Lets every kind of allocation fail, quietly; by themselves those that may sleep or be in high
/// memory, as pages of processes are, do not.
pub const EVERY_KIND: &[(&str, &str)] = &[
    ("failslab/ignore-gfp-wait", "N"),
    ("failslab/verbose", "0"),
    ("fail_page_alloc/ignore-gfp-wait", "N"),
    ("fail_page_alloc/ignore-gfp-highmem", "N"),
    ("fail_page_alloc/min-order", "0"),
    ("fail_page_alloc/verbose", "0"),
];

/// Whether this kernel can let allocations fail. All debug kernels of ours can.
pub fn possible() -> bool {
    Path::new(DEBUGFS).join("failslab").exists()
}

/// A setting that is a number.
///
/// # Errors
///
/// The kernel has no such setting, or it is no number.
pub fn number(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(Path::new(DEBUGFS).join(name))?;
    let number = text.trim_end().parse();
    number.map_err(|_| io::Error::other(format!("{name} is no number: '{text}'")))
}

/// Settings that were changed; they are as they were when it goes.
pub struct Changed(Vec<(PathBuf, String)>);

impl Changed {
    /// Changes settings, one after the other.
    ///
    /// # Errors
    ///
    /// The kernel has no such setting; then all are as they were.
    pub fn to<'a>(settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> io::Result<Changed> {
        Changed::below(Path::new(DEBUGFS), settings)
    }

    fn below<'a>(
        directory: &Path,
        settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> io::Result<Changed> {
        let mut changed = Changed(Vec::new());
        for (name, value) in settings {
            let path = directory.join(name);
            let found = fs::read_to_string(&path).and_then(|found| {
                fs::write(&path, value)?;
                Ok(found)
            });
            let found = found.map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?;
            changed.0.push((path, found));
        }
        Ok(changed)
    }

    /// Leaves them changed.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        for (path, found) in self.0.iter().rev() {
            // What could be written a moment ago can be written again.
            let _ = fs::write(path, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_put_back_as_they_were_found() -> io::Result<()> {
        let directory = std::env::temp_dir().join(format!("faults-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let read = |name: &str| fs::read_to_string(directory.join(name));
        fs::write(directory.join("a"), "Y\n")?;
        fs::write(directory.join("b"), "7\n")?;

        let changed = Changed::below(&directory, [("a", "N"), ("b", "1"), ("b", "2")])?;
        assert_eq!((read("a")?, read("b")?), ("N".into(), "2".into()));
        drop(changed);
        assert_eq!((read("a")?, read("b")?), ("Y\n".into(), "7\n".into()));

        assert!(Changed::below(&directory, [("a", "N"), ("none", "1")]).is_err());
        assert_eq!(read("a")?, "Y\n");
        Changed::below(&directory, [("a", "N")])?.keep();
        assert_eq!(read("a")?, "N");
        fs::remove_dir_all(directory)
    }
}
