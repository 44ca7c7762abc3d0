// SPDX-License-Identifier: GPL-2.0

//! The monitors of a run: started, listened to, attached, killed.

use std::collections::BTreeMap;
use std::io::{
    BufRead,
    BufReader, //
};
use std::process::{
    Child,
    ChildStdin,
    Command,
    Stdio, //
};
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::sync::{
    Arc,
    Mutex, //
};
use std::thread::JoinHandle;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_lab::tap::Failure;
use twinpage_lab::wait;

/// The longest a monitor may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(240);

/// Why something that shall be rare was not even tried.
pub const NOT_EVERY_TIME: &str = "not every time";

/// How often something was done and refused, and why it was refused first.
#[derive(Clone, Default)]
pub struct Count {
    /// Times it was done.
    pub did: u64,
    /// Times the kernel did not want to.
    pub refused: u64,
    /// Times it was its turn, with those in which it was not even tried.
    pub turns: u64,
    /// The first refusal.
    pub why: String,
}

/// What is done, what was done and refused, and the first thing that was wrong; all threads add to it.
#[derive(Default)]
pub struct Record {
    doing: Mutex<BTreeMap<usize, (&'static str, Instant)>>,
    counts: Mutex<BTreeMap<String, Count>>,
    wrong: Mutex<Option<String>>,
    stop: AtomicBool,
}

impl Record {
    /// Notes what an actor does from now on.
    pub fn begins(&self, actor: usize, name: &'static str) {
        let mut doing = self.doing.lock().unwrap_or_else(|error| error.into_inner());
        doing.insert(actor, (name, Instant::now()));
    }

    /// Notes that an actor is done.
    pub fn ends(&self, actor: usize) {
        let mut doing = self.doing.lock().unwrap_or_else(|error| error.into_inner());
        doing.remove(&actor);
    }

    /// What all actors do, and for how long.
    pub fn doing(&self) -> String {
        let doing = self.doing.lock().unwrap_or_else(|error| error.into_inner());
        let told = doing
            .values()
            .map(|(name, since)| format!("{name} for {} s", since.elapsed().as_secs()));
        told.collect::<Vec<_>>().join(", ")
    }

    /// What some actor does for longer than `limit`.
    pub fn overdue(&self, limit: Duration) -> Option<&'static str> {
        let doing = self.doing.lock().unwrap_or_else(|error| error.into_inner());
        let late = doing.values().find(|(_, since)| since.elapsed() > limit);
        late.map(|(name, _)| *name)
    }

    /// Counts something that was done.
    pub fn did(&self, name: &str) {
        self.count(name, |count| {
            count.turns += 1;
            count.did += 1;
        });
    }

    /// Counts something that the kernel did not want to do, if it was asked.
    pub fn refused(&self, name: &str, why: &str) {
        self.count(name, |count| {
            count.turns += 1;
            if why == NOT_EVERY_TIME {
                return;
            }
            if count.refused == 0 {
                count.why = why.to_owned();
            }
            count.refused += 1;
        });
    }

    fn count(&self, name: &str, add: impl FnOnce(&mut Count)) {
        let mut counts = self
            .counts
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        add(counts.entry(name.to_owned()).or_default());
    }

    /// Notes that something is wrong, which ends the run.
    pub fn wrong(&self, text: String) {
        println!("WRONG: {text}");
        let mut wrong = self.wrong.lock().unwrap_or_else(|error| error.into_inner());
        wrong.get_or_insert(text);
        self.stop.store(true, Ordering::Release);
    }

    /// Ends the run.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Whether the run has ended.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The first thing that was wrong.
    pub fn verdict(&self) -> Result<(), String> {
        let wrong = self.wrong.lock().unwrap_or_else(|error| error.into_inner());
        wrong.clone().map_or(Ok(()), Err)
    }

    /// How often each thing was done and refused.
    pub fn table(&self) -> BTreeMap<String, Count> {
        let counts = self
            .counts
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        counts.clone()
    }
}

/// A running monitor.
pub struct Monitor {
    number: u64,
    child: Child,
    /// It ends when this is closed.
    input: Option<ChildStdin>,
    listener: Option<JoinHandle<()>>,
    heard: Arc<Heard>,
    /// Number of its attachment.
    pub attached: Option<u32>,
    /// Domain of its last attachment.
    pub domain: u64,
}

/// Files of a monitor's VMs, as its process numbers them.
#[derive(Clone, Copy)]
pub struct Vms {
    /// That of its guest.
    pub guest: i32,
    /// That of another VM that has the guest's memory, too.
    pub twin: i32,
}

/// What a monitor has said.
#[derive(Default)]
struct Heard {
    vms: Mutex<Option<Vms>>,
    audited: AtomicBool,
    wrong: AtomicBool,
}

impl Monitor {
    /// Starts monitor `number` with these arguments.
    pub fn start(
        number: u64,
        arguments: &[String],
        record: &Arc<Record>,
    ) -> Result<Monitor, Failure> {
        let mut child = Command::new("/proc/self/exe")
            .args(["--monitor", &number.to_string()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let heard = Arc::new(Heard::default());
        let listener = child.stdout.take().map(|output| {
            let (heard, record) = (heard.clone(), record.clone());
            std::thread::spawn(move || listen(number, BufReader::new(output), &heard, &record))
        });
        Ok(Monitor {
            number,
            input: child.stdin.take(),
            child,
            listener,
            heard,
            attached: None,
            domain: 0,
        })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its VMs, once it has them.
    pub fn vms(&self) -> Result<Vms, Failure> {
        let mut vms = None;
        wait::until("the start of a monitor", PATIENCE, || {
            vms = *self
                .heard
                .vms
                .lock()
                .unwrap_or_else(|error| error.into_inner());
            Ok::<_, Failure>(vms.is_some())
        })?;
        vms.ok_or_else(|| Failure::Failed("a monitor has no VM".into()))
    }

    /// Whether it ended by itself; it must not.
    pub fn has_died(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("monitor {} ended with {status}", self.number)),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Kills it without warning.
    pub fn kill(mut self, signal: libc::c_int) {
        // SAFETY: the call takes integers; the child was not waited for, so the number is its own.
        unsafe { libc::kill(self.pid() as i32, signal) };
        self.join();
    }

    /// Lets it check its memory a last time and end.
    pub fn finish(mut self) -> Result<(), Failure> {
        drop(self.input.take());
        self.join();
        if self.heard.wrong.load(Ordering::Acquire) || !self.heard.audited.load(Ordering::Acquire) {
            let text = format!("monitor {} did not find its memory right", self.number);
            return Err(Failure::Failed(text));
        }
        Ok(())
    }

    fn join(&mut self) {
        let _ = self.child.wait();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hears all that a monitor says.
fn listen(number: u64, output: impl BufRead, heard: &Heard, record: &Record) {
    for line in output.lines().map_while(Result::ok) {
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "vms" => {
                let mut vms = heard.vms.lock().unwrap_or_else(|error| error.into_inner());
                *vms = rest.split_once(' ').and_then(|(guest, twin)| {
                    let (guest, twin) = (guest.parse().ok()?, twin.parse().ok()?);
                    Some(Vms { guest, twin })
                });
            }
            "did" => record.did(rest),
            "refused" => {
                let (name, why) = rest.split_once(": ").unwrap_or((rest, ""));
                record.refused(name, why);
            }
            "audited" => heard.audited.store(true, Ordering::Release),
            "wrong" => {
                heard.wrong.store(true, Ordering::Release);
                record.wrong(format!("monitor {number}: {rest}"));
            }
            _ => println!("monitor {number}: {line}"),
        }
    }
}
