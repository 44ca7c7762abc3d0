// SPDX-License-Identifier: GPL-2.0

//! Arguments of `migrate` and `plan`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{
    ArgGroup,
    Args,
    Subcommand,
    ValueEnum, //
};

use twinpage_migrate::net::Address;

use crate::domain::DomainName;
use crate::process::Pid;
use crate::units::{
    Rate,
    Size, //
};

use super::security::SecurityOptions;
use super::store::FleetOptions;

/// How literals are compressed: a level of zstd, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(pub Option<u8>);

/// What to do with a migration.
#[derive(Debug, Subcommand)]
pub enum Migrate {
    /// Migrate a VM from one QEMU to another, seen through from beginning to end
    Run(Box<Run>),
    /// Take the stream of a QEMU that migrates away, and send it to a receiver
    Send(Box<Send>),
    /// Take the stream of a sender, and give it to a QEMU that waits for it
    Receive(Box<Receive>),
    /// Make the key that both hosts need
    Keygen(Keygen),
}

/// How the progress and the result of `store` are shown.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct ShowOptions {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Show no progress
    #[arg(long, short)]
    pub quiet: bool,
}

/// How the progress and the result of a migration are shown.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct WatchOptions {
    /// Print JSON: one object, or with --progress one a line
    #[arg(long)]
    pub json: bool,
    /// With --json: print progress there too, every second
    #[arg(long, requires = "json", conflicts_with = "quiet")]
    pub progress: bool,
    /// Show no progress
    #[arg(long, short)]
    pub quiet: bool,
}

/// How the sending end works.
#[derive(Args, Clone, Debug)]
pub struct SendOptions {
    /// The receiver: HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDR")]
    pub to: Address,
    /// The domain whose merged pages the receiver may use [default: none]
    #[arg(long, value_name = "NAME")]
    pub domain: Option<DomainName>,
    /// Bytes of QEMU's stream that may be under way
    #[arg(long, value_name = "SIZE", default_value = "32MiB")]
    pub window: Size,
    /// Bytes between the hosts that may be under way
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    pub wire_window: Size,
    /// zstd level of what is sent as it is (1 to 19), or off
    #[arg(long, value_name = "N", default_value = "1")]
    pub level: Level,
    /// Send no more than so much a second: 900Mbit, 100MiB
    #[arg(long, value_name = "RATE")]
    pub limit_rate: Option<Rate>,
    /// Memory for pages sent before, which are sent again as a number
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub dictionary: Size,
    /// Threads that hash pages, 1 to 256 [default: one a processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// Who the peer is.
    #[command(flatten)]
    pub security: SecurityOptions,
}

/// Arguments of `migrate send`.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("input").required(true).args(["listen", "stdio"]))]
pub struct Send {
    /// Where QEMU connects to: unix:PATH
    #[arg(long, value_name = "unix:PATH", value_parser = socket)]
    pub listen: Option<PathBuf>,
    /// QEMU is on standard input and output: migrate "exec:twinpage migrate send --stdio ..."
    #[arg(long, conflicts_with = "json")]
    pub stdio: bool,
    /// The user that may connect to the socket, a number or a name [default: root]
    #[arg(long, value_name = "USER", conflicts_with = "stdio")]
    pub socket_user: Option<String>,
    /// Sending.
    #[command(flatten)]
    pub options: SendOptions,
    /// Showing.
    #[command(flatten)]
    pub show: WatchOptions,
}

/// Arguments of `migrate receive`.
#[derive(Args, Debug)]
pub struct Receive {
    /// Where the sender connects to: HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDR")]
    pub listen: Address,
    /// The socket of the QEMU that waits (-incoming unix:PATH); without it only `twinpage plan` is
    /// answered
    #[arg(long, value_name = "unix:PATH", value_parser = socket)]
    pub connect: Option<PathBuf>,
    /// A domain that senders may name [default: none]
    #[arg(long = "domain", value_name = "NAME")]
    pub domains: Vec<DomainName>,
    /// Where pages come from.
    #[command(flatten)]
    pub pages: PageOptions,
    /// Bytes of QEMU's stream that may be under way
    #[arg(long, value_name = "SIZE", default_value = "32MiB")]
    pub window: Size,
    /// Bytes between the hosts that may be under way
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    pub wire_window: Size,
    /// Threads that hash pages, 1 to 256 [default: one a processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// Who the peer is.
    #[command(flatten)]
    pub security: SecurityOptions,
    /// Showing.
    #[command(flatten)]
    pub show: WatchOptions,
}

/// Where the receiver finds pages.
#[derive(Args, Clone, Debug)]
pub struct PageOptions {
    /// The store of canonical pages in this directory
    #[arg(long, value_name = "PATH")]
    pub store: Option<PathBuf>,
    /// The fleet's store.
    #[command(flatten)]
    pub fleet: FleetOptions,
    /// Do not use merged pages of this host
    #[arg(long)]
    pub no_module: bool,
    /// Do not use pages of the same migration
    #[arg(long)]
    pub no_stream: bool,
    /// Use only these, stream first and the others in this order: stream, module, store, fleet
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with_all = ["no_module", "no_stream"])]
    pub sources: Option<Vec<SourceName>>,
    /// Memory for pages of the same migration
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub dictionary: Size,
}

/// A source of pages, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceName {
    /// Pages sent earlier in the same migration.
    Stream,
    /// Pages merged on this host.
    Module,
    /// The store of this host.
    Store,
    /// The store of the fleet.
    Fleet,
}

/// Arguments of `migrate run`.
#[derive(Args, Debug)]
pub struct Run {
    /// The monitor of the QEMU that runs the VM: the path of a QMP socket, with a /, or HOST:PORT
    #[arg(long, value_name = "QMP", value_parser = monitor)]
    pub from: Address,
    /// The monitor of the QEMU that waits for it, if it can be reached from here
    #[arg(long, value_name = "QMP", value_parser = monitor)]
    pub to_qmp: Option<Address>,
    /// With --to-qmp: the socket that QEMU is to wait on, when it was started with -incoming defer
    #[arg(long, value_name = "unix:PATH", requires = "to_qmp", value_parser = socket)]
    pub incoming: Option<PathBuf>,
    /// With --to-qmp: leave the VM standing there, for somebody else to start it
    #[arg(long, requires = "to_qmp")]
    pub no_start: bool,
    /// How long the VM may stand still, in ms, 1 to 2000000
    #[arg(long, value_name = "MS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=2_000_000))]
    pub downtime_ms: u64,
    /// What the link between the hosts carries, if less than --limit-rate: 1Gbit [default: what
    /// QEMU measures at the proxy]
    #[arg(long, value_name = "RATE")]
    pub link_rate: Option<Rate>,
    /// Give up after so many seconds, and let the VM run on where it is
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
    /// Sending.
    #[command(flatten)]
    pub options: SendOptions,
    /// Showing.
    #[command(flatten)]
    pub show: WatchOptions,
}

/// Arguments of `migrate keygen`.
#[derive(Args, Debug)]
pub struct Keygen {
    /// The file to make; it must not exist
    pub path: PathBuf,
}

/// Arguments of `plan`.
#[derive(Args, Debug)]
pub struct Plan {
    /// The process of the VM
    #[arg(long, value_name = "PID")]
    pub pid: Pid,
    /// Receivers: HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDR", required = true, num_args = 1..)]
    pub candidates: Vec<Address>,
    /// The domain whose merged pages count [default: none]
    #[arg(long, value_name = "NAME")]
    pub domain: Option<DomainName>,
    /// Give up a candidate that does not answer within so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
    /// Who the peers are.
    #[command(flatten)]
    pub security: SecurityOptions,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl FromStr for Level {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self(None));
        }
        match text.parse() {
            Ok(level @ 1..=19) => Ok(Self(Some(level))),
            _ => Err("it is neither a level from 1 to 19 nor off"),
        }
    }
}

/// Reads the address of a monitor: as any other, or a path alone.
fn monitor(text: &str) -> Result<Address, String> {
    let is_path = text.contains('/') && !text.starts_with("unix:");
    let address = match is_path {
        true => Address::unix(text),
        false => text.parse(),
    };
    address.map_err(|error| error.to_string())
}

/// Reads `unix:PATH`, or the path alone.
fn socket(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    match Address::unix(path) {
        Ok(_) => Ok(PathBuf::from(path)),
        Err(error) => Err(error.to_string()),
    }
}
