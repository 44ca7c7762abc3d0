// SPDX-License-Identifier: GPL-2.0

//! Arguments of `store`.

use std::path::PathBuf;

use clap::{
    ArgGroup,
    Args,
    Subcommand, //
};

use crate::process::Pid;
use crate::units::{
    Age,
    Size, //
};

use super::migrate::ShowOptions;

/// The environment variable that names the store of the fleet.
pub const FLEET: &str = "TWINPAGE_FLEET";

/// What to do with a store of canonical pages.
#[derive(Debug, Subcommand)]
pub enum Store {
    /// Put the pages of disk images, memory dumps and running VMs into a store
    Build(Box<Build>),
    /// Show what a store holds
    Stat(Stat),
    /// Hash every page of a store again
    Verify(Verify),
    /// Make a store smaller, or forget what was long not used
    Gc(Gc),
}

/// The store of the fleet: a Valkey or Redis server or cluster.
#[derive(Args, Clone, Debug, Default)]
pub struct FleetOptions {
    /// The store of the fleet: `rediss://[USER:PASSWORD@]HOST:PORT[,HOST:PORT]`
    #[arg(
        long,
        value_name = "URL",
        env = FLEET,
        hide_env_values = true
    )]
    pub fleet: Option<String>,
    /// Certificates of the authorities that sign for the fleet's servers, PEM
    #[arg(long, value_name = "FILE", requires = "fleet")]
    pub fleet_ca: Option<PathBuf>,
    /// Let digests, pages and the password of a redis:// URL travel in clear
    #[arg(long, requires = "fleet")]
    pub fleet_insecure: bool,
}

/// Arguments of `store build`.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("into").required(true).multiple(true).args(["store", "fleet"]),
    group = ArgGroup::new("what").required(true).multiple(true)
        .args(["images", "raw_images", "dumps", "pids", "all"])
)]
pub struct Build {
    /// The store in this directory, which is made if it is not there
    #[arg(long, value_name = "PATH")]
    pub store: Option<PathBuf>,
    /// The fleet's store.
    #[command(flatten)]
    pub fleet: FleetOptions,
    /// The secret that all hosts of the fleet count sources with: 64 hexadecimal digits; without it
    /// only public images go to the fleet
    #[arg(long, value_name = "FILE", requires = "fleet")]
    pub fleet_key: Option<PathBuf>,
    /// Disk images of any format that qemu-img knows; each is one source
    #[arg(long = "image", value_name = "FILE", num_args = 1..)]
    pub images: Vec<PathBuf>,
    /// Raw disk images, whatever they look like; each is one source
    #[arg(long = "raw-image", value_name = "FILE", num_args = 1..)]
    pub raw_images: Vec<PathBuf>,
    /// The images are public: their pages are admitted although nothing else has them
    #[arg(long, conflicts_with_all = ["dumps", "pids", "all"])]
    pub public: bool,
    /// Dumps of memory (pmemsave, dump-guest-memory); each is one source
    #[arg(long = "dump", value_name = "FILE", num_args = 1..)]
    pub dumps: Vec<PathBuf>,
    /// Attached VMs whose merged pages are taken; those of one domain are one source
    #[arg(long = "pid", value_name = "PID", num_args = 1..)]
    pub pids: Vec<Pid>,
    /// Every attached VM that is in a domain
    #[arg(long, conflicts_with = "pids")]
    pub all: bool,
    /// All of that together is one source with this name: things of one owner
    #[arg(long = "as", value_name = "NAME", conflicts_with = "public")]
    pub source: Option<String>,
    /// Admit a page when so many sources have it; fixed when a store is made [default: 2]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(2..=16))]
    pub min_sources: Option<u32>,
    /// Showing.
    #[command(flatten)]
    pub show: ShowOptions,
}

/// Arguments of `store stat`.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("which").args(["store", "fleet"]))]
pub struct Stat {
    /// The store in this directory
    #[arg(long, value_name = "PATH")]
    pub store: Option<PathBuf>,
    /// The store of the fleet, as for `store build` [default: what TWINPAGE_FLEET says]
    #[arg(long, value_name = "URL")]
    pub fleet: Option<String>,
    /// Certificates of the authorities that sign for the fleet's servers, PEM
    #[arg(long, value_name = "FILE", conflicts_with = "store")]
    pub fleet_ca: Option<PathBuf>,
    /// Let the password of a redis:// URL travel in clear
    #[arg(long, conflicts_with = "store")]
    pub fleet_insecure: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `store verify`.
#[derive(Args, Debug)]
pub struct Verify {
    /// The store in this directory
    #[arg(long, value_name = "PATH")]
    pub store: PathBuf,
    /// Remove pages that are not what they were
    #[arg(long)]
    pub repair: bool,
    /// Showing.
    #[command(flatten)]
    pub show: ShowOptions,
}

/// Arguments of `store gc`.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("limit").required(true).multiple(true)
        .args(["max_size", "max_age", "max_candidate_age"])
)]
pub struct Gc {
    /// The store in this directory
    #[arg(long, value_name = "PATH")]
    pub store: PathBuf,
    /// Remove pages, those not used for longest first, until the rest fits: 10GiB
    #[arg(long, value_name = "SIZE")]
    pub max_size: Option<Size>,
    /// Remove pages that were not used for so many days: 30d
    #[arg(long, value_name = "AGE")]
    pub max_age: Option<Age>,
    /// Forget what was seen in too few sources for so many days: 90d
    #[arg(long, value_name = "AGE")]
    pub max_candidate_age: Option<Age>,
    /// Showing.
    #[command(flatten)]
    pub show: ShowOptions,
}
