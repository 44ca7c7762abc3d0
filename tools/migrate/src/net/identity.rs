// SPDX-License-Identifier: GPL-2.0

//! Who this side is, and whom it believes: a pre-shared key, or certificates.

use std::fmt;
use std::fs::{
    File,
    OpenOptions, //
};
use std::io::{
    self,
    Read,
    Write, //
};
use std::os::unix::fs::{
    MetadataExt,
    OpenOptionsExt, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Arc;

use ring::hkdf::{
    Salt,
    HKDF_SHA256, //
};
use ring::rand::{
    SecureRandom,
    SystemRandom, //
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer,
    CertificateRevocationListDer,
    PrivateKeyDer,
    ServerName, //
};
use rustls::RootCertStore;
use zeroize::Zeroizing;

use super::Error;

/// The longest file of an identity that is read.
const MAX_FILE: u64 = 4 << 20;

/// What the line with the key starts with.
const KEY_PREFIX: &str = "twinpage-key-1 ";

/// What a file with a key is called in messages.
const KEY_FILE: &str = "key file of twinpage";

/// How a link is secured; both sides need the same kind.
#[derive(Clone, Debug)]
pub enum Security {
    /// Not at all: plain text with whoever connects.
    Insecure,
    /// TLS 1.3 with everybody who has the same key.
    Psk(Psk),
    /// TLS 1.3 with everybody whose certificate is signed by one of the given authorities.
    Certificates(Arc<Certificates>),
}

/// A pre-shared key: 256 random bits.
#[derive(Clone)]
pub struct Psk(Zeroizing<[u8; 32]>);

impl Psk {
    /// A new random key.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: the kernel gives no random numbers.
    pub fn generate() -> Result<Self, Error> {
        let mut key = Zeroizing::new([0; 32]);
        SystemRandom::new()
            .fill(&mut key[..])
            .map_err(|_| Error::io("get random numbers", io::ErrorKind::Other.into()))?;
        Ok(Self(key))
    }

    /// Reads the key in the file at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: it cannot be read; [`Error::Exposed`]: others than the owner may read or
    /// write it; [`Error::BadFile`]: it does not hold one key.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = read_secret(path)?;
        let text = std::str::from_utf8(&text)
            .map_err(|_| Error::file(path, KEY_FILE, "it is not text"))?;
        Self::parse(text).map_err(|reason| Error::file(path, KEY_FILE, reason))
    }

    /// Reads the text of a key file: comments and one line with the key.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let line = lines.next().ok_or("it holds no key")?;
        if lines.next().is_some() {
            return Err("it holds more than one line that is no comment");
        }
        let hex = line
            .strip_prefix(KEY_PREFIX)
            .ok_or("its line does not start with \"twinpage-key-1 \"")?;
        Self::from_hex(hex.trim()).ok_or("the key is not 64 hexadecimal digits")
    }

    /// The key that `hex` spells, if it has 64 digits.
    fn from_hex(hex: &str) -> Option<Self> {
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut key = Zeroizing::new([0; 32]);
        for (byte, pair) in key.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).ok()?;
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        Some(Self(key))
    }

    /// 32 bytes that follow from the key and `purpose`, and tell nothing about either.
    pub(super) fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let mut out = Zeroizing::new([0; 32]);
        let filled = Salt::new(HKDF_SHA256, b"twinpage-migrate 1")
            .extract(&self.0[..])
            .expand(&[purpose.as_bytes()], HKDF_SHA256)
            .and_then(|key| key.fill(&mut out[..]));
        // PANIC: HKDF refuses only outputs of more than 255 hashes, and this is one.
        filled.expect("HKDF gives 32 bytes");
        out
    }

    /// 16 digits by which people can see that two files hold the same key.
    ///
    /// They tell nothing about the key.
    pub fn fingerprint(&self) -> String {
        hex(&self.derive("fingerprint")[..8]).to_string()
    }

    /// The text of a file with this key.
    fn file_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(256));
        text.push_str("# Key of twinpage migrate. Who has it can be either side of a migration.\n");
        text.push_str("# Fingerprint: ");
        text.push_str(&self.fingerprint());
        text.push('\n');
        text.push_str(KEY_PREFIX);
        text.push_str(&hex(&self.0[..]));
        text.push('\n');
        text
    }
}

impl fmt::Debug for Psk {
    /// The fingerprint; the key itself is never shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Psk({})", self.fingerprint())
    }
}

/// Bytes as hexadecimal digits, in memory that is overwritten in the end.
fn hex(bytes: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(2 * bytes.len()));
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(digit.into(), 16));
        }
    }
    text
}

/// Writes a new random key to a new file at `path`, which only the owner may read.
///
/// # Errors
///
/// [`Error::Io`]: the file exists or cannot be written.
pub fn write_key(path: &Path) -> Result<Psk, Error> {
    let key = Psk::generate()?;
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(key.file_text().as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| Error::io(format!("write a key to {}", path.display()), source))?;
    Ok(key)
}

/// The PEM files of a certificate identity.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// Certificates of the authorities that may sign the peer's.
    pub ca: PathBuf,
    /// This side's certificate, then the ones between it and the authority, if any.
    pub certificate: PathBuf,
    /// The private key of this side's certificate.
    pub key: PathBuf,
    /// Revocation lists of the authorities.
    pub revoked: Option<PathBuf>,
    /// The name that the peer's certificate must have. If none is said, whoever connects must
    /// find the host that it connects to in it, and whoever listens takes any.
    pub peer_name: Option<String>,
}

/// Certificates that were read.
pub struct Certificates {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) revoked: Vec<CertificateRevocationListDer<'static>>,
    pub(super) peer_name: Option<ServerName<'static>>,
}

impl fmt::Debug for Certificates {
    /// How many; never the private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates")
            .field("authorities", &self.roots.len())
            .field("chain", &self.chain.len())
            .field("revocation_lists", &self.revoked.len())
            .field("peer_name", &self.peer_name)
            .finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: a file cannot be read; [`Error::Exposed`]: others may read the private key;
    /// [`Error::BadFile`]: a file holds something else than it should; [`Error::Address`]: the
    /// peer's name cannot be the name of a host.
    pub fn load(files: &CertificateFiles) -> Result<Arc<Self>, Error> {
        let mut roots = RootCertStore::empty();
        for root in pem_list(&files.ca, "file of certificates", read_file(&files.ca)?)? {
            roots
                .add(root)
                .map_err(|error| Error::file(&files.ca, "file of authorities", error))?;
        }
        let chain = pem_list(
            &files.certificate,
            "file of certificates",
            read_file(&files.certificate)?,
        )?;
        let secret = read_secret(&files.key)?;
        let key = PrivateKeyDer::from_pem_slice(&secret)
            .map_err(|error| Error::file(&files.key, "file of a private key", error))?;
        let revoked = match &files.revoked {
            Some(path) => pem_list(path, "file of revocation lists", read_file(path)?)?,
            None => Vec::new(),
        };
        let peer_name = match &files.peer_name {
            Some(name) => Some(server_name(name)?),
            None => None,
        };
        Ok(Arc::new(Self {
            roots: Arc::new(roots),
            chain,
            key,
            revoked,
            peer_name,
        }))
    }
}

/// The name of a host as a certificate has it.
pub(super) fn server_name(host: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| Error::address(host, "no certificate can be for this name"))
}

/// All items of one kind in a PEM file; at least one.
fn pem_list<T: PemObject>(path: &Path, what: &'static str, text: Vec<u8>) -> Result<Vec<T>, Error> {
    let items = T::pem_slice_iter(&text)
        .collect::<Result<Vec<T>, _>>()
        .map_err(|error| Error::file(path, what, error))?;
    match items.is_empty() {
        true => Err(Error::file(path, what, "it holds none in PEM form")),
        false => Ok(items),
    }
}

/// What the file at `path` says, if it is not too long.
fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let file = open(path)?;
    read_open(path, &file, Vec::new())
}

/// What the file at `path` says, if nobody but its owner may read or write it.
fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let file = open(path)?;
    let metadata = file
        .metadata()
        .map_err(|source| Error::io(format!("look at {}", path.display()), source))?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let path = path.to_owned();
        return Err(Error::Exposed { path, mode });
    }
    // A buffer that is large enough never moves, so that no copy of the secret stays behind.
    let room = metadata.len().min(MAX_FILE) + 1;
    let buffer = Vec::with_capacity(usize::try_from(room).unwrap_or(0));
    read_open(path, &file, buffer).map(Zeroizing::new)
}

/// Opens a file for reading.
fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::io(format!("open {}", path.display()), source))
}

/// Reads an open file to its end, or to the limit.
fn read_open(path: &Path, file: &File, mut buffer: Vec<u8>) -> Result<Vec<u8>, Error> {
    file.take(MAX_FILE + 1)
        .read_to_end(&mut buffer)
        .map_err(|source| Error::io(format!("read {}", path.display()), source))?;
    match buffer.len() as u64 > MAX_FILE {
        true => Err(Error::file(
            path,
            "file of an identity",
            "it is longer than 4 MiB",
        )),
        false => Ok(buffer),
    }
}
