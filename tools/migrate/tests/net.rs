// SPDX-License-Identifier: GPL-2.0

//! Links between two ends in this process, and what must not become a link.

use std::fs;
use std::io::{
    self,
    Read,
    Write, //
};
use std::net::{
    Shutdown,
    TcpListener,
    TcpStream, //
};
use std::num::NonZeroU64;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{
    UnixListener,
    UnixStream, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::sync::mpsc;
use std::sync::{
    Arc,
    Mutex, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use rcgen::{
    BasicConstraints,
    CertificateParams,
    IsCa,
    KeyPair, //
};
use tempfile::TempDir;
use twinpage_migrate::net::{
    connect,
    listen_unix,
    write_key,
    Address,
    CertificateFiles,
    Certificates,
    Error,
    Limits,
    Link,
    Listener,
    Psk,
    RateLimit,
    Security, //
};

const QUICK: Limits = Limits {
    handshake: Duration::from_secs(5),
    silence: Duration::from_secs(5),
};

/// Limits that no test waits for.
const LONG: Limits = Limits {
    handshake: Duration::from_secs(60),
    silence: Duration::from_secs(60),
};

/// What ends within this time was not ended by [`LONG`], however busy the machine is.
const IN_TIME: Duration = Duration::from_secs(30);

fn local() -> Address {
    "127.0.0.1:0".parse().unwrap()
}

fn psk() -> Security {
    Security::Psk(Psk::generate().unwrap())
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(10))
}

fn listen(security: &Security) -> Listener {
    Listener::bind(&local(), security, QUICK, |_| {}).unwrap()
}

/// Both ends of a link over TCP.
fn pair(security: &Security) -> (Link, Link) {
    let listener = listen(security);
    let near = connect(listener.address(), security, QUICK).unwrap();
    (near, listener.accept(soon()).unwrap())
}

/// The near end of a link, which waits for `silence` at most. A busy machine may take longer than
/// that for the greeting already, so there are several tries.
fn near_end(listener: &Listener, security: &Security, silence: Duration) -> Link {
    let limits = Limits { silence, ..QUICK };
    let link = (0..20).find_map(|_| connect(listener.address(), security, limits).ok());
    link.expect("a link")
}

/// What the two sides say when they have different ideas of security.
fn mismatch(connector: &Security, waiting: &Security) -> (String, String) {
    let (sender, notes) = mpsc::channel();
    let note = move |_: &Error| sender.send(()).unwrap();
    let listener = Listener::bind(&local(), waiting, LONG, note).unwrap();
    let near = connect(listener.address(), connector, LONG);
    let near = near.err().expect("no link").chain();
    notes.recv_timeout(LONG.handshake).expect("a note");
    match listener.accept(Some(Instant::now())) {
        Err(Error::NoPeer { failed: 1, last }) => (near, last.unwrap()),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("a link"),
    }
}

/// Files of an authority and of certificates signed by it.
struct Authority {
    dir: TempDir,
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        Self {
            dir,
            certificate,
            key,
        }
    }

    /// The files of a certificate for `name`.
    fn issue(&self, name: &str, peer_name: Option<&str>) -> CertificateFiles {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params
            .signed_by(&key, &self.certificate, &self.key)
            .unwrap();
        let path = |end: &str| self.dir.path().join(format!("{name}.{end}"));
        fs::write(path("pem"), certificate.pem()).unwrap();
        fs::write(path("key"), key.serialize_pem()).unwrap();
        fs::set_permissions(path("key"), fs::Permissions::from_mode(0o600)).unwrap();
        CertificateFiles {
            ca: self.dir.path().join("ca.pem"),
            certificate: path("pem"),
            key: path("key"),
            revoked: None,
            peer_name: peer_name.map(str::to_owned),
        }
    }

    fn security(&self, name: &str, peer_name: Option<&str>) -> Security {
        Security::Certificates(Certificates::load(&self.issue(name, peer_name)).unwrap())
    }
}

/// Sends a text one way and back.
fn talk(near: Link, far: Link) {
    let (mut near_reader, mut near_writer) = near.split();
    let (mut far_reader, mut far_writer) = far.split();
    near_writer.write_all(b"ping").unwrap();
    near_writer.finish().unwrap();
    let mut text = String::new();
    far_reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "ping");
    far_writer.write_all(b"pong").unwrap();
    far_writer.finish().unwrap();
    text.clear();
    near_reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "pong");
}

#[test]
fn every_kind_of_security_carries_bytes_both_ways() {
    let authority = Authority::new();
    for (connector, waiting, shown) in [
        (Security::Insecure, Security::Insecure, "plain text"),
        {
            let psk = psk();
            (psk.clone(), psk, "TLS 1.3")
        },
        (
            authority.security("source.example", Some("target.example")),
            authority.security("target.example", Some("source.example")),
            "TLS 1.3",
        ),
        (
            authority.security("a.example", Some("b.example")),
            authority.security("b.example", None),
            "certificates",
        ),
    ] {
        let listener = listen(&waiting);
        let near = connect(listener.address(), &connector, QUICK).unwrap();
        let far = listener.accept(soon()).unwrap();
        assert!(near.security().contains(shown), "{}", near.security());
        assert_eq!(near.security(), far.security());
        assert_eq!(near.peer(), listener.address().to_string());
        assert!(far.peer().starts_with("127.0.0.1:"));
        talk(near, far);
    }
}

#[test]
fn the_host_of_the_address_is_expected_in_the_certificate() {
    let authority = Authority::new();
    let waiting = authority.security("127.0.0.1", None);
    let connector = authority.security("client.example", None);
    let listener = listen(&waiting);
    let near = connect(listener.address(), &connector, QUICK).unwrap();
    talk(near, listener.accept(soon()).unwrap());

    let other = authority.security("target.example", None);
    let (near, far) = mismatch(&connector, &other);
    assert!(near.contains("not valid for name"), "{near}");
    assert!(far.contains("TLS handshake"), "{far}");
}

#[test]
fn a_client_with_the_wrong_name_or_authority_is_refused() {
    let authority = Authority::new();
    let waiting = authority.security("target.example", Some("source.example"));
    let wrong = authority.security("other.example", Some("target.example"));
    let (near, far) = mismatch(&wrong, &waiting);
    assert!(near.contains("TLS handshake with 127.0.0.1"), "{near}");
    assert!(far.contains("not valid for name"), "{far}");

    let stranger = Authority::new();
    let files = stranger.issue("source.example", Some("target.example"));
    let files = CertificateFiles {
        ca: authority.dir.path().join("ca.pem"),
        ..files
    };
    let stranger = Security::Certificates(Certificates::load(&files).unwrap());
    let (_, far) = mismatch(&stranger, &waiting);
    assert!(far.contains("invalid peer certificate"), "{far}");
}

#[test]
fn a_revoked_certificate_is_refused() {
    let authority = Authority::new();
    let connector = authority.issue("source.example", Some("target.example"));
    let text = fs::read(&connector.certificate).unwrap();
    let path = authority.dir.path().join("crl.pem");
    let list = |serials: Vec<rcgen::RevokedCertParams>| {
        let now = rcgen::date_time_ymd(2020, 1, 1);
        let list = rcgen::CertificateRevocationListParams {
            this_update: now,
            next_update: rcgen::date_time_ymd(2100, 1, 1),
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials,
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let list = list
            .signed_by(&authority.certificate, &authority.key)
            .unwrap();
        fs::write(&path, list.pem().unwrap()).unwrap();
        let mut files = authority.issue("target.example", Some("source.example"));
        files.revoked = Some(path.clone());
        Security::Certificates(Certificates::load(&files).unwrap())
    };
    let connector_files = Security::Certificates(Certificates::load(&connector).unwrap());
    let waiting = list(vec![rcgen::RevokedCertParams {
        serial_number: serial(&text),
        revocation_time: rcgen::date_time_ymd(2020, 1, 2),
        reason_code: None,
        invalidity_date: None,
    }]);
    let (_, far) = mismatch(&connector_files, &waiting);
    assert!(far.contains("Revoked"), "{far}");
    let waiting = list(Vec::new());
    let listener = listen(&waiting);
    connect(listener.address(), &connector_files, QUICK).unwrap();
}

/// The serial number of the certificate in a PEM file.
fn serial(pem: &[u8]) -> rcgen::SerialNumber {
    use rustls::pki_types::pem::PemObject;
    let der = rustls::pki_types::CertificateDer::from_pem_slice(pem).unwrap();
    // SEQUENCE, SEQUENCE, [0] version, INTEGER serial: all lengths below are of one or three bytes.
    let skip = |at: usize| match der[at + 1] {
        len if len < 0x80 => at + 2,
        more => at + 2 + usize::from(more & 0x7f),
    };
    let version = skip(skip(0));
    let serial = version + 2 + usize::from(der[version + 1]);
    assert_eq!(der[serial], 2);
    let len = usize::from(der[serial + 1]);
    rcgen::SerialNumber::from_slice(&der[serial + 2..serial + 2 + len])
}

#[test]
fn different_keys_are_recognised_by_both_sides() {
    let (near, far) = mismatch(&psk(), &psk());
    assert!(near.contains("does not have the same key"), "{near}");
    // The connecting side sees the listener's key first and says why it goes.
    assert!(far.contains("does not have the same key"), "{far}");
}

#[test]
fn plain_text_and_tls_get_one_clear_line() {
    let authority = Authority::new();
    let certificates = authority.security("127.0.0.1", None);
    for secure in [psk(), certificates] {
        let (near, far) = mismatch(&secure, &Security::Insecure);
        assert!(
            near.contains("does not encrypt (it runs with --insecure)"),
            "{near}"
        );
        assert!(far.contains("encrypts, and this side does not"), "{far}");
        let (near, far) = mismatch(&Security::Insecure, &secure);
        assert!(near.contains("encrypts, and this side does not"), "{near}");
        assert!(
            far.contains("does not encrypt (it runs with --insecure)"),
            "{far}"
        );
    }
}

#[test]
fn a_key_and_certificates_do_not_meet() {
    let authority = Authority::new();
    let certificates = authority.security("127.0.0.1", None);
    for (connector, waiting) in [(psk(), certificates.clone()), (certificates, psk())] {
        let (near, far) = mismatch(&connector, &waiting);
        for text in [&near, &far] {
            assert!(text.contains("other kind of identity"), "{near} / {far}");
        }
    }
}

#[test]
fn a_server_of_another_protocol_is_recognised() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
    for security in [psk(), Security::Insecure] {
        let server = listener.try_clone().unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            stream
                .write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
                .unwrap();
            let mut sink = Vec::new();
            let _ended = stream.read_to_end(&mut sink);
        });
        let error = connect(&address, &security, QUICK).err().unwrap();
        assert!(matches!(error, Error::NotTwinpage { .. }), "{error}");
        thread.join().unwrap();
    }
}

#[test]
fn a_silent_server_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let limits = Limits {
        handshake: Duration::from_millis(300),
        ..LONG
    };
    for security in [psk(), Security::Insecure] {
        let start = Instant::now();
        let error = connect(&address, &security, limits).err().unwrap();
        assert!(matches!(error, Error::Slow { .. }), "{error}");
        assert!(start.elapsed() < IN_TIME);
    }
}

#[test]
fn a_socket_that_nobody_accepts_at_is_given_up_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let full = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let _waits = UnixStream::connect(&path).unwrap();
    let address = Address::unix(&path).unwrap();
    let limits = Limits {
        handshake: Duration::from_millis(300),
        ..LONG
    };
    let start = Instant::now();
    let error = connect(&address, &psk(), limits).err().unwrap();
    assert!(error.chain().contains("timed out"), "{}", error.chain());
    let error = Listener::bind(&address, &psk(), QUICK, |_| {})
        .err()
        .unwrap();
    assert!(error.chain().contains("in use"), "{}", error.chain());
    assert!(start.elapsed() < IN_TIME);
}

#[test]
fn a_drip_of_bytes_does_not_stretch_the_handshake() {
    let security = psk();
    let limits = Limits {
        handshake: Duration::from_millis(500),
        ..QUICK
    };
    let (sender, notes) = mpsc::channel();
    let note = move |error: &Error| sender.send(error.chain()).unwrap();
    let listener = Listener::bind(&local(), &security, limits, note).unwrap();
    let mut stream = TcpStream::connect(listener.address().to_string()).unwrap();
    // A record of 512 bytes of handshake, a byte at a time. All of it takes 10 s, and is no TLS.
    let mut record = vec![22, 3, 1, 2, 0, 1, 0, 1, 0xfc];
    record.resize(517, 0);
    for byte in record {
        if stream.write_all(&[byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    let note = notes.recv_timeout(IN_TIME).unwrap();
    assert!(
        note.contains("did not finish the handshake within 0.5 s"),
        "{note}"
    );
}

#[test]
fn scanners_do_not_keep_the_peer_out() {
    let security = psk();
    let notes = Arc::new(Mutex::new(Vec::new()));
    let seen = notes.clone();
    let note = move |error: &Error| seen.lock().unwrap().push(error.to_string());
    let listener = Listener::bind(&local(), &security, LONG, note).unwrap();
    let to = listener.address().to_string();
    let mut silent = Vec::new();
    for _ in 0..60 {
        silent.push(TcpStream::connect(&to).unwrap());
        let mut loud = TcpStream::connect(&to).unwrap();
        let _gone = loud.write_all(b"GET / HTTP/1.0\r\n\r\n");
    }
    let start = Instant::now();
    let near = connect(listener.address(), &security, LONG).unwrap();
    let far = listener.accept(soon()).unwrap();
    let waited = start.elapsed();
    assert!(waited < IN_TIME, "{waited:?}");
    talk(near, far);
    assert!(notes
        .lock()
        .unwrap()
        .iter()
        .any(|note| note.contains("does not speak")));
}

#[test]
fn a_stopped_listener_wakes_who_waits_and_leaves_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let address = Address::unix(&path).unwrap();
    let listener = Listener::bind(&address, &psk(), LONG, |_| {}).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // A handshake that hangs must not keep the listener.
    let _silent = UnixStream::connect(&path).unwrap();
    thread::sleep(Duration::from_millis(50));
    let stopper = listener.stopper();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        stopper.stop();
    });
    let start = Instant::now();
    assert!(matches!(listener.accept(None), Err(Error::Stopped)));
    assert!(start.elapsed() < IN_TIME);
    thread.join().unwrap();
    drop(listener);
    assert!(!path.exists());

    let listener = Listener::bind(&address, &psk(), QUICK, |_| {}).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = listen_unix(&path).unwrap();
    drop(listener);
    assert!(path.exists());
}

#[test]
fn a_link_in_place_of_the_socket_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, link, victim) = ["sock", "link", "victim"]
        .map(|name| dir.path().join(name))
        .into();
    fs::write(&victim, "").unwrap();
    let mode = || fs::metadata(&victim).unwrap().permissions().mode() & 0o777;
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o644)).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _there = std::os::unix::fs::symlink(&victim, &link);
                if path.exists() {
                    let _swapped = fs::rename(&link, &path);
                }
            }
        });
        for _ in 0..3000 {
            let _swapped = listen_unix(&path);
            let _gone = fs::remove_file(&path);
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(mode(), 0o644);
}

#[test]
fn stale_unix_sockets_are_replaced_and_live_ones_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    drop(listen_unix(&path).unwrap());
    assert!(path.exists());
    let live = listen_unix(&path).unwrap();
    let error = listen_unix(&path).unwrap_err();
    assert!(error.chain().contains("in use"), "{}", error.chain());
    // Nobody came to whoever listens there.
    live.set_nonblocking(true).unwrap();
    assert!(live.accept().is_err());
    drop(live);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(listen_unix(&path).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

/// Bytes that depend on their position.
fn pattern(from: usize, buffer: &mut [u8]) {
    for (i, byte) in buffer.iter_mut().enumerate() {
        let at = (from + i) as u64;
        *byte = (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    }
}

/// Writes `len` pattern bytes in pieces of many sizes.
fn write_pattern(writer: &mut impl Write, len: usize) {
    let sizes = [1, 8, 40, 4096, 65535, 65536, 65537, 1 << 20];
    let mut piece = vec![0; 1 << 20];
    let (mut at, mut turn) = (0, 0);
    while at < len {
        let size = sizes[turn % sizes.len()].min(len - at);
        pattern(at, &mut piece[..size]);
        writer.write_all(&piece[..size]).unwrap();
        at += size;
        turn += 1;
    }
}

/// Reads pattern bytes to the end and says how many there were.
fn read_pattern(reader: &mut impl Read) -> usize {
    let sizes = [1, 8, 40, 100_000, 16384, 300_000];
    let mut piece = vec![0; 300_000];
    let mut expected = vec![0; 300_000];
    let (mut at, mut turn) = (0, 0);
    loop {
        let len = reader
            .read(&mut piece[..sizes[turn % sizes.len()]])
            .unwrap();
        if len == 0 {
            return at;
        }
        pattern(at, &mut expected[..len]);
        assert!(piece[..len] == expected[..len], "at {at}");
        at += len;
        turn += 1;
    }
}

#[test]
fn parts_arrive_in_order_however_they_are_cut() {
    const LEN: usize = 4 << 20;
    let rate = NonZeroU64::new(1 << 30).map(RateLimit::new);
    let ways = [psk(), Security::Insecure].into_iter();
    let ways = ways.flat_map(|security| [(security.clone(), None), (security, rate.clone())]);
    for (security, limit) in ways {
        let (near, far) = pair(&security);
        let (_near_reader, mut writer) = near.split();
        let (mut reader, _far_writer) = far.split();
        let reading = thread::spawn(move || read_pattern(&mut reader));
        writer.set_limit(limit);
        let mut bytes = vec![0; LEN];
        pattern(0, &mut bytes);
        let sizes = [0, 1, 4096, 9, 4096, 0, 65536, 65535, 1, 70_000, 200_000];
        let mut sizes = sizes.into_iter().cycle();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let mut parts = Vec::new();
            for size in sizes.by_ref().take(7) {
                let (part, after) = rest.split_at(size.min(rest.len()));
                parts.push(part);
                rest = after;
            }
            writer.write_parts(&parts).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(reading.join().unwrap(), LEN);
    }
}

#[test]
fn both_sides_may_write_a_lot_at_once() {
    const LEN: usize = 40 << 20;
    for security in [psk(), Security::Insecure] {
        let (near, far) = pair(&security);
        let (done, finished) = mpsc::channel();
        for link in [near, far] {
            let (mut reader, mut writer) = link.split();
            let sent = done.clone();
            thread::spawn(move || {
                write_pattern(&mut writer, LEN);
                writer.finish().unwrap();
                sent.send(LEN).unwrap();
            });
            let received = done.clone();
            thread::spawn(move || {
                // Both directions fill up before anybody reads.
                thread::sleep(Duration::from_millis(300));
                received.send(read_pattern(&mut reader)).unwrap();
            });
        }
        for _ in 0..4 {
            let len = finished
                .recv_timeout(Duration::from_secs(120))
                .expect("a deadlock");
            assert_eq!(len, LEN);
        }
    }
}

#[test]
fn silence_and_deadlines_end_a_read() {
    for security in [psk(), Security::Insecure] {
        let listener = listen(&security);
        let near = near_end(&listener, &security, Duration::from_millis(200));
        let _far = listener.accept(soon()).unwrap();
        let (mut reader, _writer) = near.split();
        let start = Instant::now();
        let error = reader.read(&mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= Duration::from_millis(190));
        // A deadline comes before the end of what silence is allowed.
        let near = connect(listener.address(), &security, LONG).unwrap();
        let (mut reader, _writer) = near.split();
        reader.set_deadline(Some(Instant::now() + Duration::from_millis(50)));
        let start = Instant::now();
        let error = reader.read(&mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < IN_TIME);
        assert!(error.to_string().contains("127.0.0.1"), "{error}");
    }
}

#[test]
fn a_peer_that_takes_nothing_ends_a_write() {
    for security in [psk(), Security::Insecure] {
        let listener = listen(&security);
        let near = near_end(&listener, &security, Duration::from_millis(300));
        let _far = listener.accept(soon()).unwrap();
        let (_reader, mut writer) = near.split();
        let error = writer.write_all(&vec![0; 64 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }
}

#[test]
fn an_abort_wakes_reader_and_writer() {
    for security in [psk(), Security::Insecure] {
        let (near, far) = pair(&security);
        let handle = near.handle();
        let (mut reader, mut writer) = near.split();
        let reading = thread::spawn(move || reader.read(&mut [0; 1]).unwrap_err().kind());
        let writing = thread::spawn(move || writer.write_all(&vec![0; 64 << 20]).unwrap_err());
        thread::sleep(Duration::from_millis(100));
        handle.abort();
        assert_eq!(reading.join().unwrap(), io::ErrorKind::ConnectionAborted);
        assert_eq!(
            writing.join().unwrap().kind(),
            io::ErrorKind::ConnectionAborted
        );
        drop(far);
    }
}

#[test]
fn a_dropped_link_is_an_end_though_a_handle_lives() {
    let (near, far) = pair(&psk());
    let handle = near.handle();
    drop(near);
    let (mut reader, _writer) = far.split();
    let error = reader.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(handle.sent_bytes() > 0 && handle.received_bytes() > 0);
}

/// Passes bytes on between two TCP connections, and changes the one at `offset` of what the
/// connecting side sends, or cuts the connection there.
fn meddler(to: String, offset: usize, cut: bool) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let (mut near, _) = listener.accept().unwrap();
        let mut far = TcpStream::connect(to).unwrap();
        let (mut back_from, mut back_to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
        thread::spawn(move || {
            let _ended = io::copy(&mut back_from, &mut back_to);
            let _ended = back_to.shutdown(Shutdown::Write);
        });
        let mut at = 0;
        let mut buffer = [0; 1000];
        while let Ok(len @ 1..) = near.read(&mut buffer) {
            if (at..at + len).contains(&offset) {
                if cut {
                    let _ended = far.shutdown(Shutdown::Both);
                    let _ended = near.shutdown(Shutdown::Both);
                    return;
                }
                buffer[offset - at] ^= 1;
            }
            at += len;
            if far.write_all(&buffer[..len]).is_err() {
                break;
            }
        }
        let _ended = far.shutdown(Shutdown::Write);
    });
    address.parse().unwrap()
}

#[test]
fn no_flipped_or_missing_byte_goes_unnoticed() {
    let security = psk();
    let text = b"a page".repeat(100);
    for cut in [false, true] {
        for offset in (0..1500).step_by(37) {
            let listener = listen(&security);
            let address = meddler(listener.address().to_string(), offset, cut);
            let sent = connect(&address, &security, QUICK).map(|link| {
                let (reader, mut writer) = link.split();
                let _failed = writer.write_all(&text).and_then(|()| writer.finish());
                reader
            });
            let link = listener.accept(Some(Instant::now() + Duration::from_millis(300)));
            let Ok(link) = link else {
                continue;
            };
            let mut received = Vec::new();
            let result = link.split().0.read_to_end(&mut received);
            assert!(text.starts_with(&received), "{offset}");
            assert!(result.is_err() || received == text, "{offset} {cut}");
            drop(sent);
        }
    }
}

#[test]
fn a_limited_writer_is_never_faster_than_the_rate() {
    let (near, far) = pair(&psk());
    let handle = near.handle();
    let (_near_reader, mut writer) = near.split();
    let (mut reader, _far_writer) = far.split();
    let reading = thread::spawn(move || io::copy(&mut reader, &mut io::sink()).unwrap());
    writer.set_limit(NonZeroU64::new(20_000_000).map(RateLimit::new));
    let start = Instant::now();
    let before = handle.sent_bytes();
    let piece = vec![7; 1 << 20];
    while start.elapsed() < Duration::from_secs(1) {
        writer.write_all(&piece).unwrap();
    }
    let rate = (handle.sent_bytes() - before) as f64 / start.elapsed().as_secs_f64();
    writer.finish().unwrap();
    // How near it comes is the limit's own business, and that of what else the machine does.
    assert!(rate < 1.02 * 2e7, "{rate}");
    assert!(reading.join().unwrap() > 0);
}

/// A file with mode and content, and what loading it as a key says.
fn key_error(path: &Path, mode: u32, text: &[u8]) -> String {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    Psk::load(path).unwrap_err().chain()
}

#[test]
fn a_key_is_written_once_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let written = write_key(&path).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let read = Psk::load(&path).unwrap();
    assert_eq!(written.fingerprint(), read.fingerprint());
    assert_eq!(read.fingerprint().len(), 16);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(&read.fingerprint()));
    assert!(write_key(&path).unwrap_err().chain().contains("exists"));
    let key = text.lines().last().unwrap().split(' ').nth(1).unwrap();
    assert!(!format!("{read:?}").contains(&key[..8]));
    let (near, far) = {
        let listener = listen(&Security::Psk(written));
        let near = connect(listener.address(), &Security::Psk(read), QUICK).unwrap();
        (near, listener.accept(soon()).unwrap())
    };
    talk(near, far);
}

#[test]
fn bad_key_files_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let good = format!("twinpage-key-1 {}\n", "0123456789abcdef".repeat(4));
    for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o601] {
        let error = key_error(&path, mode, good.as_bytes());
        assert!(error.contains("may be read by others"), "{mode:o}: {error}");
        assert!(error.contains(path.to_str().unwrap()));
    }
    let two = format!("{good}{good}");
    let short = good.replace("0123456789abcdef\n", "\n");
    let wrong = good.replace('f', "g");
    for (text, reason) in [
        (&b""[..], "holds no key"),
        (b"# only a comment\n", "holds no key"),
        (two.as_bytes(), "more than one line"),
        (b"correct horse battery staple\n", "does not start with"),
        (short.as_bytes(), "64 hexadecimal digits"),
        (wrong.as_bytes(), "64 hexadecimal digits"),
        (b"\xff\xfe", "not text"),
        (&vec![b'#'; 5 << 20], "longer than 4 MiB"),
    ] {
        let error = key_error(&path, 0o600, text);
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let missing = Psk::load(&dir.path().join("none")).unwrap_err().chain();
    assert!(missing.contains("No such file"), "{missing}");
}

#[test]
fn bad_certificate_files_are_refused_with_the_file() {
    let authority = Authority::new();
    let good = authority.issue("a.example", None);
    let junk: PathBuf = authority.dir.path().join("junk");
    fs::write(&junk, "junk").unwrap();
    fs::set_permissions(&junk, fs::Permissions::from_mode(0o600)).unwrap();
    type Change = fn(&mut CertificateFiles, PathBuf);
    let changes: [Change; 4] = [
        |files, path| files.ca = path,
        |files, path| files.certificate = path,
        |files, path| files.key = path,
        |files, path| files.revoked = Some(path),
    ];
    for change in changes {
        let mut files = good.clone();
        change(&mut files, junk.clone());
        let error = Certificates::load(&files).unwrap_err().chain();
        assert!(error.contains("junk is no file of"), "{error}");
    }
    fs::set_permissions(&good.key, fs::Permissions::from_mode(0o644)).unwrap();
    let error = Certificates::load(&good).unwrap_err();
    assert!(
        matches!(error, Error::Exposed { mode: 0o644, .. }),
        "{error}"
    );
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let authority = Authority::new();
    let mut files = authority.issue("a.example", None);
    files.key = authority.issue("b.example", None).key;
    let security = Security::Certificates(Certificates::load(&files).unwrap());
    let error = Listener::bind(&local(), &security, QUICK, |_| {})
        .err()
        .unwrap();
    assert!(matches!(error, Error::BadIdentity(_)), "{error}");
}
