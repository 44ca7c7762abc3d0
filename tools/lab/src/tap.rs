// SPDX-License-Identifier: GPL-2.0

//! Runs tests one after another, each in a process of its own, and says how each ended.
//!
//! Output is the Test Anything Protocol: `1..N`, then `ok I - NAME`, `not ok I - NAME` or `ok I -
//! NAME # SKIP REASON`; lines that begin with `# ` explain. After each test whatever it left behind
//! is killed, the module is unloaded, and the kernel's log must be free of alarms.

use std::fmt;
use std::io::{
    self,
    BufRead,
    BufReader, //
};
use std::os::unix::process::CommandExt;
use std::process::{
    Child,
    Command,
    ExitStatus,
    Stdio, //
};
use std::time::{
    Duration,
    Instant, //
};

use nix::sys::signal::{
    kill,
    killpg,
    Signal, //
};
use nix::unistd::Pid;

use crate::{
    dmesg,
    module,
    wait, //
};

/// How a test ends when it does not pass.
pub enum Failure {
    /// Something is not as it should be.
    Failed(String),
    /// The kernel or the machine lacks what the test needs.
    Skipped(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text += &format!(": {cause}");
            source = cause.source();
        }
        Failure::Failed(text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Failed(text) | Failure::Skipped(text) => f.write_str(text),
        }
    }
}

/// What a test returns.
pub type Outcome = Result<(), Failure>;

/// Fails the test with a text unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::tap::Failure::Failed(format!($($text)+)));
        }
    };
}

/// One test.
pub struct Test {
    /// The fact it states.
    pub name: &'static str,
    /// How long it may take on a machine of its own.
    pub seconds: u64,
    /// What it does.
    pub run: fn() -> Outcome,
}

impl Test {
    /// How long it may take, wherever it runs: tests that are short on a machine of their own take
    /// three times as long where others are busy.
    fn limit(&self) -> Duration {
        let longer = self.seconds.saturating_mul(3).min(600);
        Duration::from_secs(self.seconds.max(longer))
    }
}

/// Exit status of a test process that passed, failed or was skipped.
const PASSED: i32 = 0;
const FAILED: i32 = 1;
const SKIPPED: i32 = 77;

/// How long what a test left behind may take to go.
const PATIENCE: Duration = Duration::from_secs(120);

/// Marks the line of a test process that says why it was skipped.
const SKIP_MARK: &str = "SKIP: ";

/// Runs one test in this process and returns its exit status.
pub fn run_here(test: &Test) -> i32 {
    match (test.run)() {
        Ok(()) => PASSED,
        Err(Failure::Failed(text)) => {
            println!("{text}");
            FAILED
        }
        Err(Failure::Skipped(text)) => {
            println!("{SKIP_MARK}{text}");
            SKIPPED
        }
    }
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Skipped.
    pub skipped: usize,
}

/// Runs tests, each as `THIS-PROGRAM ARGUMENTS --run NAME`. Those that have not begun within the
/// time are skipped.
///
/// # Errors
///
/// The kernel's log cannot be read.
pub fn run_all(tests: &[&Test], arguments: &[String], time: Duration) -> io::Result<Tally> {
    let begin = Instant::now();
    adopt_orphans()?;
    println!("1..{}", tests.len());
    let mut tally = Tally::default();
    for (index, test) in tests.iter().enumerate() {
        let start = Instant::now();
        let verdict = match begin.elapsed() < time {
            true => run_one(test, arguments)?,
            false => Verdict::Skipped("no time is left".into()),
        };
        let seconds = start.elapsed().as_secs_f32();
        let (number, name) = (index + 1, test.name);
        match verdict {
            Verdict::Passed => {
                tally.passed += 1;
                println!("ok {number} - {name}");
            }
            Verdict::Failed => {
                tally.failed += 1;
                println!("not ok {number} - {name}");
            }
            Verdict::Skipped(reason) => {
                tally.skipped += 1;
                println!("ok {number} - {name} # SKIP {reason}");
            }
        }
        println!("# {seconds:.1} s");
    }
    Ok(tally)
}

enum Verdict {
    Passed,
    Failed,
    Skipped(String),
}

fn run_one(test: &Test, arguments: &[String]) -> io::Result<Verdict> {
    let mut log = dmesg::Log::from_now()?;
    let mut child = Command::new("/proc/self/exe")
        .args(arguments)
        .args(["--run", test.name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let output = child.stdout.take().map(BufReader::new);
    let reader = std::thread::spawn(move || output.map(explain).unwrap_or_default());
    let status = watch(&mut child, test.limit())?;
    sweep_up(child.id());
    // The pipe is closed: the last process that held it is gone.
    let reason = reader.join().unwrap_or_default();
    let mut failed = None;
    match status.map(|status| (status, status.code())) {
        None => failed = Some(format!("was not done after {:?}", test.limit())),
        Some((_, Some(PASSED | SKIPPED))) => {}
        Some((_, Some(_))) => failed = Some("failed".into()),
        Some((status, None)) => failed = Some(format!("died: {status}")),
    }
    let unloaded = clean_up();
    let lines = log.lines()?;
    let alarms = dmesg::alarms(&lines);
    for line in alarms.iter().take(60) {
        println!("# dmesg: {line}");
    }
    if !alarms.is_empty() {
        failed = Some("the kernel's log has alarms".into());
    }
    if let Err(error) = unloaded {
        failed = Some(format!("the module cannot be unloaded: {error}"));
    }
    if let Some(why) = failed {
        println!("# {why}");
        return Ok(Verdict::Failed);
    }
    Ok(match status.and_then(|status| status.code()) {
        Some(SKIPPED) => Verdict::Skipped(reason),
        _ => Verdict::Passed,
    })
}

/// Prints what the test has to say, and finds why it was skipped.
fn explain(output: impl BufRead) -> String {
    let mut reason = String::new();
    for line in output.lines().map_while(Result::ok) {
        match line.strip_prefix(SKIP_MARK) {
            Some(text) => reason = text.to_owned(),
            None => println!("# {line}"),
        }
    }
    reason
}

/// Waits for a process; none when the time is up.
fn watch(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(None)
}

/// Makes processes whose parent dies children of this one.
fn adopt_orphans() -> io::Result<()> {
    // SAFETY: the call takes integers only.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Ends all processes that a test left behind.
fn sweep_up(group: u32) {
    // No such process is what is wanted.
    let _ = killpg(Pid::from_raw(group as i32), Signal::SIGKILL);
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let orphans = children();
        for &pid in &orphans {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(
                Pid::from_raw(pid),
                Some(nix::sys::wait::WaitPidFlag::WNOHANG),
            );
        }
        if orphans.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The children of this process.
fn children() -> Vec<i32> {
    let own = std::process::id();
    let list = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
    list.unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Unloads the module if a test left it loaded.
fn clean_up() -> Result<(), Failure> {
    wait::until("unloading the module", PATIENCE, || {
        Ok(!module::is_loaded() || module::unload().is_ok())
    })
    .map(|_| ())
}
