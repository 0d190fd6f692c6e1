//! Rules with several targets, and with an address: each flow gets the target that `explain`
//! names.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::arrival::{Own, open};
use super::facts::{bytes, json};
use super::{Explainer, name};
use crate::Tests;
use crate::conformance::client::Conversation;
use crate::conformance::server::{Manner, Server};
use crate::lab::namespace::Namespace;
use crate::lab::process::wait_for;
use crate::lab::schema;
use crate::lab::{Family, Lab, link, wait_for_route};
use crate::lifecycle::host::{CELL, Host};
use crate::peer::conn::{Conn, PROTOS, Proto};

pub fn add(tests: &mut Tests) {
    tests.add(
        "explain/targets",
        &["bpftool", "sha256sum", "python3"],
        targets,
    );
    tests.add("explain/targets_down", &[], down);
    tests.add("explain/targets_of_local_clients", &[], local);
}

/// A host that forwards to a host with many addresses, `10.9.7.2` to `10.9.7.5`.
struct Site {
    lab: Lab,
    target: Namespace,
}

impl Site {
    fn new() -> Self {
        let lab = Lab::new(&CELL);
        let target = lab.another("t");
        link((&lab.host, "h1", (7, 1)), (&target, "t0", (7, 2)));
        for family in Family::BOTH {
            let len = if family == Family::V4 { 24 } else { 64 };
            let nodad = if family == Family::V4 { "" } else { "nodad" };
            for host in 3..6 {
                let addr = family.addr(7, host);
                target.ip(&format!("addr add {addr}/{len} dev t0 {nodad}"));
            }
            let addr = family.addr(1, 9);
            lab.client
                .ip(&format!("addr add {addr}/{len} dev c0 {nodad}"));
        }
        lab.host.sysctl("ipv4/ip_forward", "1");
        lab.host.sysctl("ipv6/conf/all/forwarding", "1");
        for (at, net) in [(&lab.client, 1), (&target, 7)] {
            let [v4, v6] = Family::BOTH.map(|family| family.addr(net, 1));
            at.ip(&format!(
                "route add default via {v4}\nroute add default via {v6}"
            ));
        }
        for family in Family::BOTH {
            wait_for_route(&lab.host, SocketAddr::new(family.addr(7, 2), 1));
            wait_for_route(&lab.client, SocketAddr::new(family.addr(7, 2), 1));
        }
        Self { lab, target }
    }

    /// Waits until targets are in these states.
    fn wait_for_states(&self, host: &Host<'_>, states: &[(&str, &str)]) {
        wait_for("the states of targets", || {
            let list: Value =
                serde_json::from_str(&host.run(&["targets", "--json"])).expect("JSON");
            let lines = list["targets"].as_array()?.clone();
            let is_so = |(target, state): &(&str, &str)| {
                let mut lines = lines.iter().filter(|line| line["target"] == **target);
                lines.all(|line| line["state"] == **state)
            };
            states.iter().all(is_so).then_some(())
        });
    }
}

/// Two targets are up, with other weights; one is drained, one is dead; one is this host.
const RULES: [&str; 2] = [
    "80:10.9.7.2:8080=2,10.9.7.3:8080,10.9.7.4:8081,10.9.7.5:8080,8080/both \
     check tcp every 100ms fall 1",
    "81:[fd09:0:0:7::2]:8080,[fd09:0:0:7::3]:8080,10.9.7.2:8080,10.9.7.3:8080/both \
     check none affinity client",
];

fn targets() {
    let site = Site::new();
    let (lab, host) = (&site.lab, Host::of(&site.lab));
    let _there = Server::start(&site.target, "there", 8080, Manner::Echo);
    let _here = Server::start(&lab.host, "here", 8080, Manner::Echo);
    // The sums of all maps take longer than the test has, unless these are small.
    let sizes = ["--max-tcp-flows", "2048", "--max-udp-flows", "1024"];
    host.up(&[&sizes[..], &RULES].concat());
    host.run(&["drain", "10.9.7.5:8080"]);
    site.wait_for_states(
        &host,
        &[("10.9.7.4:8081", "down"), ("10.9.7.5:8080", "drained")],
    );
    // What the watcher writes down every ten seconds is no trace of `explain`.
    host.kill_watcher();
    let flows: Vec<_> = flows().collect();
    let before = bytes(lab, &host.pins());
    let mut explainer = Explainer::start(&lab.host);
    let answers: Vec<_> = flows
        .iter()
        .map(|flow| explainer.ask(&flow.words()))
        .collect();
    assert_eq!(before, bytes(lab, &host.pins()));
    let mut reached = BTreeMap::<String, u32>::new();
    for (flow, answer) in flows.iter().zip(&answers) {
        schema::check("explain", &answer.to_string());
        let at = flow.arrives(&lab.client);
        assert_eq!(answer["target"], at, "{}: {answer}", flow.words());
        check_states(answer);
        *reached.entry(at).or_default() += 1;
    }
    // Every target that takes new flows had some, and no other one.
    let v4 = ["10.9.1.1:8080", "10.9.7.2:8080", "10.9.7.3:8080"];
    let v6 = ["[fd09:0:0:7::2]:8080", "[fd09:0:0:7::3]:8080"];
    let expected = [&v4[..], &v6].concat();
    let reached: Vec<_> = reached.into_keys().collect();
    let is_known = |at: &String| expected.contains(&at.as_str());
    assert!(reached.iter().all(is_known), "{reached:?}");
    for needed in &v4 {
        assert!(
            reached.iter().any(|at| at == needed),
            "{needed}: {reached:?}"
        );
    }
    // A connection that goes on is known, with its target.
    let flow = Flow {
        proto: Proto::Tcp,
        client: SocketAddr::new(Family::V4.addr(1, 2), 22_000),
        to: Family::V4.host(80),
    };
    let conversation = flow.begin(&lab.client);
    let answer = explainer.ask(&flow.words());
    let at = conversation.local.to_string();
    let known = format!("known: its packets go on to {at}");
    assert_eq!(answer["known_flow"], known, "{answer}");
    drop((conversation, explainer));
    host.down();
}

/// The answer tells the state of each target, and one gets the flow.
fn check_states(answer: &Value) {
    let targets = answer["targets"].as_array().expect("targets");
    let winners = targets.iter().filter(|target| target["wins"] == true);
    assert_eq!(winners.count(), 1, "{answer}");
    let slots: u64 = targets.iter().filter_map(|it| it["slots"].as_u64()).sum();
    assert_eq!(slots, targets[0]["of_slots"].as_u64().expect("slots"));
    for target in targets {
        let why = target["why"].as_str().expect("a reason");
        let word = match target["target"].as_str().expect("a target") {
            "10.9.7.4:8081" => "down: ",
            "10.9.7.5:8080" => "drained: ",
            _ if target["wins"] == true => "slot ",
            _ => "up, with ",
        };
        assert!(why.starts_with(word), "{answer}");
    }
}

/// A flow to a port of the host.
struct Flow {
    proto: Proto,
    client: SocketAddr,
    to: SocketAddr,
}

/// Flows of both IP versions and protocols, from two addresses.
fn flows() -> impl Iterator<Item = Flow> {
    (0..64_u16).map(|number| {
        let dst_port = 80 + number / 32;
        let family = match (dst_port, number % 2) {
            (81, 1) => Family::V6,
            _ => Family::V4,
        };
        let host = if number % 4 < 2 { 2 } else { 9 };
        Flow {
            proto: PROTOS[usize::from(number / 4 % 2)],
            client: SocketAddr::new(family.addr(1, host), 21_000 + number),
            to: family.host(dst_port),
        }
    })
}

impl Flow {
    fn words(&self) -> String {
        let Self { proto, client, to } = self;
        format!("{} {client} -> {to} on h0", name(*proto))
    }

    fn begin(&self, at: &Namespace) -> Conversation {
        let own = Own {
            addr: Some(self.client.ip()),
            port: self.client.port(),
        };
        let fd = at
            .enter(|| open(self.proto, own, self.to))
            .expect("connect");
        let conn = match self.proto {
            Proto::Tcp => Conn::Tcp(fd.into()),
            Proto::Udp => Conn::Udp(fd.into()),
        };
        let conversation = Conversation::over(conn, self.to);
        conversation.unwrap_or_else(|error| panic!("{}: {error}", self.words()))
    }

    /// The end of the server that gets the flow.
    fn arrives(&self, at: &Namespace) -> String {
        self.begin(at).local.to_string()
    }
}

/// No target is up: the rule rests, drops, or has another target for this.
fn down() {
    let site = Site::new();
    let (lab, host) = (&site.lab, Host::of(&site.lab));
    let _rest = Server::start(&lab.host, "rest", 80, Manner::Echo);
    let _last = Server::start(&site.target, "last", 8080, Manner::Echo);
    let check = "check tcp every 100ms fall 1";
    let rules = ["80:", "81:", "82:"].map(|listen| format!("{listen}10.9.7.4:9"));
    let [rests, drops, last] = &rules;
    host.up(&[
        &format!("{rests} {check}"),
        &format!("{drops} {check} else drop"),
        &format!("{last} {check} else 10.9.7.3:8080"),
    ]);
    site.wait_for_states(&host, &[("10.9.7.4:9", "down")]);
    let ask = |port: u16| {
        json(
            &host,
            &format!("tcp 10.9.1.2:20000 to 10.9.1.1:{port} on h0"),
        )
    };
    let begin = |port| Conversation::begin(&lab.client, Proto::Tcp, 0, Family::V4.host(port));
    let answer = ask(80);
    assert_eq!(answer["verdict"], "passed", "{answer}");
    assert_eq!(
        (&answer["reason"], &answer["target"]),
        (&"no_target".into(), &Value::Null)
    );
    assert_eq!(answer["port"], 80);
    assert_eq!(begin(80).expect("the port itself").name, "rest");
    let answer = ask(81);
    assert_eq!(answer["verdict"], "dropped", "{answer}");
    assert_eq!(answer["reason"], "no_target_dropped");
    let why = answer["targets"][0]["why"].as_str().expect("a reason");
    assert!(why.starts_with("down: "), "{answer}");
    let answer = ask(82);
    assert_eq!(answer["target"], "10.9.7.3:8080", "{answer}");
    assert_eq!(answer["targets"][1]["why"], "all new flows go there");
    let route = answer["behind"]["route"].as_str().expect("a text");
    assert!(
        route.starts_with("to the target by h1, neighbour "),
        "{answer}"
    );
    let conversation = begin(82).expect("the last target");
    assert_eq!(conversation.local.ip(), Family::V4.addr(7, 3));
    host.down();
}

/// Clients on the host are pointed at a target by chance, if there are several.
fn local() {
    let site = Site::new();
    let (lab, host) = (&site.lab, Host::of(&site.lab));
    let _there = Server::start(&site.target, "there", 8080, Manner::Echo);
    let rules = [
        "80:10.9.7.2:8080=3,10.9.7.3:8080/both check none",
        "81:10.9.7.3:8080/both",
    ];
    host.run(&["up", "--iface", "h0,lo", rules[0], rules[1]]);
    let answer = json(&host, "tcp local to 10.9.1.1:81");
    if answer["hook"]
        .as_str()
        .is_some_and(|hook| hook.contains("ingress"))
    {
        crate::skip("needs a cgroup for local clients");
    }
    assert_eq!(answer["target"], "10.9.7.3:8080", "{answer}");
    let to = |port| SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
    let reached = |port| {
        let conversation = Conversation::begin(&lab.host, Proto::Tcp, 0, to(port));
        conversation.expect("a target").local
    };
    assert_eq!(reached(81).to_string(), "10.9.7.3:8080");
    let answer = json(&host, "tcp local to 127.0.0.1:80");
    assert_eq!(answer["verdict"], "redirected", "{answer}");
    assert_eq!(answer["target"], Value::Null);
    let targets = answer["targets"].as_array().expect("targets");
    let slots: Vec<_> = targets.iter().map(|target| &target["slots"]).collect();
    let of = targets[0]["of_slots"].as_u64().expect("slots");
    assert_eq!(slots, [&Value::from(of * 3 / 4), &Value::from(of / 4)]);
    assert!(targets.iter().all(|target| target["wins"].is_null()));
    let ends: Vec<_> = (0..20).map(|_| reached(80).to_string()).collect();
    assert!(
        ends.iter()
            .all(|end| ["10.9.7.2:8080", "10.9.7.3:8080"].contains(&end.as_str())),
        "{ends:?}"
    );
    let text = host.run(&["explain", "tcp", "local", "to", "127.0.0.1:80"]);
    assert!(
        text.contains("redirected to one of its targets by\n"),
        "{text}"
    );
    host.down();
}
