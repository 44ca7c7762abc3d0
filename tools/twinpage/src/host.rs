// SPDX-License-Identifier: GPL-2.0

//! The seam between the tool and the machine.
//!
//! Every file that the tool reads or writes goes through [`Host`], below its root directory; every
//! other system call through [`Kernel`] and [`Clock`]. Tests give it a tree of fixtures, a kernel
//! that answers as they like and a clock that does not wait.
//!
//! What files say is not trusted: every read has a bound.

use std::ffi::OsString;
use std::fs::{
    self,
    File, //
};
use std::io::{
    self,
    Read, //
};
use std::os::unix::fs::PermissionsExt;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Arc;

use crate::clock::{
    Clock,
    SystemClock, //
};
use crate::device::{
    Device,
    Kernel,
    Process,
    Running, //
};
use crate::leave::leave;
use crate::process::Pid;

/// A file could not be used.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {action} {}", path.display())]
pub struct FileError {
    /// What was tried, as a verb.
    action: &'static str,
    /// Path as the user knows it.
    path: PathBuf,
    /// Why not.
    source: io::Error,
}

impl FileError {
    /// An error in `action` on `path`.
    pub fn new(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        Self {
            action,
            path,
            source,
        }
    }

    /// What kind of error it is.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// The number of the error.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Whether the process or VM that the file belonged to is gone.
    pub fn is_gone(&self) -> bool {
        use rustix::io::Errno;
        let gone = [Errno::NOENT, Errno::SRCH, Errno::NODEV, Errno::NXIO];
        self.raw_os_error()
            .is_some_and(|number| gone.iter().any(|errno| errno.raw_os_error() == number))
    }
}

/// The machine, as the tool sees it. A clone is the same machine, for another thread.
#[derive(Clone)]
pub struct Host {
    /// The directory that stands for `/`.
    root: PathBuf,
    /// System calls.
    kernel: Arc<dyn Kernel>,
    /// Time.
    clock: Arc<dyn Clock>,
}

impl Host {
    /// The machine that this program runs on.
    pub fn running() -> Self {
        Self::new("/", Arc::new(Running), Arc::<SystemClock>::default())
    }

    /// A machine whose files are below `root`.
    pub fn new(root: impl Into<PathBuf>, kernel: Arc<dyn Kernel>, clock: Arc<dyn Clock>) -> Self {
        let root = root.into();
        Self {
            root,
            kernel,
            clock,
        }
    }

    /// Time of this machine.
    pub fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }

    /// Whether something is at `path`.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.under_root(path.as_ref()).exists()
    }

    /// Opens `path` for reading.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<File, FileError> {
        let path = path.as_ref();
        File::open(self.under_root(path)).map_err(|source| FileError::new("open", path, source))
    }

    /// Reads `path`, at most `limit` bytes. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is longer.
    pub fn read_text(&self, path: impl AsRef<Path>, limit: usize) -> Result<String, FileError> {
        let path = path.as_ref();
        let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        let mut bytes = Vec::new();
        self.open(path)?
            .take(bound)
            .read_to_end(&mut bytes)
            .map_err(|source| FileError::new("read", path, source))?;
        if bytes.len() > limit {
            let source = io::Error::other(format!("it is longer than {limit} bytes"));
            return Err(FileError::new("read", path, source));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The mode of `path`, if others than its owner may do anything with it.
    ///
    /// # Errors
    ///
    /// The file cannot be looked at.
    pub fn exposed(&self, path: &Path) -> Result<Option<u32>, FileError> {
        let meta = fs::metadata(self.under_root(path));
        let meta = meta.map_err(|source| FileError::new("look at", path, source))?;
        let mode = meta.permissions().mode() & 0o7777;
        Ok((mode & 0o077 != 0).then_some(mode))
    }

    /// Writes `text` to the existing file `path` in one call.
    ///
    /// # Errors
    ///
    /// The file cannot be opened or refuses the text.
    pub fn write(&self, path: impl AsRef<Path>, text: &str) -> Result<(), FileError> {
        let path = path.as_ref();
        let written = File::options()
            .write(true)
            .truncate(true)
            .open(self.under_root(path))
            .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
        written.map_err(|source| FileError::new("write", path, source))
    }

    /// Makes the file `path` with `text`, and its directory, which nobody else may look into.
    ///
    /// # Errors
    ///
    /// The file cannot be made, or somebody else could lead it elsewhere.
    pub fn leave(&self, path: &Path, text: &str) -> Result<(), FileError> {
        leave(&self.root, path, text).map_err(|source| FileError::new("write", path, source))
    }

    /// The names in directory `path`, in no order.
    ///
    /// # Errors
    ///
    /// The directory cannot be read.
    pub fn list(&self, path: impl AsRef<Path>) -> Result<Vec<OsString>, FileError> {
        let path = path.as_ref();
        fs::read_dir(self.under_root(path))
            .and_then(|entries| entries.map(|entry| entry.map(|e| e.file_name())).collect())
            .map_err(|source| FileError::new("list", path, source))
    }

    /// Where the symbolic link `path` points.
    ///
    /// # Errors
    ///
    /// It is not a link or cannot be read.
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf, FileError> {
        let path = path.as_ref();
        fs::read_link(self.under_root(path)).map_err(|source| FileError::new("read", path, source))
    }

    /// Opens the device node `path`.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn open_device(&self, path: &Path) -> Result<Box<dyn Device>, FileError> {
        self.kernel
            .open_device(&self.under_root(path))
            .map_err(|source| FileError::new("open", path, source))
    }

    /// Takes hold of process `pid`.
    ///
    /// # Errors
    ///
    /// See [`Kernel::hold`].
    pub fn hold(&self, pid: Pid) -> io::Result<Box<dyn Process>> {
        self.kernel.hold(pid)
    }

    /// See [`Kernel::output_takes`].
    pub fn output_takes(&self) -> bool {
        self.kernel.output_takes()
    }

    /// The path that stands for the absolute path `path`.
    fn under_root(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}
