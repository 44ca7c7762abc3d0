// SPDX-License-Identifier: GPL-2.0

//! What both hosts have: a network card, the module, the tool, guests of one image.

use std::fs;
use std::io;
use std::net::{
    Ipv4Addr,
    SocketAddr, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Command,
    ExitStatus,
    Stdio, //
};

use twinpage_guest::config::Config;
use twinpage_lab::checks::Checks;
use twinpage_lab::guest::Guest;
use twinpage_lab::vmm::Vmm;
use twinpage_lab::{
    dmesg,
    module,
    place, //
};

/// What goes wrong is told to people only.
pub type Failure = Box<dyn std::error::Error>;

/// The host that a guest leaves.
pub const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The host that it goes to.
pub const DESTINATION: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// Where the program on the destination listens for this program on the source.
pub const TALK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(DESTINATION), 7001);

/// Where `twinpage migrate receive` listens.
pub const RECEIVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(DESTINATION), 7002);

/// The key that both hosts were given.
pub const KEY: &str = "/key";

/// The domain of all guests.
pub const DOMAIN: &str = "web";

/// Memory of each guest.
pub const MEMORY_MIB: usize = 176;

/// Drivers of the network card, in the order in which they need each other.
const DRIVERS: [&str; 3] = ["failover", "net_failover", "virtio_net"];

/// Knobs for a machine whose processors are emulated and much slower than real ones.
const KNOBS: [&str; 4] = [
    "advisor_mode=none",
    "pages_to_scan=16384",
    "sleep_millisecs=10",
    "thp_split_threshold=1",
];

/// A host of the demonstration.
pub struct Host {
    /// What was checked on it.
    pub checks: Checks,
    log: dmesg::Log,
    directory: PathBuf,
}

impl Host {
    /// Brings the network up and loads the module.
    ///
    /// # Errors
    ///
    /// There is no network card, or the kernel refuses the module.
    pub fn new(address: Ipv4Addr) -> Result<Host, Failure> {
        let checks = Checks::default();
        let log = dmesg::Log::from_now()?;
        for driver in DRIVERS {
            let file = place::stock_module(driver).ok_or(format!("there is no {driver}.ko"))?;
            module::load_file(file)?;
        }
        ip(&["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        ip(&["link", "set", "eth0", "up"])?;
        module::load()?;
        let directory = std::env::temp_dir().join("migrate");
        fs::create_dir_all(&directory)?;
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        checks.step(format!(
            "host {address}, kernel {}, unpatched, with twinpage.ko",
            release.trim()
        ));
        Ok(Host {
            checks,
            log,
            directory,
        })
    }

    /// A file of the demonstration.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Starts a guest that holds this; with more arguments for QEMU.
    ///
    /// # Errors
    ///
    /// QEMU does not start.
    pub fn guest(&self, name: &str, content: &Config, more: &[&str]) -> Result<Vmm, Failure> {
        let guest = Guest {
            name: name.to_owned(),
            memory_mib: MEMORY_MIB,
            content: content.clone(),
            balloon: false,
        };
        Ok(guest.start(&self.directory, more)?)
    }

    /// Attaches every VM of this host and waits until nothing more merges.
    ///
    /// # Errors
    ///
    /// The tool cannot be started.
    pub fn merge(&mut self, what: &str) -> Result<(), Failure> {
        tool(&[&["set"], &KNOBS[..]].concat())?;
        let attached = tool(&["attach", "--all", "--domain", DOMAIN])?;
        let settled = tool(&[
            "status",
            "--watch",
            "5",
            "--until-stable",
            "--timeout",
            "240",
        ])?;
        let detail = format!(
            "{} merged copies, {} further mappings of them, {} zero pages",
            module::counter("pages_shared")?,
            module::counter("pages_sharing")?,
            module::counter("zero_pages")?
        );
        let fine = attached.success() && settled.success();
        self.checks.check(what, fine, detail);
        Ok(())
    }

    /// Detaches all VMs, unloads the module and looks at the kernel's log.
    ///
    /// # Errors
    ///
    /// The module cannot be unloaded.
    pub fn close(&mut self) -> Result<(), Failure> {
        let detached = tool(&["detach", "--all", "--unmerge"])?;
        self.checks.check(
            "every page gets its own copy back",
            detached.success(),
            "twinpage detach --all --unmerge",
        );
        module::unload()?;
        let gone = !module::is_loaded();
        self.checks
            .check("the module unloads", gone, "rmmod twinpage");
        Ok(())
    }

    /// Judges the kernel's log since this program began.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn judge_log(&mut self) -> Result<(), Failure> {
        let lines = self.log.lines()?;
        let alarms = dmesg::alarms(&lines);
        for alarm in alarms {
            println!("        {alarm}");
        }
        let detail = format!("{} lines, no BUG, WARNING, Oops or Bad page", lines.len());
        self.checks
            .check("the kernel's log is clean", alarms.is_empty(), detail);
        Ok(())
    }
}

/// Writes what the guest sees of its memory into a file.
///
/// # Errors
///
/// QEMU refuses.
pub fn save_ram(guest: &mut Vmm, file: &Path) -> Result<(), Failure> {
    let arguments = serde_json::json!({
        "val": 0, "size": MEMORY_MIB << 20, "filename": file,
    });
    guest.qmp.run("pmemsave", arguments)?;
    Ok(())
}

/// Runs the tool to its end; what it prints is part of the demonstration.
///
/// # Errors
///
/// It cannot be started.
pub fn tool(arguments: &[&str]) -> io::Result<ExitStatus> {
    println!("\n# twinpage {}", arguments.join(" "));
    Command::new(place::tool())
        .args(arguments)
        .stdin(Stdio::null())
        .status()
}

fn ip(arguments: &[&str]) -> Result<(), Failure> {
    let status = Command::new("ip").args(arguments).status()?;
    if !status.success() {
        return Err(format!("ip {} failed: {status}", arguments.join(" ")).into());
    }
    Ok(())
}
