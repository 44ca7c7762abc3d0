// SPDX-License-Identifier: GPL-2.0

//! One measurement: a guest is restored, runs for a moment, and migrates.

use std::fs;
use std::net::{
    Ipv4Addr,
    SocketAddr, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::time::{
    Duration,
    Instant,
    SystemTime,
    UNIX_EPOCH, //
};

use serde_json::{
    json,
    Value, //
};
use twinpage_lab::cable::Cable;
use twinpage_lab::vmm::Vmm;
use twinpage_lab::{
    listen,
    spent,
    wait, //
};

use crate::guests;
use crate::matrix::{
    Case,
    Link,
    Method,
    Workload, //
};
use crate::methods;
use crate::rows::Row;
use crate::state::State;
use crate::store;
use crate::Failure;

/// Bytes a second that QEMU never reaches: only the link limits.
pub const NO_LIMIT: u64 = 1 << 36;

/// How long a restored guest runs before it migrates.
const SETTLES: Duration = Duration::from_secs(3);

/// How long a migration may take.
pub const LIMIT: Duration = Duration::from_secs(240);

/// How long a guest may stand still; the same for all methods, and QEMU's default.
pub const DOWNTIME_MS: u64 = 300;

/// What all measurements share.
pub struct Bench {
    image: PathBuf,
    cache: PathBuf,
    /// Where sockets and logs are for now.
    pub scratch: PathBuf,
}

/// Two QEMUs and what is between them.
pub struct Pair<'a> {
    /// The bench.
    pub bench: &'a Bench,
    /// What is measured.
    pub case: Case,
    /// The QEMU with the guest.
    pub source: Vmm,
    /// The QEMU that waits for it.
    pub destination: Vmm,
    /// The link.
    pub cable: Cable,
    /// The port that the link leads to.
    pub port: u16,
}

/// When the guest stopped and went on, and when the source was done; since 1970.
struct Times {
    stopped: Duration,
    resumed: Duration,
    completed: Duration,
}

impl Bench {
    /// A bench that keeps guests and stores in `cache`.
    ///
    /// # Errors
    ///
    /// The directories cannot be made.
    pub fn new(image: &Path, cache: &Path, scratch: &Path) -> Result<Bench, Failure> {
        fs::create_dir_all(cache)?;
        fs::create_dir_all(scratch)?;
        Ok(Bench {
            image: image.to_owned(),
            cache: cache.to_owned(),
            scratch: scratch.to_owned(),
        })
    }

    /// Measures one case.
    ///
    /// # Errors
    ///
    /// The migration fails, takes too long, or the guest is not what it was.
    pub fn run(&self, case: Case) -> Result<Row, Failure> {
        let state = self.state(case.workload)?;
        let store = match case.method {
            Method::Twinpage => self.store(case.workload)?,
            _ => None,
        };
        let mut pair = self.pair(case, &state)?;
        let before = pair.spent()?;
        let start = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let running = methods::start(&mut pair, store.as_deref())?;
        let times = pair.times()?;
        if times.is_none() && case.method == Method::Twinpage {
            return Err(format!("it did not end within {LIMIT:?}").into());
        }
        let proxies = methods::finish(running)?;
        let after = pair.spent()?;
        let seen = pair.source.qmp.run("query-migrate", json!({}))?;
        let debian = matches!(case.workload, Workload::Ideal | Workload::Realistic);
        let completed = times.is_some();
        let (seconds, downtime) = match times {
            Some(times) => {
                guests::alive(&mut pair.destination, debian)?;
                let end = times.completed.max(times.resumed);
                let downtime = times.resumed.saturating_sub(times.stopped);
                (end.saturating_sub(start), downtime)
            }
            None => (LIMIT, Duration::ZERO),
        };
        let (wire, back) = pair.cable.passed();
        Ok(Row {
            completed,
            workload: case.workload.name().into(),
            link: case.link.name().into(),
            method: case.method.name().into(),
            seconds: seconds.as_secs_f64(),
            downtime_ms: downtime.as_secs_f64() * 1000.0,
            wire_bytes: wire,
            wire_back_bytes: back,
            cpu_seconds: proxies.spent.as_secs_f64(),
            qemu_cpu_seconds: after.saturating_sub(before).as_secs_f64(),
            rounds: seen["ram"]["dirty-sync-count"].as_u64().unwrap_or_default(),
            qemu_bytes: seen["ram"]["transferred"].as_u64().unwrap_or_default(),
            hit_ratios: proxies.hit_ratios,
        })
    }

    /// The guest of a workload.
    fn state(&self, workload: Workload) -> Result<State, Failure> {
        let recipe = match workload {
            Workload::Ideal | Workload::Realistic => guests::app(&self.image),
            Workload::Random => guests::random(&self.cache)?,
            Workload::Rewritten => guests::rewritten(&self.cache)?,
        };
        recipe.cook(&self.cache, &self.scratch)
    }

    /// The store that the destination has for a workload.
    fn store(&self, workload: Workload) -> Result<Option<PathBuf>, Failure> {
        let seen = match workload {
            Workload::Ideal => store::Seen::Guest(self.state(workload)?),
            Workload::Realistic => {
                let others = guests::others(&self.image);
                let cook = |recipe: &crate::state::Recipe| recipe.cook(&self.cache, &self.scratch);
                store::Seen::Others {
                    image: self.image.join("image.raw"),
                    guests: [cook(&others[0])?, cook(&others[1])?],
                }
            }
            // Nothing of what they hold could be known: an empty cupboard is not opened.
            Workload::Random | Workload::Rewritten => return Ok(None),
        };
        store::build(&self.cache, &seen).map(Some)
    }

    /// A running guest, a QEMU that waits, and the link.
    fn pair(&self, case: Case, state: &State) -> Result<Pair<'_>, Failure> {
        let disk = state.fresh_disk(&self.scratch.join("disk.qcow2"))?;
        let with = |incoming: &str| {
            let mut arguments = state.arguments(disk.as_deref());
            arguments.extend(["-incoming".to_owned(), incoming.to_owned()]);
            arguments
        };
        let saved = format!("file:{}", state.stream.display());
        let mut source = Vmm::start(&self.scratch, "source", &with(&saved))?;
        wait::until("the guest is restored", LIMIT, || {
            Ok::<_, Failure>(source.qmp.status()? != "inmigrate")
        })?;
        source.qmp.run("cont", json!({}))?;
        let mut destination = Vmm::start(&self.scratch, "destination", &with("defer"))?;
        let port = listen::free_port()?;
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let cable = Cable::lay(target, case.link.bits_per_second())?;
        for qmp in [&mut source.qmp, &mut destination.qmp] {
            qmp.capabilities(&["return-path", "events"])?;
            qmp.run("migrate-set-parameters", parameters(case.link))?;
        }
        std::thread::sleep(SETTLES);
        source.qmp.events()?;
        Ok(Pair {
            bench: self,
            case,
            source,
            destination,
            cable,
            port,
        })
    }
}

/// What QEMU is told in all methods: what the link can do, and how long the guest may stand still.
fn parameters(link: Link) -> Value {
    let mut parameters = json!({ "max-bandwidth": NO_LIMIT, "downtime-limit": DOWNTIME_MS });
    if let Some(bits) = link.bits_per_second() {
        parameters["avail-switchover-bandwidth"] = json!(bits / 8);
    }
    parameters
}

impl Pair<'_> {
    /// Where the link begins.
    pub fn near_end(&self) -> String {
        self.cable.address().to_string()
    }

    /// Processor time of both QEMUs, without what the guests use.
    fn spent(&self) -> Result<Duration, Failure> {
        let mut sum = Duration::ZERO;
        for pid in [self.source.pid(), self.destination.pid()] {
            sum += spent::process(pid)?.saturating_sub(spent::vcpus(pid)?);
        }
        Ok(sum)
    }

    /// Follows the migration to its end, if it has one: where the guest writes more than the link
    /// takes, QEMU goes on sending.
    fn times(&mut self) -> Result<Option<Times>, Failure> {
        let end = Instant::now() + LIMIT;
        let left = || end.saturating_duration_since(Instant::now());
        let mut stopped = None;
        let completed = loop {
            let event = match self.source.qmp.event(&["STOP", "MIGRATION"], left()) {
                Err(_) if left().is_zero() => return Ok(None),
                event => event?,
            };
            match (event.name.as_str(), event.data["status"].as_str()) {
                ("STOP", _) => stopped = Some(event.at),
                (_, Some("completed")) => break event.at,
                (_, Some("failed" | "cancelled")) => return Err(self.failure()?.into()),
                _ => {}
            }
        };
        let resumed = self.destination.qmp.event(&["RESUME"], left())?.at;
        Ok(Some(Times {
            stopped: stopped.ok_or("the guest never stopped")?,
            resumed,
            completed,
        }))
    }

    /// Why QEMU gave up.
    fn failure(&mut self) -> Result<String, Failure> {
        let seen = self.source.qmp.run("query-migrate", json!({}))?;
        let reason = seen["error-desc"].as_str().unwrap_or("no reason given");
        let log = self.destination.log();
        let said = log.lines().last().unwrap_or_default();
        Ok(format!(
            "QEMU says '{reason}'; at the destination: '{said}'"
        ))
    }
}
