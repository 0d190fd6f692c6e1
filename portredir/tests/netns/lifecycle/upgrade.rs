//! `up` where `up` was run before, by this version of the program and by another.

use crate::lab::program::{attached, copy_world_executable};
use crate::lab::{Family, Lab};
use crate::lifecycle::host::{Host, check_reaches};
use crate::peer::conn::{Conn, Proto};
use crate::peer::echo::EchoServer;
use crate::{Cell, Tests};

pub fn add(tests: &mut Tests) {
    tests.add_for(&["tc", "tc-clsact", "xdp"], "up_again", &[], up_again);
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
