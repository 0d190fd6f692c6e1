//! Traffic that does not come over a plain wire: the host's own, over a bridge,
//! without an Ethernet header, with VLAN tags.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{PacketBuilder, VlanId};

use crate::lab::capture::Capture;
use crate::lab::message::{BRIDGE_IS_USED, PORTS_ARE_USED};
use crate::lab::namespace::Namespace;
use crate::lab::program::{Redirector, attached, packets};
use crate::lab::python::python;
use crate::lab::{Family, Lab, add_addrs, link};
use crate::lifecycle::oracle::BridgeTracking;
use crate::peer::conn::{Conn, PROTOS, Proto, is_refused};
use crate::peer::echo::EchoServer;
use crate::peer::http::http_server;
use crate::peer::http::{get, noise, put};
use crate::{ANYWHERE, Cell, ENGINES, Tests, skip};

pub fn add(tests: &mut Tests) {
    tests.add_for(
        &ENGINES,
        "own_addresses",
        &["curl", "python3"],
        own_addresses,
    );
    tests.add_for(&ANYWHERE, "bridge", &[], bridge);
    tests.add_for(&ENGINES, "tracked_bridge", &[], tracked_bridge);
    // Native XDP does not see these packets, so `auto` uses TC there.
    tests.add_for(&ANYWHERE, "macvlan_neighbours", &[], macvlan_neighbours);
    tests.add_for(&ANYWHERE, "tun", &["curl", "python3"], tun);
    tests.add_for(&ENGINES, "vlan_device", &["curl", "python3"], vlan_device);
    tests.add_for(&ENGINES, "vlan_tag", &["python3"], vlan_tag);
    tests.add_for(&ENGINES, "two_vlan_tags", &["python3"], two_vlan_tags);
}

/// The host talks to itself.
fn own_addresses(cell: &Cell) {
    let lab = Lab::new(cell);
    let _server = http_server(&lab.host, 8080);
    let echo = EchoServer::start(&lab.host, 7778);
    let addrs = [
        Family::V4.addr(1, 1),
        Family::V6.addr(1, 1),
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::LOCALHOST.into(),
        // The echo answers UDP from 127.0.0.1.
        Ipv4Addr::new(127, 5, 5, 5).into(),
    ];
    for addr in addrs {
        for (proto, port) in [(Proto::Tcp, 80), (Proto::Udp, 7777)] {
            assert!(is_refused(&lab.host, proto, SocketAddr::new(addr, port)));
        }
    }
    let rules = ["80:8080", "7777:7778/both"];
    let mut args = vec!["--iface", "all", "--engine", cell.engine];
    args.extend(rules);
    let redirector = Redirector::start(&lab.host, &args);
    let (file, noise) = noise(&lab.dir, 5_000_000);
    for (i, addr) in addrs.into_iter().enumerate() {
        put(&lab.host, &file, SocketAddr::new(addr, 80));
        let answer = get(&lab.host, &lab.dir, SocketAddr::new(addr, 80));
        assert!(answer == noise, "{} bytes came from {addr}", answer.len());
        let protos = if i < 4 { &PROTOS[..] } else { &[Proto::Tcp] };
        for &proto in protos {
            for port in [7777, 7778] {
                let message = format!("{addr} {port}");
                let to = SocketAddr::new(addr, port);
                Conn::to(&lab.host, proto, 0, to).echo(message.as_bytes());
                echo.peer(proto, message.as_bytes());
            }
        }
    }
    let report = redirector.finish(&lab);
    if cell.engine.starts_with("tc") {
        assert!(packets(&report, 0) > 100);
    }
    let rule = &report["rules"][1];
    let at_lo = &rule["interfaces"]["lo"];
    assert_eq!(at_lo["flows"], rule["flows"], "all of it crossed lo");
    // Where packets are not rewritten, the program counts connections and no packets.
    if cell.engine.starts_with("tc") {
        assert_eq!(at_lo["packets"], rule["packets"], "all of it crossed lo");
    } else {
        assert!(at_lo["packets"].is_null(), "{rule}");
    }
    let flows = &report["rules"][1]["flows"];
    assert!(flows.as_u64() > Some(4), "{flows} flows");
}

/// Two containers: what is for the host is redirected, what is for the other
/// one is not.
fn bridge(cell: &Cell) {
    on_bridge(cell, BridgeTracking::Off);
}

/// With `br_netfilter` the ports of the bridge carry the programs.
fn tracked_bridge(cell: &Cell) {
    on_bridge(cell, BridgeTracking::On);
}

fn on_bridge(cell: &Cell, tracking: BridgeTracking) {
    let is_tracked = tracking == BridgeTracking::On;
    let mut lab = Lab::unlinked();
    for family in ["", "6"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-ip{family}tables");
        let value = u8::from(is_tracked).to_string();
        let is_set = lab.host.enter(move || fs::write(path, value).is_ok());
        if is_tracked && !is_set {
            skip("needs br_netfilter");
        }
    }
    lab.far = Some(lab.third());
    for (port, at, name, number) in [
        ("port-a", &lab.client, "c0", 2),
        ("port-b", lab.far(), "f0", 3),
    ] {
        link((&lab.host, port, (8, number)), (at, name, (1, number)));
        lab.host.ip(&format!("addr flush dev {port}"));
    }
    lab.host.ip("link add br0 type bridge\n\
         link set port-a master br0\n\
         link set port-b master br0");
    add_addrs(&lab.host, "br0", (1, 1));
    lab.wait_for_link();
    let [host, neighbour] = [&lab.host, lab.far()].map(|at| EchoServer::start(at, 8080));
    let dst_server = EchoServer::start(lab.far(), 80);
    let args = ["--iface", "all", "--engine", cell.engine, "80:8080/both"];
    let redirector = Redirector::start(&lab.host, &args);
    let programs = attached(&lab.host);
    let is_hooked = |name| programs.iter().any(|line| line.contains(name));
    assert_eq!(is_hooked("port-"), is_tracked, "{programs:?}");
    assert_eq!(is_hooked("br0"), !is_tracked, "{programs:?}");
    let plan = redirector.process.err();
    let words = if is_tracked {
        PORTS_ARE_USED
    } else {
        BRIDGE_IS_USED
    };
    assert!(plan.contains(words), "{plan}");
    for family in Family::BOTH {
        for proto in PROTOS {
            for (number, port, server) in [
                (1, 80, &host),
                (1, 8080, &host),
                (3, 80, &dst_server),
                (3, 8080, &neighbour),
            ] {
                let to = SocketAddr::new(family.addr(1, number), port);
                let message = format!("for {to}");
                Conn::to(&lab.client, proto, 0, to).echo(message.as_bytes());
                server.peer(proto, message.as_bytes());
            }
        }
    }
    redirector.finish(&lab);
}

/// The host has a macvlan of its own, to talk to a container that has one: their
/// packets come in by the device below, but do not leave by it.
fn macvlan_neighbours(cell: &Cell) {
    let mut lab = Lab::new(cell);
    lab.far = Some(lab.third());
    let far = lab.far();
    lab.host.ip(&format!(
        "link add mv0 link h0 type macvlan mode bridge\n\
         link add mv1 link h0 netns {} type macvlan mode bridge\n\
         link set mv0 up",
        far.name
    ));
    far.ip("link set mv1 up");
    add_addrs(&lab.host, "mv0", (7, 1));
    add_addrs(far, "mv1", (7, 2));
    lab.wait_for_link();
    let [dst_server, target] = [80, 8080].map(|port| EchoServer::start(&lab.host, port));
    for family in Family::BOTH {
        let to = SocketAddr::new(family.addr(7, 1), 80);
        for proto in PROTOS {
            Conn::to(far, proto, 0, to).echo(b"before");
            dst_server.peer(proto, b"before");
        }
    }
    let args = ["--iface", "all", "--engine", cell.engine, "80:8080/both"];
    let redirector = Redirector::start(&lab.host, &args);
    for family in Family::BOTH {
        for net in [1, 7] {
            let at = if net == 1 { &lab.client } else { far };
            let to = SocketAddr::new(family.addr(net, 1), 80);
            for proto in PROTOS {
                let message = format!("to {to}");
                Conn::to(at, proto, 0, to).echo(message.as_bytes());
                target.peer(proto, message.as_bytes());
            }
        }
    }
    redirector.finish(&lab);
}

/// Passes packets between a tun device here and one there.
pub const TUNNEL: &str = r#"
import ctypes, fcntl, os, select, struct, sys
def tun(namespace, name):
    fd = os.open("/run/netns/" + namespace, os.O_RDONLY)
    assert ctypes.CDLL(None).setns(fd, 0) == 0
    fd = os.open("/dev/net/tun", os.O_RDWR)
    # TUNSETIFF, IFF_TUN | IFF_NO_PI
    fcntl.ioctl(fd, 0x400454ca, struct.pack("16sH22x", name, 0x1001))
    return fd
ends = tun(sys.argv[1], b"h0"), tun(sys.argv[2], b"c0")
print("ready", flush=True)
while True:
    for end in select.select(ends, [], [])[0]:
        packet = os.read(end, 65536)
        try:
            os.write(ends[end == ends[0]], packet)
        except OSError:
            pass # not up yet
"#;

/// Packets that begin with the IP header.
fn tun(cell: &Cell) {
    if !std::path::Path::new("/dev/net/tun").exists() {
        skip("needs /dev/net/tun");
    }
    let lab = Lab::unlinked();
    let names = [lab.host.name.as_str(), lab.client.name.as_str()];
    let mut tunnel = lab
        .host
        .start(&[python(), "-c", TUNNEL, names[0], names[1]]);
    tunnel.wait_for_words("ready");
    add_addrs(&lab.host, "h0", (1, 1));
    add_addrs(&lab.client, "c0", (1, 2));
    redirects_all(cell, &lab);
}

/// Tags that the host's own VLAN device takes off, behind us.
fn vlan_device(cell: &Cell) {
    let lab = Lab::unlinked();
    link((&lab.host, "h0", (3, 1)), (&lab.client, "c0", (3, 2)));
    let vlan = ["type", "vlan", "id", "10"];
    for (at, name, number) in [(&lab.host, "h0", 1), (&lab.client, "c0", 2)] {
        let device = format!("{name}.10");
        let mut add = vec!["ip", "link", "add", "link", name, "name", &device];
        add.extend(vlan);
        if !at.succeeds(&add) {
            skip("needs CONFIG_VLAN_8021Q");
        }
        add_addrs(at, &device, (1, number));
        at.run(&["ethtool", "-K", name, "tx-vlan-hw-insert", "off"]);
    }
    redirects_all(cell, &lab);
}

/// All of it, over whatever links client and host.
pub fn redirects_all(cell: &Cell, lab: &Lab) {
    lab.wait_for_link();
    let _server = http_server(&lab.host, 8080);
    let echo = EchoServer::start(&lab.host, 7778);
    let rules = ["80:8080", "7777:7778/both", "9:10/udp"];
    let redirector = Redirector::of(cell, lab, &rules);
    let (file, noise) = noise(&lab.dir, 1_000_000);
    for family in Family::BOTH {
        put(&lab.client, &file, family.host(80));
        let answer = get(&lab.client, &lab.dir, family.host(80));
        assert!(answer == noise, "{} bytes came back", answer.len());
        for proto in PROTOS {
            for port in [7777, 7778] {
                let message = format!("{family:?} {port}");
                Conn::to(&lab.client, proto, 0, family.host(port)).echo(message.as_bytes());
                echo.peer(proto, message.as_bytes());
            }
        }
        let mut conn = Conn::to(&lab.client, Proto::Udp, 0, family.host(7777));
        conn.echo(&noise[..20_000]);
        assert!(is_refused(&lab.client, Proto::Udp, family.host(9)));
    }
    let report = redirector.finish(lab);
    assert_eq!(report["passes"]["icmp_translated"], 2);
}

fn vlan_tag(cell: &Cell) {
    tagged(cell, 1);
}

fn two_vlan_tags(cell: &Cell) {
    tagged(cell, 2);
}

/// Frames with VLAN tags that the host keeps: they are rewritten in both
/// directions.
fn tagged(cell: &Cell, tags: u8) {
    let lab = Lab::new(cell);
    let redirector = Redirector::of(cell, &lab, &["7777:7778/udp"]);
    let [at_host, at_client] = [(&lab.host, "h0"), (&lab.client, "c0")]
        .map(|(at, interface)| Capture::start(at, interface, ""));
    for family in Family::BOTH {
        let [host, client] = [1, 2].map(|number| family.addr(1, number));
        let frame = |src, dst| frame(tags, src, dst);
        send(&lab.client, "c0", &frame((client, 40_001), (host, 7777)));
        // TC runs after the place where tcpdump reads.
        if cell.engine.starts_with("xdp") {
            let expected = frame((client, 40_001), (host, 7778));
            at_host.wait_for("a frame to the target", |frame| {
                (frame == expected).then_some(())
            });
        }
        let count = if family == Family::V4 { 1 } else { 2 };
        redirector.wait_for_report("the frame", |report| packets(report, 0) == count);
        send(&lab.host, "h0", &frame((host, 7778), (client, 40_001)));
        let expected = frame((host, 7777), (client, 40_001));
        at_client.wait_for("a frame from the destination port", |frame| {
            (frame == expected).then_some(())
        });
    }
    redirector.finish(&lab);
}

/// A UDP datagram in a frame with VLAN tags.
fn frame(tags: u8, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Vec<u8> {
    let vlan = |id| VlanId::try_new(id).expect("a VLAN");
    let packet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let packet = match tags {
        1 => packet.single_vlan(vlan(10)),
        _ => packet.double_vlan(vlan(10), vlan(20)),
    };
    let packet = match (src.0, dst.0) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => packet.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => packet.ipv6(src.octets(), dst.octets(), 64),
        _ => unreachable!("one family"),
    };
    let mut frame = Vec::new();
    let payload = b"tagged";
    let packet = packet.udp(src.1, dst.1);
    packet.write(&mut frame, payload).expect("a packet");
    frame
}

/// Sends a frame as it is.
fn send(from: &Namespace, interface: &str, frame: &[u8]) {
    const SEND: &str = "import socket, sys\n\
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
        s.bind((sys.argv[1], 0))\n\
        s.send(bytes.fromhex(sys.argv[2]))";
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    from.run(&[python(), "-c", SEND, interface, &hex]);
}
