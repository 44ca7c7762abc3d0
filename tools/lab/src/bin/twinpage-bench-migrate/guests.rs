// SPDX-License-Identifier: GPL-2.0

//! The guests that migrate, and those whose memory taught the store.

use std::path::{
    Path,
    PathBuf, //
};
use std::time::Duration;

use serde_json::json;
use sha2::{
    Digest,
    Sha256, //
};
use twinpage_guest::config::Config;
use twinpage_lab::vmm::Vmm;
use twinpage_lab::{
    agent,
    payload,
    place, //
};

use crate::state::{
    hex,
    Recipe, //
};
use crate::Failure;

/// Memory of a Debian guest.
const DEBIAN_MIB: usize = 512;

/// Memory of the other guests, of which the stock kernel takes about 80 MiB.
const SMALL_MIB: usize = 256;

/// How much of it is random.
const RANDOM_MIB: usize = 160;

/// How long a Debian may take to boot under emulation, and for one command.
const BOOTS: Duration = Duration::from_secs(1800);
const WORKS: Duration = Duration::from_secs(1800);

/// What the guest did that migrates: a service with data in memory, a database, programs.
const APP: [&str; 5] = [
    "systemctl start redis-server && redis-benchmark -q -t set -n 30000 -r 30000 -d 400 -c 4",
    "redis-cli save",
    "sqlite3 /var/lib/app.db 'create table t(a, b); with recursive n(i) as (select 1 union all \
     select i + 1 from n where i < 60000) insert into t select i, hex(randomblob(48)) from n; \
     create index t_b on t(b);'",
    "python3 -m compileall -q -f -j1 /usr/lib/python3/dist-packages",
    "find /usr/lib /usr/share/perl -xdev -type f | sort | head -n 2500 | xargs cat | sha256sum",
];

/// What it does after its reboot.
const APP_AGAIN: [&str; 4] = [
    "systemctl start redis-server && redis-benchmark -q -t get -n 10000 -r 30000 -c 4",
    "sqlite3 /var/lib/app.db 'select count(*), min(b), max(b) from t where b > \"8\"'",
    "python3 -c 'import json, http.server, urllib.request, email, sqlite3, ssl, yaml, requests'",
    "logrotate -f /etc/logrotate.conf; find /usr/bin -type f | head -n 400 | xargs cat | md5sum",
];

/// What runs in it while it migrates: a service that is asked something now and then.
const APP_LIVE: &str = "systemd-run --quiet --unit=live sh -c 'while sleep 0.2; do \
     redis-cli set live \"$(date)\"; echo alive; done'";

/// What the first other guest did: it served files.
const WEB: [&str; 4] = [
    "systemctl start nginx && cp -r /usr/share/doc /var/www/html/",
    "python3 -c 'import requests; [requests.get(\"http://127.0.0.1/\") for i in range(300)]'",
    "grep -r -l copyright /usr/share/doc | wc -l",
    "find /usr/lib/x86_64-linux-gnu /usr/sbin -xdev -type f | xargs cat | md5sum",
];

/// What the second other guest did: somebody worked in it.
const SHELL: [&str; 4] = [
    "systemctl start ssh && systemctl start redis-server",
    "cd /etc && git init -q && git add -A && git -c user.name=a -c user.email=a@b commit -q -m etc",
    "perl -MFile::Find -e 'find(sub { $n++ }, \"/usr\"); print $n' && man -k . | wc -l",
    "find /usr/lib /usr/bin -xdev -type f -size -200k | xargs cat | sha256sum",
];

/// What a guest did that neither migrates nor teaches the store: nightly work.
const BATCH: [&str; 3] = [
    "systemctl start cron rsyslog && logrotate -f /etc/logrotate.conf",
    "tar -C / -cf - usr/share/perl usr/lib/python3 etc | gzip -1 | sha256sum",
    "sqlite3 /var/lib/log.db 'create table l(a); with recursive n(i) as (select 1 union all \
     select i + 1 from n where i < 20000) insert into l select hex(randomblob(32)) from n;'",
];

/// The Debian guest that migrates.
pub fn app(image: &Path) -> Recipe {
    let depends = [&APP[..], &APP_AGAIN, &[APP_LIVE]].concat();
    debian("app", image, &depends, |guest| {
        agent::booted(guest, BOOTS)?;
        work(guest, &APP)?;
        // The machine is told to reset by its guest: what was in memory stays there.
        guest.say("systemctl reboot")?;
        agent::booted(guest, BOOTS)?;
        work(guest, &APP_AGAIN)?;
        work(guest, &[APP_LIVE])
    })
}

/// The Debian guests whose memory the store has seen.
pub fn others(image: &Path) -> [Recipe; 2] {
    [
        debian("web", image, &WEB, |guest| {
            agent::booted(guest, BOOTS)?;
            work(guest, &WEB)
        }),
        debian("shell", image, &SHELL, |guest| {
            agent::booted(guest, BOOTS)?;
            work(guest, &SHELL)
        }),
    ]
}

/// Four Debian guests of one image, each of which did something else.
pub fn aged(image: &Path) -> [Recipe; 4] {
    let [web, shell] = others(image);
    let batch = debian("batch", image, &BATCH, |guest| {
        agent::booted(guest, BOOTS)?;
        work(guest, &BATCH)
    });
    [app(image), web, shell, batch]
}

/// A guest with random memory that rests.
pub fn random(scratch: &Path) -> Result<Recipe, Failure> {
    let content = Config {
        own: RANDOM_MIB,
        ..bare()
    };
    small("random", scratch, content)
}

/// A guest with random memory that is rewritten all the time.
pub fn rewritten(scratch: &Path) -> Result<Recipe, Failure> {
    let content = Config {
        churn: RANDOM_MIB,
        ..bare()
    };
    small("rewritten", scratch, content)
}

fn bare() -> Config {
    Config {
        image: 1,
        seed: 1,
        common: 0,
        own: 0,
        dup: 0,
        zero: 0,
        churn: 0,
    }
}

fn debian(
    name: &'static str,
    image: &Path,
    depends: &[&str],
    prepare: fn(&mut Vmm) -> Result<(), Failure>,
) -> Recipe {
    let file = |file: &str| image.join(file).display().to_string();
    let mut arguments = machine(DEBIAN_MIB);
    arguments.extend(["-kernel".into(), file("vmlinuz")]);
    arguments.extend(["-initrd".into(), file("initrd")]);
    arguments.extend([
        "-append".into(),
        "console=ttyS0 quiet root=/dev/vda rw".into(),
    ]);
    Recipe {
        name,
        arguments,
        image: Some(image.join("image.raw")),
        memory_mib: DEBIAN_MIB,
        depends: depends.join("\n"),
        prepare,
    }
}

fn small(name: &'static str, scratch: &Path, content: Config) -> Result<Recipe, Failure> {
    let initramfs = payload::initramfs(false)?;
    let file: PathBuf = scratch.join("initramfs");
    std::fs::write(&file, &initramfs)?;
    let mut arguments = machine(SMALL_MIB);
    arguments.push("-no-reboot".into());
    arguments.extend(["-kernel".into(), place::kernel().display().to_string()]);
    arguments.extend(["-initrd".into(), file.display().to_string()]);
    arguments.extend(["-append".into(), payload::command_line(&content)]);
    Ok(Recipe {
        name,
        arguments,
        image: None,
        memory_mib: SMALL_MIB,
        depends: hex(&Sha256::digest(&initramfs)),
        prepare: |guest| {
            guest.ready()?;
            Ok(())
        },
    })
}

/// Arguments that all guests have: one emulated processor, no clock of the host.
fn machine(memory_mib: usize) -> Vec<String> {
    let memory = memory_mib.to_string();
    [
        "-accel", "tcg", "-cpu", "max", "-smp", "1", "-M", "q35", "-m", &memory, "-rtc", "clock=vm",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Runs commands in a Debian guest; each must succeed.
fn work(guest: &mut Vmm, commands: &[&str]) -> Result<(), Failure> {
    for command in commands {
        agent::run(guest, command, WORKS)?;
    }
    Ok(())
}

/// Whether a guest that arrived still works: it answers, and what it holds is right.
///
/// # Errors
///
/// It does not answer, or a page is wrong.
pub fn alive(guest: &mut Vmm, is_debian: bool) -> Result<(), Failure> {
    let status = guest.qmp.run("query-status", json!({}))?;
    if status["status"] != "running" {
        return Err(format!("the guest arrived and is {}", status["status"]).into());
    }
    match is_debian {
        true => Ok(agent::run(guest, "systemctl is-active live", WORKS)?),
        false => Ok(guest
            .fine(twinpage_guest::protocol::Request::Verify)
            .map(drop)?),
    }
}
