//! Everything that stands behind the program of a flow, as far as it can be known.

use std::fmt;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsFd as _;

use portredir_common::net::{Addr, LOOPBACK_IFINDEX, Port, Protocol};
use serde::Serialize;

use super::packet::Ends;
use super::place::{Place, Way};
use super::sockets::is_for;
use crate::host::features::{OURS, program_name};
use crate::host::filters::{self, Direction};
use crate::host::packet_filter::{Filtered, Rulesets, Seen, filtered};
use crate::host::snapshot::Snapshot;
use crate::host::{routes, xdp};
use crate::observe::listening::{Listener, Listeners, name_of};
use crate::plan::way::WantedWay;
use crate::plan::way::present::PresentWay;
use crate::rule::Ports;
use crate::sys::bpf_query::{self, AttachType, Target};
use crate::sys::netns::NETNS;

/// The rest of the way of a flow.
#[derive(Clone, Debug, Serialize)]
pub struct Behind {
    /// The programs on the hooks of the interface, in the order in which they run.
    pub programs: Vec<Hooked>,
    /// The decision of the kernel about the route.
    pub route: String,
    /// The verdicts of chains of nftables and iptables.
    pub firewall: Vec<Filtered>,
    /// The servers on the port that the flow reaches.
    pub listeners: Vec<String>,
    /// Everything that was not evaluated, and why.
    pub not_evaluated: Vec<String>,
}

/// A hook with its programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hooked {
    /// The hook.
    pub hook: String,
    /// The names of the programs, with the IDs of those of others.
    pub programs: Vec<String>,
}

impl Behind {
    /// Looks at what stands behind the program; `ends` are those of the packet that goes
    /// on.
    #[must_use]
    pub fn of(rulesets: &Rulesets, place: &Place, ends: &Ends, fate: Fate) -> Self {
        let mut behind = Self {
            programs: Vec::new(),
            route: "-".to_owned(),
            firewall: Vec::new(),
            listeners: Vec::new(),
            not_evaluated: Vec::new(),
        };
        behind.add_programs(place);
        if fate == Fate::Forwarded {
            behind.leave_out("packet filters on the way to the target: portredir doctor");
        } else if place.ifindex == LOOPBACK_IFINDEX {
            behind.leave_out("route and firewall of local clients");
        } else if fate == Fate::GoesOn {
            let route = Route::of(place, ends);
            behind.route = route.to_string();
            if let Ok(true) = route.answer {
                behind.add_firewall(rulesets, place, ends);
            } else {
                behind.leave_out("firewall, as the packet is not delivered to this host");
            }
        }
        behind
    }

    fn leave_out(&mut self, why: impl Into<String>) {
        self.not_evaluated.push(why.into());
    }

    fn add_firewall(&mut self, rulesets: &Rulesets, place: &Place, ends: &Ends) {
        let interface = match place.names.as_slice() {
            [name] => Some(name.as_str()),
            _ => None,
        };
        let seen = Seen {
            protocol: ends.protocol,
            src: Some(ends.src.0.into()),
            src_port: Some(ends.src.1.get()),
            dst: (ends.dst.0, ends.dst.1.get()),
            interface,
            egress: None,
        };
        self.firewall = filtered(rulesets, &seen);
        for why in &rulesets.unread {
            self.leave_out(format!("firewall: {why}"));
        }
    }

    /// Adds the servers on the port of this host that the flow reaches.
    #[must_use]
    pub fn with_servers(
        mut self,
        servers: &Listeners,
        place: &Place,
        (protocol, addr, port): (Protocol, IpAddr, Port),
    ) -> Self {
        self.listeners = listeners(servers, place, (protocol, addr, port));
        self
    }

    /// Adds the way to a target.
    #[must_use]
    pub fn with_way(mut self, host: &Snapshot, end: (IpAddr, Port)) -> Self {
        let wanted = [WantedWay::alone(String::new(), end)];
        match PresentWay::look(host, &wanted) {
            Ok(ways) => {
                let ways = ways.into_iter().map(|way| {
                    let faults = way.findings.iter().map(|finding| finding.what.as_str());
                    let all = [way.target.to_string()];
                    let all = all.iter().map(String::as_str).chain(faults);
                    all.collect::<Vec<_>>().join("; ")
                });
                self.route = ways.map(|way| format!("to the target {way}")).collect();
            }
            Err(error) => self.leave_out(format!("the route to the target: {error}")),
        }
        self
    }

    /// Says why the servers are not known.
    #[must_use]
    pub fn without_servers(mut self, why: &str) -> Self {
        self.not_evaluated.push(format!("listeners: {why}"));
        self
    }
}

/// Whether a packet goes on behind the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The packet goes on.
    GoesOn,
    /// The program drops the packet.
    Ended,
    /// The packet goes to one of the targets of its rule.
    Forwarded,
}

fn listeners(
    servers: &Listeners,
    place: &Place,
    (protocol, addr, port): (Protocol, IpAddr, Port),
) -> Vec<String> {
    let (number, name) = (port.get(), name_of(protocol));
    let here: Vec<_> = servers
        .within(protocol, Ports::one(port))
        .flat_map(|(_, here)| here)
        .collect();
    let is_reached = |listener: &&&Listener| {
        let device = listener.device.as_deref();
        let is_device = device.is_none_or(|device| place.names.iter().any(|name| name == device));
        is_device && is_for(listener, Addr::from(addr))
    };
    let (reached, others): (Vec<_>, Vec<_>) = here.iter().partition(is_reached);
    let line = |listener: &&Listener| {
        let (who, place) = (listener.who(), listener.place());
        format!("{who} listens on {number}/{name} ({place})")
    };
    if !reached.is_empty() {
        return reached.into_iter().map(line).collect();
    }
    let nobody = format!("nobody listens on {number}/{name} for {addr}");
    let others = others.into_iter().map(line);
    [nobody].into_iter().chain(others).collect()
}

/// The answer of the kernel about the route of a packet that comes in.
struct Route {
    /// Whether the packet is delivered to this host.
    answer: Result<bool, String>,
    filter: String,
}

impl Route {
    fn of(place: &Place, ends: &Ends) -> Self {
        let incoming = routes::Incoming {
            src: ends.src.0,
            dst: ends.dst.0,
            // The interface that the stack sees: the bridge of a port.
            index: place.stack_index,
            protocol: ends.protocol as u8,
            ports: (ends.src.1.get(), ends.dst.1.get()),
        };
        let answer = routes::of_incoming(&incoming);
        let (src, name) = (ends.src.0, &place.name);
        Self {
            answer: answer.map_err(|error| format!("the kernel refuses {src} on {name}: {error}")),
            filter: rp_filter(place, ends.dst.0),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.answer {
            Ok(true) => "the kernel delivers it to this host",
            Ok(false) => "the kernel does not deliver it to this host",
            Err(refused) => refused,
        })?;
        f.write_str(&self.filter)
    }
}

/// The filter by the way back; IPv6 has none of this kind.
fn rp_filter(place: &Place, addr: IpAddr) -> String {
    if addr.is_ipv6() {
        return String::new();
    }
    let name = place.names.last().unwrap_or(&place.name);
    let read = |name: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        let text = fs::read_to_string(path).ok()?;
        text.trim().parse::<u8>().ok()
    };
    // The larger value counts (Documentation/networking/ip-sysctl.rst).
    let filter = read("all").zip(read(name)).map(|(all, one)| all.max(one));
    let word = match filter {
        None => "-",
        Some(0) => "off",
        Some(1) => "strict",
        Some(_) => "loose",
    };
    format!(" (rp_filter: {word})")
}

/// The IDs of the programs for packets that come in by an interface.
#[must_use]
pub fn program_ids(index: u32) -> Vec<u32> {
    let xdp = xdp::attached(index).ok().flatten();
    let tcx = bpf_query::programs(Target::Interface(index), AttachType::TcxIngress);
    let filters = filters::list(index, Direction::Ingress).unwrap_or_default();
    let filters = filters.into_iter().filter_map(|filter| filter.program);
    let tcx = tcx.unwrap_or_default().into_iter();
    xdp.into_iter().chain(tcx).chain(filters).collect()
}

impl Behind {
    /// Adds the programs on the hooks that the flow passes.
    fn add_programs(&mut self, place: &Place) {
        let index = place.ifindex;
        if let Way::Clients { hook, program } = &place.way {
            let others = place.others.iter().cloned();
            self.add_hook(hook, others.chain([program.clone()]).collect());
            self.leave_out("programs behind those of portredir on the hooks of the cgroup");
            return;
        }
        match xdp::attached(index) {
            Ok(xdp) => self.add_hook("xdp", xdp.iter().map(named).collect()),
            Err(error) => self.leave_out(format!("programs at XDP: {error}")),
        }
        match bpf_query::programs(Target::Interface(index), AttachType::TcxIngress) {
            Ok(tcx) => self.add_hook("tcx ingress", tcx.iter().map(named).collect()),
            // Before Linux 6.6 there is no TCX.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => self.leave_out(format!("programs at TCX ingress: {error}")),
        }
        // Without the qdisc there are no filters.
        let filters = filters::list(index, Direction::Ingress).unwrap_or_default();
        let filters = filters.into_iter().map(|filter| filter.name);
        self.add_hook("clsact ingress", filters.collect());
        if matches!(place.way, Way::Lookup { .. }) {
            let netns = File::open(NETNS);
            let lookups = netns.and_then(|netns| {
                bpf_query::programs(Target::Netns(netns.as_fd()), AttachType::SkLookup)
            });
            match lookups {
                Ok(lookups) => self.add_hook("sk_lookup", lookups.iter().map(named).collect()),
                Err(error) => self.leave_out(format!("programs at sk_lookup: {error}")),
            }
        }
    }

    fn add_hook(&mut self, hook: &str, programs: Vec<String>) {
        if !programs.is_empty() {
            self.programs.push(Hooked {
                hook: hook.to_owned(),
                programs,
            });
        }
    }
}

/// The name of a program, with its ID where it is one of others.
fn named(id: &u32) -> String {
    match program_name(*id) {
        Some(name) if name.starts_with(OURS) => name,
        Some(name) => format!("{name} (id {id})"),
        None => format!("program id {id}"),
    }
}
