//! The end: redirected connections continue, and new ones reach the destination
//! port itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::lab::message::{DRAINING, ONE_CUT_OFF};
use crate::lab::process::{wait_for, wait_within};
use crate::lab::program::{Redirector, attached};
use crate::lab::{Family, Lab};
use crate::peer::conn::{Conn, PROTOS, Proto, is_refused};
use crate::peer::echo::EchoServer;
use crate::{Cell, ENGINES, Tests};

pub fn add(tests: &mut Tests) {
    type Test = (&'static str, fn(&Cell));
    const TESTS: [Test; 8] = [
        ("drain", drain),
        ("drain_without_server", without_server),
        ("drain_with_collision", with_collision),
        ("drain_used_port", used_port),
        ("drain_syn_cookies", syn_cookies),
        ("drain_second_signal", second_signal),
        ("drain_timeout", timeout),
        ("drain_nothing", nothing),
    ];
    for (name, test) in TESTS {
        for engine in ENGINES {
            for family in Family::BOTH {
                let cell = Cell {
                    engine,
                    is_offloaded: false,
                    family,
                };
                tests.add(format!("{engine}/{family:?}/{name}"), &[], move || {
                    test(&cell);
                });
            }
        }
    }
}

/// No sooner than a connection is over may the program take this to end.
const SOON: Duration = Duration::from_secs(2);

fn start(cell: &Cell, lab: &Lab, drain_timeout: &str) -> Redirector {
    let args = ["--drain-timeout", drain_timeout, "80:8080/both"];
    Redirector::beside(cell, lab, &args)
}

/// Asks it to end, and waits until it waits.
fn ask_to_end(redirector: &mut Redirector) {
    redirector.process.signal(Signal::SIGTERM);
    redirector.process.wait_for_words(DRAINING);
}

fn end(mut redirector: Redirector, limit: Duration) {
    let status = wait_within(limit, "the end", || redirector.process.try_wait());
    assert_eq!(status.code(), Some(0));
}

fn connect(lab: &Lab, proto: Proto, to: SocketAddr) -> Conn {
    Conn::to(&lab.client, proto, 0, to)
}

fn drain(cell: &Cell) {
    let lab = Lab::new(cell);
    let [dst_server, target] = [80, 8080].map(|port| EchoServer::start(&lab.host, port));
    let to = cell.family.host(80);
    let mut redirector = start(cell, &lab, "60");
    let mut old = PROTOS.map(|proto| connect(&lab, proto, to));
    let mut direct = PROTOS.map(|proto| connect(&lab, proto, cell.family.host(8080)));
    let mut exchange = |when: &str| {
        for (i, proto) in PROTOS.into_iter().enumerate() {
            for (what, conn) in [("old", &mut old[i]), ("direct", &mut direct[i])] {
                let message = format!("{what} {proto:?} {when}");
                conn.echo(message.as_bytes());
                target.peer(proto, message.as_bytes());
            }
        }
    };
    exchange("before");
    ask_to_end(&mut redirector);
    let mut new = PROTOS.map(|proto| connect(&lab, proto, to));
    for round in 0..10 {
        exchange(&format!("in round {round}"));
        for (conn, proto) in new.iter_mut().zip(PROTOS) {
            let message = format!("new {proto:?} in round {round}");
            conn.echo(message.as_bytes());
            dst_server.peer(proto, message.as_bytes());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(redirector.process.try_wait().is_none());
    // The program does not wait for UDP flows.
    let [tcp, _udp] = old;
    drop(tcp);
    end(redirector, SOON);
    assert!(attached(&lab.host).is_empty());
    for conn in new.iter_mut().chain(&mut direct) {
        conn.echo(b"after the end");
    }
    lab.check_checksums();
}

/// Then who is new is refused, as before we came.
fn without_server(cell: &Cell) {
    let lab = Lab::new(cell);
    let _target = EchoServer::start(&lab.host, 8080);
    let mut redirector = start(cell, &lab, "60");
    let mut old = connect(&lab, Proto::Tcp, cell.family.host(80));
    old.echo(b"before");
    ask_to_end(&mut redirector);
    for proto in PROTOS {
        assert!(is_refused(&lab.client, proto, cell.family.host(80)));
    }
    old.echo(&[7; 50_000]);
    drop(old);
    end(redirector, SOON);
}

/// A flow that has another client port behind the redirect.
fn with_collision(cell: &Cell) {
    let lab = Lab::new(cell);
    let target = EchoServer::start(&lab.host, 8080);
    let mut redirector = start(cell, &lab, "60");
    let mut conns = Vec::new();
    for proto in PROTOS {
        for port in [8080, 80] {
            let to = cell.family.host(port);
            conns.push((proto, Conn::to(&lab.client, proto, 40_001, to)));
            let (_, conn) = conns.last_mut().expect("one");
            conn.echo(b"before");
        }
    }
    ask_to_end(&mut redirector);
    for (i, (proto, conn)) in conns.iter_mut().enumerate() {
        let message = format!("{i} at the end");
        conn.echo(message.as_bytes());
        target.peer(*proto, message.as_bytes());
    }
    drop(conns);
    end(redirector, SOON);
}

/// A client connects again from a port that it had before.
fn used_port(cell: &Cell) {
    let lab = Lab::new(cell);
    let [dst_server, _target] = [80, 8080].map(|port| EchoServer::start(&lab.host, port));
    let to = cell.family.host(80);
    let mut redirector = start(cell, &lab, "60");
    let mut old = connect(&lab, Proto::Tcp, to);
    old.echo(b"before");
    for port in [40_001, 40_002] {
        // A reset, so that the program need not wait for its end.
        let mut conn = Conn::to(&lab.client, Proto::Tcp, port, to);
        conn.echo(b"first");
        conn.reset();
    }
    ask_to_end(&mut redirector);
    for port in [40_001, 40_002] {
        let mut conn = Conn::to(&lab.client, Proto::Tcp, port, to);
        let message = format!("again from {port}");
        conn.echo(message.as_bytes());
        dst_server.peer(Proto::Tcp, message.as_bytes());
    }
    drop(old);
    end(redirector, SOON);
}

/// The server on the destination port answers a SYN by a cookie and keeps no state.
fn syn_cookies(cell: &Cell) {
    let lab = Lab::new(cell);
    lab.host.sysctl("ipv4/tcp_syncookies", "2");
    let [dst_server, target] = [80, 8080].map(|port| EchoServer::start(&lab.host, port));
    let to = cell.family.host(80);
    let mut redirector = start(cell, &lab, "60");
    let mut old = connect(&lab, Proto::Tcp, to);
    old.echo(b"before");
    target.peer(Proto::Tcp, b"before");
    ask_to_end(&mut redirector);
    for number in 0..5 {
        let message = format!("new {number}");
        connect(&lab, Proto::Tcp, to).echo(message.as_bytes());
        dst_server.peer(Proto::Tcp, message.as_bytes());
    }
    old.echo(b"at the end");
    drop(old);
    end(redirector, SOON);
}

fn second_signal(cell: &Cell) {
    let lab = Lab::new(cell);
    let _target = EchoServer::start(&lab.host, 8080);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut redirector = start(cell, &lab, "60");
        let mut old = connect(&lab, Proto::Tcp, cell.family.host(80));
        old.echo(b"before");
        ask_to_end(&mut redirector);
        redirector.process.signal(signal);
        end(redirector, SOON);
        assert!(attached(&lab.host).is_empty());
    }
}

fn timeout(cell: &Cell) {
    let lab = Lab::new(cell);
    let _target = EchoServer::start(&lab.host, 8080);
    for (seconds, least) in [("0", 0), ("0.5", 500)] {
        let redirector = start(cell, &lab, seconds);
        let mut old = connect(&lab, Proto::Tcp, cell.family.host(80));
        old.echo(b"before");
        let asked = Instant::now();
        redirector.process.signal(Signal::SIGTERM);
        let errors = wait_for("a warning", || {
            let errors = redirector.process.err();
            errors.contains(ONE_CUT_OFF).then_some(errors)
        });
        assert_eq!(errors.contains(DRAINING), least > 0, "{errors}");
        assert!(asked.elapsed() >= Duration::from_millis(least));
        end(redirector, SOON);
        assert!(attached(&lab.host).is_empty());
    }
}

/// Connections that are over, or were never ours, are not waited for.
fn nothing(cell: &Cell) {
    let lab = Lab::new(cell);
    let [_dst_server, _target] = [80, 8080].map(|port| EchoServer::start(&lab.host, port));
    let to = cell.family.host(80);
    let mut older = connect(&lab, Proto::Tcp, to);
    older.echo(b"before");
    let redirector = start(cell, &lab, "60");
    let mut direct = connect(&lab, Proto::Tcp, cell.family.host(8080));
    direct.echo(b"direct");
    for number in 0..20 {
        let mut conn = connect(&lab, Proto::Tcp, to);
        conn.echo(b"redirected");
        if number % 2 == 0 {
            conn.reset();
        }
    }
    let mut udp = connect(&lab, Proto::Udp, to);
    udp.echo(b"redirected");
    redirector.process.signal(Signal::SIGTERM);
    end(redirector, SOON);
    older.echo(b"after");
    direct.echo(b"after");
}
