// SPDX-License-Identifier: GPL-2.0

//! The command line. `Documentation/tool.rst` is its reference.

use std::path::PathBuf;
use std::time::Duration;

use clap::{
    ArgGroup,
    Args,
    Parser,
    Subcommand, //
};
use clap_complete::Shell;

use crate::digest::Digest;
use crate::domain::DomainName;
use crate::knobs::Setting;
use crate::process::Pid;
use crate::vm::{
    Id,
    Selection, //
};

pub mod migrate;
pub mod security;
pub mod store;

/// The codes of [`crate::error::Exit`].
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  tried and failed
  2  wrong usage
  3  module not loaded, not the right version, or not permitted (run as root)
  4  no such process, VM, attachment, page or user
  5  a migration ended in doubt: ask both QEMUs which one runs the VM";

/// How often `--watch` looks, unless told.
const WATCH_SECONDS: &str = "2";

/// Merges identical memory of KVM guests, shows what that saves, and migrates them by digest.
#[derive(Debug, Parser)]
#[command(name = "twinpage", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start merging the memory of running VMs
    Attach(Attach),
    /// Stop merging the memory of VMs
    Detach(Detach),
    /// Show what each VM shares, and why pages do not
    Status(Status),
    /// Show or change the knobs of the module
    Set(Set),
    /// Print or verify the digests of a VM's pages
    Digests(Digests),
    /// Show which VMs share how much with each other
    Shared(Shared),
    /// Write the content of a merged page to standard output
    Read(Read),
    /// Migrate a VM, sending digests instead of pages that the destination has
    #[command(subcommand)]
    Migrate(migrate::Migrate),
    /// Keep pages that many VMs have, for migrations to this host
    #[command(subcommand)]
    Store(store::Store),
    /// Show which hosts already hold most of a VM
    Plan(migrate::Plan),
    /// Show the versions of program and module, and what this kernel allows
    Version,
    /// Write the completions of this command line to standard output
    Completions(Completions),
    /// Write the manual pages
    #[command(hide = true)]
    Man(Man),
}

/// Arguments of `attach`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("who").required(true).args(["pids", "all", "domains"]))]
pub struct Attach {
    /// Processes of VMMs, such as qemu-system-x86_64
    #[arg(long = "pid", value_name = "PID", num_args = 1..)]
    pub pids: Vec<Pid>,
    /// Every process that has a KVM VM
    #[arg(long)]
    pub all: bool,
    /// Every guest that this file names, each to the domain that it says: lines `GUEST DOMAIN`
    #[arg(long, value_name = "FILE", conflicts_with = "domain")]
    pub domains: Option<PathBuf>,
    /// Share pages with the VMs of this domain: a name or a number [default: private]
    #[arg(long, value_name = "NAME")]
    pub domain: Option<DomainName>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Which VMs.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Target {
    /// The VMs of a process
    #[arg(long, value_name = "PID")]
    pub pid: Option<Pid>,
    /// The VM with this id
    #[arg(long, value_name = "ID")]
    pub id: Option<u32>,
    /// Every attached VM
    #[arg(long)]
    pub all: bool,
}

/// Which VM.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct OneTarget {
    /// The VM of a process
    #[arg(long, value_name = "PID")]
    pub pid: Option<Pid>,
    /// The VM with this id
    #[arg(long, value_name = "ID")]
    pub id: Option<u32>,
}

/// Arguments of `detach`.
#[derive(Debug, Args)]
pub struct Detach {
    /// Which VMs.
    #[command(flatten)]
    pub target: Target,
    /// Give every merged page its own copy back
    #[arg(long)]
    pub unmerge: bool,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Show it again and again [default: every 2 seconds]
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = WATCH_SECONDS,
        value_parser = interval
    )]
    pub watch: Option<Duration>,
    /// End after so many times (implies --watch)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End when two more passes over all memory found nothing (implies --watch)
    #[arg(long)]
    pub until_stable: bool,
    /// With --until-stable: fail after so many seconds
    #[arg(long, value_name = "SECONDS", requires = "until_stable")]
    pub timeout: Option<u64>,
    /// Print JSON: one object, or with --watch one a line
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `set`.
#[derive(Debug, Args)]
pub struct Set {
    /// Knobs and their new values; without any, the knobs are listed
    #[arg(value_name = "NAME=VALUE", value_parser = setting)]
    pub settings: Vec<Setting>,
}

/// Arguments of `digests`.
#[derive(Debug, Args)]
pub struct Digests {
    /// Which VM.
    #[command(flatten)]
    pub target: OneTarget,
    /// Compare the digests with the memory of the guest
    #[arg(long, conflicts_with = "summary")]
    pub verify: bool,
    /// Print only how many pages are in which state
    #[arg(long)]
    pub summary: bool,
    /// Print JSON: one object, or for the records one a line
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `shared`.
#[derive(Debug, Args)]
pub struct Shared {
    /// Which VMs; those of the same domains are looked at too.
    #[command(flatten)]
    pub target: Target,
    /// How many of the most shared pages to list
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `read`.
#[derive(Debug, Args)]
pub struct Read {
    /// The domain whose merged pages are searched
    #[arg(long, value_name = "NAME")]
    pub domain: DomainName,
    /// SHA-256 of the page, 64 hexadecimal digits
    #[arg(long, value_name = "HEX")]
    pub digest: Digest,
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell that they are for
    pub shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct Man {
    /// The directory to write them to; it must exist
    pub dir: PathBuf,
}

impl Target {
    /// What it selects.
    pub fn selection(&self) -> Selection {
        selection(self.pid, self.id)
    }
}

impl OneTarget {
    /// What it selects.
    pub fn selection(&self) -> Selection {
        selection(self.pid, self.id)
    }
}

/// What two options select together; clap sees to it that at most one is there.
fn selection(pid: Option<Pid>, id: Option<u32>) -> Selection {
    match (pid, id) {
        (Some(pid), _) => Selection::Pid(pid),
        (_, Some(id)) => Selection::Id(Id(id)),
        (None, None) => Selection::All,
    }
}

/// Reads a time between two looks.
fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    if !(0.1..=86_400.0).contains(&seconds) {
        return Err("it is not between 0.1 and 86400 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Reads `NAME=VALUE`.
fn setting(text: &str) -> Result<Setting, String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("it is not of the form NAME=VALUE")?;
    Ok(Setting {
        name: name.to_owned(),
        value: value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_refused() {
        let table = [
            "",
            "attach",
            "attach --pid",
            "attach --pid 0",
            "attach --pid 1 --all",
            "attach --pid 1 --domain=",
            "detach",
            "detach --pid 1 --id 2",
            "status --count 0",
            "status --watch 0",
            "status --watch nan",
            "status --timeout 5",
            "set run",
            "digests",
            "digests --all",
            "digests --id 1 --verify --summary",
            "shared",
            "read --domain web",
            "read --domain web --digest 00",
            "migrate",
            "migrate send --to b --insecure",
            "migrate send --listen unix:/x --insecure",
            "migrate send --listen unix:/x --stdio --to b --insecure",
            "migrate send --stdio --json --to b --insecure",
            "migrate send --stdio --socket-user 7 --to b --insecure",
            "migrate send --stdio --to b: --insecure",
            "migrate send --stdio --to b --key k --insecure",
            "migrate send --stdio --to b --ca c",
            "migrate send --stdio --to b --ca c --cert d",
            "migrate send --stdio --to b --cert d",
            "migrate send --stdio --to b --key k --peer-name n",
            "migrate send --stdio --to b --insecure --level 0",
            "migrate send --stdio --to b --insecure --level 20",
            "migrate send --stdio --to b --insecure --limit-rate 0",
            "migrate send --stdio --to b --insecure --threads 0",
            "migrate receive --insecure",
            "migrate receive --listen b --sources cloud",
            "migrate receive --listen b --sources module --no-module",
            "migrate receive --listen b --fleet-ca f",
            "migrate run --to b",
            "migrate run --from /q --to b --no-start",
            "migrate run --from /q --to b --incoming unix:/x",
            "migrate run --from /q --to b --downtime-ms 0",
            "migrate run --from /q --to b --insecure --progress",
            "migrate run --from /q --to b --insecure --json --progress --quiet",
            "migrate send --stdio --to b --insecure --json --progress",
            "migrate keygen",
            "plan --candidates b",
            "plan --pid 1 --candidates",
            "store",
            "store build --store s",
            "store build --image i",
            "store build --store s --public",
            "store build --store s --public --dump d",
            "store build --store s --public --image i --as n",
            "store build --store s --all --pid 1",
            "store build --store s --image i --min-sources 1",
            "store build --store s --image i --fleet-key k",
            "store stat --store s --fleet redis://h",
            "store verify",
            "store gc --store s",
            "store gc --store s --max-age 30",
            "store gc --store s --max-age 30d --json --progress",
            "completions",
            "completions sh",
            "man",
        ];
        for line in table {
            let words = format!("twinpage {line}");
            let parsed = Cli::try_parse_from(words.split_whitespace());
            assert!(parsed.is_err(), "{line:?}");
        }
    }

    #[test]
    fn right_usage_is_taken() {
        let table = [
            "attach --pid 1 2 3 --domain web",
            "attach --pid 1 --pid 2",
            "attach --all --json",
            "detach --all --unmerge",
            "status",
            "status --watch",
            "status --watch 0.5 --json --count 3",
            "status --until-stable --timeout 60",
            "set",
            "set run=1 advisor_mode=none",
            "digests --pid 9 --verify",
            "shared --all --top 3",
            "migrate send --listen unix:/x --to b --key k --domain web --limit-rate 1Gbit --level off",
            "migrate send --stdio --to unix:/y --ca c --cert d --key-file e --peer-name n --revoked r",
            "migrate receive --listen [::]:0 --connect unix:/x --insecure --domain a --domain b",
            "migrate receive --listen b --insecure --sources stream,store --store s",
            "migrate receive --listen b --insecure --no-module --no-stream --fleet redis://h",
            "migrate run --from /q --to b --to-qmp ./r --incoming unix:/x --link-rate 1Gbit --insecure",
            "migrate receive --listen b --insecure --json --progress",
            "migrate keygen /k",
            "plan --pid 1 --candidates b c:7 unix:/x --timeout 5 --key k --json",
            "store build --store s --fleet redis://h --image a b --dump c --pid 1 2 --as n",
            "store build --store s --public --image a --raw-image b",
            "store stat --fleet redis://h",
            "store verify --store s --repair --json",
            "store gc --store s --max-size 10GiB --max-age 30d",
            "version",
            "completions zsh",
            "man /d",
        ];
        for line in table {
            let words = format!("twinpage {line}");
            let parsed = Cli::try_parse_from(words.split_whitespace());
            assert!(parsed.is_ok(), "{line:?}: {parsed:?}");
        }
    }
}
