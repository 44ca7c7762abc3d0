// SPDX-License-Identifier: GPL-2.0

//! `twinpage shared`: which VMs share how much with each other, and what most.

use std::cmp::Reverse;
use std::collections::{
    BTreeMap,
    HashMap, //
};

use serde::Serialize;
use twinpage_engine::engine::wire::PageState;

use crate::cli;
use crate::console::{
    Console,
    Format, //
};
use crate::digest::{
    as_text,
    Digest, //
};
use crate::digests::Digests;
use crate::domain::Domain;
use crate::error::Error;
use crate::host::Host;
use crate::table::{
    Side,
    Table, //
};
use crate::vm::{
    self,
    Id,
    Selection,
    Vm, //
};

/// The most VMs that are shown against each other; of more, the pairs that share most are.
const MATRIX: usize = 24;

/// One domain.
#[derive(Debug, Serialize)]
struct Sharing {
    /// Its number.
    domain: Domain,
    /// Its name.
    domain_name: String,
    /// Its VMs.
    vms: Vec<Member>,
    /// How many copies each two of them have in common.
    pairs: Vec<Pair>,
    /// The copies with the most mappings.
    top: Vec<Copy>,
}

/// One VM of a domain.
#[derive(Debug, Serialize)]
struct Member {
    /// Its number.
    id: Id,
    /// Its name.
    name: String,
    /// Pages that map a merged copy.
    merged: u64,
    /// Why not all of its pages were looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// What two VMs have in common.
#[derive(Debug, Serialize)]
struct Pair {
    /// One of them.
    a: Id,
    /// The other.
    b: Id,
    /// Merged copies that both map.
    copies: u64,
}

/// One merged copy.
#[derive(Debug, Serialize)]
struct Copy {
    /// Its serial number.
    generation: u64,
    /// Its content.
    #[serde(serialize_with = "as_text")]
    digest: Digest,
    /// Pages that map it.
    mappings: u64,
    /// VMs that map it.
    vms: Vec<Id>,
}

/// Who maps one merged copy.
struct Mappings {
    /// Its content.
    digest: Digest,
    /// How many pages of which VM, by its place in the domain, in that order.
    pages: Vec<(u32, u32)>,
}

/// Every merged copy of a domain, by serial number.
type Copies = HashMap<u64, Mappings>;

/// Runs the command.
pub fn run(arguments: &cli::Shared, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    let mut sharings = Vec::new();
    for vms in domains(host, arguments.target.selection())? {
        sharings.push(measure(host, &vms, arguments.top)?);
    }
    match Format::of(arguments.json) {
        Format::Json => console.json(&sharings),
        Format::Text => sharings
            .iter()
            .try_for_each(|sharing| show(sharing, console)),
    }
}

/// The VMs of each domain that a selected one is in. Private VMs are domains of their own.
fn domains(host: &Host, selection: Selection) -> Result<Vec<Vec<Vm>>, Error> {
    let selected = vm::select(host, selection)?;
    let mut domains: BTreeMap<(Domain, Option<Id>), Vec<Vm>> = BTreeMap::new();
    let key = |vm: &Vm| match vm.stats.domain {
        Domain::PRIVATE => (Domain::PRIVATE, Some(vm.stats.id)),
        domain => (domain, None),
    };
    for vm in &selected {
        domains.insert(key(vm), Vec::new());
    }
    for vm in vm::list(host)? {
        if let Some(vms) = domains.get_mut(&key(&vm)) {
            vms.push(vm);
        }
    }
    Ok(domains
        .into_values()
        .filter(|vms| !vms.is_empty())
        .collect())
}

/// Finds out what the VMs of one domain share.
fn measure(host: &Host, vms: &[Vm], top: usize) -> Result<Sharing, Error> {
    let mut copies = Copies::new();
    let mut members = Vec::new();
    for (place, vm) in vms.iter().enumerate() {
        // CAST: There are no more VMs than numbers for them.
        let merged = read(host, vm.stats.id, place as u32, &mut copies);
        let (merged, note) = match merged {
            Ok(merged) => (merged, None),
            // It counts as far as it was read: among hundreds of VMs some always change.
            Err((merged, error)) if has_changed(&error) => (merged, Some(error.chain())),
            Err((_, error)) => return Err(error),
        };
        members.push(Member {
            id: vm.stats.id,
            name: vm.name.clone(),
            merged,
            note,
        });
    }
    Ok(Sharing {
        domain: vms[0].stats.domain,
        domain_name: vms[0].domain_name.clone(),
        pairs: pairs(&members, &copies),
        top: most_shared(&members, &copies, top),
        vms: members,
    })
}

/// Whether a VM that gives this error has ended or changed meanwhile.
fn has_changed(error: &Error) -> bool {
    match error {
        Error::NoSuchId(_) | Error::LayoutChanged(_) => true,
        Error::File(error) => error.is_gone(),
        _ => false,
    }
}

/// Reads the digests of VM `id`, and returns how many of its pages are merged, with an error as far
/// as it was read.
fn read(host: &Host, id: Id, place: u32, copies: &mut Copies) -> Result<u64, (u64, Error)> {
    let mut merged = 0;
    let mut read = || {
        let mut digests = Digests::open(host, id)?;
        while let Some((_, record)) = digests.read_next()? {
            let PageState::Merged { serial, digest } = record.state else {
                continue;
            };
            merged += 1;
            let digest = Digest(digest);
            let copy = copies.entry(serial).or_insert_with(|| Mappings {
                digest,
                pages: Vec::new(),
            });
            if copy.digest != digest {
                return Err(Error::TornCopy { generation: serial });
            }
            match copy.pages.last_mut() {
                Some((last, pages)) if *last == place => *pages = pages.saturating_add(1),
                _ => copy.pages.push((place, 1)),
            }
        }
        digests.check_layout()
    };
    match read() {
        Ok(()) => Ok(merged),
        Err(error) => Err((merged, error)),
    }
}

/// How many copies each two VMs have in common.
fn pairs(members: &[Member], copies: &Copies) -> Vec<Pair> {
    let vms = members.len();
    // Row after row, by the places of the two; a map would take most of the time.
    let mut common = vec![0; vms * vms];
    for copy in copies.values() {
        for (index, &(b, _)) in copy.pages.iter().enumerate() {
            for &(a, _) in &copy.pages[..index] {
                common[b as usize * vms + a as usize] += 1;
            }
        }
    }
    let pair = |(a, b): (usize, usize)| Pair {
        a: members[a].id,
        b: members[b].id,
        copies: common[b * vms + a],
    };
    let below = |b| (0..b).map(move |a| (a, b));
    (0..vms).flat_map(below).map(pair).collect()
}

/// The copies with the most mappings, in that order.
fn most_shared(members: &[Member], copies: &Copies, top: usize) -> Vec<Copy> {
    let mappings = |copy: &Mappings| -> u64 { copy.pages.iter().map(|&(_, n)| u64::from(n)).sum() };
    let mut list: Vec<(Reverse<u64>, u64)> = copies
        .iter()
        .map(|(&generation, copy)| (Reverse(mappings(copy)), generation))
        .collect();
    list.sort_unstable();
    let most = list.into_iter().take(top);
    most.filter_map(|(Reverse(mappings), generation)| {
        let copy = copies.get(&generation)?;
        Some(Copy {
            generation,
            digest: copy.digest,
            mappings,
            vms: (copy.pages.iter())
                .map(|&(place, _)| members[place as usize].id)
                .collect(),
        })
    })
    .collect()
}

/// Shows one domain.
fn show(sharing: &Sharing, console: &mut Console<'_>) -> Result<(), Error> {
    for vm in &sharing.vms {
        if let Some(note) = &vm.note {
            let (id, name) = (vm.id, &vm.name);
            console.warn(&format!("VM {id} ({name}) counts in part: {note}"))?;
        }
    }
    writeln!(
        console.out,
        "Domain {}: merged copies that two VMs share",
        sharing.domain_name
    )?;
    let table = match sharing.vms.len() <= MATRIX {
        true => matrix(sharing, console),
        false => closest(sharing, console),
    };
    write!(console.out, "{}", table.text())?;
    writeln!(console.out)?;
    if !sharing.top.is_empty() {
        writeln!(console.out, "Most shared:")?;
        write!(console.out, "{}", top(sharing, console).text())?;
        writeln!(console.out)?;
    }
    Ok(())
}

/// The VMs against each other.
fn matrix(sharing: &Sharing, console: &Console<'_>) -> Table {
    let ids: Vec<String> = sharing.vms.iter().map(|vm| vm.id.to_string()).collect();
    let mut columns = vec![
        ("ID", Side::Right),
        ("NAME", Side::Left),
        ("MERGED", Side::Right),
    ];
    columns.extend(ids.iter().map(|id| (id.as_str(), Side::Right)));
    let mut table = Table::new(&columns, console.screen);
    let copies: HashMap<(Id, Id), u64> = sharing
        .pairs
        .iter()
        .flat_map(|pair| {
            [
                ((pair.a, pair.b), pair.copies),
                ((pair.b, pair.a), pair.copies),
            ]
        })
        .collect();
    for vm in &sharing.vms {
        let mut row = vec![vm.id.to_string(), vm.name.clone(), vm.merged.to_string()];
        row.extend(sharing.vms.iter().map(|other| {
            let common = copies.get(&(vm.id, other.id));
            common.map_or("-".to_owned(), u64::to_string)
        }));
        table.add(row);
    }
    table
}

/// The two VMs that have most in common, the next two, and so on.
fn closest(sharing: &Sharing, console: &Console<'_>) -> Table {
    let columns = [
        ("VM", Side::Right),
        ("AND", Side::Right),
        ("COPIES", Side::Right),
    ];
    let mut table = Table::new(&columns, console.screen);
    let mut pairs: Vec<&Pair> = sharing.pairs.iter().collect();
    pairs.sort_by_key(|pair| Reverse(pair.copies));
    for pair in pairs.into_iter().take(MATRIX) {
        table.add([
            pair.a.to_string(),
            pair.b.to_string(),
            pair.copies.to_string(),
        ]);
    }
    table
}

/// The most shared copies.
fn top(sharing: &Sharing, console: &Console<'_>) -> Table {
    let columns = [
        ("PAGES", Side::Right),
        ("VMS", Side::Left),
        ("GENERATION", Side::Right),
        ("DIGEST", Side::Left),
    ];
    let mut table = Table::new(&columns, console.screen);
    for copy in &sharing.top {
        let vms: Vec<String> = copy.vms.iter().map(Id::to_string).collect();
        table.add([
            copy.mappings.to_string(),
            vms.join(","),
            copy.generation.to_string(),
            copy.digest.to_string(),
        ]);
    }
    table
}
