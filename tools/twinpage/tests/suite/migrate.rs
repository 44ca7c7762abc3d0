// SPDX-License-Identifier: GPL-2.0

//! `twinpage migrate`: both ends in one process, between two QEMUs that are threads.

use std::fs;
use std::io::{
    self,
    Read,
    Write, //
};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{
    UnixListener,
    UnixStream, //
};
use std::process::{
    Command,
    Stdio, //
};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use twinpage::digest::Digest;
use twinpage_engine::engine::wire::{
    PageState,
    Record, //
};

use crate::digests::file;
use crate::golden;
use crate::machine::{
    Machine,
    Ran, //
};
use crate::qemu;
use crate::synth::Synth;

/// Both ends of a migration of `stream`; the options go to each. Gives the results of sender and
/// receiver, what the source got back, and whether the destination got the stream.
fn migrate(
    source: &Machine,
    destination: &Machine,
    stream: &[u8],
    options: [&str; 2],
) -> (Ran, Ran, bool, bool) {
    let link = destination.path("/link.sock");
    let (from, to) = (source.path("/from.sock"), destination.path("/to.sock"));
    let qemu_to = qemu::destination(to.clone());
    let qemu_from = qemu::source(from.clone(), stream.to_vec());
    let receive = format!(
        "migrate receive --listen unix:{} --connect unix:{} {}",
        link.display(),
        to.display(),
        options[1]
    );
    let send = format!(
        "migrate send --listen unix:{} --to unix:{} {}",
        from.display(),
        link.display(),
        options[0]
    );
    let (sent, received) = thread::scope(|scope| {
        let received = scope.spawn(|| destination.live(&receive));
        qemu::appears(&link);
        let sent = scope.spawn(|| source.live(&send));
        (sent.join().unwrap(), received.join().unwrap())
    });
    let good = qemu::is_good(&qemu_from.join().unwrap());
    let equal = qemu_to.join().unwrap() == stream;
    (sent, received, good, equal)
}

/// A key that both hosts have, on the first of them.
fn key(machine: &Machine) -> String {
    let path = machine.path("/key");
    let ran = machine.run(&format!("migrate keygen {}", path.display()));
    assert!(ran.good().contains(": key "), "{ran:?}");
    format!("--key {}", path.display())
}

/// `text` with what differs between runs made equal: directories, times, sums of compressed bytes.
fn settled(text: &str, machines: &[&Machine]) -> String {
    let mut text = text.to_owned();
    for machine in machines {
        text = text.replace(&machine.path("/").display().to_string(), "DIR/");
    }
    let lines = text.lines().map(|line| match line {
        line if line.starts_with("Time:") => "Time:    ...",
        line if line.starts_with("Bytes:") => "Bytes:   ...",
        line if line.starts_with("Peer:") => "Peer:    ...",
        line => line,
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// A machine with a VM of domain 7 that maps merged copies of the first `pages` contents.
fn with_merged(pages: u64) -> Machine {
    let machine = Machine::new();
    machine.process(812, "vmm", 1);
    machine.vm(3, 812, 7, &[]);
    let records: Vec<Record> = (0..pages)
        .map(|n| {
            let digest = Digest::of(&qemu::content(n));
            let page = qemu::content(n).to_vec();
            machine
                .state
                .lock()
                .unwrap()
                .pages
                .insert((7, digest), page);
            let digest = digest.0;
            let state = PageState::Merged { serial: n, digest };
            Record { gfn: n, state }
        })
        .collect();
    machine.file("/sys/kernel/debug/twinpage/3/digests", file(3, 7, &records));
    machine
}

#[test]
fn stream_arrives_and_tables_say_how() {
    let (source, destination) = (Machine::new(), with_merged(60));
    let key = key(&source);
    let options = [
        format!("{key} --domain 7 --quiet"),
        format!("{key} --domain 7 --quiet"),
    ];
    let stream = qemu::stream(3);
    let (sent, received, good, equal) =
        migrate(&source, &destination, &stream, [&options[0], &options[1]]);
    assert!(good && equal, "{sent:?} {received:?}");
    let machines = [&source, &destination];
    golden::check("migrate-send", &settled(&sent.good(), &machines));
    golden::check("migrate-receive", &settled(&received.good(), &machines));
}

#[test]
fn both_ends_report_as_json() {
    let (source, destination) = (Machine::new(), Machine::new());
    let stream = qemu::stream(1);
    let options = "--insecure --json --quiet";
    let (sent, received, good, equal) = migrate(&source, &destination, &stream, [options; 2]);
    assert!(good && equal, "{sent:?} {received:?}");
    for (ran, role) in [(sent, "send"), (received, "receive")] {
        let report: Value = serde_json::from_str(&ran.good()).unwrap();
        assert_eq!(report["schema"], 1);
        assert_eq!(report["role"], role);
        assert_eq!(report["completed"], true);
        assert_eq!(report["destination"], 0);
        assert_eq!(report["totals"]["stream_bytes"], stream.len());
        assert_eq!(report["totals"]["pages_back"], 1);
        assert!(report["seconds"].as_f64().unwrap() >= 0.0);
    }
}

#[test]
fn progress_is_lines_without_a_terminal() {
    let (source, destination) = (Machine::new(), Machine::new());
    let options = ["--insecure"; 2];
    let (sent, received, good, equal) = migrate(&source, &destination, &qemu::stream(1), options);
    assert!(good && equal, "{sent:?} {received:?}");
    assert_eq!((sent.code, received.code), (0, 0));
    let waiting = format!(
        "waiting for QEMU: migrate unix:{}",
        source.path("/from.sock").display()
    );
    assert!(sent.err.contains(&waiting), "{}", sent.err);
    assert!(
        received.err.contains("listening on unix:"),
        "{}",
        received.err
    );
    assert!(sent.err.contains(" of RAM, "), "{}", sent.err);
    assert!(
        received.err.contains("] RAM, ") && received.err.contains(" of QEMU's stream, "),
        "{}",
        received.err
    );
}

#[test]
fn time_counts_from_the_connection() {
    let (source, destination) = (Machine::new(), Machine::new());
    let [receive, send] = lines(&source, &destination, "--insecure --json --quiet");
    let qemu_to = qemu::destination(destination.path("/to.sock"));
    let qemu_from = qemu::source(source.path("/from.sock"), qemu::stream(1));
    let received = thread::scope(|scope| {
        let received = scope.spawn(|| destination.live(&receive));
        qemu::appears(&destination.path("/link.sock"));
        thread::sleep(Duration::from_secs(1));
        source.live(&send).good();
        received.join().unwrap().good()
    });
    assert!(qemu::is_good(&qemu_from.join().unwrap()));
    qemu_to.join().unwrap();
    let report: Value = serde_json::from_str(&received).unwrap();
    let all = report["totals"]["seconds"].as_f64().unwrap();
    let seconds = report["seconds"].as_f64().unwrap();
    // However long the migration took, the wait is not in it.
    assert!(seconds > 0.0 && all - seconds > 0.9, "{report}");
}

#[test]
fn failure_says_what_is_known() {
    let (source, destination) = (Machine::new(), with_merged(60));
    let options = "--insecure --json --quiet --domain 7";
    let [receive, send] = lines(&source, &destination, options);
    let mut synth = Synth::begin(Vec::new(), 1 << 20).unwrap();
    synth.part().unwrap();
    synth.page(0, &qemu::content(1)).unwrap();
    synth.close().unwrap();
    let mut stream = synth.cut();
    stream.extend(b"a section of no known type");
    let bytes = stream.len();
    let listener = UnixListener::bind(destination.path("/to.sock")).unwrap();
    // It leaves with everything, and does not say whether it has it.
    let leaves = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.read_exact(&mut vec![0; bytes])
    });
    let qemu_from = qemu::source(source.path("/from.sock"), stream);
    let (sent, received) = thread::scope(|scope| {
        let received = scope.spawn(|| destination.live(&receive));
        qemu::appears(&destination.path("/link.sock"));
        let sent = source.live(&send);
        (sent, received.join().unwrap())
    });
    assert!(!qemu::is_good(&qemu_from.join().unwrap()));
    leaves.join().unwrap().unwrap();
    let err = sent.bad(5);
    assert_ne!(received.code, 0, "{received:?}");
    let [sent, received]: [Value; 2] =
        [&sent, &received].map(|ran| serde_json::from_str(&ran.text()).unwrap());
    for report in [&sent, &received] {
        assert_eq!(report["completed"], false, "{report}");
        let peer = report["peer"].as_str().unwrap();
        assert!(peer.starts_with("twinpage"), "{report}");
        assert!(!report["threads"].as_array().unwrap().is_empty());
    }
    let opaque = &sent["opaque"][0];
    let notice = format!(
        "channel 0 goes as plain bytes from offset {} on: it {}\n",
        opaque["offset"],
        opaque["reason"].as_str().unwrap()
    );
    assert_eq!(err.matches(&notice).count(), 1, "{err}");
    assert_eq!(received["sources"][0]["name"], "module", "{received}");
    assert_eq!(received["sources"][0]["hits"], 1, "{received}");
}

/// Output that breaks at the first text with these words in it.
struct Breaks(&'static str);

impl Write for Breaks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match String::from_utf8_lossy(bytes).contains(self.0) {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines of a receiver and of a sender between the sockets of these machines.
fn lines(source: &Machine, destination: &Machine, options: &str) -> [String; 2] {
    let (link, to) = (destination.path("/link.sock"), destination.path("/to.sock"));
    let from = source.path("/from.sock");
    [
        format!(
            "migrate receive --listen unix:{} --connect unix:{} {options}",
            link.display(),
            to.display()
        ),
        format!(
            "migrate send --listen unix:{} --to unix:{} {options}",
            from.display(),
            link.display()
        ),
    ]
}

#[test]
fn nobody_who_reads_is_no_failed_migration() {
    let (source, destination) = (Machine::new(), Machine::new());
    let [receive, send] = lines(&source, &destination, "--insecure --json --quiet");
    let stream = qemu::stream(1);
    let qemu_to = qemu::destination(destination.path("/to.sock"));
    let qemu_from = qemu::source(source.path("/from.sock"), stream.clone());
    let (mut read, mut wrote) = (Vec::new(), Vec::new());
    let codes = thread::scope(|scope| {
        let received = scope.spawn(|| destination.live_into(&receive, &mut Breaks(""), &mut read));
        qemu::appears(&destination.path("/link.sock"));
        let sent = source.live_into(&send, &mut Breaks(""), &mut wrote);
        [sent, received.join().unwrap()]
    });
    assert!(qemu::is_good(&qemu_from.join().unwrap()));
    assert!(qemu_to.join().unwrap() == stream);
    assert_eq!(codes, [0, 0]);
    for err in [read, wrote] {
        let err = String::from_utf8(err).unwrap();
        assert!(err.contains("The migration is complete"), "{err}");
    }
}

#[test]
fn progress_that_cannot_be_shown_ends_no_migration() {
    let (source, destination) = (Machine::new(), Machine::new());
    let [receive, send] = lines(&source, &destination, "--insecure");
    let stream = qemu::stream(3);
    let qemu_to = qemu::destination(destination.path("/to.sock"));
    let qemu_from = qemu::source(source.path("/from.sock"), stream.clone());
    let (mut read, mut wrote) = (Breaks("["), Breaks("["));
    let codes = thread::scope(|scope| {
        let received = scope.spawn(|| destination.live_into(&receive, &mut io::sink(), &mut read));
        qemu::appears(&destination.path("/link.sock"));
        let sent = source.live_into(&send, &mut io::sink(), &mut wrote);
        [sent, received.join().unwrap()]
    });
    assert!(qemu::is_good(&qemu_from.join().unwrap()));
    assert!(qemu_to.join().unwrap() == stream);
    assert_eq!(codes, [0, 0]);
}

#[test]
fn program_whose_output_nobody_reads_tells_by_its_code() {
    let (source, destination) = (Machine::new(), Machine::new());
    let [receive, send] = lines(&source, &destination, "--insecure --json --quiet");
    let stream = qemu::stream(1);
    let qemu_to = qemu::destination(destination.path("/to.sock"));
    let qemu_from = qemu::source(source.path("/from.sock"), stream.clone());
    let output = thread::scope(|scope| {
        let received = scope.spawn(|| destination.live(&receive));
        qemu::appears(&destination.path("/link.sock"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_twinpage"))
            .args(send.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        received.join().unwrap().good();
        child.wait_with_output().unwrap()
    });
    assert!(qemu::is_good(&qemu_from.join().unwrap()));
    assert!(qemu_to.join().unwrap() == stream);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.contains("The migration is complete"), "{err}");
}

#[test]
fn doubt_comes_before_output_that_breaks() {
    let (source, destination) = (Machine::new(), Machine::new());
    let [receive, send] = lines(&source, &destination, "--insecure");
    let listener = UnixListener::bind(destination.path("/to.sock")).unwrap();
    // It takes everything and never says that it has it.
    let mute = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        io::copy(&mut socket, &mut io::sink())
    });
    let qemu_from = qemu::source(source.path("/from.sock"), qemu::stream(1));
    let mut err = Breaks("device state");
    let code = thread::scope(|scope| {
        let received = scope.spawn(|| destination.live(&receive));
        qemu::appears(&destination.path("/link.sock"));
        let code = source.live_into(&send, &mut io::sink(), &mut err);
        received.join().unwrap();
        code
    });
    assert!(!qemu::is_good(&qemu_from.join().unwrap()));
    mute.join().unwrap().unwrap();
    assert_eq!(code, 5);
}

#[test]
fn return_path_of_exec_ends_before_the_program_does() {
    let (source, destination) = (Machine::new(), Machine::new());
    let [receive, _] = lines(&source, &destination, "--insecure --quiet");
    let link = destination.path("/link.sock");
    let stream = qemu::stream(1);
    let listener = UnixListener::bind(destination.path("/to.sock")).unwrap();
    // It leaves with everything, and does not say whether it has it.
    let bytes = stream.len();
    let leaves = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.read_exact(&mut vec![0; bytes])
    });
    let (mut back, out) = UnixStream::pair().unwrap();
    back.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let (heard, status) = thread::scope(|scope| {
        let received = scope.spawn(|| destination.live(&receive));
        qemu::appears(&link);
        let mut child = Command::new(env!("CARGO_BIN_EXE_twinpage"))
            .args(["migrate", "send", "--stdio", "--quiet", "--insecure"])
            .args(["--to", &format!("unix:{}", link.display())])
            .stdin(Stdio::piped())
            .stdout(OwnedFd::from(out))
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&stream).unwrap();
        let heard = back.read(&mut [0]);
        drop(stdin);
        received.join().unwrap();
        (heard, child.wait().unwrap())
    });
    leaves.join().unwrap().unwrap();
    assert!(matches!(heard, Ok(0)), "{heard:?}");
    assert!(!status.success());
}

#[test]
fn other_domains_are_refused() {
    let (source, destination) = (Machine::new(), with_merged(60));
    let options = [
        "--insecure --quiet --domain 8",
        "--insecure --quiet --domain 7",
    ];
    let link = destination.path("/link.sock");
    let (from, to) = (source.path("/from.sock"), destination.path("/to.sock"));
    let qemu_from = qemu::source(from.clone(), qemu::stream(1));
    let (sent, received) = thread::scope(|scope| {
        let received = scope.spawn(|| {
            destination.live(&format!(
                "migrate receive --listen unix:{} --connect unix:{} {}",
                link.display(),
                to.display(),
                options[1]
            ))
        });
        qemu::appears(&link);
        let sent = source.live(&format!(
            "migrate send --listen unix:{} --to unix:{} {}",
            from.display(),
            link.display(),
            options[0]
        ));
        destination.state.lock().unwrap().interrupted = true;
        (sent, received.join().unwrap())
    });
    assert!(!qemu::is_good(&qemu_from.join().unwrap()));
    let err = sent.bad(1);
    assert!(err.contains("does not serve that domain"), "{err}");
    assert!(
        received.err.contains("domain 8, which is not served"),
        "{received:?}"
    );
}

/// The sender's result where the two cannot trust each other.
fn refused(source: &Machine, destination: &Machine, options: [&str; 2]) -> Ran {
    let link = destination.path("/link.sock");
    let from = source.path("/from.sock");
    let qemu_from = qemu::source(from.clone(), qemu::stream(1));
    let sent = thread::scope(|scope| {
        let received = scope.spawn(|| {
            let link = link.display();
            destination.live(&format!(
                "migrate receive --listen unix:{link} {}",
                options[1]
            ))
        });
        qemu::appears(&link);
        let sent = source.live(&format!(
            "migrate send --listen unix:{} --to unix:{} {}",
            from.display(),
            link.display(),
            options[0]
        ));
        destination.state.lock().unwrap().interrupted = true;
        received.join().unwrap();
        sent
    });
    assert!(!qemu::is_good(&qemu_from.join().unwrap()));
    sent
}

#[test]
fn keys_must_be_the_same() {
    let (source, destination) = (Machine::new(), Machine::new());
    let keys = [key(&source), key(&destination)];
    let sent = refused(&source, &destination, [&keys[0], &keys[1]]);
    assert!(
        sent.bad(1).contains("does not have the same key"),
        "{sent:?}"
    );
}

/// Makes an authority and certificates for the hosts a and b, with the commands of the
/// documentation; what the command line of each host says then.
fn certificates(machine: &Machine) -> [String; 2] {
    let text = include_str!("../../../../Documentation/migrating.rst");
    let (_, text) = text
        .split_once("for one authority and each host::")
        .unwrap();
    let (b, _) = text.split_once("Then, in place").unwrap();
    let (authority, host) = b.split_at(b.find("openssl req -new").unwrap());
    let mut a = host.replace("b.", "a.");
    for name in ["CN=", "DNS:"] {
        a = a.replace(&format!("{name}b"), &format!("{name}a"));
    }
    let made = Command::new("sh")
        .args(["-ec", &[authority, host, &a].join("\n")])
        .current_dir(machine.path("/"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let file = |name: &str| machine.path("/").join(name).display().to_string();
    ["a", "b"].map(|host| {
        format!(
            "--ca {} --cert {} --key-file {}",
            file("ca.pem"),
            file(&format!("{host}.pem")),
            file(&format!("{host}.key"))
        )
    })
}

#[test]
fn certificates_as_documented_let_hosts_in() {
    let (source, destination) = (Machine::new(), Machine::new());
    let [here, there] = certificates(&source);
    let stream = qemu::stream(3);
    let send = format!("{here} --peer-name b --quiet");
    let receive = format!("{there} --peer-name a --quiet");
    let (sent, received, good, equal) = migrate(&source, &destination, &stream, [&send, &receive]);
    assert!(good && equal, "{sent:?} {received:?}");
}

#[test]
fn certificate_of_another_name_or_authority_is_refused() {
    let (source, destination) = (Machine::new(), Machine::new());
    let [here, there] = certificates(&source);
    let other = format!("{here} --peer-name c");
    let sent = refused(&source, &destination, [&other, &there]);
    assert!(sent.bad(1).contains("certificate"), "{sent:?}");
    let stranger = Machine::new();
    let [_, there] = certificates(&stranger);
    let right = format!("{here} --peer-name b");
    let sent = refused(&source, &stranger, [&right, &there]);
    assert!(sent.bad(1).contains("certificate"), "{sent:?}");
}

#[test]
fn receiver_whose_sources_cannot_be_used_does_not_start() {
    let machine = Machine::new();
    for (option, code, word) in [
        ("--store /no/store", 1, "is no page store"),
        ("--fleet redis://127.0.0.1:1", 2, "--fleet-insecure"),
    ] {
        let ran = machine.run(&format!(
            "migrate receive --listen unix:/tmp/x --insecure {option}"
        ));
        assert!(ran.bad(code).contains(word), "{ran:?}");
    }
}

#[test]
fn signal_ends_a_sender_that_waits() {
    let machine = Machine::new();
    let from = machine.path("/from.sock");
    let ran = thread::scope(|scope| {
        let ran = scope.spawn(|| {
            let from = from.display();
            machine.live(&format!(
                "migrate send --listen unix:{from} --to unix:/nowhere --insecure --json"
            ))
        });
        qemu::appears(&from);
        assert_eq!(
            fs::metadata(&from).unwrap().permissions().mode() & 0o777,
            0o600
        );
        machine.state.lock().unwrap().interrupted = true;
        ran.join().unwrap()
    });
    let told = "The migration was cancelled";
    assert!(ran.bad(1).contains(told), "{ran:?}");
    let result: Value = serde_json::from_str(&ran.text()).unwrap();
    assert_eq!(result["completed"], false);
    assert_eq!(result["proxy_error"], told);
    assert!(!from.exists());
}

#[test]
fn nothing_runs_without_a_word_on_security() {
    let machine = Machine::new();
    let table = [
        "migrate send --listen unix:/tmp/x --to localhost:1",
        "migrate receive --listen localhost:1",
        "migrate run --from /x --to localhost:1",
    ];
    for line in table {
        let ran = machine.run(line);
        let err = ran.bad(2);
        for name in [
            "--key",
            "--ca",
            "--cert",
            "--key-file",
            "--insecure",
            "keygen",
        ] {
            assert!(err.contains(name), "{line}: {err}");
        }
    }
}

#[test]
fn key_is_made_once_and_for_its_owner() {
    let machine = Machine::new();
    key(&machine);
    let path = machine.path("/key");
    let before = fs::read(&path).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let ran = machine.run(&format!("migrate keygen {}", path.display()));
    assert!(ran.bad(1).contains("key"), "{ran:?}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn key_that_others_can_read_is_refused() {
    let machine = Machine::new();
    let option = key(&machine);
    fs::set_permissions(machine.path("/key"), fs::Permissions::from_mode(0o640)).unwrap();
    let ran = machine.run(&format!("migrate receive --listen unix:/tmp/x {option}"));
    assert!(ran.bad(1).contains("may be read by others"), "{ran:?}");
}

#[test]
fn limits_have_bounds() {
    let machine = Machine::new();
    for option in ["--window 1K", "--wire-window 2G"] {
        let line =
            format!("migrate send --listen unix:/tmp/x --to localhost:1 --insecure {option}");
        assert!(machine.run(&line).bad(2).contains("window"), "{option}");
    }
}

#[test]
fn sources_need_a_place() {
    let machine = Machine::new();
    let line = "migrate receive --listen unix:/tmp/x --insecure --sources stream,store";
    let ran = machine.run(line);
    assert!(ran.bad(2).contains("--sources names store"), "{ran:?}");
}
