//! Packets and what became of them, in a form for people and programs: one line for each
//! record of the programs.

pub mod filter;
pub mod pcap;
mod ports;
mod targets;
#[cfg(test)]
mod tests;

use std::fmt::{self, Write as _};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use nix::net::if_::if_indextoname;
use portredir_common::map::trace::{Record, TraceHead, TraceHook, TracedPacket, TracedSocket};
use portredir_common::net::{Port, Protocol};
use portredir_common::verdict::{Reason, Verdict};
use serde::Serialize;

use crate::rule::Rule;
use crate::sys::clock::monotonic;

pub use self::ports::{End, Ends};
use self::ports::{Headers, headers};
use self::targets::addr;

/// The host, as far as lines name it.
#[derive(Debug)]
pub struct Context {
    /// The rules that run, with the numbers of their counters.
    pub rules: Vec<(u16, Rule)>,
    /// `CLOCK_MONOTONIC` at some moment, and the time then.
    pub clock: (Duration, Timestamp),
}

impl Context {
    /// The host as it is now.
    #[must_use]
    pub fn new(rules: Vec<(u16, Rule)>) -> Self {
        Self {
            rules,
            clock: (monotonic(), Timestamp::now()),
        }
    }
}

/// The name of an interface; `None` where there is none with this index.
#[must_use]
pub fn interface_name(ifindex: u32) -> Option<String> {
    let name = if_indextoname(ifindex).ok()?;
    Some(name.to_string_lossy().into_owned())
}

/// A rule for the port of a packet, and the condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// The rule.
    pub rule: Rule,
    /// The condition: `address`, `from` or `on`.
    pub condition: &'static str,
}

/// One packet, or the peer of one socket, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The version of this layout.
    pub schema: u32,
    /// The time, to the microsecond.
    pub time: Timestamp,
    /// The interface; `None` where it is not known.
    pub interface: Option<String>,
    /// The hook.
    pub hook: &'static str,
    /// The protocol: `tcp`, `udp`, `icmp`, or none of a fragment.
    pub protocol: Option<&'static str>,
    /// The TCP flags, as letters of tcpdump.
    pub flags: Option<String>,
    /// The ends as the packet came. For an ICMP error, those of the packet that it quotes.
    pub before: Ends,
    /// The ends as the packet went on.
    pub after: Ends,
    /// Whether the ends are those of the packet that an ICMP error quotes.
    pub quoted: bool,
    /// `pass` or `drop`.
    pub verdict: &'static str,
    /// The word of the reason.
    pub reason: &'static str,
    /// The rule; `None` where the packet belongs to no rule that runs, or not to one alone.
    pub rule: Option<Rule>,
    /// The rules for the port whose conditions do not hold.
    pub failed: Vec<Failed>,
    /// The length in bytes; `None` for a socket.
    pub length: Option<u32>,
    /// The packets of the wire that this one stands for; `None` for a socket.
    pub packets: Option<u32>,
    /// The process that owns the socket; `None` for a packet.
    pub pid: Option<u32>,
    /// The name of that process.
    pub process: Option<String>,
}

/// The name of a hook.
const fn hook_name(hook: TraceHook) -> &'static str {
    match hook {
        TraceHook::Xdp => "xdp",
        TraceHook::Ingress => "ingress",
        TraceHook::Egress => "egress",
        TraceHook::Assign => "assign",
        TraceHook::Connect => "connect",
        TraceHook::Send => "sendmsg",
        TraceHook::Receive => "recvmsg",
        TraceHook::PeerName => "getpeername",
        TraceHook::Lookup => "sk_lookup",
    }
}

impl Context {
    /// The line of a record; `None` for one of a program of another version.
    #[must_use]
    pub fn line(&self, record: &Record, interface: Option<String>) -> Option<Line> {
        match record {
            Record::Packet(packet) => self.packet(packet, interface),
            Record::Socket(socket) => self.socket(socket, interface),
        }
    }

    fn packet(&self, packet: &TracedPacket, interface: Option<String>) -> Option<Line> {
        let before = headers(packet, &packet.before)?;
        let after = headers(packet, &packet.after)?;
        let line = self.blank(&packet.head, interface, &before)?;
        let line = Line {
            before: before.ends,
            after: after.ends,
            quoted: before.is_quote,
            length: Some(packet.len),
            packets: Some(packet.segments),
            ..line
        };
        Some(self.with_rules(line, packet.head.rule))
    }

    fn socket(&self, socket: &TracedSocket, interface: Option<String>) -> Option<Line> {
        let src = (socket.client_port != Port::CLOSED).then(|| End {
            addr: addr(socket.client.octets()),
            port: Some(socket.client_port),
        });
        let peer = |port| {
            Some(End {
                addr: addr(socket.peer.octets()),
                port: Some(port),
            })
        };
        let headers = Headers {
            protocol: ports::protocol_name(socket.protocol),
            ends: Ends {
                src,
                dst: peer(socket.port),
            },
            ..Headers::default()
        };
        let line = self.blank(&socket.head, interface, &headers)?;
        let name = socket.comm.split(|byte| *byte == 0).next()?;
        let has_owner = socket.head.pid != 0;
        let line = Line {
            before: headers.ends,
            after: Ends {
                src,
                dst: targets::peer_after(&self.rules, socket),
            },
            pid: has_owner.then_some(socket.head.pid),
            process: has_owner.then(|| String::from_utf8_lossy(name).into_owned()),
            ..line
        };
        Some(self.with_rules(line, socket.head.rule))
    }

    /// A line with what all records have.
    fn blank(
        &self,
        head: &TraceHead,
        interface: Option<String>,
        headers: &Headers,
    ) -> Option<Line> {
        let reason = *Reason::ALL.get(usize::try_from(head.reason).ok()?)?;
        let hook = *TraceHook::ALL.get(usize::try_from(head.hook).ok()?)?;
        Some(Line {
            schema: 1,
            time: self.time(head.at_ns),
            interface,
            hook: hook_name(hook),
            protocol: headers.protocol,
            flags: headers.flags.clone(),
            before: headers.ends,
            after: headers.ends,
            quoted: false,
            verdict: match reason.verdict() {
                Verdict::Pass => "pass",
                Verdict::Drop => "drop",
            },
            reason: reason.label(),
            rule: None,
            failed: Vec::new(),
            length: None,
            packets: None,
            pid: None,
            process: None,
        })
    }

    /// The time of `CLOCK_MONOTONIC`, to the microsecond.
    fn time(&self, at_ns: u64) -> Timestamp {
        let (then, time) = self.clock;
        let at = Duration::from_micros(at_ns / 1000);
        let since = SignedDuration::try_from(at).ok().zip(then.try_into().ok());
        let since = since.map_or(SignedDuration::ZERO, |(at, then): (_, SignedDuration)| {
            at - then
        });
        time.saturating_add(since).unwrap_or(time)
    }

    /// The line with its rule, or with the rules whose conditions do not hold.
    fn with_rules(&self, mut line: Line, number: u32) -> Line {
        let protocol = match line.protocol {
            Some("tcp") => Protocol::Tcp,
            Some("udp") => Protocol::Udp,
            _ => return line,
        };
        let has = |rule: &Rule| rule.protocols.each().contains(&protocol);
        let rules = self.rules.iter().filter(|(_, rule)| has(rule));
        if line.reason == Reason::NoMatch.label() {
            line.failed = rules
                .filter_map(|(_, rule)| {
                    let condition = failed_condition(rule, &line)?;
                    let rule = rule.clone();
                    Some(Failed { rule, condition })
                })
                .collect();
            return line;
        }
        if number & TraceHead::RULE != 0 {
            let number = u16::try_from(number & !TraceHead::RULE).ok();
            let known = |(id, _): &&(u16, Rule)| Some(*id) == number;
            line.rule = rules.clone().find(known).map(|(_, rule)| rule.clone());
            return line;
        }
        // The hook did not tell, but the ports do, where one rule alone can have changed them.
        let mut fitting = rules.filter(|(_, rule)| changes(rule, &line));
        if let (Some((_, rule)), None) = (fitting.next(), fitting.next()) {
            line.rule = Some(rule.clone());
        }
        line
    }
}

/// Whether a rule may be the one that changed the ports of this line.
fn changes(rule: &Rule, line: &Line) -> bool {
    let changed = |from: Option<End>, to: Option<End>| {
        let from = from?;
        let is_addr = rule.addr.is_none_or(|addr| addr == from.addr);
        let is_its = is_addr && rule.redirects(from.port?);
        Some(is_its && targets::leads(rule, from, to))
    };
    let (before, after) = (line.before, line.after);
    changed(before.dst, after.dst) == Some(true) || changed(after.src, before.src) == Some(true)
}

/// The first condition of a rule for the destination port that does not hold.
fn failed_condition(rule: &Rule, line: &Line) -> Option<&'static str> {
    let dst = line.before.dst?;
    if !rule.redirects(dst.port?) {
        return None;
    }
    // The client of a socket is not known; it may have any address of this host.
    let is_from = |src: End| rule.from.is_none_or(|from| from.contains(&src.addr));
    let is_on = |name: &String| on_matches(&rule.on, name);
    if rule.addr.is_some_and(|addr| addr != dst.addr) {
        Some("address")
    } else if line.before.src.is_some_and(|src| !is_from(src)) {
        Some("from")
    } else if !rule.on.is_empty() && !line.interface.as_ref().is_some_and(is_on) {
        Some("on")
    } else if line.before.src.is_none() && rule.from.is_some() {
        Some("from")
    } else {
        None
    }
}

/// Whether an interface is one of those that a rule names, by name or by glob.
fn on_matches(on: &[String], name: &str) -> bool {
    on.iter().any(|pattern| {
        glob::Pattern::new(pattern).map_or(pattern == name, |pattern| pattern.matches(name))
    })
}

/// An end with the port that it got: `192.0.2.1:80=>8080`, or with the address and port:
/// `192.0.2.1:80=>10.0.0.5:8080`. `?` is an end that is not known.
fn changed(before: Option<End>, after: Option<End>) -> String {
    let Some(end) = before else {
        return "-".to_owned();
    };
    match after {
        None => format!("{end}=>?"),
        Some(after) if after.addr != end.addr => format!("{end}=>{after}"),
        Some(End {
            port: Some(port), ..
        }) if end.port != Some(port) => format!("{end}=>{}", port.get()),
        Some(_) => end.to_string(),
    }
}

/// One line of text, without the end of the line.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.time.to_zoned(TimeZone::system());
        write!(f, "{} ", time.strftime("%H:%M:%S.%6f"))?;
        let interface = self.interface.as_deref().unwrap_or("-");
        write!(
            f,
            "{interface} {} {}",
            self.hook,
            self.protocol.unwrap_or("ip")
        )?;
        if let Some(flags) = &self.flags {
            write!(f, " {flags}")?;
        }
        if self.quoted {
            f.write_str(" about")?;
        }
        let (before, after) = (self.before, self.after);
        let src = match (&self.process, self.pid) {
            (Some(name), Some(pid)) => format!("{name}[{pid}]"),
            _ => changed(before.src, after.src),
        };
        write!(f, " {src} -> {}", changed(before.dst, after.dst))?;
        write!(f, " {} {}", self.verdict, self.reason)?;
        if let Some(rule) = &self.rule {
            write!(f, " {rule}")?;
        }
        let mut more = String::new();
        for failed in &self.failed {
            let sep = if more.is_empty() { " " } else { "; " };
            write!(more, "{sep}{} ({})", failed.rule, failed.condition)?;
        }
        f.write_str(&more)
    }
}
