//! Settings and firewalls of the host that forwards.

use std::path::Path;

use super::case::{Case, shared};
use super::probe::Probe;
use super::site::Site;
use super::subject::Place;
use super::talk::talk_both;
use crate::conformance::client::Conversation;
use crate::conformance::frame::SYN;
use crate::conformance::observe::{Observation, check, failure};
use crate::conformance::tcp::{echo_all, noise};
use crate::lab::Family;
use crate::lab::namespace::Namespace;
use crate::peer::conn::Proto;
use crate::skip;

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    shared(34, "forwarding_off", "forwarding is off; then it is on for the interfaces of client and target alone", forwarding_off),
    shared(35, "forward_policy", "a firewall drops what is forwarded; it rejects it", forward_policy),
    shared(36, "invalid_is_dropped", "a firewall drops packets that conntrack classifies as INVALID, and counts them", invalid_is_dropped),
    shared(37, "strict_rp_filter", "strict reverse path filter on the host", strict_rp_filter).v4(),
    shared(39, "raw_drop", "a rule before conntrack drops what comes for F by another interface than its own, as Docker's", |site, family| drop_for_target(site, family, "prerouting", "raw")),
    shared(53, "forward_drop_for_target", "the same rule at the hook forward", |site, family| drop_for_target(site, family, "forward", "filter")),
];

/// A setting that is restored when it is dropped.
struct Tuned<'a> {
    host: &'a Namespace,
    key: String,
    before: String,
}

impl<'a> Tuned<'a> {
    /// Changes a value below `/proc/sys/net`.
    fn set(host: &'a Namespace, key: &str, value: &str) -> Self {
        let path = Path::new("/proc/sys/net").join(key);
        let before = host.enter(|| std::fs::read_to_string(path)).expect(key);
        host.sysctl(key, value);
        Self {
            host,
            key: key.to_owned(),
            before: before.trim().to_owned(),
        }
    }
}

impl Drop for Tuned<'_> {
    fn drop(&mut self) {
        self.host.sysctl(&self.key, &self.before);
    }
}

/// Rules of nft that go when it is dropped.
struct Filter<'a>(&'a Namespace);

impl<'a> Filter<'a> {
    fn add(site: &'a Site, chains: &str) -> Self {
        let host = &site.lab.host;
        host.run(&["nft", &format!("table inet filter {{\n{chains}\n}}")]);
        Self(host)
    }
}

impl Drop for Filter<'_> {
    fn drop(&mut self) {
        self.0.succeeds(&["nft", "delete table inet filter"]);
    }
}

/// Sends a SYN that may be lost, and tells what arrived.
fn syn(site: &Site, family: Family) -> Observation {
    let probe = Probe::new(site, family);
    probe.ask_in_vain(&probe.packet(probe.tcp(80, SYN)), &[Place::F])
}

fn forwarding_off(site: &Site, family: Family) -> Observation {
    let host = &site.lab.host;
    let (all, one) = match family {
        Family::V4 => ("ipv4/ip_forward", "ipv4/conf/IFACE/forwarding"),
        // What Linux 6.17 brought.
        Family::V6 => (
            "ipv6/conf/all/forwarding",
            "ipv6/conf/IFACE/force_forwarding",
        ),
    };
    let keys = ["h0", site.inside()].map(|name| one.replace("IFACE", name));
    let has_key = |key: &String| host.enter(|| Path::new("/proc/sys/net").join(key).exists());
    if !keys.iter().all(has_key) {
        skip("needs net.ipv6.conf.IFACE.force_forwarding");
    }
    let _off = Tuned::set(host, all, "0");
    let off = syn(site, family);
    let _one = keys.map(|key| Tuned::set(host, &key, "1"));
    let on = talk_both(site, &site.lab.client, site.own(family, 80));
    Observation::default().with("off", &off).with("on", &on)
}

fn forward_policy(site: &Site, family: Family) -> Observation {
    let mut all = Observation::default();
    for (name, rule) in [("drop", "policy drop"), ("reject", "reject")] {
        let chain = format!("chain forward {{ type filter hook forward priority 0; {rule}; }}");
        let _filter = Filter::add(site, &chain);
        all = all.with(name, &syn(site, family));
        if name == "reject" {
            let sockets = talk_both(site, &site.lab.client, site.own(family, 80));
            all = all.with("sockets", &sockets);
        }
    }
    all
}

fn invalid_is_dropped(site: &Site, family: Family) -> Observation {
    let chain = |hook| {
        format!(
            "chain {hook} {{ type filter hook {hook} priority 0; \
             ct state invalid counter name invalid drop; }}"
        )
    };
    let chains = ["input", "forward", "output"].map(chain).join("\n");
    let _filter = Filter::add(site, &format!("counter invalid {{ }}\n{chains}"));
    let to = site.own(family, 80);
    let talk = talk_both(site, &site.lab.client, to);
    let bulk = match Conversation::begin(&site.lab.client, Proto::Tcp, 0, to) {
        Ok(conversation) => echo_all(&conversation, &noise(500_000), std::time::Duration::ZERO),
        Err(error) => failure(&error).to_owned(),
    };
    let list = ["nft", "list", "counter", "inet", "filter", "invalid"];
    let is_zero = site.lab.host.run(&list).contains("packets 0 ");
    talk.and(bulk).and(check(is_zero, "no packet is INVALID"))
}

fn strict_rp_filter(site: &Site, family: Family) -> Observation {
    let _strict = Tuned::set(&site.lab.host, "ipv4/conf/all/rp_filter", "1");
    talk_both(site, &site.lab.client, site.own(family, 80))
}

fn drop_for_target(site: &Site, family: Family, hook: &str, priority: &str) -> Observation {
    let ip = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let (target, inside) = (site.addr(Place::F, family), site.inside());
    let chain = format!(
        "chain docker {{ type filter hook {hook} priority {priority}; \
         {ip} daddr {target} iifname != {inside} drop; }}"
    );
    let _filter = Filter::add(site, &chain);
    syn(site, family)
}
