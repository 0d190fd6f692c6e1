//! HTTP/3 servers as targets: QUIC, whose packets are all UDP of one flow.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::rules::Rule;
use super::site::Site;
use super::subject::{Layout, Place, Subject, Variant};
use super::target::addr_words;
use crate::Tests;
use crate::conformance::site::Offload;
use crate::lab::Family;
use crate::lab::extent::allow;
use crate::lab::process::Process;
use crate::lab::program::PROGRAM;
use crate::peer::http::noise;

/// The tools that these tests need beyond those of all tests.
const TOOLS: &[&str] = &["nft", "gtlsclient", "gtlsserver", "openssl"];

pub fn add(tests: &mut Tests) {
    for (layout, name) in [
        (Layout::Bridge(true), "bridge"),
        (Layout::Interfaces, "interfaces"),
    ] {
        for subject in [Subject::Nft, Subject::Engine("auto"), Subject::Engine("tc")] {
            let name = format!("forward/http3/{name}/{}", subject.name());
            tests.add(name, TOOLS, move || serve(subject, layout));
        }
    }
}

/// Bytes of a file that comes by HTTP/3.
const BODY: usize = 3_000_000;

/// The port that clients connect to, and that of the servers.
const PORTS: (u16, u16) = (443, 4433);

/// The places of the servers, whose names they serve.
const SERVERS: [Place; 2] = [Place::F, Place::G];

fn serve(subject: Subject, layout: Layout) {
    allow(Duration::from_secs(60));
    let offload = Offload::On;
    let mut site = Site::idle(subject, Variant { layout, offload });
    let body = noise(&site.lab.dir, BODY).1;
    let key = key(&site.lab.dir.0);
    let _servers = SERVERS.map(|place| server(&site, place, &body, &key));
    let rule = |family| {
        let at = |place| SocketAddr::new(site.addr(place, family), PORTS.1);
        Rule::new(site.own(family, PORTS.0), &SERVERS.map(at)).with("check none")
    };
    let rules = Family::BOTH.map(rule);
    site.up(&rules);
    // A flow that stays with F would be met again by a client with the same port.
    let ports_are = |range: &str| {
        let range = format!("net.ipv4.ip_local_port_range={range}");
        site.lab.client.run(&["sysctl", "-qw", &range]);
    };
    ports_are("32768 49151");
    for family in Family::BOTH {
        // Each has one of two by chance, but for one time in a million.
        let mut names = BTreeSet::new();
        for _ in 0..20 {
            names.insert(get(&site, family, &body));
        }
        assert!(names.iter().eq(["F", "G"]), "{family:?}: {names:?}");
    }
    if matches!(subject, Subject::Engine(_)) {
        ports_are("49152 60999");
        for family in Family::BOTH {
            let f = addr_words(site.addr(Place::F, family));
            site.lab.host.run(&[PROGRAM, "drain", &f]);
            for _ in 0..10 {
                assert_eq!(get(&site, family, &body), "G", "while F is drained");
            }
        }
    }
    site.finish();
    for at in [&site.lab.client, &site.lab.host, &site.f, &site.g] {
        crate::lab::checksum::check(at);
    }
}

/// A key and its certificate.
fn key(dir: &Path) -> [String; 2] {
    let [key, certificate] = ["key.pem", "certificate.pem"].map(|name| text(&dir.join(name)));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "1"])
        .args([
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-subj",
            "/CN=lab.test",
        ])
        .args(["-keyout", &key, "-out", &certificate])
        .output()
        .expect("start openssl");
    let error = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "openssl: {error}");
    [key, certificate]
}

/// A server of the file and of its own name.
fn server(site: &Site, place: Place, body: &[u8], [key, certificate]: &[String; 2]) -> Process {
    let name = place.name();
    let dir = site.lab.dir.0.join(name);
    fs::create_dir(&dir).expect("a directory");
    fs::write(dir.join("body"), body).expect("a file");
    fs::write(dir.join("name"), name).expect("a file");
    let (dir, port) = (text(&dir), PORTS.1.to_string());
    let args = ["gtlsserver", "-q", "-d", &dir, "*", &port, key, certificate];
    let server = site.at(place).start(&args);
    crate::lab::process::wait_for("an HTTP/3 server", || {
        let sockets = site.at(place).run(&["ss", "-Hlun"]);
        let port = format!(":{port} ");
        (sockets.matches(&port).count() == 2).then_some(())
    });
    server
}

/// Gets the file and the name of its server by one connection; the name.
fn get(site: &Site, family: Family, body: &[u8]) -> String {
    let dir = site.lab.dir.0.join("got");
    fs::create_dir(&dir).expect("a directory");
    let (addr, port) = (
        site.own(family, PORTS.0).ip().to_string(),
        PORTS.0.to_string(),
    );
    let download = format!("--download={}", text(&dir));
    let args = [
        "gtlsclient",
        "-q",
        "--exit-on-all-streams-close",
        "--timeout=10s",
        &download,
        &addr,
        &port,
        "https://lab.test/body",
        "https://lab.test/name",
    ];
    site.lab.client.run(&args);
    let read = |name| fs::read(dir.join(name)).unwrap_or_default();
    let (got, name) = (read("body"), read("name"));
    assert!(got == body, "{addr}: {} bytes, or other ones", got.len());
    fs::remove_dir_all(&dir).expect("remove a directory");
    String::from_utf8(name).expect("a name")
}

fn text(path: &Path) -> String {
    let path: PathBuf = path.into();
    path.into_os_string().into_string().expect("text")
}
