// SPDX-License-Identifier: GPL-2.0

//! How a migration is begun by each method, and what its proxies say and cost.

use std::collections::BTreeMap;
use std::fs::{
    self,
    File, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Child,
    Command,
    Stdio, //
};
use std::time::Duration;

use serde_json::{
    json,
    Value, //
};
use twinpage_lab::told::Told;
use twinpage_lab::{
    listen,
    place,
    spent,
    wait, //
};

use crate::matrix::Method;
use crate::run::{
    Pair,
    DOWNTIME_MS, //
};
use crate::Failure;

/// How long a proxy may take to listen, or to end when the migration is done.
const SOON: Duration = Duration::from_secs(30);

/// Channels of multifd: as many as this machine has processors, and QEMU's default.
const CHANNELS: u64 = 2;

/// A proxy.
struct Proxy {
    process: Child,
    output: PathBuf,
    errors: PathBuf,
}

/// The proxies of a migration; none when QEMU migrates alone.
#[derive(Default)]
pub struct Running(Vec<Proxy>);

/// What proxies used and said.
#[derive(Default)]
pub struct Proxies {
    /// Processor time of all of them.
    pub spent: Duration,
    /// Of the pages that are not zero, the part that each source had.
    pub hit_ratios: BTreeMap<String, f64>,
}

/// Begins a migration.
///
/// # Errors
///
/// QEMU refuses, or a proxy does not start.
pub fn start(pair: &mut Pair, store: Option<&Path>) -> Result<Running, Failure> {
    match pair.case.method {
        Method::Plain => alone(pair, &[], json!({})),
        Method::Xbzrle => alone(pair, &["xbzrle"], json!({})),
        Method::MultifdZstd => {
            let parameters = json!({ "multifd-channels": CHANNELS, "multifd-compression": "zstd" });
            alone(pair, &["multifd"], parameters)
        }
        Method::Twinpage => twinpage(pair, store),
    }
}

/// QEMU migrates by itself.
fn alone(pair: &mut Pair, capabilities: &[&str], parameters: Value) -> Result<Running, Failure> {
    for qmp in [&mut pair.source.qmp, &mut pair.destination.qmp] {
        qmp.capabilities(capabilities)?;
        qmp.run("migrate-set-parameters", parameters.clone())?;
    }
    let port = pair.port;
    let listens = json!({ "uri": format!("tcp:127.0.0.1:{port}") });
    pair.destination.qmp.run("migrate-incoming", listens)?;
    let uri = json!({ "uri": format!("tcp:{}", pair.near_end()) });
    pair.source.qmp.run("migrate", uri)?;
    Ok(Running::default())
}

/// Two proxies between the QEMUs.
fn twinpage(pair: &mut Pair, store: Option<&Path>) -> Result<Running, Failure> {
    let scratch = &pair.bench.scratch;
    let key = key(scratch)?;
    let socket = format!("unix:{}", pair.destination.file("incoming").display());
    let listens = json!({ "uri": socket });
    pair.destination.qmp.run("migrate-incoming", listens)?;
    let address = format!("127.0.0.1:{}", pair.port);
    let mut receive = vec![
        "receive",
        "--listen",
        &address,
        "--connect",
        &socket,
        "--no-module",
        "--json",
    ];
    let path = store.map(|path| path.display().to_string());
    if let Some(path) = &path {
        receive.extend(["--store", path]);
    }
    let mut running = Running::default();
    running.0.push(Proxy::start(scratch, &receive, &key)?);
    wait::until("the receiver listens", SOON, || {
        Ok::<_, Failure>(listen::heard(pair.port))
    })?;
    let monitor = pair.source.spare_qmp().display().to_string();
    let (to, downtime) = (pair.near_end(), DOWNTIME_MS.to_string());
    let mut run = vec![
        "run",
        "--from",
        &monitor,
        "--to",
        &to,
        "--downtime-ms",
        &downtime,
        "--json",
    ];
    let rate = pair.case.link.bits_per_second();
    let rate = rate.map(|bits| format!("{}Mbit", bits / 1_000_000));
    if let Some(rate) = &rate {
        run.extend(["--link-rate", rate]);
    }
    running.0.push(Proxy::start(scratch, &run, &key)?);
    Ok(running)
}

/// The key of both proxies, made when it is not there.
fn key(scratch: &Path) -> Result<String, Failure> {
    let key = scratch.join("key");
    if !key.exists() {
        let status = Command::new(place::tool())
            .args(["migrate", "keygen"])
            .arg(&key)
            .stdout(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(format!("twinpage migrate keygen: {status}").into());
        }
    }
    Ok(key.display().to_string())
}

/// Waits for the proxies, which have nothing more to do.
///
/// # Errors
///
/// One of them fails or does not end.
pub fn finish(running: Running) -> Result<Proxies, Failure> {
    let mut proxies = Proxies::default();
    for mut proxy in running.0 {
        let used = spent::until_end(&proxy.process, SOON)?;
        proxies.spent += used.ok_or("a proxy does not end")?;
        let status = proxy.process.wait()?;
        if !status.success() {
            let said = fs::read_to_string(&proxy.errors).unwrap_or_default();
            return Err(format!("a proxy ends with {status}: {}", said.trim()).into());
        }
        let told = Told::parse(&fs::read_to_string(&proxy.output)?)?;
        // Only the receiver has sources.
        if !told.sources.is_empty() || proxies.hit_ratios.is_empty() {
            proxies.hit_ratios = told.hit_ratios();
        }
    }
    Ok(proxies)
}

impl Proxy {
    fn start(scratch: &Path, arguments: &[&str], key: &str) -> Result<Proxy, Failure> {
        let output = scratch.join(format!("{}.json", arguments[0]));
        let errors = scratch.join(format!("{}.errors", arguments[0]));
        let process = Command::new(place::tool())
            .arg("migrate")
            .args(arguments)
            .args(["--key", key])
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::create(&errors)?)
            .spawn()?;
        Ok(Proxy {
            process,
            output,
            errors,
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It has ended, unless the measurement failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
