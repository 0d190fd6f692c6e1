//! Start and end: what is attached, what is left, who may do it, and what
//! others have attached.

use aya::programs::{Xdp, XdpMode};
use nix::sys::signal::Signal;
use portredir::loader::{Datapath, Sizes};

use crate::lab::message::{ANOTHER_INSTANCE, FILTER_BEFORE_OURS, TAKEN_BY_OURS, XDP_IMPOSSIBLE};
use crate::lab::process::{Process, wait_for};
use crate::lab::program::{
    PROGRAM, Redirector, attached, copy_world_executable, has_tcx, link_state, packets,
};
use crate::lab::{Family, Lab};
use crate::peer::conn::{Conn, PROTOS};
use crate::peer::echo::EchoServer;
use crate::{Cell, ENGINES, Tests};

pub fn add(tests: &mut Tests) {
    tests.add_for(&ENGINES, "ctrl_c", &[], |cell| {
        ends_by(cell, Signal::SIGINT)
    });
    tests.add_for(&ENGINES, "sigterm", &[], |cell| {
        ends_by(cell, Signal::SIGTERM)
    });
    tests.add_for(&ENGINES, "kill_9", &[], kill_9);
    for engine in ["tc", "tc-clsact"] {
        for (pref, mask) in [
            ("1", "0xffffffff"),
            ("10", "0xffffffff"),
            ("1", "0"),
            ("10", "0"),
        ] {
            let what = if mask == "0" {
                "final_filter"
            } else {
                "filter"
            };
            tests.add(
                format!("{engine}/foreign_{what}_at_{pref}"),
                &[],
                move || {
                    foreign_filter(engine, pref, mask);
                },
            );
        }
    }
    for (name, mode) in [("native", XdpMode::Driver), ("generic", XdpMode::Skb)] {
        tests.add(format!("foreign_xdp_{name}"), &[], move || {
            foreign_xdp(mode)
        });
    }
    tests.add(
        "xdp_where_it_is_impossible",
        &[],
        xdp_where_it_is_impossible,
    );
    tests.add("second_instance", &[], second_instance);
    tests.add_for(&ENGINES, "unprivileged", &[], unprivileged);
    tests.add_for(&ENGINES, "three_capabilities", &[], three_capabilities);
}

const CELL: Cell = Cell {
    engine: "auto",
    is_offloaded: true,
    family: Family::V4,
};

/// The programs that an engine attaches to h0.
fn expected(engine: &str, lab: &Lab) -> Vec<String> {
    let has_tcx = lab.host.enter(has_tcx);
    let is_xdp = engine.starts_with("xdp");
    let is_tcx = has_tcx && engine != "tc-clsact";
    let tc = if is_tcx { "tcx" } else { "tc" };
    let ingress = match is_xdp {
        true => "h0 xdp portredir_frags".into(),
        false => format!("h0 {tc}-ingress portredir_in"),
    };
    let mut all = vec![ingress, format!("h0 {tc}-egress portredir_out")];
    all.extend((!is_tcx).then(|| "h0 clsact".into()));
    all
}

/// Waits for a program that has to fail with this exit code; what it said.
fn failure(mut process: Process, code: i32) -> String {
    let status = process.wait();
    let error = process.err();
    assert_eq!(status.code(), Some(code), "{error}");
    error
}

/// Checks that clients reach the server by the destination and by the target port.
fn check_both_ports(lab: &Lab, server: &EchoServer) {
    for proto in PROTOS {
        for port in [80, 8080] {
            let message = format!("{proto:?} by {port}");
            let mut conn = Conn::to(&lab.client, proto, 0, Family::V4.host(port));
            conn.echo(message.as_bytes());
            server.peer(proto, message.as_bytes());
        }
    }
}

fn ends_by(cell: &Cell, signal: Signal) {
    let lab = Lab::new(&Cell {
        is_offloaded: true,
        ..*cell
    });
    let server = EchoServer::start(&lab.host, 8080);
    let before = link_state(&lab);
    let redirector = Redirector::of(cell, &lab, &["80:8080/both"]);
    assert_eq!(attached(&lab.host), expected(cell.engine, &lab));
    check_both_ports(&lab, &server);
    let report = redirector.stop_by(signal);
    assert!(packets(&report, 0) > 0, "final counters: {report}");
    assert_eq!(link_state(&lab), before);
}

fn kill_9(cell: &Cell) {
    let lab = Lab::new(&Cell {
        is_offloaded: true,
        ..*cell
    });
    let server = EchoServer::start(&lab.host, 8080);
    let before = link_state(&lab);
    let start = || Redirector::beside(cell, &lab, &["80:8080/both"]);
    let mut redirector = start();
    check_both_ports(&lab, &server);
    redirector.process.kill();
    if !expected(cell.engine, &lab).contains(&"h0 clsact".to_owned()) {
        // The kernel detaches when it frees the links, soon after.
        wait_for("the kernel to detach", || {
            (link_state(&lab) == before).then_some(())
        });
        return;
    }
    // Filters outlive the process that added them. The next run replaces them.
    assert_ne!(link_state(&lab), before);
    let redirector = start();
    assert_eq!(attached(&lab.host), expected(cell.engine, &lab));
    check_both_ports(&lab, &server);
    redirector.stop();
    assert_eq!(link_state(&lab), before);
}

/// A foreign filter, and the qdisc it needs, stay. With a mask of zero it matches
/// all packets, and the kernel runs no filter after it.
fn foreign_filter(engine: &'static str, pref: &str, mask: &str) {
    let cell = Cell { engine, ..CELL };
    let lab = Lab::new(&cell);
    let server = EchoServer::start(&lab.host, 8080);
    lab.host.run(&["tc", "qdisc", "add", "dev", "h0", "clsact"]);
    for hook in ["ingress", "egress"] {
        let mut add = vec!["tc", "filter", "add", "dev", "h0", hook];
        add.extend(["protocol", "all", "pref", pref, "u32"]);
        add.extend(["match", "u32", "0", mask, "classid", "1:1"]);
        lab.host.run(&add);
    }
    let before = link_state(&lab);
    let redirector = Redirector::of(&cell, &lab, &["80:8080/both"]);
    if (engine, pref, mask) == ("tc-clsact", "1", "0") {
        // No filter can run before it, and the program has to say so.
        let said = redirector.process.err();
        assert!(said.contains(FILTER_BEFORE_OURS), "{said}");
    } else {
        check_both_ports(&lab, &server);
    }
    redirector.finish(&lab);
    assert_eq!(link_state(&lab), before);
}

/// A foreign XDP program is never replaced.
fn foreign_xdp(mode: XdpMode) {
    let lab = Lab::new(&CELL);
    let server = EchoServer::start(&lab.host, 8080);
    // Any program will do: one of ours, without rules, that we attach.
    let sizes = Sizes {
        tcp_flows: 1024,
        udp_flows: 1024,
    };
    let mut foreign = Datapath::load(sizes.into(), None).expect("load");
    // The kernel gives up, with EAGAIN, when the thread is to be interrupted.
    let _ = (0..5).any(|_| foreign.program::<Xdp>("portredir_xdp").is_ok());
    let program: &mut Xdp = foreign.program("portredir_xdp").expect("the program");
    let attach = || program.attach("h0", mode).map(|_| ());
    lab.host.enter(attach).expect("attach");
    let before = link_state(&lab);
    assert_eq!(attached(&lab.host), ["h0 xdp portredir_xdp"]);

    for engine in ["xdp", "xdp-generic"] {
        let args = [PROGRAM, "--iface", "h0", "--engine", engine, "80:8080"];
        let error = failure(lab.host.start(&args), 1);
        assert!(error.contains(TAKEN_BY_OURS), "{error}");
        assert_eq!(link_state(&lab), before);
    }

    let redirector = Redirector::of(&CELL, &lab, &["80:8080/both"]);
    let plan = redirector.process.err();
    assert!(plan.contains(TAKEN_BY_OURS), "{plan}");
    let mut both = expected("tc", &lab);
    both.insert(0, "h0 xdp portredir_xdp".into());
    assert_eq!(attached(&lab.host), both);
    check_both_ports(&lab, &server);
    redirector.finish(&lab);
    assert_eq!(link_state(&lab), before);
}

/// Loopback has no native XDP. Who asks for it gets nothing, also not elsewhere.
fn xdp_where_it_is_impossible() {
    let lab = Lab::new(&CELL);
    lab.host
        .run(&["ip", "tuntap", "add", "dev", "tun0", "mode", "tun"]);
    let before = link_state(&lab);
    for iface in ["tun0", "h0,tun0"] {
        let args = [PROGRAM, "--iface", iface, "--engine", "xdp", "80:8080"];
        let error = failure(lab.host.start(&args), 1);
        let words = XDP_IMPOSSIBLE;
        assert!(error.contains(words), "{error}");
        assert_eq!(link_state(&lab), before);
    }
}

/// One in each network namespace.
fn second_instance() {
    let lab = Lab::new(&CELL);
    let server = EchoServer::start(&lab.host, 8080);
    let first = Redirector::of(&CELL, &lab, &["80:8080/both"]);
    let programs = attached(&lab.host);
    let error = failure(lab.host.start(&[PROGRAM, "81:8080"]), 1);
    assert!(error.contains(ANOTHER_INSTANCE), "{error}");
    assert_eq!(attached(&lab.host), programs);
    check_both_ports(&lab, &server);
    let elsewhere = Redirector::start(&lab.client, &["81:8080"]);
    check_both_ports(&lab, &server);
    elsewhere.stop();
    first.stop();
}

/// Starts a copy of the program as a user without any rights, but for `caps`.
pub fn start_unprivileged(cell: &Cell, lab: &Lab, caps: &str, rule: &str) -> Process {
    let program = copy_world_executable(&lab.dir.0);
    let inherited = format!("--inh-caps={caps}");
    let ambient = format!("--ambient-caps={caps}");
    let user = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let program = [
        &program,
        "--json",
        "--iface",
        "h0",
        "--engine",
        cell.engine,
        rule,
    ];
    let mut args = user.to_vec();
    args.extend([inherited.as_str(), ambient.as_str(), "--"]);
    args.extend(program);
    lab.host.start(&args)
}

fn unprivileged(cell: &Cell) {
    let lab = Lab::new(cell);
    let error = failure(start_unprivileged(cell, &lab, "-all", "80:8080"), 4);
    for name in ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"] {
        assert!(error.contains(name), "{error}");
    }
}

fn three_capabilities(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.host, 8080);
    let before = link_state(&lab);
    let caps = "-all,+bpf,+perfmon,+net_admin";
    let redirector =
        Redirector::wait_until_redirecting(start_unprivileged(cell, &lab, caps, "80:8080/both"));
    check_both_ports(&lab, &server);
    redirector.finish(&lab);
    assert_eq!(link_state(&lab), before);
}
