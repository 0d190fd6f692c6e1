use portredir_common::net::{Protocol, Version};

use super::firewall;
use super::*;
use crate::config::engine::EngineChoice;
use crate::config::settings::Settings;
use crate::host::packet_filter::ruleset::{Probe, Ruleset};
use crate::host::packet_filter::{iptables, nft};

/// The output of nft 1.0.6 about a ruleset that was made for this.
fn nftables() -> Ruleset {
    let json = include_str!("tests/ruleset.json");
    nft::parse(json, include_str!("tests/ruleset.nft")).expect("JSON")
}

/// Rules in the form that iptables-save writes, of Docker, fail2ban and a person.
fn docker() -> Ruleset {
    iptables::parse(include_str!("tests/docker.iptables"), Version::V4)
}

fn settings(rule: &str) -> Settings {
    Settings {
        rules: vec![rule.parse().expect(rule)],
        ..Settings::default()
    }
}

/// The facts and the cures that a ruleset leads to.
fn found(ruleset: &Ruleset, settings: &Settings) -> Vec<(String, String)> {
    let mut diagnosis = Diagnosis::default();
    firewall::check(std::slice::from_ref(ruleset), settings, &mut diagnosis);
    let findings = diagnosis.findings.into_iter();
    findings
        .map(|finding| (finding.what, finding.fix))
        .collect()
}

fn is_dropped(ruleset: &Ruleset, hook: &str, port: u16) -> bool {
    let probe = Probe {
        version: Version::V4,
        protocol: Protocol::Tcp,
        port,
    };
    let chains = ruleset.bases(&[hook]);
    chains
        .iter()
        .any(|chain| ruleset.fate(chain, probe).is_dropped)
}

#[test]
fn packets_go_their_way_through_nftables() {
    let ruleset = nftables();
    assert_eq!(ruleset.chains.len(), 4);
    // A named set, a set with a range, a drop, and a jump to a reject.
    for (port, expected) in [
        (80, false),
        (443, false),
        (8005, false),
        (8080, true),
        (8011, true),
        (9000, true),
    ] {
        assert_eq!(is_dropped(&ruleset, "input", port), expected, "{port}");
    }
    assert!(is_dropped(&ruleset, "ingress", 80) && !is_dropped(&ruleset, "ingress", 8080));
    let texts = ruleset.chains.iter().flat_map(|chain| &chain.rules);
    let text = texts
        .clone()
        .find(|rule| rule.delete.ends_with("handle 13"));
    assert_eq!(
        text.map(|rule| rule.text.as_str()),
        Some("tcp dport 8080 drop")
    );
}

#[test]
fn packets_go_their_way_through_iptables() {
    let ruleset = docker();
    for (port, expected) in [(22, false), (80, false), (9005, false), (8080, true)] {
        assert_eq!(is_dropped(&ruleset, "input", port), expected, "{port}");
    }
    assert!(!is_dropped(&ruleset, "prerouting", 80));
    assert_eq!(ruleset.bases(&["input"]).len(), 2);
}

#[test]
fn nftables_that_drops_or_redirects() {
    let ruleset = nftables();
    let whats = |settings: &Settings| -> Vec<_> {
        found(&ruleset, settings)
            .into_iter()
            .map(|(what, _)| what)
            .collect()
    };
    assert_eq!(
        found(&ruleset, &settings("80:8080")),
        [
            (
                "`tcp dport 8080 drop` in chain input of table inet filter drops 8080/tcp",
                "nft insert rule inet filter input tcp dport 8080 accept"
            ),
            (
                "`tcp dport 80 drop` in chain i of table netdev t is meant for 80/tcp and does \
                 not see these packets now",
                "add the rule for 8080/tcp, too; or, for TCP: portredir up --engine socket \
                 '80:8080'"
            ),
            (
                "`tcp dport 80 redirect to :8081` in chain prerouting of table ip nat redirects \
                 80/tcp, too",
                "nft delete rule ip nat prerouting handle 2; or: portredir rm '80:8080'"
            ),
            (
                "`fib daddr type local tcp dport 8080 dnat to 172.17.0.2:80` in chain prerouting \
                 of table ip nat redirects 8080/tcp",
                "nft delete rule ip nat prerouting handle 3; or: portredir rm '80:8080'"
            ),
        ]
        .map(|(what, fix)| (what.to_owned(), fix.to_owned()))
    );
    assert!(whats(&settings("81:443")).is_empty());
    assert_eq!(
        found(&ruleset, &settings("82:9000")),
        [(
            "`meta l4proto tcp reject with tcp reset` in chain other of table inet filter drops \
             9000/tcp"
                .to_owned(),
            "nft insert rule inet filter input tcp dport 9000 accept".to_owned()
        )]
    );
    assert_eq!(
        whats(&settings("53:5353/udp")),
        ["`udp dport 5353 reject` in chain input of table inet filter drops 5353/udp"]
    );
}

#[test]
fn the_engine_and_the_range_matter() {
    let ruleset = nftables();
    let whats = |settings: &Settings| -> Vec<_> {
        let found = found(&ruleset, settings);
        found.into_iter().map(|(what, _)| what).collect()
    };
    // The firewall sees the destination port with this engine.
    let socket = Settings {
        engine: EngineChoice::Socket,
        ..settings("443:8080")
    };
    assert!(whats(&socket).is_empty());
    // Ports of a range are looked at where rules name them.
    let range = whats(&settings("1000-1010:8075-8085"));
    assert!(
        range
            .iter()
            .any(|what| what.contains("`tcp dport 8080 drop`")),
        "{range:?}"
    );
}

#[test]
fn one_command_accepts_all_ports() {
    let all = Settings {
        rules: ["80:8080", "81:8081"]
            .map(|rule| rule.parse().expect(rule))
            .into(),
        ..Settings::default()
    };
    let ruleset = "*filter\n:INPUT DROP [0:0]\nCOMMIT\n";
    let ruleset = iptables::parse(ruleset, Version::V4);
    assert_eq!(
        found(&ruleset, &all),
        [(
            "the policy of chain INPUT of table ip filter drops 8080/tcp, 8081/tcp".to_owned(),
            "iptables -t filter -I INPUT -p tcp -m multiport --dports 8080,8081 -j ACCEPT"
                .to_owned()
        )]
    );
    let chain = &nftables().chains[0];
    assert_eq!(
        chain.accept(Protocol::Udp, &[53, 5353]),
        "nft insert rule inet filter input udp dport { 53, 5353 } accept"
    );
}

#[test]
fn iptables_that_drops_or_redirects() {
    let ruleset = docker();
    let rule = |rule| found(&ruleset, &settings(rule));
    assert_eq!(
        rule("80:8080"),
        [
            (
                "the policy of chain INPUT of table ip filter drops 8080/tcp",
                "iptables -t filter -I INPUT -p tcp --dport 8080 -j ACCEPT"
            ),
            (
                "`-A PREROUTING -p tcp -m tcp --dport 80 -m set --match-set bans src -j DROP` in \
                 chain PREROUTING of table ip raw is meant for 80/tcp and does not see these \
                 packets now",
                "add the rule for 8080/tcp, too; or, for TCP: portredir up --engine socket \
                 '80:8080'"
            ),
            (
                "`-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination \
                 172.17.0.2:80` in chain DOCKER of table ip nat redirects 8080/tcp",
                "iptables -t nat -D DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT \
                 --to-destination 172.17.0.2:80; or: portredir rm '80:8080'"
            ),
        ]
        .map(|(what, fix)| (what.to_owned(), fix.to_owned()))
    );
    let whats = |text| -> Vec<_> { rule(text).into_iter().map(|(what, _)| what).collect() };
    // Docker publishes the destination port.
    let docker = whats("8080:9000");
    assert_eq!(docker.len(), 1, "{docker:?}");
    assert!(docker[0].ends_with("redirects 8080/tcp, too"), "{docker:?}");
    let squid = whats("81:9000");
    assert_eq!(squid.len(), 1, "{squid:?}");
    assert!(squid[0].contains("--to-ports 3128"), "{squid:?}");
    // The firewall lets in some clients of the target port, and all of the other one.
    let some = whats("80:8081");
    assert!(
        some.iter()
            .any(|what| what.ends_with("of some clients, and 80/tcp of none"))
    );
    let udp = whats("53:5353/udp");
    assert_eq!(udp.len(), 1, "{udp:?}");
    assert!(udp[0].ends_with("drops 5353/udp on eth1"), "{udp:?}");
    assert!(whats("9001:9000").is_empty() && whats("[::1]:80:8080").is_empty());
}

#[test]
fn rules_that_are_not_understood_are_named() {
    let text = "*filter\n:INPUT DROP [0:0]\n\
        -A INPUT -p tcp -m u32 --u32 \"0x0=0x1\" -j ACCEPT\n\
        -A INPUT -p tcp -m tcp --dport 9000 -j NFQUEUE --queue-num 1\nCOMMIT\n";
    let ruleset = iptables::parse(text, Version::V4);
    let mut diagnosis = Diagnosis::default();
    firewall::check(&[ruleset], &settings("80:9000"), &mut diagnosis);
    assert!(diagnosis.findings.is_empty(), "{diagnosis:?}");
    let whys: Vec<_> = diagnosis.unchecked.iter().map(|u| u.why.as_str()).collect();
    assert_eq!(whys.len(), 2, "{whys:?}");
    assert!(
        whys.iter()
            .all(|why| why.starts_with("not evaluated: `-A INPUT")),
        "{whys:?}"
    );
}

#[test]
fn an_empty_firewall_is_no_finding() {
    let json = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}}]}"#;
    let ruleset = nft::parse(json, "").expect("JSON");
    assert!(ruleset.chains.is_empty());
    assert!(found(&ruleset, &settings("80:8080")).is_empty());
    nft::parse("nonsense", "").expect_err("no JSON");
}
