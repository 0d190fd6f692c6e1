//! Route, link and neighbour of a target.

use super::{Planner, ROUTE, WantedWay};
use crate::host::way::{Device, Hop, Neighbour, NoRoute, Route};
use crate::plan::finding::Severity;

impl Planner<'_> {
    pub(super) fn check_route(&mut self, wanted: &WantedWay) {
        let Some(way) = self.facts.ways.get(&wanted.target) else {
            return;
        };
        match &way.route {
            Route::Out(hop) => {
                if let Some(device) = self.device(hop.index)
                    && self.check_link(wanted, device)
                {
                    self.check_neighbour(wanted, hop, device, way.neighbour);
                }
            }
            Route::Local => self.own(wanted),
            Route::None(why) => self.no_route(wanted, *why),
            Route::Unknown(answer) => {
                let end = wanted.end();
                self.leave_out(
                    ROUTE,
                    format!("the route to {end}: the kernel says: {answer}"),
                );
            }
        }
    }

    /// A target that is this host.
    fn own(&mut self, wanted: &WantedWay) {
        let (target, port) = (wanted.target, wanted.port.get());
        let what = format!(
            "{target} in rule `{}` is an address of this host",
            wanted.rule
        );
        let why = "packets to it never leave this host, so nothing forwards them".to_owned();
        let fix = format!("write the port alone as the target: {port}");
        self.find(ROUTE, Severity::Error, [what, why, fix]);
    }

    fn no_route(&mut self, wanted: &WantedWay, why: NoRoute) {
        let (target, rule) = (wanted.target, &wanted.rule);
        let add = format!("ip route add {target} via GATEWAY");
        let [what, fix] = match why {
            NoRoute::Missing => [format!("no route leads to {target}"), add],
            NoRoute::Refusing(kind) => [
                format!("the route to {target} has type {kind}"),
                format!("{add}; look at it first: ip route show match {target}"),
            ],
            NoRoute::Many => [
                format!("{target} is a broadcast or multicast address"),
                "name the address of one host".to_owned(),
            ],
            NoRoute::LinkLocal => [
                format!("{target} is a link-local address, another one on each link"),
                "name another address of that host: ip -6 neigh".to_owned(),
            ],
        };
        let why = format!("clients of rule `{rule}` get no answer from there");
        self.find(ROUTE, Severity::Error, [what, why, fix]);
    }

    /// Whether the link to the target is up.
    fn check_link(&mut self, wanted: &WantedWay, device: &Device) -> bool {
        let (name, end) = (&device.name, wanted.end());
        let [what, fix] = if !device.is_up {
            [format!("{name} is down"), format!("ip link set {name} up")]
        } else if device.is_bridge() && device.ports == 0 {
            // A bridge that never had a port has a carrier all the same.
            [
                format!("bridge {name} has no ports"),
                format!(
                    "start the container or the machine that has {}",
                    wanted.target
                ),
            ]
        } else if device.has_carrier {
            return true;
        } else {
            [
                format!("{name} has no carrier"),
                format!("look at the other end of the link: ip -s link show {name}"),
            ]
        };
        let why = format!("packets to {end} leave by it");
        self.find(ROUTE, Severity::Warning, [what, why, fix]);
        false
    }

    fn check_neighbour(
        &mut self,
        wanted: &WantedWay,
        hop: &Hop,
        device: &Device,
        state: Neighbour,
    ) {
        let (asked, name) = (hop.gateway.unwrap_or(wanted.target), &device.name);
        match state {
            Neighbour::Failed => {
                let what = format!("nobody answers for {asked} on {name}");
                let why = format!("packets to {} go to it", wanted.end());
                let fix = format!(
                    "look whether that host runs: ip neigh show {asked} dev {name}; ping {asked}"
                );
                self.find(ROUTE, Severity::Warning, [what, why, fix]);
            }
            Neighbour::Incomplete | Neighbour::Unknown => self.leave_out(
                ROUTE,
                format!("whether {asked} answers on {name}: nothing was sent there lately"),
            ),
            Neighbour::Reachable | Neighbour::Stale | Neighbour::NotNeeded => {}
        }
    }
}
