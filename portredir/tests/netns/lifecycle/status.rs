//! Programs that others detach, replace or run before ours: what `status` says about them,
//! and what the watcher does.

use std::fs;
use std::os::unix::net::UnixDatagram;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::Lab;
use crate::lab::foreign::{Foreign, NEXT, PASS};
use crate::lab::message::{NO_WATCHER, REPAIRED};
use crate::lab::process::{Process, wait_for};
use crate::lab::program::{PROGRAM, Redirector, attached, has_tcx};
use crate::lifecycle::host::{CELL, Host, answers};
use crate::peer::conn::Proto;
use crate::peer::echo::EchoServer;
use crate::{Cell, ENGINES, Tests, skip};

pub fn add(tests: &mut Tests) {
    for damage in &DAMAGES {
        let name = format!("outlive/status_detached_{}", damage.name);
        tests.add(name, &["bpftool"], move || detached(damage));
    }
    tests.add("outlive/status_pins_removed", &[], pins_removed);
    tests.add(
        "outlive/status_xdp_replaced",
        &["bpftool", "python3"],
        xdp_replaced,
    );
    tests.add("outlive/status_behind", &["python3"], behind);
    tests.add("outlive/status_silent_watcher", &[], silent_watcher);
    tests.add("outlive/status_of_nothing", &[], nothing);
    tests.add("outlive/status_since", &[], since);
    tests.add("outlive/status_journal", &["unshare", "mknod"], journal);
    tests.add_for(&ENGINES, "repaired", &["bpftool"], repaired);
}

/// Something that another administrator or program does to ours.
struct Damage {
    name: &'static str,
    engine: &'static str,
    /// The command; `{pins}` is the directory of the pins.
    command: &'static str,
    interface: &'static str,
    /// A hook that is missing then.
    hook: &'static str,
}

const DAMAGES: [Damage; 9] = [
    Damage {
        name: "tcx_ingress",
        engine: "tc",
        command: "bpftool link detach pinned {pins}/if11-ingress",
        interface: "h0",
        hook: "tcx ingress",
    },
    Damage {
        name: "tcx_egress",
        engine: "tc",
        command: "bpftool link detach pinned {pins}/if11-egress",
        interface: "h0",
        hook: "tcx egress",
    },
    Damage {
        name: "pin",
        engine: "tc",
        command: "rm {pins}/if11-ingress",
        interface: "h0",
        hook: "tcx ingress",
    },
    Damage {
        name: "xdp",
        engine: "xdp",
        command: "bpftool link detach pinned {pins}/if11-ingress",
        interface: "h0",
        hook: "xdp",
    },
    Damage {
        name: "clsact_filter",
        engine: "tc-clsact",
        command: "tc filter del dev h0 ingress",
        interface: "h0",
        hook: "clsact ingress",
    },
    Damage {
        name: "clsact_qdisc",
        engine: "tc-clsact",
        command: "tc qdisc del dev h0 clsact",
        interface: "h0",
        hook: "clsact egress",
    },
    Damage {
        name: "sk_lookup",
        engine: "socket",
        command: "bpftool link detach pinned {pins}/lookup",
        interface: "h0",
        hook: "sk_lookup",
    },
    Damage {
        name: "accept",
        engine: "tc",
        command: "bpftool link detach pinned {pins}/accept",
        interface: "h0",
        hook: "cgroup sock_ops",
    },
    Damage {
        name: "connect4",
        engine: "auto",
        command: "bpftool link detach pinned {pins}/portredir_conn4",
        interface: "lo",
        hook: "cgroup connect4",
    },
];

impl Damage {
    fn inflict(&self, lab: &Lab, host: &Host<'_>) {
        let pins = host.pins();
        let pins = pins.to_str().expect("text");
        let words = self.command.split(' ');
        let words: Vec<_> = words.map(|word| word.replace("{pins}", pins)).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        lab.host.run(&words);
    }
}

/// The exit code and the output of `status --check`.
fn check(host: &Host<'_>) -> (Option<i32>, String) {
    let mut process = host.start(&["status", "--check"]);
    let status = process.wait();
    (status.code(), process.out())
}

fn wait_until_healthy(host: &Host<'_>) {
    let healthy = (Some(0), "healthy\n".to_owned());
    wait_for("a healthy redirect", || {
        (check(host) == healthy).then_some(())
    });
}

/// The interface of a status, by name.
fn interface(status: &Value, name: &str) -> Value {
    let interfaces = status["interfaces"].as_array().expect("a list");
    let found = interfaces
        .iter()
        .find(|interface| interface["name"] == name);
    found
        .unwrap_or_else(|| panic!("{name} in {status}"))
        .clone()
}

/// Every way to detach one of our programs is seen, and undone by the watcher.
fn detached(damage: &Damage) {
    let lab = Lab::new(&CELL);
    if damage.hook.starts_with("tcx") && !lab.host.enter(has_tcx) {
        skip("needs TCX, Linux 6.6");
    }
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.run(&["up", "--engine", damage.engine, "80:8080"]);
    if !host.status().to_string().contains(damage.hook) {
        skip(format!("no hook `{}` here", damage.hook));
    }
    let programs = attached(&lab.host);
    wait_until_healthy(&host);
    host.kill_watcher();
    let (code, text) = check(&host);
    assert_eq!(code, Some(5), "{text}");
    assert_eq!(text.lines().count(), 1, "only the watcher: {text}");
    let mut add = host.start(&["add", "81:8080"]);
    assert!(
        add.wait().success() && add.err().contains(NO_WATCHER),
        "{}",
        add.err()
    );

    damage.inflict(&lab, &host);
    let status = host.status();
    assert_eq!(status["healthy"], false);
    let state = interface(&status, damage.interface);
    assert_eq!(state["state"], "missing", "{state}");
    let hooks = state["hooks"].as_array().expect("a list");
    let hook = hooks.iter().find(|hook| hook["hook"] == damage.hook);
    assert_eq!(hook.expect(damage.hook)["state"], "missing");
    let (code, text) = check(&host);
    let expected = format!("{}: {} portredir_", damage.interface, damage.hook);
    assert_eq!(code, Some(5), "{text}");
    assert!(
        text.contains(&expected) && text.contains(": missing; fix: "),
        "{text}"
    );

    let watcher = host.start(&["watch"]);
    check_repair(damage, &host, &watcher, 1);
    assert_eq!(attached(&lab.host), programs);
    assert!(answers(&lab, Proto::Tcp, 80));
    damage.inflict(&lab, &host);
    check_repair(damage, &host, &watcher, 2);
    assert_eq!(attached(&lab.host), programs);
    assert!(answers(&lab, Proto::Tcp, 80));
    host.down();
}

/// Waits until the watcher has made so many repairs.
fn check_repair(damage: &Damage, host: &Host<'_>, watcher: &Process, times: usize) {
    wait_for("a repair", || {
        (watcher.err().matches(REPAIRED).count() == times).then_some(())
    });
    let said = watcher.err();
    assert!(said.contains(damage.hook), "{said}");
    wait_until_healthy(host);
}

/// All pins go, those of the maps among them: the watcher still has the maps.
fn pins_removed() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    assert!(answers(&lab, Proto::Tcp, 80));
    wait_until_healthy(&host);
    fs::remove_dir_all(host.pins()).expect("remove the pins");
    wait_for("the pins", || {
        host.pins().join("STATE").exists().then_some(())
    });
    wait_until_healthy(&host);
    assert!(answers(&lab, Proto::Tcp, 80));
    assert_eq!(host.run(&["add", "81:8080"]), "+ 81:8080\n");
    let status = host.status();
    assert_eq!(status["rules"][0]["flows"], 2, "counters go on: {status}");
    host.down();
}

/// Another XDP program at the place of ours has a name, and is left alone.
fn xdp_replaced() {
    let lab = Lab::new(&CELL);
    let _server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.up(&["--engine", "xdp", "80:8080"]);
    host.kill_watcher();
    let xdp = &DAMAGES[3];
    xdp.inflict(&lab, &host);
    let foreign = Foreign::attach(&lab.host, ("xdp", "native"), "h0", ("balancer", PASS));
    let state = interface(&host.status(), "h0");
    assert_eq!(state["state"], "replaced", "{state}");
    let (code, text) = check(&host);
    assert_eq!(code, Some(5));
    assert!(text.contains("replaced by balancer (id "), "{text}");
    assert!(host.run(&["status"]).contains("replaced by balancer (id "));
    let _watcher = host.start(&["watch"]);
    wait_for("the watcher", || {
        (!host.status()["role"].is_null()).then_some(())
    });
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(attached(&lab.host).contains(&"h0 xdp balancer".to_owned()));
    assert_eq!(check(&host).0, Some(5));
    drop(foreign);
    wait_until_healthy(&host);
    assert!(answers(&lab, Proto::Tcp, 80));
    host.down();
}

/// A program of others before ours is named, and no fault; one behind ours is nothing.
fn behind() {
    let lab = Lab::new(&CELL);
    if !lab.host.enter(has_tcx) {
        skip("needs TCX, Linux 6.6");
    }
    let host = Host::of(&lab);
    host.up(&["--engine", "tc", "80:8080"]);
    let attach =
        |position, name| Foreign::attach(&lab.host, ("ingress", position), "h0", (name, NEXT));
    let last = attach("last", "later");
    assert_eq!(interface(&host.status(), "h0")["state"], "attached");
    let first = attach("first", "shaper");
    let text = host.run(&["status"]);
    assert!(
        text.contains("tcx ingress portredir_in: behind shaper (id "),
        "{text}"
    );
    let state = interface(&host.status(), "h0");
    assert_eq!(state["state"], "behind");
    wait_until_healthy(&host);
    drop((last, first));
    host.down();
}

/// A watcher that hangs is named. `status` then reads the pins.
fn silent_watcher() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    let pid = host.status()["pid"].as_u64().expect("a pid").to_string();
    lab.host.run(&["kill", "-STOP", &pid]);
    let (code, text) = check(&host);
    assert_eq!(code, Some(5));
    assert!(
        text.contains(&format!("process {pid}, does not answer")),
        "{text}"
    );
    lab.host.run(&["kill", "-CONT", &pid]);
    wait_until_healthy(&host);
    host.down();
}

fn nothing() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    for args in [&["status"][..], &["status", "--check"]] {
        host.fails(3, args);
    }
    let mut process = host.start(&["status", "--check", "--json"]);
    assert_eq!(process.wait().code(), Some(3));
    let status: Value = serde_json::from_str(&process.out()).expect("JSON");
    assert_eq!(status["running"], false);
}

/// The user who began and who changed the redirect, options, the last unconfirmed change, and rules that are
/// not those on disk.
fn since() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    let before = host.status();
    assert_eq!(before["since"], before["changed"]);
    assert_eq!(before["since"]["uid"], 0);
    assert!(before["since"]["pid"].as_u64().expect("a pid") > 1);
    host.run(&["add", "--confirm", "1min", "81:8080"]);
    let text = host.run(&["status"]);
    assert!(
        text.contains("\nsince 20") && text.contains("\nchanged 20"),
        "{text}"
    );
    assert!(text.contains("options: iface = \"h0\"\n"), "{text}");
    assert!(text.contains("is rolled back in"), "{text}");
    host.run(&["confirm"]);
    let after = host.status();
    assert_eq!(after["since"], before["since"]);
    assert_ne!(after["changed"]["pid"], before["changed"]["pid"]);
    assert!(after["confirmed_ago"].as_u64() < Some(60));
    assert!(host.run(&["status"]).contains("was confirmed"));

    let file = lab.dir.0.join("rules.toml");
    let file = file.to_str().expect("text");
    let variable = format!("PORTREDIR_CONFIG={file}");
    let status = || lab.host.run(&["env", &variable, PROGRAM, "status"]);
    fs::write(file, "rules = [\"81:8080\", \"80:8080\"]\n").expect("write a file");
    assert!(!status().contains("differ"), "{}", status());
    fs::write(file, "rules = [\"80:8080\"]\n").expect("write a file");
    let differs = format!("running rules differ from {file}; show how: portredir diff {file}");
    assert!(status().contains(&differs), "{}", status());
    host.run(&["add", "--confirm", "1min", "82:8080"]);
    host.kill_watcher();
    let text = host.run(&["status"]);
    assert!(
        text.contains("no watcher process runs to roll it back"),
        "{text}"
    );
    host.down();
}

/// The process in the foreground repairs as well.
fn repaired(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = EchoServer::start(&lab.host, 8080);
    let redirector = Redirector::of(cell, &lab, &["80:8080/tcp"]);
    let programs = attached(&lab.host);
    if cell.engine == "tc-clsact" {
        lab.host.run(&["tc", "qdisc", "del", "dev", "h0", "clsact"]);
    } else {
        for link in redirector.process.links() {
            lab.host
                .run(&["bpftool", "link", "detach", "id", &link.to_string()]);
        }
    }
    wait_for("a repair", || {
        let is_back = attached(&lab.host) == programs && answers(&lab, Proto::Tcp, 80);
        (redirector.process.err().contains(REPAIRED) && is_back).then_some(())
    });
    redirector.stop_by(Signal::SIGTERM);
}

/// Runs a command where `/dev/log` is a socket of the test.
const WITH_LOG: &str = r#"
mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && ln -s "$1" /dev/log
shift
exec "$@"
"#;

/// A change by a command; a repair and a roll-back by a watcher whose output nobody reads.
fn journal() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let path = lab.dir.0.join("log");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_nonblocking(true).expect("a socket");
    let path = path.to_str().expect("text");
    let with_log = ["unshare", "--mount", "sh", "-c", WITH_LOG, "sh", path];
    // The watcher cannot notify a service manager that is not there, and warns.
    let mut up = vec!["env", "NOTIFY_SOCKET=/no/manager", PROGRAM, "up"];
    up.extend(["--iface", "h0", "80:8080", "81:8080"]);
    lab.host.run(&[&with_log[..], &up].concat());
    let wait_for_line = |what: &str| {
        wait_for(what, || {
            let mut bytes = [0; 2048];
            let len = socket.recv(&mut bytes).ok()?;
            let line = String::from_utf8_lossy(&bytes[..len]).into_owned();
            line.contains(what).then_some(line)
        })
    };
    let line = wait_for_line(": up by ");
    assert!(line.starts_with("<29>portredir["), "{line}");
    assert!(line.ends_with(": + 80:8080, + 81:8080"), "{line}");
    let pid = host.status()["pid"].as_u64().expect("a pid");
    let line = wait_for_line("cannot notify systemd");
    let expected = format!("<28>portredir[{pid}]: ");
    assert!(line.starts_with(&expected), "{line}");
    DAMAGES[2].inflict(&lab, &host);
    let line = wait_for_line(REPAIRED);
    let expected = format!("<28>portredir[{pid}]: h0: ");
    assert!(line.starts_with(&expected), "{line}");
    let rm = [PROGRAM, "rm", "--confirm", "1s", "81:8080"];
    lab.host.run(&[&with_log[..], &rm].concat());
    let line = wait_for_line(": rm by ");
    assert!(line.ends_with(": - 81:8080"), "{line}");
    let line = wait_for_line("rolled back");
    assert!(
        line.starts_with(&format!("<28>portredir[{pid}]: ")),
        "{line}"
    );
    host.down();
}
