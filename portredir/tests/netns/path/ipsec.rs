//! Clients behind IPsec policies: replies to them are encrypted before TC could restore
//! the port.

use std::net::SocketAddr;

use crate::lab::esp::Esp;
use crate::lab::process::wait_within;
use crate::lab::program::{PROGRAM, Redirector};
use crate::lab::{Family, Lab, link, wait_for_route};
use crate::lifecycle::follow::SOON;
use crate::lifecycle::host::Host;
use crate::peer::conn::{Conn, PROTOS, Proto, answers, is_refused};
use crate::peer::echo::EchoServer;
use crate::{Tests, skip};

/// For the documents that tests write where the kernel may have no ESP.
pub const IN_DOCUMENTS: &str = "\
IPsec has no rows here, because many kernels have no ESP. The tests `ipsec_policy_…` and `tunnel_…`
(`portredir/tests/netns/path/ipsec.rs` and `tunnel.rs`) are skipped there, and run on Debian's kernels in virtual machines:
`cargo xtask test netns --kernel 6.12 --all -- ipsec`. They check over IPv4 and IPv6:

* With an IPsec policy, in tunnel and in transport mode, `auto` redirects the clients behind the policy over TCP. Their
  datagrams to port 80 are refused, as without portredir. All other clients are redirected over TCP and UDP. Connections
  of other clients that are open when the policy arrives or goes continue.
* Through an xfrm or VTI interface, `tc` and `xdp-generic` redirect TCP and UDP.
* `plan` names the policy and what is not redirected behind it. This is tested on every kernel with IPsec policies.
";

pub fn add(tests: &mut Tests) {
    for mode in ["tunnel", "transport"] {
        let name = format!("auto/ipsec_policy_{mode}");
        tests.add(name, &[], move || policy_is_there(mode));
    }
    tests.add("auto/ipsec_policy_arrives", &[], policy_arrives);
    tests.add("auto/ipsec_policy_up_and_down", &[], up_and_down);
    tests.add("plan/ipsec_policy", &[], policy_is_planned_for);
}

const RULE: &str = "80:8080/both";
const NOTE: &str = "are given to listeners (sk_lookup)";

/// A host and a client with a link, and with addresses of their own behind it.
fn lab() -> Lab {
    let lab = Lab::unlinked();
    link((&lab.host, "h0", (1, 1)), (&lab.client, "c0", (1, 2)));
    lab.wait_for_link();
    for (at, own, (other, gateway)) in [(&lab.host, 5, (6, 2)), (&lab.client, 6, (5, 1))] {
        for family in Family::BOTH {
            let [own, other] = [own, other].map(|net| family.addr(net, 1));
            let gateway = family.addr(1, gateway);
            let nodad = if own.is_ipv6() { " nodad" } else { "" };
            at.ip(&format!(
                "addr add {own} dev lo{nodad}\nroute add {other} via {gateway} src {own}"
            ));
        }
    }
    for family in Family::BOTH {
        wait_for_route(&lab.client, behind(family, 1));
    }
    lab
}

/// The address of the host that is behind policies, with a port.
fn behind(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(family.addr(5, 1), port)
}

/// Encrypts what goes between the addresses behind the link.
fn encrypt(lab: &Lab, mode: &'static str) {
    for family in Family::BOTH {
        let inner = [5, 6].map(|net| family.addr(net, 1));
        let outer = [1, 2].map(|number| family.addr(1, number));
        let esp = Esp {
            ends: if mode == "tunnel" { outer } else { inner },
            mode,
            limit: "",
        };
        esp.add_states(lab);
        let [host, client] = inner.map(|addr| addr.to_string());
        esp.add_policies(lab, [&host, &client]);
    }
}

/// Clients behind a policy are served over TCP, all others also over UDP.
fn is_served(lab: &Lab, server: &EchoServer) {
    for family in Family::BOTH {
        for port in [80, 8080] {
            let message = format!("{family:?} {port} by IPsec");
            let mut conn = Conn::to(&lab.client, Proto::Tcp, 0, behind(family, port));
            conn.echo(message.as_bytes());
            server.peer(Proto::Tcp, message.as_bytes());
        }
        assert!(is_refused(&lab.client, Proto::Udp, behind(family, 80)));
        for proto in PROTOS {
            let message = format!("{family:?} {proto:?} without IPsec");
            Conn::to(&lab.client, proto, 0, family.host(80)).echo(message.as_bytes());
            server.peer(proto, message.as_bytes());
        }
    }
}

fn policy_is_there(mode: &'static str) {
    let lab = lab();
    encrypt(&lab, mode);
    let server = EchoServer::start(&lab.host, 8080);
    let redirector = Redirector::start(&lab.host, &[RULE]);
    let said = redirector.process.err();
    assert!(said.contains(NOTE), "{said}");
    let udp = "UDP of these clients is not redirected (rule `80:8080/both`)";
    assert!(said.contains(udp), "{said}");
    is_served(&lab, &server);
    redirector.finish(&lab);
}

/// Connections that are open when a policy arrives, for others, go on.
fn policy_arrives() {
    let lab = lab();
    let server = EchoServer::start(&lab.host, 8080);
    let redirector = Redirector::start(&lab.host, &[RULE]);
    let mut open = Conn::to(&lab.client, Proto::Tcp, 0, Family::V4.host(80));
    open.echo(b"before");
    assert!(!redirector.process.err().contains(NOTE));
    encrypt(&lab, "tunnel");
    wait_within(SOON, "a note on IPsec", || {
        redirector.process.err().contains(NOTE).then_some(())
    });
    is_served(&lab, &server);
    open.echo(b"after");
    for at in [&lab.host, &lab.client] {
        at.ip("xfrm policy flush");
    }
    wait_within(SOON, "UDP without IPsec", || {
        answers(&lab.client, Proto::Udp, behind(Family::V4, 80)).then_some(())
    });
    open.echo(b"at last");
    redirector.finish(&lab);
}

/// A redirect that outlives its command, and a second one of the same kind.
fn up_and_down() {
    let lab = lab();
    encrypt(&lab, "tunnel");
    let server = EchoServer::start(&lab.host, 8080);
    let host = Host::of(&lab);
    for rules in [&[RULE][..], &[RULE, "81:8080"]] {
        host.up(rules);
        is_served(&lab, &server);
    }
    host.run(&["rm", "81:8080"]);
    is_served(&lab, &server);
    host.kill_watcher();
    host.up(&[RULE]);
    is_served(&lab, &server);
    host.down();
    for to in [behind(Family::V4, 80), Family::V4.host(80)] {
        assert!(is_refused(&lab.client, Proto::Tcp, to));
    }
}

/// The plan says which policy it is, what fails, and what to type instead. This needs no
/// ESP.
fn policy_is_planned_for() {
    let lab = lab();
    let plan = |words: &[&str]| {
        lab.host
            .run(&[&[PROGRAM, "plan"], words, &["--iface", "h0"]].concat())
    };
    assert!(!plan(&[RULE]).contains("IPsec"));
    let policy = "ip xfrm policy add src 10.9.5.0/24 dst 10.9.6.1 dir out \
                  tmpl src 10.9.1.1 dst 10.9.1.2 proto esp mode tunnel";
    if !lab
        .host
        .succeeds(&policy.split_whitespace().collect::<Vec<_>>())
    {
        skip("needs CONFIG_XFRM_USER");
    }
    let which = "IPsec policy 10.9.5.0/24 to 10.9.6.1/32: ";
    for (words, what) in [
        (&[RULE][..], NOTE),
        (
            &["53:5353/udp"],
            "UDP of clients behind it is not redirected",
        ),
        (&["--engine", "tc", RULE], "use --engine auto"),
        (&["--engine", "xdp-generic", RULE], "use --engine auto"),
    ] {
        let said = plan(words);
        assert!(said.contains(which) && said.contains(what), "{said}");
    }
    assert!(!plan(&["--engine", "socket", "80:8080"]).contains("IPsec"));
    // Traffic that is routed into an interface of IPsec is redirected there.
    lab.host.ip("xfrm policy flush");
    let by_interface = policy.replace(" tmpl", " if_id 7 tmpl");
    lab.host
        .run(&by_interface.split_whitespace().collect::<Vec<_>>());
    assert!(!plan(&[RULE]).contains("IPsec"));
}
