//! Several packets in a row, with what the table cannot hold: real
//! connections, full tables, GRO, large frames.

use std::collections::HashMap;
use std::net::SocketAddr;

use nix::sys::socket::setsockopt;
use portredir_common::flow::{Flow, FlowKey};
use portredir_common::net::{Port, Protocol};
use portredir_common::verdict::{Reason, Verdict};
use portredir_common::wire::frame::Link;

use crate::namespace;
use crate::packet::Setup;
use crate::packet::builder::{
    ACK, CLIENT_PORT, CLIENT4, FIN, PSH, Packet, SERVER4, syn4, tcp4, udp4, udp6,
};
use crate::packet::mock::{Hex, Tables};
use crate::packet::{Hook, Iface, RULES, TWO_TO_ONE, addr, key4, local_addrs, seen};
use crate::program::{Program, programs};
use crate::rig::{Outcome, Rig, SIZES, Setting, at_time, now_ns};
use crate::table::Rigs;

fn ingress() -> impl Iterator<Item = Program> {
    programs(Hook::Ingress, Link::Ethernet)
}

fn egress() -> Program {
    programs(Hook::Egress, Link::Ethernet)
        .next()
        .expect("there is one")
}

fn run(rig: &mut Rig, program: Program, packet: &Packet) -> Outcome {
    rig.run(program, Iface::Lo.into(), &packet.bytes())
        .expect("the kernel takes it")
}

fn assert_is(outcome: &Outcome, packet: &Packet) {
    let expected = packet.bytes();
    assert!(
        outcome.packet == expected,
        "{outcome:?}\nexpected {:?}",
        Hex(&expected)
    );
}

/// Sends a packet in, and returns the client port it has behind the redirect.
fn arrive(rig: &mut Rig, program: Program, packet: &Packet) -> (u16, Outcome) {
    let outcome = run(rig, program, packet);
    let at = packet.transport();
    let client_port = u16::from_be_bytes([outcome.packet[at], outcome.packet[at + 1]]);
    assert_is(&outcome, &packet.clone().ports(client_port, 8080));
    (client_port, outcome)
}

/// Sends the answer out, and checks that it looks to the client as it should.
fn answer(rig: &mut Rig, packet: &Packet, client_port: u16) {
    let reply = packet.clone().ports(client_port, 8080).reply();
    let outcome = run(rig, egress(), &reply);
    assert_is(&outcome, &packet.clone().reply());
}

fn tables(outcome: &Outcome) -> (usize, usize, usize) {
    let Tables {
        syn, tcp, remap, ..
    } = &outcome.tables;
    (syn.len(), tcp.len(), remap.len())
}

fn client() -> SocketAddr {
    SocketAddr::new(CLIENT4, CLIENT_PORT)
}

fn server() -> SocketAddr {
    SocketAddr::new(SERVER4, 8080)
}

fn tcp_key() -> FlowKey {
    key4(Protocol::Tcp, CLIENT_PORT, 8080)
}

pub fn connection(rigs: &mut Rigs) {
    let rig = rigs.get(RULES);
    let (syn, ack) = (syn4(80), tcp4(80).flags(ACK | PSH));
    for program in ingress() {
        rig.set_tables(&Tables::default());
        namespace::enter();
        namespace::up([CLIENT4, SERVER4]);
        let listener = namespace::server(server());

        let (_, outcome) = arrive(rig, program, &syn);
        assert_eq!(tables(&outcome), (1, 0, 0), "a SYN proves nothing");
        answer(rig, &syn, CLIENT_PORT);
        let (_, outcome) = arrive(rig, program, &ack);
        assert_eq!(tables(&outcome), (1, 0, 0), "nor does data");

        let from_client = namespace::dial(client(), server());
        let (from_server, _) = listener.accept().expect("accept");
        let (_, outcome) = arrive(rig, program, &ack);
        assert_eq!(tables(&outcome), (1, 1, 0), "the socket does");
        assert_eq!(outcome.counters[0].1.flows, 0, "it began with the SYN");
        answer(rig, &ack, CLIENT_PORT);

        rig.set_tables(&Tables::default());
        let (_, outcome) = arrive(rig, program, &ack);
        assert_eq!(tables(&outcome), (0, 1, 0), "a lost entry is put back");
        answer(rig, &ack, CLIENT_PORT);

        namespace::end_by_server(from_client, from_server);
        let fin = tcp4(80).flags(FIN | ACK);
        let (_, outcome) = arrive(rig, program, &fin);
        assert_eq!(tables(&outcome), (0, 1, 0));
        answer(rig, &fin, CLIENT_PORT);
        let (_, outcome) = arrive(rig, program, &syn);
        assert_eq!(
            tables(&outcome),
            (0, 1, 0),
            "TIME_WAIT gives the port to a new SYN"
        );
        assert_eq!(outcome.counters[0].1.flows, 1);
        answer(rig, &syn, CLIENT_PORT);

        // The client dials the target itself, from the port it had before.
        let outcome = run(rig, program, &syn4(8080));
        assert_eq!(outcome.reasons, [Reason::Direct]);
        assert_eq!(
            tables(&outcome),
            (0, 0, 0),
            "what was left would rename its replies"
        );
    }
}

/// A connection without a full socket, as while the last ACK is on its way.
pub fn request(rigs: &mut Rigs) {
    let rig = rigs.get(TWO_TO_ONE);
    for program in ingress() {
        rig.set_tables(&Tables::default());
        namespace::enter();
        namespace::up([CLIENT4, SERVER4]);
        let listener = namespace::server(server());
        // The ACK alone makes no full socket then, only data does.
        setsockopt(&listener, namespace::DeferAccept, &60).expect("TCP_DEFER_ACCEPT");
        arrive(rig, program, &syn4(80));
        let from_client = namespace::dial(client(), server());

        let (client_port, outcome) = arrive(rig, program, &tcp4(80).flags(ACK));
        assert_eq!((client_port, tables(&outcome)), (CLIENT_PORT, (1, 0, 0)));
        let (client_port, outcome) = arrive(rig, program, &tcp4(80).flags(ACK | PSH));
        assert_eq!((client_port, tables(&outcome)), (CLIENT_PORT, (1, 1, 0)));
        let (client_port, outcome) = arrive(rig, program, &syn4(81));
        assert_ne!(client_port, CLIENT_PORT);
        assert_eq!(tables(&outcome), (2, 1, 1));
        drop(from_client);
    }
}

pub fn collision(rigs: &mut Rigs) {
    let rig = rigs.get(RULES);
    for program in ingress() {
        rig.set_tables(&Tables::default());
        namespace::enter();
        let held = namespace::open(&[(tcp_key(), portredir_common::kernel::Socket::Connection)]);
        let direct = run(rig, program, &tcp4(8080));
        assert_eq!(direct.reasons, [Reason::Direct]);

        let (given, outcome) = arrive(rig, program, &syn4(80));
        assert_ne!(given, CLIENT_PORT);
        assert_eq!(tables(&outcome), (1, 0, 1));
        answer(rig, &syn4(80), given);
        // The connection that the server then has.
        let key = key4(Protocol::Tcp, given, 8080);
        let local = SocketAddr::new(SERVER4, 8080);
        let second = namespace::dial(SocketAddr::new(CLIENT4, given), local);
        for _ in 0..3 {
            let (client_port, outcome) = arrive(rig, program, &tcp4(80).flags(ACK | PSH));
            assert_eq!(client_port, given, "every packet takes the same way");
            assert!(outcome.tables.tcp.contains_key(&key));
            answer(rig, &tcp4(80).flags(ACK), given);
        }
        let direct = run(rig, egress(), &tcp4(8080).reply());
        assert_eq!(
            direct.reasons,
            [Reason::Direct],
            "the other keeps its replies"
        );
        drop((held, second));
    }
}

/// All client ports are taken.
pub fn no_free_port(_: &mut Rigs) {
    namespace::enter();
    let sizes = portredir::loader::Sizes {
        udp_flows: 1 << 19,
        ..SIZES
    };
    let mut rig = Rig::new(Setup::of(RULES), sizes);
    let mut flows = HashMap::new();
    for port in (1024..=u16::MAX).chain([80]) {
        let flow = Flow {
            client_port: Port::new(port),
            ..seen(8080, 0)
        };
        flows.insert(key4(Protocol::Udp, port, 8080), flow);
    }
    let all = Tables {
        udp: flows,
        ..Tables::default()
    };
    rig.set_tables(&at_time(&all, now_ns()));
    let packet = udp4(80).src_port(80);
    for program in ingress() {
        let outcome = run(&mut rig, program, &packet);
        assert_eq!(outcome.reasons, [Reason::NoFreePort], "{}", program.name);
        assert_eq!(outcome.verdict, Verdict::Drop);
        assert_is(&outcome, &packet);
        assert!(outcome.tables.remap.is_empty() && outcome.counters.is_empty());
    }
}

pub fn segments(rigs: &mut Rigs) {
    let rig = rigs.get(RULES);
    namespace::enter();
    let packet = tcp4(80).flags(ACK).payload(&[7; 1400]);
    let program = ingress()
        .find(|program| !program.is_xdp)
        .expect("there is one");
    for gso_segs in [0, 1, 2, 45] {
        rig.set_tables(&Tables::default());
        let setting = Setting {
            iface: Iface::Lo,
            gso_segs,
        };
        let outcome = rig
            .run(program, setting, &packet.bytes())
            .expect("the kernel takes it");
        let (_, counter) = outcome.counters[0];
        assert_eq!(counter.packets, u64::from(gso_segs.max(1)));
        assert_is(&outcome, &packet.clone().dst_port(8080));
    }
}

/// Frames that fill a page, and at XDP several: only the first buffer is read,
/// but all of it counts.
pub fn sizes(rigs: &mut Rigs) {
    let rig = rigs.get(RULES);
    namespace::enter();
    let mut largest = HashMap::new();
    for program in ingress() {
        for len in [0, 1, 1472, 3000, 3200, 5001, 20_000, 60_000] {
            for udp in [udp4, udp6] {
                let packet = udp(80).payload(&vec![0xa5; len]);
                rig.set_tables(&Tables::default());
                let frame = packet.bytes();
                // Test runs at TC have one page. At XDP they give more buffers
                // also to a program that knows nothing of them, as no driver
                // does.
                let is_long = len > 3000 && program.name != "portredir_frags";
                if is_long {
                    continue;
                }
                let outcome = rig
                    .run(program, Iface::Lo.into(), &frame)
                    .expect("it is taken");
                assert_is(&outcome, &packet.clone().dst_port(8080));
                let (_, counter) = outcome.counters[0];
                assert_eq!(usize::try_from(counter.bytes), Ok(frame.len()));
                largest.insert(program.name, frame.len());
            }
        }
    }
    println!("largest frames: {largest:?}");
}

pub fn address(rigs: &mut Rigs) {
    let rig = rigs.get(RULES);
    namespace::enter();
    let mut addrs = local_addrs();
    let reach = addrs.remove(&addr(SERVER4).octets()).expect("it is there");
    for (addrs, expected) in [(addrs, Some(Reason::NotLocal)), (local_addrs(), None)] {
        rig.datapath().set_local(&addrs.into()).expect("fill LOCAL");
        for program in ingress() {
            rig.set_tables(&Tables::default());
            let outcome = run(rig, program, &udp4(80));
            assert_eq!(
                outcome.reasons.first().copied(),
                expected,
                "{}",
                program.name
            );
        }
    }
    assert_eq!(reach, portredir_common::map::local::ANYWHERE);
}

pub fn interfaces(rigs: &mut Rigs) {
    let rig = rigs.get(TWO_TO_ONE);
    namespace::enter();
    namespace::add_other();
    for program in ingress() {
        for (iface, ifindex) in [(Iface::Lo, 1), (Iface::Other, namespace::OTHER_IFINDEX)] {
            for (port, rule) in [(80, 0), (81, 1)] {
                rig.set_tables(&Tables::default());
                let before = now_ns();
                let frame = udp4(port).bytes();
                let outcome = rig
                    .run(program, iface.into(), &frame)
                    .expect("the kernel takes it");
                let [(key, counter)] = outcome.counters[..] else {
                    panic!("{}: counters {:?}", program.name, outcome.counters);
                };
                assert_eq!((key.ifindex, key.rule), (ifindex, rule), "{}", program.name);
                // The clock of the programs is some milliseconds late.
                assert!(counter.last_hit_ns + 50_000_000 > before);
            }
        }
    }
}
