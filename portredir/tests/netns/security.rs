//! The promises of docs/SECURITY.md: a user without rights changes nothing, learns
//! nothing and stops nothing.

use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::MapData;

use crate::lab::cgroup::Cgroup;
use crate::lab::extent::allow;
use crate::lab::process::{note, wait_for};
use crate::lab::program::{PROGRAM, Redirector};
use crate::lab::unprivileged::as_unprivileged_user;
use crate::lab::usage::Usage;
use crate::lab::{Family, Lab};
use crate::lifecycle::host::Host;
use crate::peer::pair::{Acceptor, TcpPair};
use crate::peer::raw::{
    self, Error, RawSender, Segment, add_spoofed_networks, spoofed_addr, tcp, udp,
};
use crate::peer::udp::{UdpClient, UdpServer};
use crate::{Cell, Tests};

pub fn add(tests: &mut Tests) {
    for engine in ["xdp", "tc", "socket"] {
        for family in Family::BOTH {
            let cell = Cell {
                engine,
                is_offloaded: true,
                family,
            };
            let name = format!("security/forged_packets/{engine}/{family:?}");
            tests.add(name, &[], move || forged_packets(&cell));
        }
        let cell = Cell { engine, ..CELL };
        let name = format!("security/forged_ack_to_silent_connection/{engine}");
        tests.add(name, &[], move || forged_ack_to_silent_connection(&cell));
    }
    for engine in ["xdp", "tc"] {
        let cell = Cell { engine, ..CELL };
        let name = format!("security/unwatched/{engine}");
        tests.add(name, &[], move || unwatched(&cell));
    }
    tests.add("security/memory_of_tables", &[], memory_of_tables);
    tests.add("security/other_users_see_nothing", &[], see_nothing);
    tests.add("security/other_users_stop_nothing", &[], stop_nothing);
}

const CELL: Cell = Cell {
    engine: "tc",
    is_offloaded: true,
    family: Family::V4,
};

fn start(cell: &Cell, lab: &Lab) -> Redirector {
    let rules: &[&str] = match cell.engine {
        "socket" => &["80:8080", "81:8080"],
        _ => &["80:8080/both", "81:8080/both"],
    };
    Redirector::beside(cell, lab, rules)
}

/// The damage that forged packets did.
#[derive(Debug, PartialEq, Eq)]
struct Damage {
    /// Connections that understand each other no longer.
    connections: usize,
    /// Whether a UDP flow gets answers.
    is_udp_answered: bool,
    /// The MTU that the host learned for the route to the client.
    route: Option<String>,
}

/// Where the kernel does not tell what servers accept, connections are known by
/// their packets: servers are outside of the cgroup, or another program is there
/// that suffers none beside it.
fn unwatched(cell: &Cell) {
    for is_refused in [false, true] {
        let lab = Lab::new(cell);
        let cgroup = Cgroup::new(&lab.host.name);
        if is_refused {
            cgroup.occupy(&lab.host);
        }
        let acceptor = Acceptor::start(&lab.host, 8080);
        let by = |port| cell.family.host(port);
        let mut pairs = vec![TcpPair::new(&lab.client, &acceptor, 41_000, by(8080))];
        // Loopback has no native XDP.
        let iface = if cell.engine == "xdp" { "h0" } else { "h0,lo" };
        let args = ["--iface", iface, "--engine", cell.engine];
        let rules = ["--cgroup", cgroup.path(), "80:8080"];
        let redirector = Redirector::start(&lab.host, &[args.as_slice(), &rules].concat());
        for (from, port) in [(41_001, 8080), (41_002, 80), (41_003, 80)] {
            pairs.push(TcpPair::new(&lab.client, &acceptor, from, by(port)));
        }
        for when in ["at first", "later"] {
            pairs
                .iter_mut()
                .for_each(|pair| pair.exchange(50_000, when));
        }
        let warning = "connections are known by their packets alone";
        let warnings = redirector.process.err().matches(warning).count();
        assert_eq!(warnings, usize::from(is_refused));
        // Without it `down` would wait for these connections to end.
        drop(pairs);
        redirector.finish(&lab);
    }
}

/// Forged errors and segments about redirected connections do no more harm than
/// forged packets about connections to the server itself do without the program.
fn forged_packets(cell: &Cell) {
    allow(Duration::from_secs(120));
    let without = damage(cell, None, 8080);
    let is_unharmed = without.connections == 0 && without.is_udp_answered;
    assert!(is_unharmed, "without us: {without:?}");
    note(&format!("without us: {without:?}"));
    for port in [80, 8080] {
        let with = damage(cell, Some(start), port);
        let expected = Damage {
            // The engine has no UDP, so the host learns no MTU from it.
            route: if cell.engine == "socket" && port == 80 {
                None
            } else {
                without.route.clone()
            },
            ..without
        };
        assert_eq!(with, expected, "by port {port}");
    }
}

fn damage(cell: &Cell, start: Option<fn(&Cell, &Lab) -> Redirector>, port: u16) -> Damage {
    let lab = Lab::new(cell);
    add_spoofed_networks(&lab.host);
    let acceptor = Acceptor::start(&lab.host, 8080);
    let _udp_server = UdpServer::start(&lab.host, 8080);
    let redirector = start.map(|start| start(cell, &lab));
    let has_udp = redirector.is_none() || cell.engine != "socket" || port == 8080;
    let to = cell.family.host(port);
    let mut pairs: Vec<_> = (41_000..41_004)
        .map(|from| TcpPair::new(&lab.client, &acceptor, from, to))
        .collect();
    pairs
        .iter_mut()
        .for_each(|pair| pair.exchange(500, "at first"));
    let mut udp_client = has_udp.then(|| UdpClient::new(&lab.client, 42_000, to, "a victim"));
    let mut is_answered = || {
        udp_client.as_mut().is_none_or(|udp_client| {
            // The socket reports each ICMP error once.
            let mut ask = || udp_client.request(3, Duration::from_secs(2));
            ask().or_else(|_| ask()).is_ok()
        })
    };
    assert!(is_answered(), "before anything is forged");

    let sender = RawSender::new(&lab.client);
    let victims: Vec<_> = pairs.iter().map(|pair| pair.local).collect();
    let packets = forged(cell.family, to, &victims[..2]);
    let count = packets.len();
    for packet in packets {
        sender.send(to.ip(), &[packet]);
    }

    let broken = TcpPair::broken(&mut pairs, Duration::from_secs(10));
    let is_udp_answered = is_answered();
    // New connections work as well.
    TcpPair::new(&lab.client, &acceptor, 0, to).exchange(500, "new");
    let client = victims[0].ip().to_string();
    let route = lab.host.run(&["ip", "route", "get", &client]);
    let mut words = route.split_whitespace();
    let mtu = words.find(|word| *word == "mtu").and_then(|_| words.next());
    let route = mtu.map(str::to_owned);
    if let Some(redirector) = redirector {
        let report = redirector.stop();
        note(&format!(
            "port {port}: {count} packets, {}",
            report["passes"]
        ));
    }
    Damage {
        connections: broken.len(),
        is_udp_answered,
        route,
    }
}

/// Packets that pretend to belong to the connections of two victims, and to a UDP
/// flow of the first.
fn forged(family: Family, to: SocketAddr, victims: &[SocketAddr]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for victim in victims {
        packets.extend(errors(family, to, *victim));
        packets.extend(segments(family, to, *victim));
    }
    // An error about UDP needs no more than addresses and ports.
    let udp_victim = SocketAddr::new(victims[0].ip(), 42_000);
    let quote = udp(to, udp_victim, b"an answer");
    for error in [Error::PortUnreachable, Error::TimeExceeded, TOO_BIG] {
        packets.push(raw::error(victims[0].ip(), to.ip(), error, &quote));
    }
    packets
}

const TOO_BIG: Error = Error::TooBig(1280);

/// ICMP errors about packets that the server never sent, or sent to another client.
fn errors(family: Family, server: SocketAddr, client: SocketAddr) -> Vec<Vec<u8>> {
    let port = |addr: SocketAddr, port| SocketAddr::new(addr.ip(), port);
    let other = SocketAddr::new(family.addr(1, 99), client.port());
    let not_here = SocketAddr::new(family.addr(9, 9), server.port());
    let ack = |from, to, seq| tcp(from, to, Segment::Ack, (seq, 1));
    let mut quotes = vec![
        // The forger cannot know the sequence number.
        ack(server, client, 0),
        ack(server, client, 0x1234_5678),
        ack(server, client, 0xffff_fff0),
        // Another port, also one of ours, or another host.
        ack(server, port(client, 41_999), 0),
        ack(server, other, 0),
        ack(not_here, client, 0),
        ack(client, server, 0),
    ];
    let others = [80, 81, 8080, 9].map(|number| port(server, number));
    quotes.extend(others.map(|other| ack(other, client, 0x4321)));
    // Cut anywhere, so also in the addresses and in the ports; and of something
    // that is called TCP or a fragment, but is none.
    let whole = ack(server, client, 0);
    quotes.extend((0..whole.len()).map(|len| whole[..len].to_vec()));
    let damaged = (0..whole.len()).map(|place| {
        let mut quote = whole.clone();
        quote[place] ^= 0xff;
        quote
    });
    quotes.extend(damaged);
    let from_anywhere = [client.ip(), spoofed_addr(family, 77), family.addr(1, 98)];
    let mut errors = Vec::new();
    for quote in &quotes {
        for from in from_anywhere {
            for error in [Error::PortUnreachable, Error::TimeExceeded, TOO_BIG] {
                errors.push(raw::error(from, server.ip(), error, quote));
            }
        }
    }
    errors
}

/// Segments in the name of a client, to its server and to the other ports that
/// lead there.
fn segments(family: Family, server: SocketAddr, client: SocketAddr) -> Vec<Vec<u8>> {
    let mut segments = Vec::new();
    for port in [server.port(), 80, 81, 8080] {
        let to = SocketAddr::new(server.ip(), port);
        for from in [
            client,
            SocketAddr::new(spoofed_addr(family, 78), client.port()),
        ] {
            for segment in [
                Segment::Rst,
                Segment::RstAck,
                Segment::Syn,
                Segment::FinAck,
                Segment::Ack,
                Segment::Data,
            ] {
                for number in 0..8_u32 {
                    let seq = number.wrapping_mul(0x2345_6789);
                    segments.push(tcp(from, to, segment, (seq, !seq)));
                }
            }
        }
    }
    segments
}

/// A direct connection whose server has sent nothing yet: a forged segment to a
/// destination port, from the client's port, must not redirect its later segments.
fn forged_ack_to_silent_connection(cell: &Cell) {
    let lab = Lab::new(cell);
    let acceptor = Acceptor::start(&lab.host, 8080);
    let redirector = start(cell, &lab);
    let to = |port| Family::V4.host(port);
    let mut pairs: Vec<_> = (43_000..43_010)
        .map(|from| TcpPair::new(&lab.client, &acceptor, from, to(8080)))
        .collect();
    let sender = RawSender::new(&lab.client);
    for pair in &pairs {
        let forged = tcp(pair.local, to(80), Segment::Ack, (1, 1));
        sender.send(to(80).ip(), &[forged]);
    }
    let broken = TcpPair::broken(&mut pairs, Duration::from_secs(5)).len();
    redirector.stop();
    assert_eq!(broken, 0, "of 10 connections");
}

/// The memory of the flow tables depends on their sizes alone, from their creation
/// on.
fn memory_of_tables() {
    const MORE: u64 = 50_000;
    // A TCP flow has one entry and a UDP flow two: help of `--max-udp-flows`.
    const MOST_PER_FLOW: u64 = 256;
    let lab = Lab::new(&CELL);
    add_spoofed_networks(&lab.host);
    let bytes = |sizes: [u64; 2]| {
        let sizes = sizes.map(|size| size.to_string());
        let sizes = ["--max-tcp-flows", &sizes[0], "--max-udp-flows", &sizes[1]];
        let redirector = Redirector::beside(&CELL, &lab, &[&sizes[..], &["80:8080/both"]].concat());
        let bytes = || {
            let usage = Usage::of(redirector.process.id());
            usage.map_bytes.values().sum::<u64>()
        };
        let empty = bytes();
        let sender = RawSender::new(&lab.client);
        let to = Family::V4.host(80);
        for number in 0..200 {
            let packets: Vec<_> = (0..64)
                .map(|i| {
                    let from = SocketAddr::new(spoofed_addr(Family::V4, number * 64 + i), 5000);
                    match i % 2 {
                        0 => udp(from, to, b"x"),
                        _ => tcp(from, to, Segment::Syn, (number, 0)),
                    }
                })
                .collect();
            sender.send(to.ip(), &packets);
        }
        let full = bytes();
        redirector.stop();
        // The counter of the rule and the interface came with the first packet.
        assert!(full <= empty + 1024, "{empty} bytes, then {full}");
        full
    };
    let least = bytes([1024, 1024]);
    let tcp = bytes([1024 + MORE, 1024]) - least;
    let udp = bytes([1024, 1024 + MORE]) - least;
    let per_flow = |bytes: u64| bytes / MORE;
    note(&format!(
        "{least} bytes; {} more for a TCP flow, {} for a UDP flow",
        per_flow(tcp),
        per_flow(udp)
    ));
    assert!(per_flow(tcp) <= MOST_PER_FLOW && per_flow(udp) <= 2 * MOST_PER_FLOW);
}

/// Asserts that an operation was refused for lack of permission.
fn check_denied(result: io::Result<()>, what: &str) {
    let kind = result.err().map(|error| error.kind());
    assert_eq!(kind, Some(ErrorKind::PermissionDenied), "{what}");
}

/// An unprivileged user neither lists, opens nor removes pins.
fn find_no_pins(dir: &Path, names: &[PathBuf]) {
    check_denied(fs::read_dir(dir).map(drop), "the directory of pins");
    for name in names {
        let text = name.display().to_string();
        check_denied(fs::File::open(name).map(drop), &text);
        check_denied(fs::remove_file(name), &text);
        assert!(MapData::from_pin(name).is_err(), "{text}");
    }
}

/// An unprivileged user reads nothing of the process.
fn find_no_process(pid: u64) {
    for file in ["environ", "fd", "fdinfo", "maps", "mem", "exe"] {
        let path = format!("/proc/{pid}/{file}");
        let result = match file {
            "fd" | "fdinfo" => fs::read_dir(&path).map(drop),
            "exe" => fs::read_link(&path).map(drop),
            _ => fs::File::open(&path).map(drop),
        };
        check_denied(result, &path);
    }
}

/// Sends every request there is, and some that are none, to the control socket.
fn send_every_request() -> [String; 8] {
    let long = vec![b'"'; 1 << 20];
    let requests: [&[u8]; 8] = [
        b"\"who\"\n",
        b"\"status\"\n",
        b"\"changed\"\n",
        b"\"stop\"\n",
        b"nonsense\n",
        b"\n",
        b"\xff\x00\xff\n",
        &long,
    ];
    requests.map(|request| send_request(request).unwrap_or_default())
}

/// Another user of the host, who asks in every way there is.
fn see_nothing() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    host.up(&["80:8080", "81:8081/udp"]);
    let saved = lab.dir.0.join("saved.toml");
    host.run(&["save", saved.to_str().expect("text")]);
    let mode = fs::metadata(&saved).expect("the file").permissions().mode();
    assert_eq!(mode & 0o022, 0, "others may write what root reads");
    let watcher = host.status()["pid"].as_u64().expect("a pid");
    let pins = host.pins();
    let names = fs::read_dir(&pins).expect("the pins");
    let names: Vec<_> = names.map(|name| name.expect("a pin").path()).collect();
    assert!(names.len() > 10, "{names:?}");
    let told = lab.host.enter(|| {
        as_unprivileged_user(|| {
            find_no_pins(&pins, &names);
            find_no_process(watcher);
            assert!(aya::maps::loaded_maps().all(|map| map.is_err()));
            assert!(aya::programs::loaded_programs().all(|program| program.is_err()));
            assert!(aya::programs::loaded_links().all(|link| link.is_err()));
            send_every_request()
        })
    });
    for told in told {
        let is_told = ["8080", "8081", "h0", "pid", "rules"];
        let is_told = is_told.into_iter().find(|word| told.contains(word));
        assert_eq!(is_told, None, "{told}");
    }
    assert_eq!(host.rules(), ["80:8080", "81:8081/udp"]);
    assert_eq!(host.status()["pid"], watcher);
    host.down();
}

/// Connects to the process that redirects.
fn connect() -> io::Result<UnixStream> {
    let stream = UnixStream::connect_addr(&UnixAddr::from_abstract_name("portredir.control")?)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

fn send_request(request: &[u8]) -> io::Result<String> {
    let mut stream = connect()?;
    // It may hang up before it has read everything, and has then said why.
    let _ = stream.write_all(request);
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Another user who holds as many connections as there can be: commands are
/// answered all the same, and the process has files left for its work.
fn stop_nothing() {
    let lab = Lab::new(&CELL);
    let host = Host::of(&lab);
    let limited = "ulimit -n 128; exec \"$@\"";
    let args = [
        "sh", "-c", limited, "sh", PROGRAM, "--iface", "h0", "80:8080",
    ];
    let mut run = Redirector::wait_until_redirecting(lab.host.start(&args)).process;
    let files = || Usage::of(run.id()).files;
    let before = files();
    let held = lab.host.enter(|| {
        as_unprivileged_user(|| {
            let connect = |_| connect().expect("a listening server");
            (0..500).map(connect).collect::<Vec<_>>()
        })
    });
    note(&format!(
        "{before} files before, {} with 500 connections",
        files()
    ));
    assert!(files() <= before + 40);
    assert_eq!(host.rules(), ["80:8080"]);
    wait_for("the files to be closed", || {
        (files() <= before + 8).then_some(())
    });
    // The watcher still attaches new interfaces.
    lab.host.ip("addr add 10.9.1.77/24 dev h0");
    let acceptor = Acceptor::start(&lab.host, 8080);
    let new = SocketAddr::new(IpAddr::from([10, 9, 1, 77]), 80);
    wait_for("the new address", || {
        let refused =
            crate::peer::conn::is_refused(&lab.client, crate::peer::conn::Proto::Tcp, new);
        (!refused).then_some(())
    });
    drop(acceptor);
    assert_eq!(host.rules(), ["80:8080"]);
    drop(held);
    assert_eq!(host.status()["role"], "foreground");
    host.run(&["down"]);
    assert!(run.wait().success());
}
