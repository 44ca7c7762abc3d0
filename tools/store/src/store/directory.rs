// SPDX-License-Identifier: GPL-2.0

//! The directory of a store: its files, who may touch them, and who writes.

use std::fs::{
    self,
    DirBuilder,
    File,
    OpenOptions, //
};
use std::io::{
    self,
    Read,
    Write, //
};
use std::os::unix::fs::{
    DirBuilderExt,
    OpenOptionsExt,
    PermissionsExt, //
};
use std::path::{
    Path,
    PathBuf, //
};

use rustix::fs::{
    flock,
    FlockOperation,
    OFlags, //
};
use rustix::io::Errno;
use sha2::{
    Digest as _,
    Sha256, //
};

use crate::error::Error;

/// Permission bits of everybody but the owner.
const OTHERS: u32 = 0o077;

/// File that a writer locks.
const LOCK: &str = "lock";

/// File of the secret key.
const KEY: &str = "key";

/// File that names all others.
const MANIFEST: &str = "manifest";

/// The next manifest until it replaces the old one.
const NEXT_MANIFEST: &str = "manifest.new";

/// What there is of a store before its first manifest.
const BEGUN: [&str; 3] = [LOCK, KEY, NEXT_MANIFEST];

/// What the files are that have a number in their name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Digest to slot.
    Index,
    /// One page a slot.
    Pages,
    /// Day of last use, by slot.
    Used,
    /// Tags of pages that are not admitted yet.
    Candidates,
}

/// The directory of a store.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    lock: Option<File>,
}

impl Part {
    /// All of them.
    const ALL: [Self; 4] = [Self::Index, Self::Pages, Self::Used, Self::Candidates];

    /// What its files are called.
    fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Pages => "pages",
            Self::Used => "used",
            Self::Candidates => "candidates",
        }
    }
}

/// The number of a file whose name is that of a part.
fn numbered(name: &str) -> Option<(Part, u64)> {
    let (part, number) = name.split_once('-')?;
    let part = Part::ALL.into_iter().find(|known| known.name() == part)?;
    Some((part, number.parse().ok()?))
}

impl Directory {
    /// Makes the directory of a new store, with a key. It may be there, empty or as somebody left it
    /// who was killed while he made it.
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mut names = Vec::new();
                for entry in fs::read_dir(path).map_err(Error::file("read", path))? {
                    names.push(entry.map_err(Error::file("read", path))?.file_name());
                }
                // The lock is made first, so files without it are somebody else's.
                let begun = names.iter().all(|name| BEGUN.iter().any(|one| name == one))
                    && names.iter().any(|name| name == LOCK);
                if !names.is_empty() && !begun {
                    return Err(Error::Exists(path.to_owned()));
                }
                let private = fs::Permissions::from_mode(0o700);
                fs::set_permissions(path, private).map_err(Error::file("close to others", path))?;
            }
            made => made.map_err(Error::file("make", path))?,
        }
        let mut directory = Self {
            path: path.to_owned(),
            lock: None,
        };
        directory.lock()?;
        let manifest = directory.manifest_path();
        // Whoever had the lock before may have made one.
        if manifest
            .try_exists()
            .map_err(Error::file("look at", &manifest))?
        {
            return Err(Error::Exists(path.to_owned()));
        }
        let mut key = [0; 32];
        File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut key))
            .map_err(Error::file("read", Path::new("/dev/urandom")))?;
        let at = directory.path.join(KEY);
        remove(&at)?;
        let mut file = directory.make(&at)?;
        file.write_all(&key).map_err(Error::file("write", &at))?;
        file.sync_all().map_err(Error::file("write", &at))?;
        Ok(directory)
    }

    /// Opens the directory of a store, which must be private.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let meta = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoStore(path.to_owned()))
            }
            meta => meta.map_err(Error::file("look at", path))?,
        };
        let manifest = path.join(MANIFEST);
        if !meta.is_dir()
            || !manifest
                .try_exists()
                .map_err(Error::file("look at", &manifest))?
        {
            return Err(Error::NoStore(path.to_owned()));
        }
        for private in [path.to_owned(), path.join(KEY)] {
            let meta = fs::metadata(&private).map_err(Error::file("look at", &private))?;
            let mode = meta.permissions().mode() & 0o7777;
            if mode & OTHERS != 0 {
                return Err(Error::Permissions {
                    path: private,
                    mode,
                });
            }
        }
        Ok(Self {
            path: path.to_owned(),
            lock: None,
        })
    }

    /// Becomes the one writer.
    pub(super) fn lock(&mut self) -> Result<(), Error> {
        let path = self.path.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            // CAST: The flag is far below the sign.
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(Error::Locked(self.path.clone())),
            Err(errno) => Err(Error::file("lock", &path)(errno)),
            Ok(()) => {
                self.lock = Some(file);
                Ok(())
            }
        }
    }

    /// Where the store is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses what only the writer may do.
    pub(super) fn check_writer(&self) -> Result<(), Error> {
        match self.lock {
            Some(_) => Ok(()),
            None => Err(Error::ReadOnly(self.path.clone())),
        }
    }

    /// Where a file with a number is.
    pub(super) fn part(&self, part: Part, number: u64) -> PathBuf {
        self.path.join(format!("{}-{number}", part.name()))
    }

    /// The secret key.
    pub(super) fn key(&self) -> Result<[u8; 32], Error> {
        let path = self.path.join(KEY);
        let bytes = self.read(KEY, 33)?;
        bytes.try_into().map_err(|bytes: Vec<u8>| {
            Error::damaged(&path, format!("it has {} bytes instead of 32", bytes.len()))
        })
    }

    /// The manifest, of at most `limit` bytes.
    pub(super) fn manifest(&self, limit: u64) -> Result<Vec<u8>, Error> {
        self.read(MANIFEST, limit)
    }

    /// Where the manifest is.
    pub(super) fn manifest_path(&self) -> PathBuf {
        self.path.join(MANIFEST)
    }

    /// Puts another manifest in the place of the old one, all or nothing.
    pub(super) fn replace_manifest(&self, bytes: &[u8]) -> Result<(), Error> {
        let next = self.path.join(NEXT_MANIFEST);
        remove(&next)?;
        let mut file = self.make(&next)?;
        file.write_all(bytes).map_err(Error::file("write", &next))?;
        file.sync_all().map_err(Error::file("write", &next))?;
        self.sync()?;
        let manifest = self.manifest_path();
        fs::rename(&next, &manifest).map_err(Error::file("replace", &manifest))?;
        self.sync()
    }

    /// Makes a file that nobody else can read.
    pub(super) fn make(&self, path: &Path) -> Result<File, Error> {
        OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(Error::file("make", path))
    }

    /// Removes files with numbers that `keep` does not want: what crashes and old states left.
    pub(super) fn sweep(&self, keep: impl Fn(Part, u64) -> bool) -> Result<(), Error> {
        let entries = fs::read_dir(&self.path).map_err(Error::file("read", &self.path))?;
        for entry in entries {
            let entry = entry.map_err(Error::file("read", &self.path))?;
            let name = entry.file_name();
            match name.to_str().and_then(numbered) {
                Some((part, number)) if !keep(part, number) => remove(&entry.path())?,
                _ => (),
            }
        }
        Ok(())
    }

    /// Waits until names that were made or changed are on the disk.
    pub(super) fn sync(&self) -> Result<(), Error> {
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .map_err(Error::file("write", &self.path))
    }

    /// Reads a file of at most `limit` bytes.
    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let path = self.path.join(name);
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes))
            .map_err(Error::file("read", &path))?;
        if bytes.len() as u64 > limit {
            return Err(Error::damaged(
                &path,
                format!("it is longer than {limit} bytes"),
            ));
        }
        Ok(bytes)
    }
}

impl Drop for Directory {
    /// Lets another process write, even if this one started one that has not closed what it
    /// inherited yet.
    fn drop(&mut self) {
        if let Some(lock) = &self.lock {
            // Closing the file is the other way to the same end.
            let _ = flock(lock, FlockOperation::Unlock);
        }
    }
}

/// Removes a file that may be gone.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::file("remove", path)),
    }
}

/// SHA-256 of all of `file`.
pub(super) fn checksum(file: &File, path: &Path) -> Result<[u8; 32], Error> {
    use std::os::unix::fs::FileExt;
    let mut hash = Sha256::new();
    let mut bytes = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        match file
            .read_at(&mut bytes, at)
            .map_err(Error::file("read", path))?
        {
            0 => return Ok(hash.finalize().into()),
            count => {
                hash.update(&bytes[..count]);
                at += count as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_store_have_numbers() {
        assert_eq!(numbered("index-7"), Some((Part::Index, 7)));
        assert_eq!(numbered("candidates-12"), Some((Part::Candidates, 12)));
        for other in [
            "index",
            "index-",
            "index-x",
            "key",
            "lock",
            "manifest",
            "indexes-1",
        ] {
            assert_eq!(numbered(other), None, "{other}");
        }
    }
}
