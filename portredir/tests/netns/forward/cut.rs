//! Connections to a target whose host is gone: with `cut` they end, without they stay.

use std::time::Duration;

use super::site::Site;
use super::subject::{Layout, Place, Subject, Variant};
use super::talk::goes_on;
use super::target::{begin, start, target, wait_until};
use crate::Tests;
use crate::conformance::client::Conversation;
use crate::conformance::site::Offload;
use crate::lab::Family;
use crate::lab::extent::allow;
use crate::peer::conn::Proto;

pub fn add(tests: &mut Tests) {
    type Test = (&'static str, fn(&mut Site, Family));
    const TESTS: [Test; 2] = [("cut", cut), ("kept", kept)];
    for (name, test) in TESTS {
        for family in Family::BOTH {
            for engine in ["auto", "tc"] {
                let name = format!("forward/cut/{name}/{family:?}/{engine}");
                tests.add(name, &[], move || {
                    allow(Duration::from_secs(60));
                    let layout = Layout::Bridge(true);
                    let offload = Offload::On;
                    let variant = Variant { layout, offload };
                    let mut site = Site::idle(Subject::Engine(engine), variant);
                    test(&mut site, family);
                    site.finish();
                });
            }
        }
    }
}

/// Connections, of which F and G get some each, but for one time in a million.
const FLOWS: usize = 20;

/// Connections to F, and those to G.
fn connect(site: &Site, family: Family) -> [Vec<Conversation>; 2] {
    let flows = (0..FLOWS).map(|_| begin(site, family, Proto::Tcp));
    let (of_f, of_g): (Vec<_>, Vec<_>) = flows.partition(|flow| flow.name == "F");
    assert!(!of_f.is_empty() && !of_g.is_empty(), "all have one target");
    [of_f, of_g]
}

/// Pulls the cable of F, or puts it back: F itself notices nothing, and tells nobody.
fn set_link(site: &Site, state: &str) {
    site.lab.host.ip(&format!("link set port-f {state}"));
}

/// Then the next packet of a client is refused, and no flow flips back when F returns.
fn cut(site: &mut Site, family: Family) {
    start(site, family, "check tcp every 200ms cut");
    let f = target(site, family, Place::F);
    let [mut of_f, mut of_g] = connect(site, family);
    set_link(site, "down");
    wait_until(site, f, "down");
    for flow in &mut of_f {
        assert_eq!(goes_on(flow), "reset", "a connection to F");
    }
    set_link(site, "up");
    wait_until(site, f, "up");
    for flow in &mut of_g {
        assert_eq!(goes_on(flow), "continues", "a connection to G");
    }
}

/// Then what was sent meanwhile arrives when F is back.
fn kept(site: &mut Site, family: Family) {
    start(site, family, "check tcp every 200ms");
    let f = target(site, family, Place::F);
    let [mut of_f, mut of_g] = connect(site, family);
    set_link(site, "down");
    wait_until(site, f, "down");
    for flow in &mut of_f {
        flow.conn.send(b"are you there?").expect("send");
    }
    set_link(site, "up");
    wait_until(site, f, "up");
    for flow in &mut of_f {
        let reply = flow.conn.receive(b"are you there?".len());
        assert_eq!(reply.expect("a reply"), b"are you there?");
    }
    for flow in of_f.iter_mut().chain(&mut of_g) {
        assert_eq!(goes_on(flow), "continues", "a connection to {}", flow.name);
    }
}
