//! The users who may read and change the running rules, and the requests that
//! are refused without `--force`.

use std::fs;

use nix::sys::signal::Signal;

use crate::Tests;
use crate::lab::Lab;
use crate::lab::message::{GROUP, REDIRECTING, SSH_PORT, SSH_SESSION};
use crate::lab::program::{PROGRAM, copy_world_executable};
use crate::lifecycle::host::{CELL, Host, check_reaches};
use crate::peer::echo::EchoServer;

pub fn add(tests: &mut Tests) {
    tests.add("outlive/foreground_is_visible", &[], foreground_is_visible);
    tests.add("outlive/lock_out", &[], lock_out);
    tests.add("outlive/fewest_capabilities", &[], fewest_capabilities);
    tests.add("outlive/group", &[], group);
    tests.add("outlive/forged_control", &[], forged_control);
}

fn foreground_is_visible() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let mut run = host.start(&["--iface", "h0", "80:8080", "81:8081/udp"]);
    run.wait_for_words(REDIRECTING);
    assert_eq!(host.rules(), ["80:8080", "81:8081/udp"]);
    assert_eq!(host.status()["role"], "foreground");
    for args in [&["add", "82:8080"][..], &["up", "82:8080"]] {
        let error = host.fails(1, args);
        assert!(error.contains(&format!("process {}", run.id())), "{error}");
    }
    host.run(&["save", lab.dir.0.join("saved.toml").to_str().expect("text")]);
    let nobody = lab.host.start(&[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--",
        &copy_world_executable(&lab.dir.0),
        "status",
    ]);
    let mut nobody = nobody;
    assert_eq!(nobody.wait().code(), Some(4), "{}", nobody.err());
    host.run(&["down"]);
    assert!(run.wait().success());
    host.down();
}

fn lock_out() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    // The run in the foreground is refused like the change that lasts.
    for args in [&["up", "22:2222"][..], &["22:2222"], &["1-65535:8080"]] {
        let error = host.fails(1, args);
        assert!(error.contains(SSH_PORT), "{error}");
    }
    assert!(!host.pins().exists());
    host.up(&["80:8080"]);
    let ssh = "SSH_CONNECTION=10.9.1.2 50000 10.9.1.1 2022";
    // sudo removes the variable from the environment of its children.
    let script = format!("env -u SSH_CONNECTION {PROGRAM} add 2022:8080; exit $?");
    let mut shell = lab.host.start(&["env", ssh, "sh", "-c", &script]);
    assert_eq!(shell.wait().code(), Some(1));
    assert!(shell.err().contains(SSH_SESSION), "{}", shell.err());
    host.run(&["add", "--force", "22:2222"]);
    assert_eq!(host.rules(), ["80:8080", "22:2222"]);
    host.down();
}

/// Root with no more rights than are needed; they are enough for all commands.
fn fewest_capabilities() {
    let lab = Lab::new(&CELL);
    let server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let run = |args: &[&str]| {
        let mut all = vec![
            "setpriv",
            "--bounding-set=-all,+bpf,+perfmon,+net_admin",
            "--inh-caps=-all",
            "--no-new-privs",
            "--",
            PROGRAM,
        ];
        all.extend(args);
        let mut process = lab.host.start(&all);
        let status = process.wait();
        assert!(status.success(), "{args:?}: {}", process.err());
    };
    // The directory for pins exists on every machine with systemd.
    host.up(&["81:8080"]);
    host.run(&["down"]);
    run(&["up", "--iface", "all", "80:8080/both"]);
    check_reaches(&lab, 80, &server);
    run(&["add", "81:8080/both"]);
    run(&["up", "--replace", "--iface", "all", "81:8080/both"]);
    check_reaches(&lab, 81, &server);
    let pid = host.status()["pid"].as_u64().expect("a pid");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let caps = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(line.expect(name).trim(), 16).expect("a mask")
    };
    // CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF
    let needed = 1 << 12 | 1 << 38 | 1 << 39;
    assert_eq!(
        (caps("CapPrm:"), caps("CapEff:"), caps("CapInh:")),
        (needed, needed, 0)
    );
    run(&["down"]);
    host.down();
}

/// Members of the group read without being root.
fn group() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let etc = lab.dir.0.join("etc");
    fs::create_dir(&etc).expect("a directory");
    let write = |name: &str, text: &str| fs::write(etc.join(name), text).expect("write a file");
    write(
        "passwd",
        "root:x:0:0::/:/bin/sh\nmember:x:4001:4001::/:/bin/sh\nother:x:4002:4002::/:/bin/sh\n",
    );
    write("group", "root:x:0:\nportredir:x:4000:member\n");
    write("nsswitch.conf", "passwd: files\ngroup: files\n");
    // The process that answers looks its users up in these.
    let script = "for file in passwd group nsswitch.conf; do \
                  mount --bind $0/$file /etc/$file; done; exec \"$@\"";
    let mut run = lab.host.start(&[
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        etc.to_str().expect("text"),
        PROGRAM,
        "--iface",
        "h0",
        "80:8080",
    ]);
    run.wait_for_words(REDIRECTING);
    let program = copy_world_executable(&lab.dir.0);
    let run_as = |uid: &str, command: &str| {
        let (uid, gid) = (format!("--reuid={uid}"), format!("--regid={uid}"));
        let args = [
            "setpriv",
            &uid,
            &gid,
            "--clear-groups",
            "--",
            &program,
            command,
        ];
        let mut process = lab.host.start(&args);
        (process.wait().code(), process.out(), process.err())
    };
    let (code, out, err) = run_as("4001", "rules");
    assert_eq!((code, out.as_str()), (Some(0), "80:8080\n"), "{err}");
    assert_eq!(run_as("4001", "status").0, Some(0));
    let (code, out, err) = run_as("4002", "rules");
    assert_eq!((code, out.as_str()), (Some(4), ""), "{err}");
    assert!(err.contains(GROUP), "{err}");
    // Members may read and not change.
    let (code, _, err) = run_as("4001", "down");
    assert_eq!(code, Some(4), "{err}");
    assert_eq!(host.rules(), ["80:8080"]);
    run.signal(Signal::SIGTERM);
    assert!(run.wait().success());
    host.down();
}

/// An unprivileged process takes the names of the control sockets: commands name
/// that process, obey it in nothing, and `down --force` still works.
fn forged_control() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    host.kill_watcher();
    let script = "import os, socket, time\n\
                  os.setgid(65534); os.setuid(65534)\n\
                  names = [b'\\0portredir.control', b'\\0portredir']\n\
                  kept = [socket.socket(socket.AF_UNIX) for name in names]\n\
                  for one, name in zip(kept, names): one.bind(name); one.listen()\n\
                  print('ready', flush=True)\n\
                  while True: time.sleep(1)";
    let mut sender = lab.host.start(&["python3", "-c", script]);
    sender.wait_for_words("ready");
    let said = format!("process {} of user 65534", sender.id());
    // The pinned rules can be read all the same.
    assert_eq!(host.rules(), ["80:8080"]);
    let error = host.fails(1, &["add", "81:8080"]);
    assert!(error.contains(&said), "{error}");
    host.run(&["down", "--force"]);
    sender.kill();
    host.down();
}
