// SPDX-License-Identifier: GPL-2.0

//! The program itself, on the machine that builds it: no module is loaded here.

use std::io::{
    BufRead,
    BufReader,
    Read, //
};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{
    Child,
    Command,
    Stdio, //
};
use std::thread;
use std::time::Duration;

use assert_cmd::cargo::CommandCargoExt;
use rustix::process::{
    kill_process,
    Pid,
    Signal, //
};

use crate::golden;

/// The program with these arguments.
fn program(line: &str) -> Command {
    let mut command = Command::cargo_bin("twinpage").unwrap();
    command.args(line.split_whitespace());
    command.env_remove("TWINPAGE_FLEET");
    command
}

#[test]
fn help_names_the_commands_and_exit_codes() {
    let output = program("--help").output().unwrap();
    assert!(output.status.success());
    golden::check("help", &String::from_utf8(output.stdout).unwrap());
}

/// Every command with its help, the program itself among them as the empty one.
fn commands() -> Vec<(String, String)> {
    let mut left = vec![String::new()];
    let mut all = Vec::new();
    while let Some(command) = left.pop() {
        let output = program(&format!("{command} --help")).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let below = subcommands(&help).into_iter();
        left.extend(below.map(|name| format!("{command} {name}")));
        all.push((command.trim().to_owned(), help));
    }
    all
}

#[test]
fn every_command_is_in_the_reference() {
    let reference = include_str!("../../../../Documentation/tool.rst");
    let mut seen = 0;
    for (command, help) in commands() {
        if subcommands(&help).is_empty() {
            seen += 1;
            let heading = format!("\n{command}\n---");
            assert!(reference.contains(&heading), "{command}");
        }
        for word in help.split_whitespace() {
            let option = word.trim_end_matches(|c: char| !c.is_ascii_lowercase());
            if option.starts_with("--") && option != "--help" && option != "--version" {
                assert!(reference.contains(option), "{command} {option}");
            }
        }
    }
    assert!(seen >= 18, "{seen}");
}

#[test]
fn completions_name_every_command_and_option() {
    let commands = commands();
    for shell in ["bash", "zsh", "fish"] {
        let output = program(&format!("completions {shell}")).output().unwrap();
        assert!(output.status.success(), "{shell}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        for (command, _) in &commands {
            for name in command.split_whitespace() {
                assert!(text.contains(name), "{shell}: {name}");
            }
        }
        assert!(text.contains("downtime-ms"), "{shell}");
    }
}

#[test]
fn bash_understands_its_completions() {
    let output = program("completions bash").output().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("twinpage");
    std::fs::write(&path, output.stdout).unwrap();
    let checked = Command::new("bash").arg("-n").arg(&path).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn every_command_has_a_manual_page() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let written = program(&format!("man {}", path.display())).output();
    assert!(written.unwrap().status.success());
    let commands = commands();
    for (command, _) in &commands {
        let name = format!("twinpage {command}").trim().replace(' ', "-");
        let page = std::fs::read_to_string(path.join(format!("{name}.1"))).unwrap();
        assert!(page.contains("SYNOPSIS"), "{name}: {page}");
    }
    assert_eq!(std::fs::read_dir(path).unwrap().count(), commands.len());
    let nowhere = program(&format!("man {}/none", path.display())).output();
    assert_eq!(nowhere.unwrap().status.code(), Some(1));
}

/// The subcommands that a help text names.
fn subcommands(help: &str) -> Vec<&str> {
    let Some(list) = help.split("Commands:\n").nth(1) else {
        return Vec::new();
    };
    list.lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect()
}

#[test]
fn wrong_usage_is_code_2() {
    for line in [
        "",
        "frobnicate",
        "attach",
        "attach --pid x",
        "digests --id 1 --pid 2",
    ] {
        let output = program(line).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{line:?}");
        assert!(!output.stderr.is_empty(), "{line:?}");
    }
}

#[test]
fn store_that_is_named_wins_over_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    let [store, image] = ["store", "image"].map(|name| directory.path().join(name));
    std::fs::write(&image, [7; 4096]).unwrap();
    let (store, image) = (store.display(), image.display());
    let built = program(&format!("store build --store {store} --raw-image {image}")).output();
    assert!(built.unwrap().status.success());
    // Nobody listens there.
    let stat = |line: &str| {
        let mut command = program(line);
        command.env("TWINPAGE_FLEET", "redis://127.0.0.1:1");
        command.output().unwrap().status.code()
    };
    assert_eq!(stat(&format!("store stat --store {store}")), Some(0));
    assert_eq!(stat("store stat --fleet-insecure"), Some(1));
    assert_eq!(stat("store stat"), Some(2));
    let both = "store stat --store s --fleet redis://h";
    assert_eq!(stat(both), Some(2));
    assert_eq!(program("store stat").status().unwrap().code(), Some(2));
}

#[test]
fn missing_module_is_code_3() {
    if std::path::Path::new("/sys/kernel/mm/twinpage").exists() {
        return;
    }
    for line in [
        "attach --pid 1",
        "detach --id 1",
        "status",
        "set",
        "digests --id 1",
        "version",
    ] {
        let output = program(line).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{line:?}: {err}");
        assert!(
            err.contains("Remedy: load it: insmod twinpage.ko"),
            "{line:?}: {err}"
        );
    }
}

#[test]
fn reader_that_goes_away_is_no_panic() {
    let mut child = program("--help")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    let status = child.wait().unwrap();
    assert!(!err.contains("panicked"), "{err}");
    assert!(
        status.signal().is_none() || status.signal() == Some(13),
        "{status}"
    );
}

#[test]
fn closed_standard_error_leaves_the_exit_code() {
    let (err, reader) = UnixStream::pair().unwrap();
    drop(reader);
    let status = program("migrate receive --listen unix:/tmp/x")
        .stderr(OwnedFd::from(err))
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(2));
}

/// A receiver that waits and catches signals, started with what the `option` of `env` does to them.
fn waiting_receiver(option: &str, socket: &Path) -> Child {
    let receiver = format!(
        "migrate receive --insecure --listen unix:{}",
        socket.display()
    );
    let mut command = Command::new("env");
    command
        .arg(option)
        .arg(Command::cargo_bin("twinpage").unwrap().get_program())
        .args(receiver.split(' '))
        .env_remove("TWINPAGE_FLEET");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    // The first look at the migration comes after signals are caught.
    let mut err = BufReader::new(child.stderr.as_mut().unwrap());
    let mut text = String::new();
    while !text.contains("waiting for QEMU") {
        assert_ne!(err.read_line(&mut text).unwrap(), 0, "{text}");
    }
    child
}

/// Sends `signal` to `child`.
fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn signals_end_a_migration_unless_they_were_ignored() {
    let directory = tempfile::tempdir().unwrap();
    for (signal, name) in [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::TERM, "TERM"),
    ] {
        let mut child = waiting_receiver("--default-signal", &directory.path().join(name));
        send(&child, signal);
        assert!(child.wait().unwrap().code().is_some(), "{name}");
    }
    for (signal, name) in [(Signal::HUP, "HUP"), (Signal::INT, "INT")] {
        let socket = directory.path().join(format!("ignored-{name}"));
        let mut child = waiting_receiver(&format!("--ignore-signal={name}"), &socket);
        send(&child, signal);
        thread::sleep(Duration::from_millis(500));
        assert_eq!(child.try_wait().unwrap(), None, "{name}");
        send(&child, Signal::TERM);
        child.wait().unwrap();
    }
}
