//! Rules of nftables on the way to a target: what they do to packets, and what the plan says.

use std::net::SocketAddr;

use portredir::plan::finding::Severity;
use portredir::plan::way::FIREWALL;

use super::{far, fix, follow, is_reached, lab, look, look_from, reach, server, text, whats};
use crate::Tests;
use crate::lab::process::wait_for;
use crate::lab::{Family, link};
use crate::peer::conn::{Proto, answers};
use crate::peer::echo::EchoServer;

pub fn add(tests: &mut Tests) {
    tests.add("way/forward_policy", &["nft"], forward_policy);
    tests.add("way/container_behind_raw", &["nft"], container_behind_raw);
    tests.add("way/masquerade", &["nft"], masquerade);
}

fn forward_policy() {
    let lab = lab();
    let host = &lab.host;
    let _server = server(&lab);
    for family in Family::BOTH {
        reach(&lab, family);
    }
    host.run(&[
        "nft",
        "table inet lab {
            chain forward {
                type filter hook forward priority 0; policy drop;
                iifname h1 ct state new drop
                oifname h0 tcp dport 8080 accept
            }
        }",
    ]);
    for family in Family::BOTH {
        assert!(!is_reached(&lab, family));
        let (_, ways) = look(host, far(family));
        let end = SocketAddr::new(far(family), 8080);
        assert_eq!(
            whats(&ways, FIREWALL),
            [format!(
                "the policy of chain forward of table inet lab drops packets to {end}/tcp, \
                 {end}/udp"
            )]
        );
        // The command accepts one protocol; the plan then finds the other one.
        for _ in 0..2 {
            let (_, ways) = look(host, far(family));
            follow(host, &fix(&ways, FIREWALL));
        }
        reach(&lab, family);
        let (_, ways) = look(host, far(family));
        assert_eq!(whats(&ways, FIREWALL), [""; 0], "{ways}");
    }
    host.run(&["nft", "insert rule inet lab forward meta mark 7 drop"]);
    let (_, ways) = look(host, far(Family::V4));
    assert_eq!(whats(&ways, FIREWALL), [""; 0], "{ways}");
    let said = ways.to_string();
    assert!(
        said.contains("not evaluated: target-firewall: packets to"),
        "{said}"
    );
}

/// The rule of Docker 28 for a container.
fn container_behind_raw() {
    let lab = lab();
    let host = &lab.host;
    let container = lab.another("g");
    link((host, "p0", (9, 1)), (&container, "g0", (7, 2)));
    host.ip(
        "link add docker0 type bridge\naddr add 10.9.7.1/24 dev docker0\nlink set docker0 up\n\
         link set p0 master docker0",
    );
    container.ip("route add default via 10.9.7.1");
    let _server = EchoServer::start(&container, 8080);
    let target = SocketAddr::new(text("10.9.7.2"), 8080);
    wait_for("a container", || {
        answers(&lab.client, Proto::Udp, target).then_some(())
    });
    host.run(&[
        "nft",
        "table ip raw {
            chain PREROUTING {
                type filter hook prerouting priority raw; policy accept;
                ip daddr 10.9.7.2 iifname != docker0 drop
            }
        }",
    ]);
    assert!(!answers(&lab.client, Proto::Udp, target));
    let (_, ways) = look(host, target.ip());
    assert!(
        fix(&ways, FIREWALL).contains("gateway_mode_ipv4=nat-unprotected"),
        "{ways}"
    );
    // Packets from the bridge pass.
    let (_, ways) = look_from(host, target.ip(), &["p0"]);
    assert_eq!(whats(&ways, FIREWALL), [""; 0], "{ways}");
}

fn masquerade() {
    let lab = lab();
    let host = &lab.host;
    let server = server(&lab);
    host.run(&[
        "nft",
        "table ip lab {
            chain postrouting {
                type nat hook postrouting priority srcnat; policy accept;
                oifname h0 masquerade
                oifname h1 ip daddr 10.9.2.0/24 masquerade
            }
        }",
    ]);
    reach(&lab, Family::V4);
    let peer = server.peer(Proto::Udp, b"anybody there?");
    assert_eq!(peer.ip().to_canonical(), Family::V4.addr(2, 1));
    let (_, ways) = look(host, far(Family::V4));
    let [what] = whats(&ways, FIREWALL).try_into().expect("one finding");
    let what: String = what;
    assert!(
        what.starts_with("`oifname \"h1\" ip daddr 10.9.2.0/24 masquerade` in chain postrouting"),
        "{what}"
    );
    assert_eq!(ways.diagnosis.findings[0].severity, Severity::Warning);
    follow(host, &fix(&ways, FIREWALL));
    let (_, ways) = look(host, far(Family::V4));
    assert_eq!(whats(&ways, FIREWALL), [""; 0], "{ways}");
}
