//! The switches of forwarding that targets need.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{FORWARDING, Planner, WantedWay};
use crate::host::forwarding::{Forwarding, Switch};
use crate::host::way::Device;
use crate::plan::finding::Severity;

/// The option that lets `up` switch forwarding on.
pub const OPTION: &str = "--enable-forwarding";

/// The switches of one IP version, and the names of the interfaces that need them.
#[derive(Default)]
struct Needed {
    switches: BTreeSet<Switch>,
    interfaces: BTreeSet<String>,
}

impl Needed {
    fn names(&self) -> String {
        let names = self.interfaces.iter().map(String::as_str);
        names.collect::<Vec<_>>().join(", ")
    }

    /// The command that sets the switches.
    fn command(&self) -> String {
        let settings = self.switches.iter();
        let settings: Vec<_> = settings.map(|switch| switch.name() + "=1").collect();
        format!("sysctl -w {}", settings.join(" "))
    }
}

impl<'a> Planner<'a> {
    /// The switches to set. None where the request does not allow it.
    pub(super) fn check_forwarding(&mut self) -> Forwarding {
        let (mut v4, mut v6) = (Needed::default(), Needed::default());
        for wanted in self.request.wanted {
            let devices = self.forwarding(wanted).into_iter();
            for device in devices.filter(|device| !device.forwards(wanted.target)) {
                let needed = if wanted.target.is_ipv4() {
                    &mut v4
                } else {
                    &mut v6
                };
                needed.switches.insert(self.switch(wanted.target, device));
                needed.interfaces.insert(device.name.clone());
            }
        }
        self.lost_routers(&v6);
        let mut forwarding = Forwarding::default();
        for (version, needed) in [("IPv4", v4), ("IPv6", v6)] {
            if needed.switches.is_empty() {
                continue;
            }
            self.off(version, &needed);
            if self.request.may_enable {
                forwarding.switches.extend(needed.switches);
            }
        }
        forwarding
    }

    /// The interfaces that have to forward for a target.
    pub(super) fn forwarding(&self, wanted: &WantedWay) -> Vec<&'a Device> {
        let ingress = self.ingress(wanted);
        let Some((_, egress)) = self.out(wanted).filter(|_| !ingress.is_empty()) else {
            return Vec::new();
        };
        // Replies come in by the egress interface.
        ingress.into_values().chain([egress]).collect()
    }

    /// The switch by which an interface forwards packets to a target, or replies of it.
    pub(super) fn switch(&self, target: IpAddr, device: &Device) -> Switch {
        match target {
            IpAddr::V4(_) => Switch::Ipv4(device.name.clone()),
            IpAddr::V6(_) if self.facts.has_force_forwarding => Switch::Ipv6(device.name.clone()),
            IpAddr::V6(_) => Switch::Ipv6All,
        }
    }

    /// Forwarding that is off where a target needs it.
    fn off(&mut self, version: &str, needed: &Needed) {
        let (names, command) = (needed.names(), needed.command());
        if self.request.may_enable {
            let is_all = needed.switches.contains(&Switch::Ipv6All);
            let names = if is_all { "any interface" } else { &names };
            let what = format!("`up` switches {version} forwarding on: {command}");
            let why = format!(
                "targets need it; this host then forwards everything that comes in by {names}, \
                 until `down` puts it back"
            );
            let fix = "if others are not to pass, drop them in the forward chain of the firewall";
            self.find(FORWARDING, Severity::Note, [what, why, fix.to_owned()]);
            return;
        }
        let what = format!("{version} packets that come in by {names} are not forwarded");
        let why = "targets with an address need it, for requests and for replies".to_owned();
        let fix = format!("{command}; or let `up` do it until `down`: portredir up {OPTION}");
        self.find(FORWARDING, Severity::Error, [what, why, fix]);
    }

    /// Hosts that forward IPv6 by the switch of all interfaces no longer accept router
    /// advertisements.
    fn lost_routers(&mut self, needed: &Needed) {
        let hears = &self.facts.hears_routers;
        if !needed.switches.contains(&Switch::Ipv6All) || hears.is_empty() {
            return;
        }
        let settings = hears.iter();
        let settings: Vec<_> = settings
            .map(|name| {
                if name.contains('.') {
                    format!("net/ipv6/conf/{name}/accept_ra=2")
                } else {
                    format!("net.ipv6.conf.{name}.accept_ra=2")
                }
            })
            .collect();
        let what = format!(
            "with IPv6 forwarding on, {} no longer accept router advertisements",
            hears.join(", ")
        );
        let why = "a default route or an address that comes from them gets lost when its time is \
                   over, and this kernel cannot switch one interface alone";
        let fix = format!("sysctl -w {}", settings.join(" "));
        self.find(FORWARDING, Severity::Warning, [what, why.to_owned(), fix]);
    }
}
