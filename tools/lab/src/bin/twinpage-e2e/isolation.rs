// SPDX-License-Identifier: GPL-2.0

//! No frame is shared across domains, whoever moves between them, and when.

use std::collections::BTreeSet;

use tinyvm::Backing;
use twinpage_guest::pattern::mix;
use twinpage_lab::ensure;
use twinpage_lab::module::{
    self,
    Merged, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};

use crate::host::{
    common_frames,
    Guest,
    Host,
    DOMAIN,
    PRIVATE, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "a_vm_shares_nothing_with_another_domain_once_it_is_attached",
        seconds: 180,
        run: a_vm_shares_nothing_with_another_domain_once_it_is_attached,
    },
    Test {
        name: "vms_that_move_between_domains_share_with_none_of_another",
        seconds: 600,
        run: vms_that_move_between_domains_share_with_none_of_another,
    },
];

const PAGES: usize = 128;

/// Where VMs are attached to.
const DOMAINS: [u64; 4] = [PRIVATE, 1, 2, u64::MAX];

/// The content of every VM: each page has a twin in the VM, and one in each other.
fn key(page: usize) -> u64 {
    page as u64 / 2 + 1
}

/// A VM that is attached now and then.
struct Mover {
    guest: Guest,
    domain: Option<u64>,
    /// Domains whose copies its pages may map.
    seen: BTreeSet<u64>,
}

impl Mover {
    fn new() -> Result<Mover, Failure> {
        let guest = Guest::detached(PAGES, Backing::Small)?;
        guest.fill_with(key);
        Ok(Mover {
            guest,
            domain: None,
            seen: BTreeSet::new(),
        })
    }

    /// Attaches it, or detaches it, as `choice` says.
    fn step(&mut self, host: &Host, choice: u64) -> Outcome {
        if self.domain.is_none() {
            let domain = DOMAINS[choice as usize % DOMAINS.len()];
            self.guest.attach(host, domain)?;
            self.domain = Some(domain);
            // What it brings from elsewhere comes apart before it is attached. What a private VM
            // merges with is in no other domain.
            self.seen = (domain != PRIVATE).then_some(domain).into_iter().collect();
            return Ok(());
        }
        if choice % 3 == 0 {
            self.guest.detach(host, Merged::Keep)?;
        } else {
            let detached = self.guest.detach(host, Merged::Unmerge)?;
            ensure!(detached.remaining == 0, "{detached:?}");
            self.seen.clear();
        }
        self.domain = None;
        Ok(())
    }

    /// Writes what it holds once more to some pages, so that they merge again.
    fn refresh(&self, from: usize) {
        for page in from % PAGES..PAGES {
            crate::host::fill(self.guest.memory(), page, key(page));
        }
    }

    /// Whether the two were in one domain, so that sharing is right.
    fn met(&self, other: &Mover) -> bool {
        !self.seen.is_disjoint(&other.seen)
    }
}

/// Frames that both VMs map while nothing is scanned.
fn common_at_rest(a: &Guest, b: &Guest) -> Result<usize, Failure> {
    module::set("run", 0)?;
    let common = common_frames(a, b)?;
    module::set("run", 1)?;
    Ok(common)
}

/// Fails if two VMs that never met share a frame.
fn nobody_shares(movers: &[Mover]) -> Outcome {
    for (at, one) in movers.iter().enumerate() {
        for (number, other) in movers.iter().enumerate().skip(at + 1) {
            if one.met(other) {
                continue;
            }
            // A frame may have gone from one to the other between two looks, but not again and
            // again.
            let mut looks = (0..4).map(|_| common_frames(&one.guest, &other.guest));
            let least =
                looks.try_fold(usize::MAX, |least, seen| Ok::<_, Failure>(least.min(seen?)))?;
            // Unless this process was held up each time.
            let common = match least {
                0 => 0,
                _ => common_at_rest(&one.guest, &other.guest)?,
            };
            ensure!(
                common == 0,
                "VM {at} ({:?}) and VM {number} ({:?}) share {common} frames",
                one.domain,
                other.domain
            );
        }
    }
    Ok(())
}

/// The scanner stands still, so that it cannot be what takes pages apart.
fn a_vm_shares_nothing_with_another_domain_once_it_is_attached() -> Outcome {
    let host = Host::new()?;
    let [a, mut b] = host.twins(PAGES)?;
    module::set("run", 0)?;
    ensure!(common_frames(&a, &b)? > 0, "twins share nothing");
    b.detach(&host, Merged::Keep)?;
    b.attach(&host, DOMAIN)?;
    let kept = common_frames(&a, &b)?;
    ensure!(kept > 0, "what is of the same domain came apart");
    for domain in [PRIVATE, DOMAIN + 1] {
        b.detach(&host, Merged::Keep)?;
        b.attach(&host, domain)?;
        let common = common_frames(&a, &b)?;
        ensure!(common == 0, "{common} frames are in two domains");
        b.check_with(|page| page as u64 + 1)?;
        // And back, to merge again.
        b.detach(&host, Merged::Keep)?;
        b.attach(&host, DOMAIN)?;
        module::set("run", 1)?;
        host.until_saved(&[&a, &b], PAGES)?;
        module::set("run", 0)?;
    }
    // Nor after a reload, when nobody knows whose copies were whose.
    drop(host);
    module::unload()?;
    let host = Host::new()?;
    module::set("run", 0)?;
    b.attach(&host, DOMAIN + 1)?;
    ensure!(
        common_frames(&a, &b)? == 0,
        "frames are shared after a reload"
    );
    a.check_with(|page| page as u64 + 1)?;
    b.check_with(|page| page as u64 + 1)
}

fn vms_that_move_between_domains_share_with_none_of_another() -> Outcome {
    const STEPS: u64 = 160;
    const SEED: u64 = 1;
    let host = Host::new()?;
    let mut movers = (0..6)
        .map(|_| Mover::new())
        .collect::<Result<Vec<_>, _>>()?;
    let mut shared = 0;
    for step in 0..STEPS {
        let choice = mix(mix(SEED).wrapping_add(step));
        let at = (choice >> 32) as usize % movers.len();
        movers[at].step(&host, choice & 0xffff)?;
        movers[(at + 1) % 6].refresh((choice >> 40) as usize);
        std::thread::sleep(std::time::Duration::from_millis(choice >> 56));
        nobody_shares(&movers)?;
        for mover in &movers {
            mover.guest.check_with(key)?;
        }
        shared += common_frames(&movers[0].guest, &movers[1].guest)?;
    }
    ensure!(shared > 0, "no two VMs ever shared anything");
    Ok(())
}
