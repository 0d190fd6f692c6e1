//! Rules of packet filters on the way from clients to targets.
//!
//! A filter sees the packet with the address of the target, because the programs rewrite
//! it before the packet comes to the IP stack.

use std::collections::BTreeMap;

use portredir_common::net::Protocol;

use super::{FIREWALL, Planner, WantedWay};
use crate::host::packet_filter::ruleset::name_of;
use crate::host::packet_filter::{Filtered, NOT_EVALUATED, Seen, filtered};
use crate::host::way::Device;
use crate::plan::finding::Severity;

/// The priority of chains that come before connection tracking, `NF_IP_PRI_RAW`.
const RAW: i64 = -300;

/// Packets of which one verdict tells.
#[derive(Default)]
struct Met {
    ends: Vec<String>,
    ingress: Vec<String>,
    is_docker: bool,
    is_v4: bool,
}

/// Verdicts with the packets that they are about.
type Verdicts = BTreeMap<(&'static str, String), (Filtered, Met)>;

impl Planner<'_> {
    pub(super) fn check_firewall(&mut self) {
        let mut verdicts = Verdicts::new();
        let mut is_any = false;
        for wanted in self.request.wanted {
            let Some((_, egress)) = self.out(wanted) else {
                continue;
            };
            for ingress in self.ingress(wanted).values() {
                is_any = true;
                for protocol in wanted.protocols.each() {
                    self.visit(wanted, *protocol, ([ingress, egress], &mut verdicts));
                }
            }
        }
        for (filtered, met) in verdicts.into_values() {
            self.tell(&filtered, &met);
        }
        if is_any {
            for why in &self.facts.filters.unread {
                self.leave_out(FIREWALL, why.clone());
            }
        }
    }

    /// Sends one packet through all filters.
    fn visit(
        &self,
        wanted: &WantedWay,
        protocol: Protocol,
        ([ingress, egress], verdicts): ([&Device; 2], &mut Verdicts),
    ) {
        let seen = Seen {
            protocol,
            src: wanted.from,
            src_port: None,
            dst: (wanted.target, wanted.port.get()),
            interface: Some(&ingress.name),
            egress: Some(&egress.name),
        };
        for one in filtered(&self.facts.filters, &seen) {
            if one.verdict == "accepts" {
                continue;
            }
            let key = (one.verdict, format!("{} {:?}", one.chain, one.by));
            let (_, met) = verdicts.entry(key).or_insert_with(|| (one, Met::default()));
            let end = format!("{}/{}", wanted.end(), name_of(protocol));
            for (list, name) in [
                (&mut met.ends, end),
                (&mut met.ingress, ingress.name.clone()),
            ] {
                if !list.contains(&name) {
                    list.push(name);
                }
            }
            met.is_docker |= is_of_docker(egress);
            met.is_v4 = wanted.target.is_ipv4();
        }
    }

    fn tell(&mut self, filtered: &Filtered, met: &Met) {
        let by = match filtered.by.as_slice() {
            [] => format!("the policy of {}", filtered.chain),
            [rule, ..] => format!("`{rule}` in {}", filtered.chain),
        };
        let (ends, names) = (met.ends.join(", "), met.ingress.join(", "));
        let delete = filtered.delete.join(" && ");
        match filtered.verdict {
            NOT_EVALUATED => {
                let rules = filtered.by.iter().map(|rule| format!("`{rule}`"));
                let rules: Vec<_> = rules.take(3).collect();
                let rules = match rules.as_slice() {
                    [] => String::new(),
                    rules => format!(": {}", rules.join(", ")),
                };
                let chain = &filtered.chain;
                let why = format!("packets to {ends} from {names} in {chain}{rules}");
                self.leave_out(FIREWALL, why);
            }
            "drops" if filtered.hook == "prerouting" && filtered.priority <= RAW => {
                self.before_tracking(&by, &ends, (&delete, met));
            }
            "drops" => {
                let what = format!("{by} drops packets to {ends}");
                let why = format!("clients that come in by {names} get no answer");
                let fix = filtered.accept.clone();
                self.find(FIREWALL, Severity::Error, [what, why, fix]);
            }
            "redirects" => {
                let what = format!("{by} redirects packets to {ends}");
                let why = format!(
                    "that rule sees them with the address of the target, so clients that come in \
                     by {names} end elsewhere"
                );
                self.find(FIREWALL, Severity::Error, [what, why, delete]);
            }
            _ => {
                let what = format!("{by} translates the source of packets to {ends}");
                let why = format!(
                    "the target sees an address of this host instead of those of clients that \
                     come in by {names}"
                );
                self.find(FIREWALL, Severity::Warning, [what, why, delete]);
            }
        }
    }

    /// A rule of a chain before connection tracking: DNAT by netfilter comes behind it, and
    /// so never met it.
    fn before_tracking(&mut self, by: &str, ends: &str, (delete, met): (&str, &Met)) {
        let what = format!("{by} drops packets to {ends}");
        if !met.is_docker {
            let why = "packets have the address of the target before any filter sees them";
            self.find(
                FIREWALL,
                Severity::Error,
                [what, why.to_owned(), delete.to_owned()],
            );
            return;
        }
        let why = "Docker 28 and newer drops what is sent to a container from outside, before \
                   DNAT; packets have the address of the container before that already";
        let mode = if met.is_v4 {
            "gateway_mode_ipv4"
        } else {
            "gateway_mode_ipv6"
        };
        let fix = format!(
            "give the container a network with com.docker.network.bridge.{mode}=nat-unprotected: \
             docker network create -o com.docker.network.bridge.{mode}=nat-unprotected NAME"
        );
        self.find(FIREWALL, Severity::Error, [what, why.to_owned(), fix]);
    }
}

/// Whether Docker has made a bridge, judging by its name.
fn is_of_docker(device: &Device) -> bool {
    let id = device.name.strip_prefix("br-");
    let is_id = |id: &str| id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    device.is_bridge() && (device.name.starts_with("docker") || id.is_some_and(is_id))
}
