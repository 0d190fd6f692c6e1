//! Ways to targets that change while portredir runs: interfaces that come later, routes that
//! go, and neighbours that do not answer.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::conformance::client::Conversation;
use crate::conformance::server::{Manner, Server};
use crate::lab::namespace::Namespace;
use crate::lab::process::{Process, wait_for};
use crate::lab::program::{PROGRAM, link_state};
use crate::lab::{Family, Lab, add_addrs, link, wait_for_route};
use crate::lifecycle::host::{CELL, Host};
use crate::peer::conn::{Conn, PROTOS, Proto, answers};
use crate::{Tests, skip};

pub fn add(tests: &mut Tests) {
    tests.add("ways/bridge_later", &[], bridge_later);
    tests.add("ways/bridge_later_in_foreground", &[], in_foreground);
    tests.add("ways/route", &[], route);
    tests.add("ways/neighbour", &[], neighbour);
    tests.add("ways/limited", &["nft"], limited);
    tests.add("ways/own_check", &[], own_check);
}

/// The targets of both IP versions.
const RULE: &str = "80:10.9.7.2:8080,[fd09:0:0:7::2]:8080/both check none";

/// The switches of an interface.
fn switches(at: &Namespace, name: &str) -> Option<[String; 2]> {
    let read = |key: String| {
        let path = Path::new("/proc/sys/net").join(key);
        let text = at.enter(|| fs::read_to_string(path)).ok()?;
        Some(text.trim().to_owned())
    };
    Some([
        read(format!("ipv4/conf/{name}/forwarding"))?,
        read(format!("ipv6/conf/{name}/force_forwarding"))?,
    ])
}

/// A host that does not forward, whose target is behind a bridge that does not exist yet.
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
        let [v4, v6] = Family::BOTH.map(|family| family.addr(1, 1));
        lab.client.ip(&format!(
            "route add default via {v4}\nroute add default via {v6}"
        ));
        // Until the bridge is there, the target seems to be where everything else is.
        let [v4, v6] = Family::BOTH.map(|family| family.addr(1, 2));
        lab.host.ip(&format!(
            "route add default via {v4}\nroute add default via {v6}"
        ));
        if switches(&lab.host, "h0").is_none() {
            skip("needs net.ipv6.conf.IFACE.force_forwarding");
        }
        Self { lab, target }
    }

    /// Makes the bridge, and links the target to it.
    fn make_bridge(&self) {
        let target = &self.target.name;
        self.lab.host.ip(&format!(
            "link add br0 type bridge\n\
             link add p0 type veth peer name t0 netns {target}\n\
             link set p0 master br0 up"
        ));
        add_addrs(&self.lab.host, "br0", (7, 1));
        add_addrs(&self.target, "t0", (7, 2));
        let [v4, v6] = Family::BOTH.map(|family| family.addr(7, 1));
        self.target.ip(&format!(
            "route add default via {v4}\nroute add default via {v6}"
        ));
        for family in Family::BOTH {
            wait_for_route(&self.lab.host, SocketAddr::new(family.addr(7, 2), 1));
        }
    }

    fn remove_bridge(&self) {
        self.lab.host.ip("link del p0\nlink del br0");
    }

    fn wait_for(&self, name: &str, position: &str) {
        let want = [position; 2].map(str::to_owned);
        wait_for(&format!("{name} to be {position}"), || {
            (switches(&self.lab.host, name)? == want).then_some(())
        });
    }

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

/// The bridge comes after `up`, goes and comes again: it forwards each time, and `down` puts
/// back also what a watcher that was killed has switched on.
fn bridge_later() {
    let site = Site::new();
    let host = Host::of(&site.lab);
    host.up(&["--enable-forwarding", RULE]);
    site.wait_for("h0", "1");
    site.make_bridge();
    let _target = Server::start(&site.target, "target", 8080, Manner::Echo);
    site.wait_for("br0", "1");
    site.check_reaches();
    site.remove_bridge();
    site.make_bridge();
    site.wait_for("br0", "1");
    site.check_reaches();
    // What somebody switches off is theirs, also when something else changes.
    site.lab.host.sysctl("ipv4/conf/br0/forwarding", "0");
    site.lab
        .host
        .ip("route add 192.0.2.0/24 dev br0\nroute del 192.0.2.0/24 dev br0");
    std::thread::sleep(Duration::from_millis(500));
    let now = switches(&site.lab.host, "br0").expect("switches");
    assert_eq!(now, ["0", "1"].map(str::to_owned));
    site.lab.host.sysctl("ipv4/conf/br0/forwarding", "1");
    host.kill_watcher();
    host.run(&["down", "--drain-timeout", "0"]);
    site.wait_for("br0", "0");
    site.wait_for("h0", "0");
    assert!(!host.pins().exists());
    site.remove_bridge();
    assert_eq!(link_state(&site.lab), host.before);
}

fn in_foreground() {
    let site = Site::new();
    let args = [PROGRAM, "--iface", "h0", "--enable-forwarding", RULE];
    let mut run = site.lab.host.start(&args);
    site.wait_for("h0", "1");
    site.make_bridge();
    let _target = Server::start(&site.target, "target", 8080, Manner::Echo);
    site.wait_for("br0", "1");
    site.check_reaches();
    // The first look may have found the bridge, so its end is what is news.
    site.remove_bridge();
    for router in ["10.9.1.2", "fd09:0:0:1::2"] {
        run.wait_for_words(&format!("by h0 and router {router}\n"));
    }
    site.make_bridge();
    site.wait_for("br0", "1");
    run.signal(nix::sys::signal::Signal::SIGINT);
    assert!(run.wait().success(), "{}", run.err());
    site.wait_for("br0", "0");
    site.wait_for("h0", "0");
}

/// A host that forwards to two targets on a link, with a watcher whose words are kept.
struct Watched<'a> {
    host: Host<'a>,
    watcher: Process,
}

/// The targets are checked so seldom that only a check out of turn can tell of a change.
const CHECKED: &str = "80:10.9.7.2:8080,10.9.7.3:8080 check tcp every 60s fall 1 rise 1";

fn linked() -> (Lab, Namespace) {
    let lab = Lab::new(&CELL);
    let target = lab.another("t");
    lab.host.sysctl("ipv4/ip_forward", "1");
    link((&lab.host, "h1", (7, 1)), (&target, "t0", (7, 2)));
    target.ip("addr add 10.9.7.3/24 dev t0");
    wait_for_route(&lab.host, SocketAddr::new(Family::V4.addr(7, 2), 1));
    (lab, target)
}

impl<'a> Watched<'a> {
    fn start(lab: &'a Lab) -> Self {
        let host = Host::of(lab);
        host.up(&[CHECKED]);
        host.kill_watcher();
        let watcher = host.start(&["watch"]);
        wait_for("the watcher", || {
            (host.status()["role"] == "follower").then_some(())
        });
        let watched = Self { host, watcher };
        watched.wait_for("10.9.7.2", |line| line["neighbour"] == "reachable");
        watched
    }

    fn target(&self, addr: &str) -> Value {
        let list: Value =
            serde_json::from_str(&self.host.run(&["targets", "--json"])).expect("JSON");
        let lines = list["targets"].as_array().expect("targets");
        let line = lines.iter().find(|line| line["addr"] == addr);
        line.expect(addr).clone()
    }

    /// Waits for what `targets` tells of a target.
    fn wait_for(&self, addr: &str, is_so: impl Fn(&Value) -> bool) {
        let mut last = Value::Null;
        let is_so = || {
            last = self.target(addr);
            is_so(&last).then_some(())
        };
        wait_for(&format!("{addr} to turn"), is_so);
    }

    /// Waits until the watcher has said something, which has to be once.
    fn said(&mut self, words: &str) {
        self.watcher.wait_for_words(words);
        let said = self.watcher.err();
        assert_eq!(said.matches(words).count(), 1, "{words}: {said}");
    }
}

/// A route goes, comes back, and leads elsewhere.
fn route() {
    let (lab, target) = linked();
    let _server = Server::start(&target, "target", 8080, Manner::Echo);
    let mut watched = Watched::start(&lab);
    assert_eq!(watched.target("10.9.7.2")["interface"], "h1");
    lab.host.ip("route del 10.9.7.0/24 dev h1");
    watched.said("target 10.9.7.2: no route leads to 10.9.7.2; ip route add");
    watched.said("target 10.9.7.3: no route leads to 10.9.7.3; ip route add");
    let line = watched.target("10.9.7.2");
    assert_eq!(line["fault"], "no route leads to 10.9.7.2");
    assert_eq!(line["interface"], Value::Null);
    assert!(
        watched
            .host
            .run(&["targets"])
            .contains("      no route leads to 10.9.7.2\n")
    );
    watched.wait_for("10.9.7.2", |line| line["state"] == "down");
    let mut check = watched.host.start(&["status", "--check"]);
    assert_eq!(check.wait().code(), Some(5));
    assert!(
        check.out().contains("no route leads to 10.9.7.3: clients"),
        "{}",
        check.out()
    );
    lab.host.ip("route add 10.9.7.0/24 dev h1");
    watched.said("target 10.9.7.2: nothing is wrong with the way any more: by h1\n");
    watched.wait_for("10.9.7.2", |line| {
        line["state"] == "up" && line["fault"].is_null()
    });
    lab.host.ip("route add 10.9.7.3/32 dev h0");
    watched.said("target 10.9.7.3: the way has changed: by h0\n");
    assert_eq!(watched.target("10.9.7.3")["interface"], "h0");
    lab.host.ip("route del 10.9.7.3/32 dev h0");
    watched.said("target 10.9.7.3: the way has changed: by h1\n");
    lab.host.ip("link set h1 down");
    watched.wait_for("10.9.7.2", |line| !line["fault"].is_null());
    watched.wait_for("10.9.7.2", |line| line["state"] == "down");
    lab.host.ip("link set h1 up");
    watched.wait_for("10.9.7.2", |line| line["state"] == "up");
    assert_eq!(watched.host.run(&["status", "--check"]), "healthy\n");
    watched.host.down();
}

/// A neighbour does not answer any more, however often it is asked, and then does.
fn neighbour() {
    let (lab, target) = linked();
    let _server = Server::start(&target, "target", 8080, Manner::Echo);
    lab.host.sysctl("ipv4/neigh/h1/retrans_time_ms", "50");
    let mut watched = Watched::start(&lab);
    let words = "target 10.9.7.3: nobody answers for 10.9.7.3 on h1; look whether";
    target.ip("addr del 10.9.7.3/24 dev t0");
    lab.host.ip("neigh flush to 10.9.7.3 dev h1");
    let to = SocketAddr::new(Family::V4.addr(7, 3), 8080);
    for _ in 0..3 {
        assert!(!answers(&lab.host, Proto::Udp, to));
    }
    watched.said(words);
    watched.wait_for("10.9.7.3", |line| line["state"] == "down");
    assert_eq!(watched.target("10.9.7.2")["fault"], Value::Null);
    for _ in 0..3 {
        assert!(!answers(&lab.host, Proto::Udp, to));
    }
    watched.said(words);
    // The host is there again, and says so by asking for this one.
    target.ip("addr add 10.9.7.3/24 dev t0");
    answers(
        &target,
        Proto::Udp,
        SocketAddr::new(Family::V4.addr(7, 1), 9),
    );
    assert!(answers(&lab.host, Proto::Udp, to));
    watched.said("target 10.9.7.3: nothing is wrong with the way any more: by h1\n");
    watched.wait_for("10.9.7.3", |line| line["state"] == "up");
    watched.host.down();
}

/// Forwarding that is on for a target lets others pass as well, until a firewall names the
/// targets. The rules are those of `docs/SECURITY.md`.
fn limited() {
    let site = Site::new();
    site.make_bridge();
    let _target = Server::start(&site.target, "target", 8080, Manner::Echo);
    let _other = Server::start(&site.target, "other", 8081, Manner::Echo);
    let host = Host::of(&site.lab);
    let rule = "80:10.9.7.2:8080 check none";
    host.up(&["--enable-forwarding", rule]);
    let begin = |to: SocketAddr| {
        let limit = Duration::from_millis(500);
        Conn::connect_within(limit, &site.lab.client, Proto::Tcp, (0, to)).is_ok()
    };
    let dialled = Family::V4.host(80);
    let [other, target] = [8081, 8080].map(|port| SocketAddr::new(Family::V4.addr(7, 2), port));
    assert!(begin(dialled));
    assert!(begin(other), "the host is a router");
    site.lab.host.run(&[
        "nft",
        "table inet forwarded {
            chain forward {
                type filter hook forward priority filter; policy drop;
                ct state established,related accept
                iifname h0 ip daddr 10.9.7.2 tcp dport 8080 accept
            }
        }",
    ]);
    let conversation = Conversation::begin(&site.lab.client, Proto::Tcp, 0, dialled);
    assert_eq!(conversation.expect("the target").name, "target");
    assert!(!begin(other), "another port of the target");
    assert!(
        begin(target),
        "the address of the target is named, whoever dials it"
    );
    let back = SocketAddr::new(Family::V4.addr(1, 2), 8082);
    let _client = Server::start(&site.lab.client, "client", 8082, Manner::Echo);
    let limit = Duration::from_millis(500);
    let back = Conn::connect_within(limit, &site.target, Proto::Tcp, (0, back));
    assert!(back.is_err(), "the target does not get to clients");
    host.down();
}

/// The check of an own port asks that port, and not the other target of its rule.
fn own_check() {
    let (lab, target) = linked();
    let _server = Server::start(&target, "target", 80, Manner::Echo);
    let host = Host::of(&lab);
    let rule = "80:80=9,10.9.7.2:80=9 check tcp every 100ms rise 1 fall 1";
    host.run(&["up", "--iface", "h0,lo", rule]);
    let states = || -> Vec<String> {
        let list: Value = serde_json::from_str(&host.run(&["targets", "--json"])).expect("JSON");
        let lines = list["targets"].as_array().expect("targets").iter();
        lines
            .map(|line| line["state"].as_str().expect("a state").to_owned())
            .collect()
    };
    wait_for("the own port to be down", || {
        (states() == ["down", "up"]).then_some(())
    });
    // Ten checks and more by chance would have gone to the other target.
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(states(), ["down", "up"]);
    }
    let _own = Server::start(&lab.host, "own", 80, Manner::Echo);
    wait_for("the own port to be up", || {
        (states() == ["up", "up"]).then_some(())
    });
    host.down();
}
