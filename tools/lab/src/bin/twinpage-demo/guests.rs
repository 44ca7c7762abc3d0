// SPDX-License-Identifier: GPL-2.0

//! The three guests of the demo, asked all at once.

use serde_json::json;
use twinpage_guest::config::Config;
use twinpage_guest::protocol::Request;
use twinpage_lab::error::Error;
use twinpage_lab::guest::Guest;
use twinpage_lab::oracle::Snapshot;
use twinpage_lab::vmm::Vmm;

/// Memory of each guest. The stock kernel needs about 100 MiB of it to boot.
const MEMORY_MIB: usize = 160;

/// Name, image and seed of each guest: two of one image, one of another.
const GUESTS: [(&str, u64, u64); 3] = [("web-1", 1, 1), ("web-2", 1, 2), ("db-1", 2, 3)];

/// The running guests.
pub struct Guests(Vec<Vmm>);

/// What a guest said about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its name.
    pub name: String,
    /// Its answer, or why there is none.
    pub answer: Result<String, String>,
}

impl Guests {
    /// Starts all of them and waits until each has filled its memory.
    ///
    /// # Errors
    ///
    /// QEMU does not start, or a guest does not come up.
    pub fn start() -> Result<Guests, Error> {
        let mut guests = Guests(Vec::new());
        for (name, image, seed) in GUESTS {
            let content = Config {
                image,
                seed,
                common: 16,
                own: 8,
                dup: 6,
                zero: 10,
                churn: 2,
            };
            println!("         {name}: {MEMORY_MIB} MiB, {content}");
            let guest = Guest {
                name: name.into(),
                memory_mib: MEMORY_MIB,
                content,
                balloon: false,
            };
            guests.0.push(guest.start(&std::env::temp_dir(), &[])?);
        }
        for guest in &mut guests.0 {
            guest.ready()?;
        }
        Ok(guests)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Asks each of them; they answer at the same time.
    pub fn ask(&mut self, ask: impl Fn(&mut Vmm) -> Result<String, Error> + Sync) -> Vec<Said> {
        std::thread::scope(|scope| {
            let ask = &ask;
            let threads: Vec<_> = self
                .0
                .iter_mut()
                .map(|guest| {
                    let name = guest.name().to_owned();
                    (name, scope.spawn(move || ask(guest)))
                })
                .collect();
            threads
                .into_iter()
                .map(|(name, thread)| Said {
                    name,
                    answer: match thread.join() {
                        Ok(answer) => answer.map_err(|error| error.to_string()),
                        Err(_) => Err("the program panicked".into()),
                    },
                })
                .collect()
        })
    }

    /// Checksums over what never changes.
    pub fn sums(&mut self) -> Vec<Said> {
        self.ask(Vmm::sum)
    }

    /// Whether every page of every guest holds what it should.
    pub fn verify(&mut self) -> Vec<Said> {
        self.ask(|guest| guest.fine(Request::Verify))
    }

    /// Stops all guests for a moment and looks at all of their memory.
    ///
    /// # Errors
    ///
    /// QEMU does not stop them, or their memory cannot be read.
    pub fn snapshot(&mut self) -> Result<Snapshot, Error> {
        let ranges = self.each(Vmm::ram)?;
        self.each(|guest| guest.qmp.run("stop", json!({})))?;
        let snapshot = Snapshot::of(&ranges);
        self.each(|guest| guest.qmp.run("cont", json!({})))?;
        snapshot.map_err(|source| Error::Io {
            what: "look at the guests' memory".into(),
            source,
        })
    }

    fn each<T>(
        &mut self,
        mut work: impl FnMut(&mut Vmm) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        self.0.iter_mut().map(&mut work).collect()
    }
}

/// All answers in one line.
pub fn line(said: &[Said]) -> String {
    let words = said.iter().map(|said| match &said.answer {
        Ok(answer) => format!("{} {answer}", said.name),
        Err(error) => format!("{}: {error}", said.name),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Whether all of them answered.
pub fn all_fine(said: &[Said]) -> bool {
    said.iter().all(|said| said.answer.is_ok())
}
