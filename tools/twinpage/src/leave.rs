// SPDX-License-Identifier: GPL-2.0

//! Files that are left for later runs, in directories that may be in others' reach.
//!
//! Whoever owns a directory, or may write to it, can put a link to any file there, and this program
//! runs as root. So no link is followed, and no directory is used that somebody else can change.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{
    self,
    Write, //
};
use std::os::fd::OwnedFd;
use std::path::{
    Component,
    Path, //
};

use rustix::fs::{
    fstat,
    mkdirat,
    open,
    openat,
    Mode,
    OFlags, //
};
use rustix::io::Errno;
use rustix::process::geteuid;

/// How directories are opened.
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// How the file is opened.
const FILE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::TRUNC)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Permissions that let others change a directory.
const OTHERS_WRITE: Mode = Mode::WGRP.union(Mode::WOTH);

/// Makes the file `path` below `root` with `text`, for its owner alone, and the directories on the
/// way to it.
///
/// # Errors
///
/// A directory on the way is a link, or belongs to another user, or others may write to it; or the
/// file is a link; or it cannot be made.
pub fn leave(root: &Path, path: &Path, text: &str) -> io::Result<()> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut directory = open(root, DIRECTORY, Mode::empty())?;
    for component in parent.components() {
        let Component::Normal(name) = component else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        directory = below(&directory, name)?;
    }
    let file = openat(&directory, name, FILE, Mode::RUSR | Mode::WUSR)?;
    File::from(file).write_all(text.as_bytes())
}

/// The directory `name` in `parent`, made if there is none.
fn below(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let enter = || openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
    let directory = match enter() {
        Err(Errno::NOENT) => {
            mkdirat(parent, name, Mode::RWXU)?;
            enter()?
        }
        entered => entered?,
    };
    let stat = fstat(&directory)?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    match stat.st_uid == geteuid().as_raw() && !mode.intersects(OTHERS_WRITE) {
        true => Ok(directory),
        false => Err(io::Error::other("others may change its directory")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{
        self,
        Permissions, //
    };
    use std::os::unix::fs::{
        chown,
        symlink,
        PermissionsExt, //
    };

    use super::*;

    /// A root with the directory `/a/b`.
    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "a/b"] {
            let path = root.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        }
        root
    }

    /// The mode of `path`.
    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_left_is_for_its_owner() {
        let root = root();
        for (path, text) in [("/a/b/f", "long"), ("/a/b/f", "new"), ("/a/x/y/f", "deep")] {
            leave(root.path(), Path::new(path), text).unwrap();
            let there = root.path().join(&path[1..]);
            assert_eq!(fs::read_to_string(&there).unwrap(), text);
            assert_eq!(mode(&there), 0o600);
        }
        assert_eq!(mode(&root.path().join("a/x")), 0o700);
    }

    #[test]
    fn links_are_not_followed() {
        let root = root();
        let victims = tempfile::tempdir().unwrap();
        let victim = victims.path().join("f");
        fs::write(&victim, "as before").unwrap();
        symlink(&victim, root.path().join("a/b/f")).unwrap();
        symlink(victims.path(), root.path().join("a/link")).unwrap();
        for path in ["/a/b/f", "/a/link/f", "/a/link/new/f"] {
            leave(root.path(), Path::new(path), "text").unwrap_err();
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "as before");
        assert_eq!(fs::read_dir(victims.path()).unwrap().count(), 1);
    }

    #[test]
    fn nothing_is_left_where_others_can_change_it() {
        for mode in [0o775, 0o757, 0o1777] {
            for name in ["a", "a/b"] {
                let root = root();
                fs::set_permissions(root.path().join(name), Permissions::from_mode(mode)).unwrap();
                leave(root.path(), Path::new("/a/b/f"), "text").unwrap_err();
                assert!(!root.path().join("a/b/f").exists());
            }
        }
    }

    #[test]
    fn nothing_is_left_in_directories_of_others() {
        if !geteuid().is_root() {
            return;
        }
        for name in ["a", "a/b"] {
            let root = root();
            chown(root.path().join(name), Some(1), None).unwrap();
            leave(root.path(), Path::new("/a/b/f"), "text").unwrap_err();
            assert!(!root.path().join("a/b/f").exists());
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let root = root();
        for path in ["/", "/a/../f", "/a/.."] {
            leave(root.path(), Path::new(path), "text").unwrap_err();
        }
    }
}
