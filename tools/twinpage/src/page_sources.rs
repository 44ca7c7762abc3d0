// SPDX-License-Identifier: GPL-2.0

//! The sources of pages that a receiver was told to use, opened anew for each migration.
//!
//! One that cannot be opened then, or not in time, is left out: without its pages a migration only
//! takes longer.

use std::sync::mpsc::{
    channel,
    Receiver,
    RecvTimeoutError, //
};
use std::sync::{
    Arc,
    Mutex,
    PoisonError, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
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
use crate::module;
use crate::module_pages::ModulePages;
use crate::notices::Speaker;

/// How long sources may take to open. A receiver waits twice as long for all of them, and refuses
/// the sender then.
const PATIENCE: Duration = Duration::from_secs(5);

/// The name of merged pages as a source.
const MODULE: &str = "module";

/// Attempts to open one source that may go on at once, those that took too long included.
const ATTEMPTS: usize = 64;

/// What to open for a migration.
pub struct Opener {
    /// The machine.
    host: Host,
    /// Domains that a sender may name.
    domains: Vec<DomainName>,
    /// Which sources, in order.
    entries: Vec<Entry>,
    /// Where to say what does not work.
    speaker: Speaker,
}

/// One source, and who tries to open it.
struct Entry {
    /// The source.
    wanted: Wanted,
    /// Held by each attempt, until it ends.
    attempts: Arc<()>,
}

/// One source that is wanted.
#[derive(Clone)]
enum Wanted {
    /// Merged pages.
    Module,
    /// The store in a directory, as it was last opened.
    Store(Arc<Mutex<Store>>),
    /// The store of the fleet.
    Fleet(FleetOptions),
}

/// What came of an attempt to open a source: why it failed, with causes.
type Opened = Result<Box<dyn PageSource>, String>;

impl Opener {
    /// The sources that `options` name, for senders of one of `domains`.
    ///
    /// # Errors
    ///
    /// `--sources` names a store that no option tells the place of, or the module, which cannot be
    /// used; the store cannot be opened; the address of the fleet is wrong.
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
        let wanted: Vec<_> = match &options.sources {
            None => {
                let module = (!options.no_module).then_some(Wanted::Module);
                [module, store, fleet].into_iter().flatten().collect()
            }
            Some(names) => {
                let one = |name: &SourceName| match name {
                    SourceName::Stream => Ok(None),
                    SourceName::Module => module_is_there(host).map(|()| Some(Wanted::Module)),
                    SourceName::Store => store.clone().ok_or(Error::NoPlace("store")).map(Some),
                    SourceName::Fleet => fleet.clone().ok_or(Error::NoPlace("fleet")).map(Some),
                };
                let named: Result<Vec<_>, Error> = names.iter().map(one).collect();
                named?.into_iter().flatten().collect()
            }
        };
        let entry = |wanted| Entry {
            wanted,
            attempts: Arc::new(()),
        };
        Ok(Self {
            host: host.clone(),
            domains: domains.to_vec(),
            entries: wanted.into_iter().map(entry).collect(),
            speaker,
        })
    }

    /// Opens the sources for a sender that names `domain`, empty for none. Those that do not open
    /// are left out, which is said here.
    ///
    /// # Errors
    ///
    /// What to tell the sender: its domain is not served here.
    pub fn open(&self, domain: &str) -> Result<Arc<Sources>, String> {
        let domain = self.domain(domain)?;
        let speaker = self.speaker.clone();
        let mut sources =
            Sources::new().with_notices(move |notice| speaker.say(notice.to_string()));
        let end = Instant::now() + PATIENCE;
        // All at once: one that is late takes no time from the others.
        let entries = self.entries.iter();
        let attempts: Vec<_> = entries
            .filter(|entry| entry.wanted.serves(domain))
            .map(|entry| (entry.wanted.name(), entry.begin(&self.host, domain)))
            .collect();
        for (name, attempt) in attempts {
            match attempt.and_then(|attempt| await_end(&attempt, end)) {
                Ok(source) => sources.push(source),
                Err(error) => sources.leave_out(name, error),
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
}

impl Entry {
    /// Begins to open the source for `domain`, in a thread of its own: a disk that hangs or a fleet
    /// that does not answer may take longer than anybody waits.
    fn begin(&self, host: &Host, domain: Domain) -> Result<Receiver<Opened>, String> {
        if Arc::strong_count(&self.attempts) > ATTEMPTS {
            return Err(format!("{ATTEMPTS} attempts have not ended yet"));
        }
        let (give, take) = channel();
        let (wanted, host) = (self.wanted.clone(), host.clone());
        let attempt = Arc::clone(&self.attempts);
        let work = move || {
            let opened = wanted.open(&host, domain);
            // Nobody waits any more if it took too long.
            let _late = give.send(opened.map_err(|error| error.chain()));
            drop(attempt);
        };
        let name = "source".to_owned();
        match thread::Builder::new().name(name).spawn(work) {
            Ok(_) => Ok(take),
            Err(error) => Err(format!("Cannot start a thread: {error}")),
        }
    }
}

impl Wanted {
    /// Its name.
    fn name(&self) -> &'static str {
        match self {
            Self::Module => MODULE,
            Self::Store(_) => "store",
            Self::Fleet(_) => "fleet",
        }
    }

    /// Whether it may have pages for `domain`: private ones are for nobody.
    fn serves(&self, domain: Domain) -> bool {
        !matches!(self, Self::Module) || domain != Domain::PRIVATE
    }

    /// Opens it for `domain`.
    fn open(&self, host: &Host, domain: Domain) -> Result<Box<dyn PageSource>, Error> {
        let source: Box<dyn PageSource> = match self {
            Self::Module => Box::new(ModulePages::open(host, domain)?),
            Self::Store(last) => Box::new(as_it_is(last)?),
            Self::Fleet(options) => Box::new(Fleet::connect(options.clone())?),
        };
        Ok(source)
    }
}

/// Waits until an attempt has ended, or to `end`.
fn await_end(attempt: &Receiver<Opened>, end: Instant) -> Opened {
    let left = end.saturating_duration_since(Instant::now());
    attempt.recv_timeout(left).unwrap_or_else(|error| {
        Err(match error {
            RecvTimeoutError::Timeout => format!("it takes more than {} s", PATIENCE.as_secs()),
            RecvTimeoutError::Disconnected => "a thread failed; this is a bug".to_owned(),
        })
    })
}

/// Looks whether there are merged pages to use.
fn module_is_there(host: &Host) -> Result<(), Error> {
    module::open(host)?;
    module::debugfs(host)?;
    Ok(())
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
        MODULE
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::migrate::Migrate;
    use crate::cli::{
        Cli,
        Command, //
    };
    use crate::console::{
        Console,
        Live, //
    };
    use crate::notices::Notices;
    use clap::Parser;
    use std::fs;
    use std::net::TcpListener;
    use twinpage_store::Settings;

    /// What a receiver with these options opens on this machine.
    fn opener(options: &str) -> (Opener, Notices) {
        let line = format!("twinpage migrate receive --listen unix:/l --insecure {options}");
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Migrate(Migrate::Receive(arguments)) = cli.command else {
            panic!("{line}");
        };
        let (speaker, notices) = Notices::new();
        let (pages, domains) = (&arguments.pages, &arguments.domains);
        let opener = Opener::new(pages, domains, &Host::running(), speaker).unwrap();
        (opener, notices)
    }

    /// What was said since.
    fn said(notices: &Notices) -> String {
        let (mut out, mut err) = (Vec::<u8>::new(), Vec::new());
        let mut console = Console {
            out: &mut out,
            err: &mut err,
            screen: None,
            live: Live::Nothing,
        };
        notices.show(&mut console).unwrap();
        String::from_utf8(err).unwrap()
    }

    #[test]
    fn a_store_is_left_out_as_long_as_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        drop(Store::create(&path, &Settings { sources_needed: 2 }).unwrap());
        let (opener, notices) = opener(&format!("--store {}", path.display()));
        let manifest = fs::read(path.join("manifest")).unwrap();
        for damaged in [false, true, false] {
            let bytes = &manifest[usize::from(damaged)..];
            fs::write(path.join("manifest"), bytes).unwrap();
            let counts = opener.open("").unwrap().counts();
            assert_eq!((counts.len(), counts[0].name), (1, "store"));
            assert_eq!(counts[0].set_aside, damaged);
            assert_eq!(counts[0].errors, u64::from(damaged));
            let said = said(&notices);
            let times = said.matches("Pages from the store: left out").count();
            assert_eq!(times, usize::from(damaged), "{said}");
        }
    }

    #[test]
    fn a_fleet_that_is_dead_or_late_is_left_out() {
        // It takes connections, and never says a word.
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let late = vec![mute.local_addr().unwrap().to_string(); 8].join(",");
        let dead = "127.0.0.1:1";
        for (hosts, why) in [(dead, "cannot be reached"), (&late[..], "more than 5 s")] {
            let (opener, notices) = opener(&format!("--fleet redis://{hosts} --fleet-insecure"));
            let fleet = opener.open("").unwrap().counts()[0];
            assert_eq!((fleet.name, fleet.errors), ("fleet", 1));
            let said = said(&notices);
            assert!(said.contains("Pages from the fleet: left out"), "{said}");
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn attempts_that_hang_do_not_become_many() {
        let entry = Entry {
            wanted: Wanted::Module,
            attempts: Arc::new(()),
        };
        let hang = |_| Arc::clone(&entry.attempts);
        let _hang: Vec<_> = (0..ATTEMPTS).map(hang).collect();
        let refused = entry.begin(&Host::running(), Domain::PRIVATE);
        assert!(refused.unwrap_err().contains("have not ended"));
    }
}
