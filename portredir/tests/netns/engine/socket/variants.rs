//! Variants of TCP and of its packets: SYN cookies, Fast Open, MPTCP, IP options
//! and tiny fragments.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use super::{ANY, any, served_by, start};
use crate::Cell;
use crate::lab::capture::Capture;
use crate::lab::namespace::Namespace;
use crate::lab::process::wait_for;
use crate::lab::python::python;
use crate::lab::{Family, Lab};
use crate::peer::conn::{Conn, Proto};
use crate::peer::echo::EchoServer;
use crate::peer::listener::{Listen, connect_and_greet};
use crate::peer::tcp_variant;

/// A counter of the kernel, from `/proc/net/netstat`.
fn netstat(namespace: &Namespace, name: &str) -> u64 {
    let text = namespace.proc_net("netstat");
    let lines: Vec<_> = text.lines().collect();
    let mut pairs = lines.chunks_exact(2).flat_map(|pair| {
        let values = pair[1].split_whitespace();
        pair[0].split_whitespace().zip(values)
    });
    let (_, value) = pairs.find(|(key, _)| *key == name).expect(name);
    value.parse().expect("a number")
}

/// Without a request socket the last ACK looks for the listener again.
pub fn syn_cookies(cell: &Cell) {
    let lab = Lab::new(cell);
    lab.host.sysctl("ipv4/tcp_syncookies", "2");
    let _server = Listen::on(ANY, 8080).start(&lab.host, "server");
    let redirector = start(&lab, "h0");
    for port in [80, 8080].repeat(5) {
        let (mut conn, greeting) =
            connect_and_greet(&lab.client, 0, cell.family.host(port)).expect("the server");
        assert_eq!(greeting.local.port(), port);
        conn.echo(b"by a cookie");
    }
    assert_eq!(netstat(&lab.host, "SyncookiesRecv"), 10);
    redirector.stop();
}

pub fn fast_open(cell: &Cell) {
    let lab = Lab::new(cell);
    lab.host.sysctl("ipv4/tcp_fastopen", "3");
    lab.client.sysctl("ipv4/tcp_fastopen", "1");
    let redirector = start(&lab, "h0");
    let on = SocketAddr::new(any(cell.family), 8080);
    let _server = tcp_variant::start_server(&lab.host, "fast-open-server", on);
    let said = tcp_variant::run_client(&lab.client, "fast-open", cell.family.host(80));
    assert_eq!(said, "peer 80\n".repeat(3));
    // The first connection requested the cookie.
    assert_eq!(netstat(&lab.host, "TCPFastOpenPassive"), 2);
    redirector.stop();
}

pub fn mptcp_client(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = Listen::on(ANY, 8080).start(&lab.host, "server");
    let redirector = start(&lab, "h0");
    let said = tcp_variant::run_client(&lab.client, "mptcp", cell.family.host(80));
    assert!(said.starts_with("peer 80\nserver "), "{said}");
    redirector.stop();
}

/// Kernels that keep such sockets out of maps make us say so.
pub fn mptcp_server(cell: &Cell) {
    let lab = Lab::new(cell);
    let on = SocketAddr::new(any(cell.family), 8080);
    let _server = tcp_variant::start_server(&lab.host, "mptcp-server", on);
    let redirector = start(&lab, "h0");
    let is_refused_by_map = redirector.process.err().contains("MPTCP");
    let served = connect_and_greet(&lab.client, 0, cell.family.host(80));
    if is_refused_by_map {
        println!("{:?}: MPTCP servers are kept out of maps", cell.family);
        assert!(served.is_err());
    } else {
        println!("{:?}: MPTCP servers are redirected to", cell.family);
        assert_eq!(served.expect("the server").1.name, "mptcp-server");
    }
    redirector.stop();
}

/// The process that began to listen is gone, its child serves.
pub fn forking_server(cell: &Cell) {
    let lab = Lab::new(cell);
    let redirector = start(&lab, "h0");
    let on = SocketAddr::new(any(cell.family), 8080);
    let _server = tcp_variant::start_server(&lab.host, "forking-server", on);
    for _ in 0..3 {
        let name = served_by(cell, &lab, 80);
        assert_eq!(name.as_deref(), Some("forking-server"));
    }
    redirector.stop();
}

/// A client port is used again while the server's end is in `TIME_WAIT`.
pub fn time_wait(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = Listen::on(ANY, 8080)
        .hanging_up()
        .start(&lab.host, "server");
    let redirector = start(&lab, "h0");
    let to = cell.family.host(80);
    let mut peers = BTreeSet::new();
    for _ in 0..5 {
        // The client's end may take a moment to go.
        let is_ours = |error: &io::Error| error.kind() == io::ErrorKind::AddrNotAvailable;
        let met = wait_for("the port", || {
            match connect_and_greet(&lab.client, 40_001, to) {
                Err(error) if is_ours(&error) => None,
                met => Some(met),
            }
        });
        let (mut conn, greeting) = met.expect("the server");
        assert!(conn.receive(1).is_err(), "it hangs up");
        peers.insert(greeting.peer);
    }
    assert_eq!(peers.len(), 1);
    redirector.stop();
}

/// IP options and extension headers.
pub fn options(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = Listen::on(ANY, 8080).start(&lab.host, "server");
    let redirector = start(&lab, "h0");
    let said = tcp_variant::run_client(&lab.client, "options", cell.family.host(80));
    assert!(said.starts_with("peer 80\nserver "), "{said}");
    redirector.stop();
}

/// A SYN in fragments of eight bytes: the kernel puts it together before it
/// looks for a socket.
pub fn tiny_fragments() {
    let cell = Cell {
        engine: "socket",
        is_offloaded: true,
        family: Family::V4,
    };
    const SEND: &str = r#"
import socket, struct, sys
def csum(b):
    s = sum(struct.unpack("!%dH" % (len(b) // 2), b))
    s = (s & 0xffff) + (s >> 16)
    return 0xffff - ((s & 0xffff) + (s >> 16))
src, dst = (socket.inet_aton(a) for a in sys.argv[1:3])
tcp = struct.pack("!HHIIBBHHH", 40001, int(sys.argv[3]), 1, 0, 5 << 4, 2, 64240, 0, 0)
tcp = tcp[:16] + struct.pack("!H", csum(src + dst + struct.pack("!HH", 6, len(tcp)) + tcp)) + tcp[18:]
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for at in range(0, len(tcp), 8):
    more = 0x2000 if at + 8 < len(tcp) else 0
    part = tcp[at:at + 8]
    s.sendto(struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(part), 77, more | at // 8, 64, 6, 0, src, dst) + part, (sys.argv[2], 0))
"#;
    let lab = Lab::new(&cell);
    let _server = EchoServer::start(&lab.host, 8080);
    let redirector = start(&lab, "h0");
    let filter = "tcp[13] == 0x12 or tcp[13] == 0x14";
    let capture = Capture::start(&lab.client, "c0", filter);
    let [host, client] = [1, 2].map(|n| cell.family.addr(1, n).to_string());
    lab.client
        .run(&[python(), "-c", SEND, &client, &host, "80"]);
    let (flags, port) = capture.wait_for("an answer", |frame| {
        let port = frame.get(34..36)?.try_into().ok()?;
        Some((frame.get(47).copied()?, u16::from_be_bytes(port)))
    });
    assert_eq!(
        (flags, port),
        (0x12, 80),
        "a SYN-ACK from the destination port"
    );
    let _ = Conn::to(&lab.client, Proto::Tcp, 0, cell.family.host(80));
    redirector.stop();
}
