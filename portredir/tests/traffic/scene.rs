//! Hosts for traffic to cross: their rules, and their servers.

use std::collections::HashMap;
use std::net::IpAddr;

use portredir_common::map::targets::{Service, Target};
use portredir_common::net::Protocol;

use crate::packet::Setup;
use crate::packet::builder::{CLIENT_PORT, CLIENT4, CLIENT6, SERVER4, SERVER6};
use crate::packet::flows::KINDS;
use crate::packet::scenario::{Plan, To};
use crate::reference::{Ends, Socket};

/// A host.
#[derive(Debug)]
pub struct Scene {
    pub setup: Setup,
    /// Whether somebody listens on the targets.
    pub is_served: bool,
    /// Ports that something happens at.
    pub ports: &'static [u16],
    /// The slots of rules that have targets with an address: first, and after each change.
    pub plans: &'static [Plan],
}

const PLAIN: &[&str] = &[
    "80:8080/both",
    "81:8080/both",
    "443:9090/udp",
    "8080:7070/udp",
];
const CHANGED: &[&str] = &["80:9090/both", "82:8081/both from 203.0.113.0/24"];
const BEFORE: &[&str] = &["80:8080/both", "81:8080/both", "82:8080/both"];
const CONDITIONS: &[&str] = &[
    "80:8080/both",
    "80:8081/both from 198.51.100.0/24 on other",
    "80:9090/both from 198.51.100.0/28",
    "192.0.2.2:80:9090/both",
    "80:8081/both from 2001:db8:1::/48 on lo",
    "81:8081/both on other",
    "81:8080/both from 203.0.113.0/24",
];
const RANGES: &[&str] = &["80-90:8080-8090/both", "443-453:8080/udp"];
const CHAINED: &[&str] = &["80:8080/both", "8080:9090/both"];

const fn setup(rules: &'static [&'static str], earlier: &'static [&'static str]) -> Setup {
    Setup {
        rules,
        earlier,
        is_hiding: false,
        if_listening: false,
    }
}

const fn scene(setup: Setup, ports: &'static [u16]) -> Scene {
    Scene {
        setup,
        is_served: true,
        ports,
        plans: &[],
    }
}

/// Two rules to other hosts, and one to this.
const TARGETS: &[&str] = &[
    "80:10.0.0.5:8080,10.0.0.6:8080,[2001:db8:5::5]:8080,[2001:db8:5::6]:8080/both",
    "81:10.0.0.5:8080,10.0.0.6:8080,[2001:db8:5::5]:8080,[2001:db8:5::6]:8080/both",
    "82:9090/both",
];
/// Rules to other hosts for some clients.
const SOME_CLIENTS: &[&str] = &[
    "80:10.0.0.5:8080,10.0.0.6:8080/both from 198.51.100.0/24",
    "80:9090/both",
    "81:10.0.0.5:8080,10.0.0.6:8080,[2001:db8:5::5]:8080,[2001:db8:5::6]:8080/both on other",
    "81:7070/both",
];
/// A port of this host beside other hosts.
const MIXED: &[&str] = &[
    "80:8080,10.0.0.5:8080,10.0.0.6:8080,[2001:db8:5::5]:8080,[2001:db8:5::6]:8080/both",
    "81:8080,10.0.0.5:8080,10.0.0.6:8080,[2001:db8:5::5]:8080,[2001:db8:5::6]:8080/both",
];

/// Targets come and go.
const CHANGES: [Plan; 8] = [
    Plan::new(&[&[To::F], &[To::G], &[To::F], &[To::F]]),
    Plan::new(&[&[To::G, To::F], &[To::G], &[To::G, To::F], &[To::G, To::F]]),
    Plan::new(&[&[To::G, To::F], &[To::G], &[To::G, To::F], &[To::G, To::F]]).f_is(Target::DEAD),
    Plan::new(&[&[To::G, To::F], &[To::G], &[To::G, To::F], &[To::G, To::F]])
        .f_is(Target::DEAD | Target::CUT),
    Plan::new(&[&[To::F, To::G], &[To::G, To::F], &[To::F], &[To::F, To::G]]),
    Plan::new(&[&[To::Rests, To::F, To::G] as &[To]; 4]),
    Plan::new(&[&[To::Drops, To::G, To::F] as &[To]; 4]),
    Plan::new(&[&[To::F, To::G] as &[To]; 4]),
];
/// A client has one target for all of its flows.
const AFFINITY: [Plan; 2] = {
    let mut plans = [CHANGES[0], CHANGES[1]];
    plans[0].flags = Service::USED | Service::AFFINITY;
    plans[1].flags = Service::USED | Service::AFFINITY;
    plans
};
/// With a port of this host.
const HERE: [Plan; 4] = [
    Plan::new(&[&[To::Here], &[To::F], &[To::Here], &[To::G]]),
    Plan::new(&[&[To::F, To::Here], &[To::F], &[To::G, To::Here], &[To::G]]),
    Plan::new(&[&[To::G, To::F, To::Here] as &[To]; 4]).f_is(Target::DEAD),
    Plan::new(&[&[To::Here, To::G, To::F] as &[To]; 4]),
];

/// A scene with targets that have an address.
const fn forward(rules: &'static [&'static str], plans: &'static [Plan]) -> Scene {
    Scene {
        plans,
        ..scene(setup(rules, &[]), &[80, 80, 80, 81, 81, 82, 8080, 9090])
    }
}

const PLAIN_PORTS: &[u16] = &[80, 80, 80, 81, 81, 443, 8080, 8080, 9090, 7070, 53];

/// All of them.
pub const SCENES: [Scene; 13] = [
    scene(setup(PLAIN, &[]), PLAIN_PORTS),
    scene(
        Setup {
            is_hiding: true,
            ..setup(PLAIN, &[])
        },
        PLAIN_PORTS,
    ),
    // Nothing but what has begun.
    scene(setup(&[], PLAIN), PLAIN_PORTS),
    scene(setup(CHANGED, BEFORE), &[80, 80, 81, 82, 8080, 9090, 8081]),
    scene(setup(CONDITIONS, &[]), &[80, 80, 81, 8080, 8081, 9090]),
    scene(
        setup(RANGES, &[]),
        &[80, 81, 90, 91, 443, 453, 8080, 8081, 8090],
    ),
    scene(setup(CHAINED, &[]), &[80, 8080, 9090]),
    scene(
        Setup {
            if_listening: true,
            ..setup(&["80:9191/both"], &[])
        },
        &[80, 9191],
    ),
    Scene {
        is_served: false,
        ..scene(
            Setup {
                if_listening: true,
                ..setup(&["80:9292/both"], &[])
            },
            &[80, 9292],
        )
    },
    forward(TARGETS, &CHANGES),
    forward(TARGETS, &AFFINITY),
    forward(SOME_CLIENTS, &CHANGES),
    forward(MIXED, &HERE),
];

impl Scene {
    pub fn listens(&self) -> fn(Protocol, u16) -> bool {
        if self.is_served {
            |_, _| true
        } else {
            |_, _| false
        }
    }
}

/// The connections that there are from the beginning: some to a target, and
/// one for each version of IP to a server on a port that rules redirect.
pub fn sockets() -> HashMap<Ends, Socket> {
    let tcp = KINDS
        .into_iter()
        .filter(|kind| kind.protocol == Protocol::Tcp);
    tcp.flat_map(|kind| {
        let (client, local) = if kind.is_ipv4 {
            (CLIENT4, SERVER4)
        } else {
            (CLIENT6, SERVER6)
        };
        [(CLIENT_PORT + 1, 8080), (8080, 80)]
            .map(|ports| (ends(client, local, ports), Socket::Open))
    })
    .collect()
}

fn ends(client: IpAddr, local: IpAddr, (client_port, local_port): (u16, u16)) -> Ends {
    Ends {
        protocol: Protocol::Tcp,
        client,
        client_port,
        local,
        local_port,
    }
}
