// SPDX-License-Identifier: GPL-2.0

//! `twinpage store build`: puts pages of images, dumps and running VMs into stores.

use std::collections::{
    BTreeSet,
    HashSet, //
};
use std::path::{
    Path,
    PathBuf, //
};

use serde::Serialize;
use twinpage_migrate::net;
use twinpage_store::build::{
    load,
    read_pages,
    Input, //
};
use twinpage_store::{
    Admit,
    Fleet,
    Loaded,
    Mode,
    Page,
    Progress,
    Settings,
    SourceId,
    Store,
    Trust, //
};

use crate::cli::store::Build;
use crate::console::{
    Console,
    Format, //
};
use crate::digest::Digest;
use crate::domain::Domain;
use crate::error::Error;
use crate::host::Host;
use crate::module_pages::{
    each_merged,
    ModulePages, //
};
use crate::page_sources;
use crate::table::{
    Side,
    Table, //
};
use crate::vm::{
    self,
    Selection,
    Vm, //
};

use super::{
    Watcher,
    SCHEMA, //
};

/// How many sources a page needs in a store that is made, unless told.
const SOURCES_NEEDED: u32 = 2;

/// What was done, as JSON.
#[derive(Debug, Serialize)]
struct Built {
    /// Version of the JSON.
    schema: u32,
    /// What was read.
    inputs: Vec<Taken>,
    /// What the store in a directory made of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<Loaded>,
    /// What the store of the fleet made of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fleet: Option<Loaded>,
}

/// What was read of one input.
#[derive(Debug, Serialize)]
struct Taken {
    /// Its name.
    name: String,
    /// What it is.
    format: String,
    /// Pages that are not zero.
    pages: u64,
    /// Pages of zeroes, which no store takes.
    zero: u64,
}

/// Where pages go.
struct Targets<'a> {
    /// The store in a directory, the store of the fleet: those that there are.
    all: Vec<&'a mut dyn Admit>,
    /// How much a source is worth.
    trust: Trust,
}

impl Targets<'_> {
    /// Offers one page to all of them.
    fn offer(&mut self, source: &SourceId, page: &Page) -> Result<(), twinpage_store::Error> {
        let digest = Digest::of(page);
        for target in &mut self.all {
            target.offer(source, self.trust, &digest, page)?;
        }
        Ok(())
    }
}

/// Runs the command.
pub fn run(arguments: &Build, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    let vms = sharing_vms(arguments, host, console)?;
    let asked = arguments.min_sources.unwrap_or(SOURCES_NEEDED);
    let (mut store, mut needed) = match &arguments.store {
        Some(path) => {
            let (store, needed) = open(path, arguments.min_sources)?;
            (Some(store), needed)
        }
        None => (None, asked),
    };
    let fleet = match page_sources::fleet(&arguments.fleet) {
        Some(mut options) => {
            needed = needed.min(asked);
            options.sources_needed = asked;
            if let Some(path) = &arguments.fleet_key {
                options.key = Some(key(host, path)?);
            }
            Some(Fleet::connect(options)?)
        }
        None => None,
    };
    if let Some(text) = too_few_sources(arguments, &vms, needed) {
        console.warn(&text)?;
    }
    let mut into_store = store.as_mut().map(Store::load).transpose()?;
    let mut into_fleet = fleet.as_ref().map(Fleet::load).transpose()?;
    let inputs = {
        let mut targets = Targets {
            all: Vec::new(),
            trust: match arguments.public {
                true => Trust::Public,
                false => Trust::Counted,
            },
        };
        targets
            .all
            .extend(into_store.as_mut().map(|one| one as &mut dyn Admit));
        targets
            .all
            .extend(into_fleet.as_mut().map(|one| one as &mut dyn Admit));
        let mut watcher = Watcher::new(arguments.show, "reading", host, console);
        let inputs = read(arguments, &vms, &mut targets, host, &mut watcher)?;
        targets
            .all
            .iter_mut()
            .try_for_each(|target| target.finish())?;
        inputs
    };
    let built = Built {
        schema: SCHEMA,
        inputs,
        store: into_store.as_ref().map(Admit::loaded),
        fleet: into_fleet.as_ref().map(Admit::loaded),
    };
    let shown = match Format::of(arguments.show.json) {
        Format::Json => console.json(&built),
        Format::Text => show(&built, console),
    };
    drop(into_store);
    // All is in the store: a signal ends only this, and the next build goes on with it.
    if let Some(store) = &mut store {
        let mut watcher = Watcher::new(arguments.show, "merging", host, console);
        store.merge(&mut |progress| watcher.see(progress))?;
    }
    shown
}

/// The VMs that are named, but for private ones.
fn sharing_vms(
    arguments: &Build,
    host: &Host,
    console: &mut Console<'_>,
) -> Result<Vec<Vm>, Error> {
    let mut vms = Vec::new();
    if arguments.all {
        vms = vm::select(host, Selection::All)?;
    }
    for &pid in &arguments.pids {
        vms.extend(vm::select(host, Selection::Pid(pid))?);
    }
    let (sharing, private): (Vec<Vm>, Vec<Vm>) = vms
        .into_iter()
        .partition(|vm| vm.stats.domain != Domain::PRIVATE);
    for vm in private {
        let id = vm.stats.id;
        console.warn(&format!(
            "VM {id} ({}) is private: it gives no pages",
            vm.name
        ))?;
    }
    Ok(sharing)
}

/// What to say if no page is admitted for what is read now alone, where pages need so many sources.
fn too_few_sources(arguments: &Build, vms: &[Vm], needed: u32) -> Option<String> {
    // Who names the source knows that it is one.
    if vms.is_empty() || arguments.source.is_some() {
        return None;
    }
    let domains = vms.iter().map(|vm| vm.stats.domain);
    let domains = domains.collect::<BTreeSet<_>>().len();
    let files = arguments.images.len() + arguments.raw_images.len() + arguments.dumps.len();
    if (domains + files) as u64 >= u64::from(needed) {
        return None;
    }
    let of = match domains {
        1 => "one domain".to_owned(),
        more => format!("{more} domains"),
    };
    Some(format!(
        "the VMs are of {of}, and each domain is one source: what only they have is not admitted, \
         since a page needs {needed} sources. --pid with --as makes a VM a source of its own"
    ))
}

/// The store at `path`, made if there is none, and how many sources a page needs there.
fn open(path: &Path, needed: Option<u32>) -> Result<(Store, u32), Error> {
    let settings = Settings {
        sources_needed: needed.unwrap_or(SOURCES_NEEDED),
    };
    let store = match Store::open(path, Mode::Write) {
        Err(twinpage_store::Error::NoStore(_)) => {
            let store = Store::create(path, &settings)?;
            return Ok((store, settings.sources_needed));
        }
        opened => opened?,
    };
    let has = store.stat()?.sources_needed;
    match needed {
        Some(asked) if asked != has => Err(Error::SourcesNeeded { asked, has }),
        _ => Ok((store, has)),
    }
}

/// The secret in the file `path`: 64 hexadecimal digits, which only the owner may read.
fn key(host: &Host, path: &Path) -> Result<[u8; Digest::BYTES], Error> {
    if let Some(mode) = host.exposed(path)? {
        let path = path.to_owned();
        return Err(net::Error::Exposed { path, mode }.into());
    }
    let text = host.read_text(path, 1024)?;
    let digits = text.trim().parse::<Digest>();
    digits
        .map(|digest| digest.0)
        .map_err(|_| Error::FleetKey(path.to_owned()))
}

/// Reads all inputs.
fn read(
    arguments: &Build,
    vms: &[Vm],
    targets: &mut Targets<'_>,
    host: &Host,
    watcher: &mut Watcher<'_>,
) -> Result<Vec<Taken>, Error> {
    let mut taken = Vec::new();
    let named = arguments
        .source
        .as_ref()
        .map(|name| SourceId::new(format!("name {name}")));
    let files = (arguments.images.iter().map(image))
        .chain(arguments.raw_images.iter().map(raw_image))
        .chain(arguments.dumps.iter().map(dump));
    for (path, input) in files {
        let name = path.display().to_string();
        watcher.begin(&name);
        let mut watch = |progress| watcher.see(progress);
        let read = match &named {
            None => load(&input, targets.trust, &mut targets.all, &mut watch)?,
            Some(source) => {
                read_pages(&input, &mut |page| targets.offer(source, page), &mut watch)?
            }
        };
        taken.push(Taken {
            name,
            format: read.format,
            pages: read.pages,
            zero: read.zero,
        });
    }
    for vm in vms {
        // What is the domain's own must not reach others by way of a store.
        let domain = vm.stats.domain;
        let source = named
            .clone()
            .unwrap_or_else(|| SourceId::new(format!("domain {domain}")));
        let name = format!("VM {} ({})", vm.stats.id, vm.name);
        watcher.begin(&name);
        taken.push(Taken {
            pages: read_vm(vm, &source, targets, host, watcher)?,
            name,
            format: "merged pages".to_owned(),
            zero: 0,
        });
    }
    Ok(taken)
}

/// A file as an image of any format.
fn image(path: &PathBuf) -> (&PathBuf, Input) {
    (path, Input::Image(path.clone()))
}

/// A file as a raw image.
fn raw_image(path: &PathBuf) -> (&PathBuf, Input) {
    (path, Input::RawImage(path.clone()))
}

/// A file as a dump.
fn dump(path: &PathBuf) -> (&PathBuf, Input) {
    (path, Input::Dump(path.clone()))
}

/// Reads the merged pages of `vm`, and returns how many.
fn read_vm(
    vm: &Vm,
    source: &SourceId,
    targets: &mut Targets<'_>,
    host: &Host,
    watcher: &mut Watcher<'_>,
) -> Result<u64, Error> {
    let pages = ModulePages::open(host, vm.stats.domain)?;
    let mut digests = Vec::new();
    let mut seen = HashSet::new();
    each_merged(host, vm.stats.id, &mut seen, &mut |digest| {
        digests.push(digest)
    })?;
    let mut page: Page = [0; crate::uapi::PAGE_BYTES];
    let mut read = 0;
    let total = digests.len() as u64;
    for (done, digest) in (0..).zip(digests) {
        if done % 256 == 0 && watcher.see(Progress { done, total }).is_break() {
            return Err(twinpage_store::Error::Stopped.into());
        }
        // A copy that was given up since, or is not what it should be, is left out.
        if pages.copy(&digest, &mut page)? && Digest::of(&page) == digest {
            targets.offer(source, &page)?;
            read += 1;
        }
    }
    Ok(read)
}

/// Shows what was done.
fn show(built: &Built, console: &mut Console<'_>) -> Result<(), Error> {
    let columns = [
        ("INPUT", Side::Left),
        ("FORMAT", Side::Left),
        ("PAGES", Side::Right),
        ("ZERO", Side::Right),
    ];
    let mut table = Table::new(&columns, console.screen);
    for one in &built.inputs {
        table.add([
            one.name.clone(),
            one.format.clone(),
            one.pages.to_string(),
            one.zero.to_string(),
        ]);
    }
    write!(console.out, "{}", table.text())?;
    writeln!(console.out)?;
    let columns = [
        ("INTO", Side::Left),
        ("ADMITTED", Side::Right),
        ("PRESENT", Side::Right),
        ("COUNTED", Side::Right),
    ];
    let mut table = Table::new(&columns, console.screen);
    for (name, loaded) in [("store", &built.store), ("fleet", &built.fleet)] {
        if let Some(loaded) = loaded {
            table.add([
                name.to_owned(),
                loaded.admitted.to_string(),
                loaded.present.to_string(),
                loaded.counted.to_string(),
            ]);
        }
    }
    Ok(write!(console.out, "{}", table.text())?)
}
