// SPDX-License-Identifier: GPL-2.0

//! Writes an initramfs (cpio "newc", `Documentation/driver-api/early-userspace/` of the kernel).

/// An archive in the making.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

/// File types, as in `st_mode`.
const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER: u32 = 0o020_000;

impl Archive {
    /// Adds a directory.
    pub fn directory(mut self, name: &str) -> Archive {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[]);
        self
    }

    /// Adds an executable file.
    pub fn file(mut self, name: &str, content: &[u8]) -> Archive {
        self.entry(name, FILE | 0o755, (0, 0), content);
        self
    }

    /// Adds a character device.
    pub fn device(mut self, name: &str, major: u32, minor: u32) -> Archive {
        self.entry(name, CHARACTER | 0o600, (major, minor), &[]);
        self
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_closed() {
        let bytes = Archive::default()
            .directory("dev")
            .file("init", b"abc")
            .finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("TRAILER!!!") && text.contains("abc"));
    }
}
