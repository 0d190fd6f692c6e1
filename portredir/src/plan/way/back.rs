//! The way of replies: they have to come back by this host, which alone knows the address
//! that the client dialled.

use super::{Planner, RETURN, WantedWay};
use crate::host::way::{Device, Hop};
use crate::plan::finding::Severity;

impl Planner<'_> {
    pub(super) fn check_return(&mut self, wanted: &WantedWay) {
        let ingress = self.ingress(wanted);
        let Some((hop, device)) = self.out(wanted).filter(|_| !ingress.is_empty()) else {
            return;
        };
        let is_one_arm = ingress.contains_key(&device.index);
        match hop.on_link.filter(|_| is_one_arm) {
            Some(link) if wanted.from.is_none_or(|from| meet(from, link)) => {
                if !device.is_bridge() {
                    self.one_arm(wanted, (hop, device));
                } else if !device.is_tracked_bridge {
                    self.hairpin(wanted, device);
                }
                if wanted.from.is_some_and(|from| link.contains(&from)) {
                    return;
                }
            }
            _ => {}
        }
        self.not_evaluated(wanted, (hop, device));
    }

    /// A target beside its clients: it answers them directly.
    fn one_arm(&mut self, wanted: &WantedWay, (hop, device): (&Hop, &Device)) {
        let (end, name) = (wanted.end(), &device.name);
        let Some(link) = hop.on_link else { return };
        let is_for_all = wanted.from.is_some_and(|from| link.contains(&from));
        let severity = if is_for_all {
            Severity::Error
        } else {
            Severity::Warning
        };
        let what = format!("replies of {end} to clients in {link} do not come back by this host");
        let why = format!(
            "target and clients are on the link of {name}, so the target answers them directly, \
             and they refuse an answer from an address that they did not connect to"
        );
        let source = hop.source.map(|addr| addr.to_string());
        let fix = policy_routing(wanted, source.as_deref().unwrap_or("THIS-HOST"));
        let fix = format!(
            "on the target: {fix}; or put the target into a network of its own, with this host \
             as its gateway; SNAT is not there yet"
        );
        self.find(RETURN, severity, [what, why, fix]);
    }

    /// A target on a bridge of this host that also has clients.
    fn hairpin(&mut self, wanted: &WantedWay, device: &Device) {
        let (end, name) = (wanted.end(), &device.name);
        let what = format!("clients on bridge {name} may get no answer from {end}");
        let why = format!(
            "{name} passes replies from port to port, and they do not come to the IP stack: \
             br_netfilter is off"
        );
        let file = if wanted.target.is_ipv4() {
            "iptables"
        } else {
            "ip6tables"
        };
        let fix = format!("modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-{file}=1");
        self.find(RETURN, Severity::Warning, [what, why, fix]);
    }

    /// Routes of the target are not to be seen from here.
    fn not_evaluated(&mut self, wanted: &WantedWay, (hop, device): (&Hop, &Device)) {
        let (end, name) = (wanted.end(), &device.name);
        let by = match hop.gateway {
            Some(gateway) => format!("{name} and {gateway}"),
            None => name.clone(),
        };
        let mut why = format!(
            "whether replies of {end} come back by {by}: routes of the target are not to be seen \
             here, and have to lead to this host"
        );
        if device.rp_filter == 1 && wanted.target.is_ipv4() {
            why += &format!("; by another interface the kernel drops them (rp_filter of {name})");
        }
        self.leave_out(RETURN, why);
    }
}

/// Whether two networks have an address in common.
fn meet(a: ipnet::IpNet, b: ipnet::IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// The commands that send replies of the target's port by this host.
fn policy_routing(wanted: &WantedWay, source: &str) -> String {
    let ip = if wanted.target.is_ipv4() {
        "ip"
    } else {
        "ip -6"
    };
    let port = wanted.port.get();
    let each = wanted.protocols.each().iter();
    let rules = each.map(|protocol| {
        let name = crate::host::packet_filter::ruleset::name_of(*protocol);
        format!(" && {ip} rule add ipproto {name} sport {port} table 100")
    });
    let rules: String = rules.collect();
    format!("{ip} route add default via {source} table 100{rules}")
}
