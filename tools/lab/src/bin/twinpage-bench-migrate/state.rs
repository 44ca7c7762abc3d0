// SPDX-License-Identifier: GPL-2.0

//! Guests whose whole state is kept in files, so that each method migrates the same one.

use std::fmt::Write;
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use sha2::{
    Digest,
    Sha256, //
};
use twinpage_lab::vmm::Vmm;

use crate::Failure;

/// How long QEMU may take to write a state.
const SAVES: Duration = Duration::from_secs(120);

/// How to make a guest, and what makes it another guest when it changes.
pub struct Recipe {
    /// Its name.
    pub name: &'static str,
    /// Arguments of QEMU, without its disk.
    pub arguments: Vec<String>,
    /// The image that its disk begins as.
    pub image: Option<PathBuf>,
    /// Its memory.
    pub memory_mib: usize,
    /// Everything else that it depends on.
    pub depends: String,
    /// Brings the running guest to where it is kept.
    pub prepare: fn(&mut Vmm) -> Result<(), Failure>,
}

/// The files of a guest.
#[derive(Clone, Debug)]
pub struct State {
    /// Arguments of QEMU, without its disk.
    pub arguments: Vec<String>,
    /// What QEMU wrote when it migrated the guest into a file.
    pub stream: PathBuf,
    /// Its memory, as the guest sees it.
    pub ram: PathBuf,
    /// Its disk, if it has one.
    pub disk: Option<PathBuf>,
}

impl Recipe {
    /// The guest from the cache in `cache`, made first if it is not there.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn cook(&self, cache: &Path, scratch: &Path) -> Result<State, Failure> {
        let path = cache.join(format!("{}-{}", self.name, self.key()));
        let state = |directory: &Path| State {
            arguments: self.arguments.clone(),
            stream: directory.join("stream"),
            ram: directory.join("ram"),
            disk: self.image.as_ref().map(|_| directory.join("disk.qcow2")),
        };
        if path.is_dir() {
            return Ok(state(&path));
        }
        println!("making the guest {} (kept for later runs)", self.name);
        let making = cache.join(format!("{}.making", self.name));
        let _ = fs::remove_dir_all(&making);
        fs::create_dir_all(&making)?;
        self.make(&state(&making), scratch)?;
        self.forget_older(cache)?;
        fs::rename(&making, &path)?;
        Ok(state(&path))
    }

    fn make(&self, state: &State, scratch: &Path) -> Result<(), Failure> {
        let mut arguments = self.arguments.clone();
        if let (Some(image), Some(disk)) = (&self.image, &state.disk) {
            overlay(image, "raw", disk)?;
            arguments.extend(disk_arguments(disk));
        }
        let mut guest = Vmm::start(scratch, self.name, &arguments)?;
        if let Err(error) = (self.prepare)(&mut guest) {
            println!("{}", guest.log());
            return Err(error);
        }
        guest.qmp.run("stop", json!({}))?;
        let all = json!({ "val": 0, "size": self.memory_mib << 20, "filename": state.ram });
        guest.qmp.run("pmemsave", all)?;
        guest.qmp.capabilities(&["events"])?;
        let parameters = json!({ "max-bandwidth": crate::run::NO_LIMIT });
        guest.qmp.run("migrate-set-parameters", parameters)?;
        let uri = format!("file:{}", state.stream.display());
        guest.qmp.run("migrate", json!({ "uri": uri }))?;
        loop {
            let event = guest.qmp.event(&["MIGRATION"], SAVES)?;
            match event.data["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed") => return Err("QEMU cannot save the guest".into()),
                _ => {}
            }
        }
    }

    fn forget_older(&self, cache: &Path) -> Result<(), Failure> {
        for entry in fs::read_dir(cache)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let same = name
                .rsplit_once('-')
                .is_some_and(|(name, _)| name == self.name);
            if same {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    fn key(&self) -> String {
        let mut hash = Sha256::new();
        for word in self.arguments.iter().chain([&self.depends]) {
            hash.update(word);
            hash.update([0]);
        }
        if let Some(image) = &self.image {
            hash.update(image.to_string_lossy().as_bytes());
        }
        hex(&hash.finalize()[..6])
    }
}

impl State {
    /// Arguments of a QEMU that has the guest's disk as it is in `disk`.
    pub fn arguments(&self, disk: Option<&Path>) -> Vec<String> {
        let mut arguments = self.arguments.clone();
        arguments.extend(disk.map(disk_arguments).into_iter().flatten());
        arguments
    }

    /// A disk that begins as the guest's, at `path`; none when the guest has none.
    ///
    /// # Errors
    ///
    /// `qemu-img` fails.
    pub fn fresh_disk(&self, path: &Path) -> Result<Option<PathBuf>, Failure> {
        let Some(disk) = &self.disk else {
            return Ok(None);
        };
        overlay(disk, "qcow2", path)?;
        Ok(Some(path.to_owned()))
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn disk_arguments(disk: &Path) -> Vec<String> {
    let drive = format!(
        "file={},if=none,id=disk,format=qcow2,cache=unsafe",
        disk.display()
    );
    ["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]
        .map(str::to_owned)
        .to_vec()
}

/// Makes a disk at `path` that holds only what differs from `base`.
fn overlay(base: &Path, format: &str, path: &Path) -> Result<(), Failure> {
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", format, "-b"])
        .args([base, path])
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("qemu-img create {}: {status}", path.display()).into()),
    }
}
