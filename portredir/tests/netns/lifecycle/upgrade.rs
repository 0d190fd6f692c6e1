//! `up` where `up` was run before, by this version of the program and by another.

use nix::sys::signal::Signal;

use crate::lab::program::{PROGRAM, attached, copy_world_executable};
use crate::lab::{Family, Lab};
use crate::lifecycle::host::{CELL, Host, check_reaches};
use crate::peer::conn::{Conn, Proto};
use crate::peer::echo::EchoServer;
use crate::{Cell, Tests};

pub fn add(tests: &mut Tests) {
    tests.add_for(&["tc", "tc-clsact", "xdp"], "up_again", &[], up_again);
    tests.add("outlive/trace_older", &["bpftool"], trace_older);
}

/// `up` runs again, by this program and by another version of it, while a
/// connection is open.
fn up_again(cell: &Cell) {
    let lab = Lab::new(cell);
    let server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    host.up(&["--engine", cell.engine, "80:8080/both"]);
    let first = attached(&lab.host);
    let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    conn.echo(b"before");
    let watcher = host.status()["pid"].clone();
    assert_eq!(
        host.up(&["--engine", cell.engine, "80:8080/both", "81:8080"]),
        "+ 81:8080\n"
    );
    assert_eq!(host.status()["pid"], watcher);
    conn.echo(b"after the same program");
    // Another file counts as another version, which becomes the watcher.
    let other = copy_world_executable(&lab.dir.0);
    let args = [
        &other,
        "up",
        "--replace",
        "--iface",
        "h0",
        "--engine",
        cell.engine,
        "80:8080/both",
    ];
    lab.host.run(&args);
    assert_ne!(host.status()["pid"], watcher);
    assert_eq!(attached(&lab.host), first);
    conn.echo(b"after another program");
    server.peer(Proto::Tcp, b"after another program");
    check_reaches(&lab, 80, &server);
    let report = &host.status()["rules"][0];
    assert!(report["flows"].as_u64() >= Some(3), "{report}");
    host.down();
}

/// Programs that an older version attached write to no map of a newer one, and no trace
/// waits for them.
fn trace_older() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080"]);
    let ring = host.pins().join("TRACE");
    let ring = ring.to_str().expect("text");
    let kept = format!("{ring}_kept");
    // As a newer version makes the map, which the attached programs do not know.
    lab.host.run(&["mv", ring, &kept]);
    let create = ["bpftool", "map", "create", ring, "type", "ringbuf"];
    let map = ["key", "0", "value", "0", "entries", "4096", "name", "TRACE"];
    lab.host.run(&[&create[..], &map].concat());
    let error = host.fails(1, &["trace"]);
    assert!(error.contains("to replace them: portredir up"), "{error}");
    lab.host.run(&["rm", ring]);
    lab.host.run(&["mv", &kept, ring]);
    let mut trace = lab.host.start(&[PROGRAM, "trace"]);
    trace.wait_for_words("tracing");
    trace.signal(Signal::SIGINT);
    assert!(trace.wait().success());
    host.down();
}
