//! Promises of commands to the person who types them: exit codes, what is printed
//! where, and what a file becomes.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use crate::Tests;
use crate::lab::Lab;
use crate::lab::message::{LOSES_A_RULE, NO_SUCH_RULE};
use crate::lab::process::{Process, wait_for};
use crate::lab::program::PROGRAM;
use crate::lifecycle::host::{CELL, Host, answers, check_reaches};
use crate::peer::conn::Proto;
use crate::peer::echo::EchoServer;

pub fn add(tests: &mut Tests) {
    tests.add("outlive/save", &[], save);
    tests.add("outlive/save_fails", &[], save_fails);
    tests.add("outlive/replace", &[], replace);
    tests.add("outlive/rm_of_nothing", &[], rm_of_nothing);
    tests.add("outlive/closed_output", &[], closed_output);
    tests.add("outlive/nothing_runs", &[], nothing_runs);
    tests.add("outlive/apply_of_input", &[], apply_of_input);
}

const SAVED: &str =
    "# Written by `portredir save`.\niface = \"h0\"\nrules = [\n    \"80:8080\",\n]\n";

/// Runs a script of the shell, in which `$0` is the program.
fn shell(lab: &Lab, script: &str) -> Process {
    let mut process = lab.host.start(&["sh", "-c", script, PROGRAM]);
    process.wait();
    process
}

/// Runs a script in the folder of the lab, with devices of its own: a `save` that
/// replaces what it should write to must not meet those of the machine.
fn shell_with_devices(lab: &Lab, script: &str) -> Process {
    let dir = lab.dir.0.display();
    let script = format!(
        "cd {dir} && mount -t tmpfs none /dev && mknod /dev/null c 1 3 && \
         mknod /dev/full c 1 7 && ln -s /proc/self/fd/1 /dev/stdout && {script}"
    );
    let mut process = lab
        .host
        .start(&["unshare", "--mount", "sh", "-c", &script, PROGRAM]);
    process.wait();
    process
}

fn save() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    for path in ["-", "/dev/stdout", "/proc/self/fd/1"] {
        for reader in ["", " | cat"] {
            let script = format!("$0 save {path}{reader} && test -L /dev/stdout");
            let mut saved = shell_with_devices(&lab, &script);
            assert_eq!(saved.out(), SAVED, "{script}: {}", saved.err());
            assert!(saved.wait().success(), "{script}");
        }
    }
    let script = "$0 save /dev/null && test -c /dev/null";
    let mut saved = shell_with_devices(&lab, script);
    assert!(saved.wait().success(), "{}", saved.err());
    let dir = lab.dir.0.join("etc");
    fs::create_dir(&dir).expect("a directory");
    let [file, link, backup] = ["real.toml", "link.toml", "real.toml~"].map(|name| dir.join(name));
    fs::write(&file, "# OPS-1234\nrules = []\n").expect("a file");
    symlink(&file, &link).expect("a link");
    let variable = format!("PORTREDIR_CONFIG={}", link.display());
    lab.host
        .run(&["env", &variable, PROGRAM, "save", "--dry-run"]);
    assert!(!backup.exists());
    lab.host.run(&["env", &variable, PROGRAM, "save"]);
    let read = |path| fs::read_to_string(path).expect("a file");
    assert_eq!((read(&file).as_str(), link.is_symlink()), (SAVED, true));
    assert_eq!(read(&backup), "# OPS-1234\nrules = []\n");
    host.down();
}

fn save_fails() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    let script = "$0 save /dev/full; echo $?; test -c /dev/full";
    let mut saved = shell_with_devices(&lab, script);
    assert!(
        saved.wait().success() && saved.out() == "1\n",
        "{}",
        saved.err()
    );
    let dir = lab.dir.0.join("etc");
    fs::create_dir_all(dir.join("conf.d")).expect("a directory");
    fs::write(dir.join("conf.d/10.toml"), "rules = []\n").expect("a file");
    // What a run would refuse, `--dry-run` refuses.
    let path = dir.join("rules.toml");
    let none = dir.join("none/x.toml");
    for path in [&path, &none] {
        let path = path.to_str().expect("text");
        host.fails(2, &["save", path]);
        host.fails(2, &["save", "--dry-run", path]);
    }
    assert!(!none.parent().expect("a folder").exists());
    // A read-only file system.
    let script = format!(
        "mount -t tmpfs -o ro none {} && $0 save {}",
        dir.display(),
        dir.join("x.toml").display()
    );
    for script in [script.clone(), script.replace(" save ", " save --dry-run ")] {
        let mut process = lab
            .host
            .start(&["unshare", "--mount", "sh", "-c", &script, PROGRAM]);
        assert_eq!(process.wait().code(), Some(1), "{}", process.err());
        assert!(
            process.err().contains("Read-only file system"),
            "{}",
            process.err()
        );
    }
    host.down();
}

/// A connection that comes while a rule is replaced meets the old rule or the new one.
fn replace() {
    let lab = Lab::new(&CELL);
    let servers = [8080, 9090].map(|port| EchoServer::start(&lab.host, port));
    let host = Host::of(&lab);
    host.up(&["79:7979", "80:8080/both", "81:8181"]);
    let rules = ["80:8080/both", "80:9090/both"];
    for round in 0..6 {
        let (old, new) = (rules[round % 2], rules[(round + 1) % 2]);
        let mut process = host.start(&["replace", old, new]);
        while process.try_wait().is_none() {
            assert!(answers(&lab, Proto::Tcp, 80), "round {round}");
        }
        assert!(process.wait().success(), "{}", process.err());
        assert_eq!(process.out(), format!("- {old}\n+ {new}\n"));
        assert_eq!(host.rules(), ["79:7979", new, "81:8181"]);
        check_reaches(&lab, 80, &servers[(round + 1) % 2]);
    }
    // Done once more, it changes nothing.
    assert_eq!(host.run(&["replace", rules[1], rules[0]]), "");
    let before = host.rules();
    for (code, args) in [
        (1, &["84:8084", "84:9090"][..]),
        (2, &["79:7979", "81:9191"]),
        (2, &["79:7979"]),
        (2, &["79:7979", "80:1", "81:1"]),
        (1, &["81:8181", "22:2222"]),
    ] {
        host.fails(code, &[&["replace"], args].concat());
        assert_eq!(host.rules(), before, "{args:?}");
    }
    host.run(&["replace", "--dry-run", "79:7979", "79:1"]);
    assert_eq!(host.rules(), before);
    host.run(&["replace", "79:7979", "79:1", "from", "10.0.0.0/8"]);
    assert_eq!(host.rules()[0], "79:1 from 10.0.0.0/8");
    host.down();
}

fn rm_of_nothing() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080", "81:8081"]);
    let error = host.fails(1, &["rm", "80:8080", "81:9999"]);
    assert!(
        error.contains(NO_SUCH_RULE) && error.contains("`81:8081`"),
        "{error}"
    );
    assert_eq!(host.rules(), ["80:8080", "81:8081"]);
    let removed = host.run(&["rm", "--if-exists", "80:8080", "99:1"]);
    assert_eq!(removed, "- 80:8080\n");
    assert_eq!(host.run(&["rm", "--if-exists", "99:1"]), "");
    // `up` says which rules it would remove, and removes them if that is asked for.
    let up = ["up", "--iface", "h0", "82:8082"];
    let said = host.fails(1, &up);
    assert!(
        said.contains(LOSES_A_RULE) && said.contains("add --replace"),
        "{said}"
    );
    let mut dry = host.start(&[&up[..], &["-n"]].concat());
    assert_eq!(dry.wait().code(), Some(1), "{}", dry.err());
    assert_eq!(dry.out(), "- 81:8081\n+ 82:8082\n");
    assert_eq!(host.rules(), ["81:8081"]);
    let mut up = host.start(&[&up[..], &["--replace"]].concat());
    assert!(up.wait().success());
    assert_eq!(up.out(), "- 81:8081\n+ 82:8082\n");
    let said = up.err();
    let place = said.find(LOSES_A_RULE).expect("the loss");
    assert!(said[place..].contains("`81:8081`"), "{said}");
    assert!(said[place..].contains("redirecting with 1 rule"), "{said}");
    // What is the same removes nothing.
    let mut up = host.start(&["up", "--iface", "h0", "82:8082"]);
    assert!(up.wait().success());
    assert!(!up.err().contains(LOSES_A_RULE), "{}", up.err());
    host.down();
}

/// The reader of the output goes away, and the disk of a log is full.
fn closed_output() {
    let lab = Lab::new(&CELL);
    let server = EchoServer::start(&lab.host, 8080);
    for output in [
        "2>&1 | true",
        "| head -n 1",
        ">/dev/full",
        ">/dev/full 2>&1",
    ] {
        let host = Host::of(&lab);
        let script = format!("$0 --iface h0 --interval 0.1 80:8080/both {output}");
        let mut run = lab.host.start(&["sh", "-c", &script, PROGRAM]);
        wait_for("the redirect", || {
            answers(&lab, Proto::Tcp, 80).then_some(())
        });
        for _ in 0..5 {
            check_reaches(&lab, 80, &server);
            std::thread::sleep(Duration::from_millis(200));
        }
        host.run(&["down"]);
        run.wait();
    }
    // A change that nobody reads is one all the same, and has its watcher.
    let host = Host::of(&lab);
    for output in ["| true", ">/dev/full"] {
        shell(&lab, &format!("$0 up --iface h0 80:8080/both {output}"));
        assert_eq!(host.status()["role"], "follower", "{output}");
        host.run(&["down"]);
    }
    host.down();
}

fn nothing_runs() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    for command in ["status", "rules"] {
        let mut process = host.start(&[command, "--json"]);
        assert_eq!(process.wait().code(), Some(3), "{}", process.err());
        let json: serde_json::Value = serde_json::from_str(&process.out()).expect("JSON");
        assert_eq!(json, serde_json::json!({ "schema": 1, "running": false }));
        host.fails(3, &[command]);
    }
    host.up(&["80:8080"]);
    assert_eq!(host.status()["running"], true);
    host.down();
}

fn apply_of_input() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    let applied = shell(&lab, "echo 'rules = [\"81:8081\"]' | $0 apply -f -");
    assert_eq!(applied.out(), "- 80:8080\n+ 81:8081\n", "{}", applied.err());
    let refused = shell(&lab, "echo 'rules = [\"81:\"]' | $0 apply -f -");
    let error = refused.err();
    assert!(
        error.contains("standard input:1: bad rule `81:`"),
        "{error}"
    );
    let file = lab.dir.0.join("new.toml");
    fs::write(&file, "iface = 'lo'\nrules = []\n").expect("a file");
    let file = file.to_str().expect("text");
    let error = host.fails(1, &["apply", "-f", file]);
    assert!(error.contains(&format!("up --config {file}")), "{error}");
    host.fails(2, &["up", "--follow", "--config", "-"]);
    host.down();
}
