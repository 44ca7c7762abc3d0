// SPDX-License-Identifier: GPL-2.0

//! The sources of pages that a receiver was told to use, opened anew for each migration.

use std::sync::{
    Arc,
    Mutex,
    PoisonError, //
};

use twinpage_store::{
    Digest,
    Error as SourceError,
    Fleet,
    FleetOptions,
    Mode,
    Page,
    PageSource,
    Sources,
    Store, //
};

use crate::cli::migrate::{
    PageOptions,
    SourceName, //
};
use crate::cli::store;
use crate::domain::{
    Domain,
    DomainName, //
};
use crate::error::Error;
use crate::host::Host;
use crate::module_pages::ModulePages;
use crate::notices::Speaker;

/// What to open for a migration.
pub struct Opener {
    /// The machine.
    host: Host,
    /// Domains that a sender may name.
    domains: Vec<DomainName>,
    /// Which sources, in order.
    wanted: Vec<Wanted>,
    /// Where to say what does not work.
    speaker: Speaker,
}

/// One source that is wanted.
#[derive(Clone)]
enum Wanted {
    /// Merged pages; whether the user named it.
    Module(Named),
    /// The store in a directory, as it was last opened.
    Store(Arc<Mutex<Store>>),
    /// The store of the fleet.
    Fleet(FleetOptions),
}

/// Whether the user named a source, so that a migration without it is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    /// By `--sources`.
    Yes,
    /// It is used if it is there.
    No,
}

impl Opener {
    /// The sources that `options` name, for senders of one of `domains`.
    ///
    /// # Errors
    ///
    /// `--sources` names a store that no option tells the place of, or one that it names
    /// cannot be used.
    pub fn new(
        options: &PageOptions,
        domains: &[DomainName],
        host: &Host,
        speaker: Speaker,
    ) -> Result<Self, Error> {
        let named = options.sources.as_ref();
        let wants = |source| named.is_none_or(|names| names.contains(&source));
        let store = match &options.store {
            // All of its indexes are read here, while no sender waits.
            Some(path) if wants(SourceName::Store) => {
                let store = Store::open(path, Mode::Read)?;
                Some(Wanted::Store(Arc::new(Mutex::new(store))))
            }
            _ => None,
        };
        let fleet = fleet(&options.fleet).filter(|_| wants(SourceName::Fleet));
        fleet.as_ref().map(FleetOptions::check).transpose()?;
        let fleet = fleet.map(Wanted::Fleet);
        let wanted = match &options.sources {
            None => {
                let module = (!options.no_module).then_some(Wanted::Module(Named::No));
                [module, store, fleet].into_iter().flatten().collect()
            }
            Some(names) => {
                let one = |name: &SourceName| match name {
                    SourceName::Stream => Ok(None),
                    SourceName::Module => Ok(Some(Wanted::Module(Named::Yes))),
                    SourceName::Store => store.clone().ok_or(Error::NoPlace("store")).map(Some),
                    SourceName::Fleet => fleet.clone().ok_or(Error::NoPlace("fleet")).map(Some),
                };
                let named: Result<Vec<_>, Error> = names.iter().map(one).collect();
                named?.into_iter().flatten().collect()
            }
        };
        Ok(Self {
            host: host.clone(),
            domains: domains.to_vec(),
            wanted,
            speaker,
        })
    }

    /// Opens the sources for a sender that names `domain`, empty for none.
    ///
    /// # Errors
    ///
    /// What to tell the sender: its domain is not served here, or a source cannot be opened.
    pub fn open(&self, domain: &str) -> Result<Arc<Sources>, String> {
        let domain = self.domain(domain)?;
        let speaker = self.speaker.clone();
        let mut sources =
            Sources::new().with_notices(move |notice| speaker.say(notice.to_string()));
        for wanted in &self.wanted {
            match self.source(wanted, domain) {
                Ok(Some(source)) => sources.push(source),
                Ok(None) => (),
                Err(text) => {
                    // The sender need not know what files this host has.
                    self.speaker.say(text);
                    return Err("a source of pages cannot be opened, see the receiver".to_owned());
                }
            }
        }
        Ok(Arc::new(sources))
    }

    /// Which domain a sender means.
    fn domain(&self, text: &str) -> Result<Domain, String> {
        if text.is_empty() {
            return Ok(Domain::PRIVATE);
        }
        let named = text
            .parse::<DomainName>()
            .map_err(|error| error.to_string())?;
        let allowed = self.domains.iter().any(|one| one.domain == named.domain);
        match allowed && named.domain != Domain::PRIVATE {
            true => Ok(named.domain),
            false => {
                self.speaker.say(format!(
                    "a sender asked for domain {}, which is not served",
                    named.domain
                ));
                Err("this receiver does not serve that domain".to_owned())
            }
        }
    }

    /// Opens one source.
    fn source(
        &self,
        wanted: &Wanted,
        domain: Domain,
    ) -> Result<Option<Box<dyn PageSource>>, String> {
        match wanted {
            // Private pages are for nobody.
            Wanted::Module(_) if domain == Domain::PRIVATE => Ok(None),
            Wanted::Module(named) => match (ModulePages::open(&self.host, domain), named) {
                (Ok(pages), _) => Ok(Some(Box::new(pages))),
                (Err(error), Named::Yes) => Err(error.chain()),
                (Err(error), Named::No) => {
                    let text = format!("no merged pages of this host are used: {}", error.chain());
                    self.speaker.say(text);
                    Ok(None)
                }
            },
            Wanted::Store(last) => match as_it_is(last) {
                Ok(store) => Ok(Some(Box::new(store))),
                Err(error) => Err(Error::from(error).chain()),
            },
            Wanted::Fleet(options) => match Fleet::connect(options.clone()) {
                Ok(fleet) => Ok(Some(Box::new(fleet))),
                Err(error) => Err(Error::from(error).chain()),
            },
        }
    }
}

/// The store that was `last` opened so, as it is now.
fn as_it_is(last: &Mutex<Store>) -> Result<Store, SourceError> {
    // One is kept for the next sender, one is this one's: they share what is read. The one that is
    // kept is replaced as a whole.
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    *last = last.reopen()?;
    last.reopen()
}

/// How to reach the fleet that `options` name.
pub fn fleet(options: &store::FleetOptions) -> Option<FleetOptions> {
    let mut fleet = FleetOptions::new(options.fleet.clone()?);
    fleet.ca = options.fleet_ca.clone();
    fleet.plaintext = options.fleet_insecure;
    Some(fleet)
}

impl PageSource for ModulePages {
    fn name(&self) -> &'static str {
        "module"
    }

    fn digests(&self, each: &mut dyn FnMut(Digest)) -> Result<(), SourceError> {
        self.each_digest(each)
            .map_err(|error| SourceError::other("read the digests of merged pages", error))
    }

    fn fetch(&self, digest: &Digest, into: &mut Page) -> Result<bool, SourceError> {
        self.copy(digest, into)
            .map_err(|error| SourceError::other("read a merged page", error))
    }
}
