//! Forwarding for targets with an address: refused where it is off, switched on when asked
//! for, and put back, whoever was killed meanwhile.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use crate::conformance::client::Conversation;
use crate::conformance::server::{Manner, Server};
use crate::lab::namespace::Namespace;
use crate::lab::process::note;
use crate::lab::program::{PROGRAM, Redirector, link_state};
use crate::lab::{Family, Lab, link, wait_for_route};
use crate::lifecycle::host::{CELL, Host};
use crate::peer::conn::PROTOS;
use crate::{Tests, skip};

pub fn add(tests: &mut Tests) {
    tests.add("forwarding/refused", &[], refused);
    tests.add("forwarding/put_back", &[], put_back);
    tests.add("forwarding/killed", &["strace"], killed);
}

/// The switches of the two interfaces between client and target, all off at first.
const SWITCHES: [&str; 4] = [
    "ipv4/conf/h0/forwarding",
    "ipv4/conf/h1/forwarding",
    "ipv6/conf/h0/force_forwarding",
    "ipv6/conf/h1/force_forwarding",
];

/// The targets of both IP versions.
const RULE: &str = "80:10.9.7.2:8080,[fd09:0:0:7::2]:8080/both";

/// A host without forwarding, and a target behind it.
struct Site {
    lab: Lab,
    target: Namespace,
}

impl Site {
    fn new() -> Self {
        let lab = Lab::new(&CELL);
        let target = lab.another("t");
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            lab.host.sysctl(key, "0");
        }
        link((&lab.host, "h1", (7, 1)), (&target, "t0", (7, 2)));
        for (at, net) in [(&lab.client, 1), (&target, 7)] {
            let [v4, v6] = Family::BOTH.map(|family| family.addr(net, 1));
            at.ip(&format!(
                "route add default via {v4}\nroute add default via {v6}"
            ));
        }
        for family in Family::BOTH {
            wait_for_route(&lab.host, SocketAddr::new(family.addr(7, 2), 1));
        }
        let site = Self { lab, target };
        if site.switches().is_none() {
            skip("needs net.ipv6.conf.IFACE.force_forwarding");
        }
        site.is("0");
        site
    }

    /// The switches; `None` where the kernel has not all of them.
    fn switches(&self) -> Option<Vec<String>> {
        let read = |key: &&str| {
            let path = Path::new("/proc/sys/net").join(key);
            let text = self.lab.host.enter(|| fs::read_to_string(path));
            Some(text.ok()?.trim().to_owned())
        };
        SWITCHES.iter().map(read).collect()
    }

    /// Checks that all switches have one position.
    fn is(&self, position: &str) {
        let switches = self.switches().expect("switches");
        assert_eq!(switches, [position; 4], "{SWITCHES:?}");
    }

    /// A client gets to the target.
    fn check_reaches(&self) {
        for family in Family::BOTH {
            for proto in PROTOS {
                let to = family.host(80);
                let conversation = Conversation::begin(&self.lab.client, proto, 0, to);
                let conversation =
                    conversation.unwrap_or_else(|error| panic!("{proto:?} to {to}: {error}"));
                assert_eq!(conversation.name, "target");
            }
        }
    }
}

/// Nothing is touched where forwarding is off.
fn refused() {
    let site = Site::new();
    let host = Host::of(&site.lab);
    let up = ["up", "--iface", "h0", RULE];
    for args in [&up[..], &["plan", "--iface", "h0", RULE]] {
        let error = host.fails(1, args);
        for words in [
            "sysctl -w net.ipv4.conf.h0.forwarding=1 net.ipv4.conf.h1.forwarding=1",
            "or let `up` do it until `down`: portredir up --enable-forwarding",
        ] {
            assert!(error.contains(words), "{args:?}: {error}");
        }
    }
    assert_eq!(link_state(&site.lab), host.before);
    assert!(!host.pins().exists());
    // A plan writes nothing, whatever it is allowed to.
    let args = [
        "plan",
        "--json",
        "--enable-forwarding",
        "--iface",
        "h0",
        RULE,
    ];
    let plan: serde_json::Value = serde_json::from_str(&host.run(&args)).expect("JSON");
    let names = ["h0", "h1"];
    let v4 = names.map(|name| format!("net.ipv4.conf.{name}.forwarding=1"));
    let v6 = names.map(|name| format!("net.ipv6.conf.{name}.force_forwarding=1"));
    assert_eq!(
        plan["ways"]["forwarding"],
        serde_json::json!([v4, v6].concat())
    );
    assert_eq!(plan["ways"]["targets"][0]["interface"], "h1");
    // `add` is refused as well, and the rules go on.
    host.up(&["81:8080"]);
    let error = host.fails(1, &["add", RULE]);
    assert!(error.contains("--enable-forwarding"), "{error}");
    assert_eq!(host.rules(), ["81:8080"]);
    site.is("0");
    host.down();
}

/// `up` switches on what is off, `add` as well, and `down` puts back.
fn put_back() {
    let site = Site::new();
    let _target = Server::start(&site.target, "target", 8080, Manner::Echo);
    let host = Host::of(&site.lab);
    host.up(&["--enable-forwarding", RULE]);
    site.is("1");
    site.check_reaches();
    host.run(&["up", "--enable-forwarding", "--iface", "h0", RULE]);
    // What somebody switches off is theirs, and what somebody switched on before stays on.
    site.lab.host.sysctl(SWITCHES[1], "0");
    host.down();
    site.is("0");
    site.lab.host.sysctl(SWITCHES[0], "1");
    let host = Host::of(&site.lab);
    host.up(&["--enable-forwarding", "81:8080"]);
    assert_eq!(site.switches().expect("switches"), ["1", "0", "0", "0"]);
    host.run(&["add", RULE]);
    site.is("1");
    site.check_reaches();
    host.kill_watcher();
    host.down();
    assert_eq!(site.switches().expect("switches"), ["1", "0", "0", "0"]);
    // In the foreground the process puts back.
    site.lab.host.sysctl(SWITCHES[0], "0");
    let args = ["--iface", "h0", "--enable-forwarding", RULE];
    let run = Redirector::start(&site.lab.host, &args);
    site.is("1");
    site.check_reaches();
    run.stop();
    site.is("0");
}

/// `up` is killed: the next command puts back.
fn killed() {
    let site = Site::new();
    let host = Host::of(&site.lab);
    if !site
        .lab
        .host
        .succeeds(&["strace", "-o", "/dev/null", "true"])
    {
        skip("needs ptrace(2)");
    }
    let trace = site.lab.dir.0.join("trace");
    let up = |what: &str| {
        let out = trace.to_str().expect("text");
        // The watcher, which is left behind, is not followed.
        let strace = ["strace", "-qq", "-o", out, "-e", what];
        let portredir = [PROGRAM, "up", "--iface", "h0"];
        let args = [&strace[..], &portredir, &["--enable-forwarding", RULE]].concat();
        site.lab.host.start(&args).wait();
        fs::read_to_string(&trace).expect("what strace wrote")
    };
    let calls = up("trace=bpf").lines().count();
    site.is("1");
    host.run(&["down", "--drain-timeout", "0"]);
    site.is("0");
    let (mut was_on, mut was_off) = (0, 0);
    // The maps are made before anything is switched on. Most calls fill them, and the last
    // ones attach.
    let early = [5, 20, 40];
    let late = (1..=8).map(|part| calls * part / 8);
    for number in early
        .into_iter()
        .chain(late)
        .chain([calls - 30, calls - 10])
    {
        let trace = up(&format!("inject=bpf:signal=SIGKILL:when={number}"));
        let switches = site.switches().expect("switches");
        if trace.contains("killed by SIGKILL") {
            let is_on = switches.contains(&"1".to_owned());
            was_on += u32::from(is_on);
            was_off += u32::from(!is_on);
        }
        host.run(&["down", "--drain-timeout", "0"]);
        site.is("0");
    }
    note(&format!("killed: {was_on} times on, {was_off} times off"));
    assert!(was_on > 3 && was_off > 0, "{was_on} on, {was_off} off");
    assert!(!host.pins().exists());
    assert_eq!(link_state(&site.lab), host.before);
}
