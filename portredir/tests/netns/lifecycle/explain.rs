//! `explain`: it says what happens, for flows and lists of rules at random and with every
//! engine, and it changes nothing.

mod arrival;
mod facts;
mod lists;
mod targets;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use self::arrival::{Own, Servers, arrives_by_tcp, is_served, send_by_udp};
use crate::lab::namespace::Namespace;
use crate::lab::process::note;
use crate::lab::program::PROGRAM;
use crate::lab::{Family, Far, Lab};
use crate::lifecycle::host::{Host, random};
use crate::peer::conn::Proto;
use crate::{Cell, Tests};

pub fn add(tests: &mut Tests) {
    facts::add(tests);
    targets::add(tests);
    for engine in ["tc", "xdp", "socket", "local"] {
        let name = format!("{engine}/explained_as_it_happens");
        tests.add(name, &[], move || as_it_happens(engine));
    }
}

/// The lists of rules, and the flows for each: 1008 flows.
const LISTS: u32 = 24;
const FLOWS: u32 = 42;

/// `explain -`, which answers each line.
struct Explainer {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Explainer {
    fn start(namespace: &Namespace) -> Self {
        let mut child = namespace.enter(|| {
            Command::new(PROGRAM)
                .args(["explain", "-", "--json"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("start explain")
        });
        let questions = child.stdin.take().expect("an input");
        let answers = BufReader::new(child.stdout.take().expect("an output"));
        Self {
            child,
            questions,
            answers,
        }
    }

    fn ask(&mut self, flow: &str) -> Value {
        writeln!(self.questions, "{flow}").expect("ask");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{flow}: {error}: {line}"))
    }
}

impl Drop for Explainer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A flow, and where it comes from.
struct Flow<'a> {
    proto: Proto,
    from: &'a Namespace,
    own: Own,
    to: SocketAddr,
    /// The flow in the words of `explain`.
    words: String,
}

impl<'a> Flow<'a> {
    /// A flow at random, with a client port that no other flow has.
    fn random(
        lab: &'a Lab,
        engine: &str,
        (port, below): (u16, &mut impl FnMut(u64) -> u64),
    ) -> Self {
        let proto = if below(3) == 0 {
            Proto::Udp
        } else {
            Proto::Tcp
        };
        let addr = lists::one(below, &lists::HOST);
        let dst_port = lists::PORTS.start() + u16::try_from(below(5)).expect("small");
        if engine == "local" {
            let addr = match below(3) {
                0 => lists::one(below, &["127.0.0.1", "127.8.8.8", "::1", "0.0.0.0"]),
                _ => addr,
            };
            return Self::local(lab, proto, (addr, dst_port), (port, below(2) == 0));
        }
        let is_v6 = usize::from(addr.contains(':'));
        let is_far = below(3) == 0;
        let (from, addrs, on) = if is_far {
            (lab.far(), lists::FAR[is_v6], "h1")
        } else {
            (&lab.client, lists::CLIENT[is_v6], "h0")
        };
        let own = Own {
            addr: Some(parsed(lists::one(below, addrs))),
            port,
        };
        let to = SocketAddr::new(parsed(addr), dst_port);
        let client = SocketAddr::new(own.addr.expect("an address"), port);
        let words = format!("{} {client} -> {to} on {on}", name(proto));
        Self {
            proto,
            from,
            own,
            to,
            words,
        }
    }

    fn local(
        lab: &'a Lab,
        proto: Proto,
        (addr, dst_port): (&str, u16),
        (port, is_bound): (u16, bool),
    ) -> Self {
        let to = SocketAddr::new(parsed(addr), dst_port);
        let is_bound = is_bound && proto == Proto::Tcp;
        let own = Own {
            addr: None,
            port: if is_bound { port } else { 0 },
        };
        let client = if is_bound {
            format!("local:{port}")
        } else {
            "local".to_owned()
        };
        Self {
            proto,
            from: &lab.host,
            own,
            to,
            words: format!("{} {client} to {to}", name(proto)),
        }
    }
}

const fn name(proto: Proto) -> &'static str {
    match proto {
        Proto::Tcp => "tcp",
        Proto::Udp => "udp",
    }
}

fn parsed(addr: &str) -> IpAddr {
    addr.parse().expect("an address")
}

/// A host with two links, and more than one address at each end.
fn many_addresses(engine: &'static str) -> Lab {
    let cell = Cell {
        engine,
        is_offloaded: false,
        family: Family::V4,
    };
    let lab = Lab::with_far(&cell, Far::BehindHost);
    let add = |namespace: &Namespace, addrs: &[&str], device: &str| {
        let mut batch = String::new();
        for addr in addrs {
            let options = if addr.contains(':') { "/64" } else { "/24" };
            let nodad = if addr.contains(':') { "nodad" } else { "" };
            let _ = writeln!(batch, "addr add {addr}{options} dev {device} {nodad}");
        }
        namespace.ip(&batch);
    };
    add(&lab.host, &["10.9.1.3", "fd09:0:0:1::3"], "h0");
    add(
        &lab.client,
        &["10.9.1.12", "10.9.1.13", "fd09:0:0:1::12"],
        "c0",
    );
    add(lab.far(), &["10.9.2.12", "fd09:0:0:2::12"], "f0");
    lab
}

/// The flows of each rule since the redirect began.
fn counted(host: &Host<'_>) -> HashMap<String, u64> {
    let status = host.status();
    let rules = status["rules"].as_array().expect("a list");
    let flows = |rule: &Value| rule["flows"].as_u64().expect("a number");
    let text = |rule: &Value| rule["rule"].as_str().expect("a text").to_owned();
    rules.iter().map(|rule| (text(rule), flows(rule))).collect()
}

fn as_it_happens(engine: &'static str) {
    let lab = many_addresses(engine);
    let host = Host::of(&lab);
    let (iface, option) = match engine {
        "local" => ("h0,h1,lo", "auto"),
        engine => ("h0,h1", engine),
    };
    let first = "84:8080 from 192.0.2.1";
    host.run(&["up", "--iface", iface, "--engine", option, first]);
    let mut comparison = Comparison {
        lab: &lab,
        host: &host,
        engine,
        servers: Servers::start(&lab.host),
        explainer: Explainer::start(&lab.host),
        redirected: 0,
        others: 0,
    };
    let mut below = random(engine.len() as u64);
    for list in 0..LISTS {
        comparison.of_list(list, &mut below);
    }
    let Comparison {
        redirected, others, ..
    } = comparison;
    note(&format!(
        "{engine}: {redirected} flows redirected, {others} not"
    ));
    // Flows of both kinds were compared.
    assert!(redirected > 150 && others > 150, "{redirected} {others}");
    host.down();
}

/// A comparison of what is said with what happens.
struct Comparison<'a> {
    lab: &'a Lab,
    host: &'a Host<'a>,
    engine: &'static str,
    servers: Servers,
    explainer: Explainer,
    /// The flows that were redirected, and all others.
    redirected: u32,
    others: u32,
}

impl Comparison<'_> {
    /// Compares the flows of one list of rules, and what was counted for each rule.
    fn of_list(&mut self, list: u32, below: &mut impl FnMut(u64) -> u64) {
        let protocols: &[&str] = match self.engine {
            "socket" => &[""],
            _ => &["", "", "/udp", "/both", "/both"],
        };
        let rules = lists::rules(protocols, below);
        let file = self.lab.dir.0.join("rules.toml");
        fs::write(&file, format!("rules = {rules:?}\n")).expect("write the rules");
        self.host
            .run(&["apply", "-f", file.to_str().expect("text")]);
        let before = counted(self.host);
        let mut expected = HashMap::<String, u64>::new();
        let mut sent = Vec::new();
        for number in list * FLOWS..(list + 1) * FLOWS {
            let port = 20_000 + u16::try_from(number).expect("a port");
            let flow = Flow::random(self.lab, self.engine, (port, below));
            let answer = self.ask(&flow);
            if let Some(rule) = answer["rule"].as_str() {
                *expected.entry(rule.to_owned()).or_default() += 1;
            }
            if flow.proto == Proto::Tcp {
                let arrived = arrives_by_tcp(flow.from, flow.own, flow.to);
                check(&flow, &answer, arrived, &rules);
            } else {
                send_by_udp(flow.from, flow.own, flow.to, number);
                sent.push((flow, answer, number));
            }
        }
        self.settle(list);
        for (flow, answer, number) in sent {
            check(&flow, &answer, self.servers.heard(number), &rules);
        }
        for (rule, flows) in counted(self.host) {
            let new = flows - before[&rule];
            let told = expected.get(&rule).copied().unwrap_or_default();
            assert_eq!(new, told, "flows of {rule}, among {rules:?}");
        }
    }

    /// Asks about a flow that has not begun.
    fn ask(&mut self, flow: &Flow<'_>) -> Value {
        let answer = self.explainer.ask(&flow.words);
        check_form(&answer);
        if answer["verdict"] == "redirected" {
            self.redirected += 1;
        } else {
            self.others += 1;
        }
        answer
    }

    /// Waits until all datagrams have arrived.
    fn settle(&self, list: u32) {
        let lab = self.lab;
        let all = [&lab.client, lab.far(), &lab.host];
        for (number, from) in (3 * list..).zip(all) {
            let to = parsed("10.9.1.1");
            self.servers.settle(from, to, u32::MAX - number);
        }
    }
}

/// An answer does not contradict itself.
fn check_form(answer: &Value) {
    let rules = answer["rules"].as_array().expect("a list");
    let winners: Vec<_> = rules.iter().filter(|rule| rule["wins"] == true).collect();
    assert!(winners.len() <= 1, "{answer}");
    if answer["verdict"] == "redirected" {
        assert_eq!(winners.len(), 1, "{answer}");
        assert_eq!(winners[0]["rule"], answer["rule"], "{answer}");
    }
    let is_vague = |rule: &Value| {
        let why = rule["why"].as_str().expect("a text");
        why.starts_with("the programs choose") || why.contains("do not choose it")
    };
    assert!(!rules.iter().any(is_vague), "{answer}");
}

/// The flow has come to where it was said to go.
fn check(flow: &Flow<'_>, answer: &Value, arrived: Option<u16>, rules: &[String]) {
    let port = u16::try_from(answer["port"].as_u64().expect("a port")).expect("a port");
    let is_refused = ["refused", "dropped"]
        .iter()
        .any(|word| answer["verdict"] == **word);
    let addr = match flow.to.ip() {
        addr if addr.is_unspecified() => parsed("127.0.0.1"),
        addr => addr,
    };
    let told = (!is_refused && is_served(addr, port)).then_some(port);
    assert_eq!(arrived, told, "{}: {answer}\nrules: {rules:#?}", flow.words);
}
