// SPDX-License-Identifier: GPL-2.0

//! Processor time that processes used, from `/proc`.

use std::fs;
use std::io;
use std::process::Child;
use std::time::{
    Duration,
    Instant, //
};

use nix::sys::wait::{
    waitid,
    Id,
    WaitPidFlag,
    WaitStatus, //
};
use nix::unistd::Pid;

/// A tick of `/proc/PID/stat`: `USER_HZ` is 100 on every x86 kernel.
const TICK: Duration = Duration::from_millis(10);

/// How often an end is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// Time that a process, with the threads that ended, used in user and kernel mode.
///
/// # Errors
///
/// There is no such process.
pub fn process(pid: u32) -> io::Result<Duration> {
    ticks(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

/// Time that those threads of a QEMU used that run the guest.
///
/// # Errors
///
/// There is no such process. QEMU needs `debug-threads=on` to name its threads.
pub fn vcpus(pid: u32) -> io::Result<Duration> {
    let mut sum = Duration::ZERO;
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that ended meanwhile was none of them.
        let Ok(text) = fs::read_to_string(entry?.path().join("stat")) else {
            continue;
        };
        if text.contains("(CPU ") {
            sum += ticks(&text)?;
        }
    }
    Ok(sum)
}

/// Waits for the end of a process without removing it; what it used. None when it goes on after
/// `limit`.
///
/// # Errors
///
/// It is no child of this process.
pub fn until_end(child: &Child, limit: Duration) -> io::Result<Option<Duration>> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    let end = Instant::now() + limit;
    loop {
        match waitid(Id::Pid(Pid::from_raw(child.id() as i32)), flags)? {
            WaitStatus::StillAlive if Instant::now() >= end => return Ok(None),
            WaitStatus::StillAlive => std::thread::sleep(LOOK),
            _ => return process(child.id()).map(Some),
        }
    }
}

/// User and system time of a `stat` line: the 14th and 15th field; the second is a name in
/// parentheses that may hold anything.
fn ticks(stat: &str) -> io::Result<Duration> {
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut times = fields.split_whitespace().skip(11).take(2);
    let mut next = || times.next()?.parse::<u32>().ok();
    match (next(), next()) {
        (Some(user), Some(system)) => Ok(TICK * user + TICK * system),
        _ => Err(io::Error::other(format!(
            "no times in '{}'",
            stat.trim_end()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_name_of_a_process_does_not_shift_its_times() {
        let line = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0";
        assert_eq!(ticks(line).unwrap(), Duration::from_secs(2));
        assert!(ticks("7 (a) S 1").is_err());
    }

    #[test]
    fn what_ended_still_says_what_it_used() {
        let mut child = Command::new("sh")
            .args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"])
            .spawn()
            .unwrap();
        let used = until_end(&child, Duration::from_secs(60)).unwrap();
        assert!(used.unwrap() > Duration::ZERO);
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn what_goes_on_is_not_waited_for() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let used = until_end(&child, Duration::from_millis(20)).unwrap();
        assert_eq!(used, None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
