// SPDX-License-Identifier: GPL-2.0

//! A control group of the second version, with the memory controller.

use std::fs;
use std::path::Path;

use crate::process::field;
use crate::tap::Failure;

/// A control group that goes with the value, once nobody is in it.
pub struct Group(String);

impl Group {
    /// Makes it, or takes the one that is there.
    ///
    /// # Errors
    ///
    /// [`Failure::Skipped`] where there is no memory controller.
    pub fn new(name: &str) -> Result<Group, Failure> {
        let root = "/sys/fs/cgroup";
        let enabled = fs::write(format!("{root}/cgroup.subtree_control"), "+memory");
        if let Err(error) = enabled {
            return Err(Failure::Skipped(format!("no memory controller: {error}")));
        }
        let path = format!("{root}/{name}");
        if !Path::new(&path).exists() {
            fs::create_dir(&path)?;
        }
        Ok(Group(path))
    }

    /// Writes one of its files.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set(&self, name: &str, value: impl ToString) -> std::io::Result<()> {
        fs::write(format!("{}/{name}", self.0), value.to_string())
    }

    /// The number in one of its files.
    ///
    /// # Errors
    ///
    /// The kernel's, or the file has something else.
    pub fn number(&self, name: &str) -> Result<u64, Failure> {
        let text = fs::read_to_string(format!("{}/{name}", self.0))?;
        text.trim()
            .parse()
            .map_err(|_| Failure::Failed(format!("{name} is '{text}'")))
    }

    /// How often something happened, from `memory.events`.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn event(&self, name: &str) -> Result<u64, Failure> {
        Ok(field(&format!("{}/memory.events", self.0), name)?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The processes in it may take a moment to be gone; an empty group costs nothing.
        let _ = fs::remove_dir(&self.0);
    }
}
