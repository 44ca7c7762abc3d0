// SPDX-License-Identifier: GPL-2.0

//! `/init` of the guests: fills memory, keeps part of it changing, answers on `ttyS1`.

use std::fs::{
    File,
    OpenOptions, //
};
use std::io::{
    BufRead,
    BufReader,
    Write, //
};
use std::path::Path;
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::sync::{
    Arc,
    Mutex, //
};
use std::time::Duration;

use nix::mount::{
    mount,
    MsFlags, //
};
use nix::sys::reboot::{
    reboot,
    RebootMode, //
};
use nix::sys::termios;

use twinpage_guest::config::Config;
use twinpage_guest::memory::{
    Bad,
    Churn,
    Still, //
};
use twinpage_guest::protocol::Request;

/// Where the questions come from.
const PORT: &str = "/dev/ttyS1";

/// A kernel module that is loaded when the initramfs has it.
const BALLOON: &str = "/virtio_balloon.ko";

/// Pages the churn rewrites before it rests.
const CHURN_STEP: usize = 16;

/// How long the churn rests, so that a guest leaves the emulated processors to others.
const CHURN_REST: Duration = Duration::from_millis(20);

type Failure = Box<dyn std::error::Error>;

fn main() {
    if let Err(error) = run() {
        // The first process must not return: say why, and go.
        eprintln!("twinpage-guest: {error}");
        std::thread::sleep(Duration::from_secs(1));
        let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
        eprintln!("twinpage-guest: cannot power off: {errno}");
    }
}

fn run() -> Result<(), Failure> {
    for (kind, target) in [("proc", "/proc"), ("devtmpfs", "/dev")] {
        std::fs::create_dir_all(target)?;
        mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )?;
    }
    load_balloon()?;
    let config = Config::parse(&std::fs::read_to_string("/proc/cmdline")?)?;
    let mut port = open_port()?;
    let mut still = Still::fill(&config);
    let churn = Moving::start(Churn::new(&config));
    writeln!(port, "ready {}", still.pages())?;
    let mut lines = BufReader::new(port.try_clone()?).lines();
    while let Some(line) = lines.next().transpose()? {
        let answer = match Request::parse(&line) {
            Some(request) => answer(request, &mut still, &churn)?,
            None => format!("what? {line}"),
        };
        writeln!(port, "{answer}")?;
    }
    Err("the host closed the port".into())
}

/// Loads the balloon driver, if this guest has one.
fn load_balloon() -> Result<(), Failure> {
    if Path::new(BALLOON).exists() {
        nix::kmod::finit_module(
            File::open(BALLOON)?,
            c"",
            nix::kmod::ModuleInitFlags::empty(),
        )?;
    }
    Ok(())
}

/// The port, without echo or line editing.
fn open_port() -> Result<File, Failure> {
    let port = OpenOptions::new().read(true).write(true).open(PORT)?;
    let mut settings = termios::tcgetattr(&port)?;
    termios::cfmakeraw(&mut settings);
    termios::tcsetattr(&port, termios::SetArg::TCSANOW, &settings)?;
    Ok(port)
}

/// Does what is asked, and says what came of it.
fn answer(request: Request, still: &mut Still, churn: &Moving) -> Result<String, Failure> {
    Ok(match request {
        Request::Sum => format!("sum {:016x}", still.sum()),
        Request::Verify => verdict(churn.verify().and_then(|(pages, written)| {
            still.verify()?;
            Ok(format!("{} {written}", pages + still.pages()))
        })),
        Request::Stop => {
            churn.rest(true);
            "ok".into()
        }
        Request::Go => {
            churn.rest(false);
            "ok".into()
        }
        Request::Write(count) => verdict(still.write(count).map(|count| count.to_string())),
        Request::Reboot => match reboot(RebootMode::RB_AUTOBOOT)? {},
        Request::PowerOff => match reboot(RebootMode::RB_POWER_OFF)? {},
    })
}

/// The answer to a question that can go wrong.
fn verdict(result: Result<String, Bad>) -> String {
    match result {
        Ok(text) => format!("ok {text}"),
        Err(bad) => format!("bad {bad}"),
    }
}

/// The churn and the thread that drives it.
struct Moving {
    churn: Arc<Mutex<(Churn, Option<Bad>)>>,
    resting: Arc<AtomicBool>,
}

impl Moving {
    fn start(churn: Churn) -> Moving {
        let moving = Moving {
            churn: Arc::new(Mutex::new((churn, None))),
            resting: Arc::new(AtomicBool::new(false)),
        };
        let (churn, resting) = (moving.churn.clone(), moving.resting.clone());
        std::thread::spawn(move || loop {
            std::thread::sleep(CHURN_REST);
            if resting.load(Ordering::Relaxed) {
                continue;
            }
            // A poisoned lock means the other thread panicked: the guest is then lost anyway.
            let Ok(mut guard) = churn.lock() else { return };
            if guard.1.is_some() {
                return;
            }
            if let Err(bad) = guard.0.advance(CHURN_STEP) {
                guard.1 = Some(bad);
            }
        });
        moving
    }

    fn rest(&self, rest: bool) {
        self.resting.store(rest, Ordering::Relaxed);
    }

    /// Pages, and how often one was written; or the first page that was ever found bad.
    fn verify(&self) -> Result<(usize, u64), Bad> {
        let guard = match self.churn.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        };
        if let Some(bad) = &guard.1 {
            return Err(bad.clone());
        }
        guard.0.verify()?;
        Ok((guard.0.pages(), guard.0.written()))
    }
}
