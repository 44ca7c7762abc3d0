// SPDX-License-Identifier: GPL-2.0

//! Real servers, started by the test and ended with it.

use std::fs::{
    self,
    File, //
};
use std::net::TcpListener;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Child,
    Command,
    Stdio, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use tempfile::TempDir;

/// How long servers may take to start or to find each other.
const PATIENCE: Duration = Duration::from_secs(60);

/// Hash slots of a cluster.
const SLOTS: u32 = 16384;

/// Whose servers they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    Redis,
    Valkey,
}

impl Maker {
    /// One of its programs, which `scripts/prepare.sh peers` fetches.
    fn program(self, name: &str) -> PathBuf {
        let peers = std::env::var_os("TWINPAGE_PEERS").expect(
            "TWINPAGE_PEERS must name the directory that `scripts/prepare.sh peers` prints: \
             the store of a fleet is tested against real servers",
        );
        let maker = match self {
            Self::Redis => "redis",
            Self::Valkey => "valkey",
        };
        Path::new(&peers)
            .join("start")
            .join(format!("{maker}-{name}"))
    }
}

/// A cluster of servers.
pub struct Cluster {
    maker: Maker,
    pub nodes: Vec<Node>,
    directory: TempDir,
}

/// One server.
pub struct Node {
    child: Child,
    pub port: u16,
    bus: u16,
}

/// How servers are reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Open,
    Password(&'static str),
    Tls,
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    /// Ends the server as a power cut would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A port that nobody has.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Makes a certificate authority and a certificate for this host.
fn certify(directory: &Path) {
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    // Another name than that of what it signs.
    authority
        .distinguished_name
        .push(rcgen::DnType::CommonName, "Authority of a test");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca = authority.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap();
    let certificate = certificate.signed_by(&key, &issuer).unwrap();
    for (name, text) in [
        ("ca", ca.pem()),
        ("cert", certificate.pem()),
        ("key", key.serialize_pem()),
    ] {
        std::fs::write(directory.join(name), text).unwrap();
    }
}

impl Cluster {
    /// Starts a cluster of so many servers that share the slots.
    pub fn start(maker: Maker, nodes: u32, access: Access) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("twinpage-fleet-")
            .tempdir()
            .unwrap();
        if access == Access::Tls {
            certify(directory.path());
        }
        let nodes = (0..nodes)
            .map(|_| start(maker, directory.path(), access))
            .collect();
        let cluster = Self {
            maker,
            nodes,
            directory,
        };
        cluster.join(access);
        cluster
    }

    /// The URL of the first server.
    pub fn url(&self, access: Access) -> String {
        let port = self.nodes[0].port;
        match access {
            Access::Open => format!("redis://127.0.0.1:{port}"),
            Access::Password(word) => format!("redis://:{word}@127.0.0.1:{port}"),
            Access::Tls => format!("rediss://127.0.0.1:{port}"),
        }
    }

    /// With TLS: the authority that signed the servers' certificate.
    pub fn authority(&self) -> PathBuf {
        self.directory.path().join("ca")
    }

    /// Sends a command to a server with the client that comes with it.
    pub fn tell(&self, node: usize, access: Access, arguments: &[&str]) -> String {
        let mut command = Command::new(self.maker.program("cli"));
        command.args([
            "-h",
            "127.0.0.1",
            "-p",
            &self.nodes[node].port.to_string(),
            "-e",
        ]);
        match access {
            Access::Open => (),
            Access::Password(word) => {
                command.args(["--no-auth-warning", "-a", word]);
            }
            Access::Tls => {
                command.arg("--tls").arg("--cacert").arg(self.authority());
            }
        }
        let done = command.args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{arguments:?}: {said}{complaint}");
        said
    }

    /// Makes the servers one cluster.
    fn join(&self, access: Access) {
        let count = self.nodes.len() as u32;
        for node in 0..count {
            let first = (SLOTS * node / count).to_string();
            let last = (SLOTS * (node + 1) / count - 1).to_string();
            let index = node as usize;
            self.tell(index, access, &["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
            self.tell(
                index,
                access,
                &["CLUSTER", "SET-CONFIG-EPOCH", &(node + 1).to_string()],
            );
            if node > 0 {
                let Node { port, bus, .. } = &self.nodes[0];
                let (port, bus) = (port.to_string(), bus.to_string());
                self.tell(
                    index,
                    access,
                    &["CLUSTER", "MEET", "127.0.0.1", &port, &bus],
                );
            }
        }
        let since = Instant::now();
        let whole = |node| {
            let info = self.tell(node, access, &["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains(&format!("cluster_size:{count}"))
        };
        while !(0..count as usize).all(whole) {
            assert!(
                since.elapsed() < PATIENCE,
                "the servers do not find each other"
            );
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Starts one server.
fn start(maker: Maker, directory: &Path, access: Access) -> Node {
    for _ in 0..5 {
        if let Some(node) = start_at(maker, directory, access, free_port(), free_port()) {
            return node;
        }
    }
    panic!("the server does not start");
}

/// Starts one server at these ports, unless somebody has taken one since it was free.
fn start_at(maker: Maker, directory: &Path, access: Access, port: u16, bus: u16) -> Option<Node> {
    let log = directory.join(format!("log-{port}"));
    let mut command = Command::new(maker.program("server"));
    command
        .args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
        ])
        .args([
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            &bus.to_string(),
        ])
        .args([
            "--cluster-config-file",
            &format!("nodes-{port}"),
            "--maxmemory",
            "256mb",
        ])
        .arg("--dir")
        .arg(directory)
        .stdin(Stdio::null())
        .stdout(File::create(&log).unwrap());
    let text = port.to_string();
    match access {
        Access::Open => {
            command.args(["--port", &text]);
        }
        Access::Password(word) => {
            command.args(["--port", &text, "--requirepass", word, "--masterauth", word]);
        }
        Access::Tls => {
            command.args(["--port", "0", "--tls-port", &text, "--tls-cluster", "yes"]);
            command.args(["--tls-auth-clients", "no"]);
            for (option, file) in [("ca-cert", "ca"), ("cert", "cert"), ("key", "key")] {
                command
                    .arg(format!("--tls-{option}-file"))
                    .arg(directory.join(file));
            }
        }
    }
    let mut node = Node {
        child: command.spawn().unwrap(),
        port,
        bus,
    };
    let said = || fs::read_to_string(&log).unwrap();
    let since = Instant::now();
    // Whoever took the port may answer there as well, so the server's own word counts.
    while !said().contains("Ready to accept connections") {
        if node.child.try_wait().unwrap().is_some() {
            eprintln!("a server ended: {}", said());
            return None;
        }
        assert!(since.elapsed() < PATIENCE, "a server is late: {}", said());
        thread::sleep(Duration::from_millis(20));
    }
    Some(node)
}

#[test]
fn a_server_whose_port_is_taken_is_noticed() {
    let directory = TempDir::new().unwrap();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().port();
    for (port, bus) in [(taken, free_port()), (free_port(), taken)] {
        assert!(start_at(Maker::Redis, directory.path(), Access::Open, port, bus).is_none());
    }
}
