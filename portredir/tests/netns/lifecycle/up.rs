//! `up`, `down` and the process that stays between them; and the options of `up`.

use std::fs;

use nix::sys::signal::Signal;

use crate::lab::message::{OWN_MOUNT_NAMESPACE, RUN_DOWN_FIRST, TWO_RULES_ARE_VALID};
use crate::lab::process::wait_for;
use crate::lab::program::PROGRAM;
use crate::lab::{Family, Lab};
use crate::lifecycle::host::{CELL, Host, answers, check_reaches};
use crate::peer::conn::{Conn, PROTOS, Proto, is_refused};
use crate::peer::echo::EchoServer;
use crate::{Cell, ENGINES, Tests};

pub fn add(tests: &mut Tests) {
    tests.add_for(&ENGINES, "up_and_down", &[], up_and_down);
    tests.add("outlive/follower", &[], watcher);
    tests.add("outlive/bpffs_is_mounted", &[], bpffs_is_mounted);
    tests.add("outlive/if_listening", &[], if_listening);
    tests.add("outlive/hide_target", &[], hide_target);
    tests.add("outlive/files", &[], files);
}

fn up_and_down(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.fails(3, &["rules"]);
    assert!(host.run(&["down"]).is_empty());
    let printed = host.up(&["--engine", cell.engine, "80:8080/both"]);
    assert_eq!(printed, "+ 80:8080/both\n");
    check_reaches(&lab, 80, &server);
    assert_eq!(host.rules(), ["80:8080/both"]);
    assert_eq!(host.run(&["add", "81:8080/both"]), "+ 81:8080/both\n");
    assert_eq!(host.run(&["add", "81:8080/both"]), "");
    check_reaches(&lab, 81, &server);
    assert_eq!(host.run(&["rm", "80:8080/both"]), "- 80:8080/both\n");
    host.fails(1, &["rm", "80:8080/both"]);
    assert_eq!(host.run(&["rm", "--if-exists", "80:8080/both"]), "");
    assert!(!answers(&lab, Proto::Tcp, 80) && !answers(&lab, Proto::Udp, 80));
    check_reaches(&lab, 81, &server);
    let status = host.status();
    assert_eq!(status["role"], "follower");
    assert_eq!(status["interfaces"][0]["name"], "h0");
    assert!(status["rules"][0]["packets"].as_u64() > Some(0));
    assert_eq!(host.run(&["down", "--dry-run"]), "- 81:8080/both\n");
    let error = host.fails(1, &["--iface", "h0", "82:8080"]);
    assert!(error.contains(RUN_DOWN_FIRST), "{error}");
    check_reaches(&lab, 81, &server);
    host.down();
    assert!(!answers(&lab, Proto::Tcp, 81));
}

/// The watcher process may die: traffic is still redirected, and another watcher
/// can start.
fn watcher() {
    let lab = Lab::new(&CELL);
    let server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.run(&["up", "80:8080/both"]);
    let pid = || host.status()["pid"].as_u64().expect("a pid").to_string();
    lab.host.run(&["kill", "-9", &pid()]);
    check_reaches(&lab, 80, &server);
    wait_for("nobody to follow", || {
        host.status()["role"].is_null().then_some(())
    });
    // The next watcher finds an address that comes now.
    lab.host.ip("addr add 10.9.1.77/24 dev h0");
    let new = "10.9.1.77:80".parse().expect("addr");
    assert!(is_refused(&lab.client, Proto::Tcp, new));
    let mut second = host.start(&["follow"]);
    wait_for("the new address", || {
        (!is_refused(&lab.client, Proto::Tcp, new)).then_some(())
    });
    let mut third = host.start(&["follow"]);
    assert_eq!(third.wait().code(), Some(1), "{}", third.err());
    second.signal(Signal::SIGTERM);
    assert!(second.wait().success());
    check_reaches(&lab, 80, &server);
    lab.host.ip("addr del 10.9.1.77/24 dev h0");
    host.down();
}

/// Where bpffs is missing, it is mounted, and taken away at the end; not where
/// the mount would not last.
fn bpffs_is_mounted() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let script = "umount -t bpf -a; cp /proc/mounts $1.before; $0 up --iface h0 80:8080 || exit; \
                  grep -c ' /sys/fs/bpf bpf ' /proc/mounts; $0 rules; \
                  $0 down --drain-timeout 0; cp /proc/mounts $1.after";
    let file = lab.dir.0.join("mounts");
    let run = |unshare: &[&str]| {
        let mut args = vec!["unshare", "--mount"];
        args.extend(unshare);
        let file = file.to_str().expect("text");
        args.extend(["sh", "-c", script, PROGRAM, file]);
        let mut process = lab.host.start(&args);
        process.wait();
        (process.out(), process.err())
    };
    let (_, err) = run(&[]);
    assert!(err.contains(OWN_MOUNT_NAMESPACE), "{err}");
    // The first process is in the same mount namespace, as on a host.
    let (out, err) = run(&["--pid", "--fork", "--mount-proc"]);
    assert_eq!(out, "+ 80:8080\n1\n80:8080\n- 80:8080\n", "{err}");
    // Network namespaces of other tests come and go meanwhile.
    let mounts = |when: &str| {
        let mounts = fs::read_to_string(file.with_extension(when)).expect(when);
        let of_others = |line: &&str| line.starts_with("nsfs ");
        let mounts: Vec<_> = mounts.lines().filter(|line| !of_others(line)).collect();
        mounts.join("\n")
    };
    assert_eq!(mounts("before"), mounts("after"));
    assert!(!mounts("before").contains(" bpf "));
    host.down();
}

fn if_listening() {
    for engine in ["tc", "xdp", "socket"] {
        let lab = Lab::new(&CELL);
        let own = EchoServer::start(&lab.host, 80);
        let host = Host::of(&lab);
        let protocols: &[Proto] = if engine == "socket" {
            &[Proto::Tcp]
        } else {
            &PROTOS
        };
        let rule = if engine == "socket" {
            "80:8080"
        } else {
            "80:8080/both"
        };
        let check_reaches =
            |server: &EchoServer, from: &crate::lab::namespace::Namespace, when: &str| {
                for &proto in protocols {
                    let message = format!("{engine} {proto:?} {when}");
                    let mut conn = Conn::to(from, proto, 0, Family::V4.host(80));
                    conn.echo(message.as_bytes());
                    server.peer(proto, message.as_bytes());
                }
            };
        host.run(&[
            "up",
            "--iface",
            "all",
            "--engine",
            engine,
            "--if-listening",
            rule,
        ]);
        check_reaches(&own, &lab.client, "without a server");
        check_reaches(&own, &lab.host, "without a server");
        let target = EchoServer::start(&lab.host, 8080);
        wait_for("the server to be known", || {
            let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
            conn.echo(b"who is there?");
            target.has_heard(b"who is there?").then_some(())
        });
        check_reaches(&target, &lab.client, "with a server");
        check_reaches(&target, &lab.host, "with a server");
        drop(target);
        check_reaches(&own, &lab.client, "after the server");
        host.run(&["down", "--drain-timeout", "0"]);
        host.down();
    }
}

fn hide_target() {
    let lab = Lab::new(&CELL);
    let server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    let mut older = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(8080));
    older.echo(b"before");
    host.run(&["up", "--hide-target", "80:8080/both"]);
    check_reaches(&lab, 80, &server);
    older.echo(b"after");
    // A hidden port answers as one where nobody listens.
    for proto in PROTOS {
        assert!(is_refused(&lab.client, proto, Family::V4.host(8080)));
        assert!(is_refused(&lab.client, proto, Family::V4.host(8079)));
    }
    // Local clients do reach the target port.
    let mut local = Conn::to(&lab.host, Proto::Tcp, 0, Family::V4.host(8080));
    local.echo(b"from the host");
    let drops = &host.status()["drops"]["hidden"];
    assert!(drops.as_u64() >= Some(2), "{drops}");
    host.down();
}

fn files() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let dir = lab.dir.0.join("etc");
    fs::create_dir(&dir).expect("a directory");
    let [dir, file] =
        [dir.clone(), dir.join("rules.toml")].map(|path| path.to_str().expect("text").to_owned());
    host.up(&[
        "--hide-target",
        "80:8080",
        "443:8443/both",
        "from",
        "10.0.0.0/8",
        "on",
        "h0",
    ]);
    let rules = host.rules();
    host.run(&["save", &file]);
    assert_eq!(host.run(&["check", &dir]), TWO_RULES_ARE_VALID);
    host.run(&["down"]);
    host.run(&["up", "--config", &dir]);
    assert_eq!(host.rules(), rules);
    let settings = &host.status()["settings"];
    assert_eq!(
        (&settings["iface"], &settings["hide-target"]),
        (&"h0".into(), &true.into())
    );
    // An option on the command line overrides the file.
    host.run(&["up", "--config", &dir, "--hide-target=false"]);
    assert_eq!(host.status()["settings"]["hide-target"], false);
    assert_eq!(host.run(&["apply", "-f", &dir]), "+ hide-target\n");
    host.down();
}
