//! Valid and invalid texts and lists of rules.

pub(crate) mod arbitrary;
mod conflicts;
mod messages;
mod properties;

use portredir_common::net::Port;

use super::Rule;

/// Parses a text that is known to be a rule.
pub(crate) fn rule(text: &str) -> Rule {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn each_rule_has_one_text() {
    for (text, canonical) in [
        ("80:8080", "80:8080"),
        ("  80:8080/tcp ", "80:8080"),
        ("80:8080/TCP", "80:8080"),
        ("53:5353/Udp", "53:5353/udp"),
        ("443:8443/both", "443:8443/both"),
        ("80-80:8080-8080", "80:8080"),
        ("8000-8100:9000-9100", "8000-8100:9000-9100"),
        ("8000-8100:9000", "8000-8100:9000"),
        ("1-65535:8080/both", "1-65535:8080/both"),
        ("10.0.0.5:80:8080", "10.0.0.5:80:8080"),
        ("240.0.0.5:80:8080", "240.0.0.5:80:8080"),
        ("[2001:DB8:0::1]:443:8443", "[2001:db8::1]:443:8443"),
        ("80:8080 from 10.0.0.0/8", "80:8080 from 10.0.0.0/8"),
        ("80:8080 from 10.0.0.1", "80:8080 from 10.0.0.1/32"),
        ("80:8080 from [2001:db8::]/32", "80:8080 from 2001:db8::/32"),
        ("80:8080 from 0.0.0.0/0", "80:8080 from 0.0.0.0/0"),
        ("80:8080 from ::/0", "80:8080 from ::/0"),
        ("80:8080 on wg*,eth0,wg*", "80:8080 on eth0,wg*"),
        (
            "80:8080\ton eth0\n from 10.0.0.0/8",
            "80:8080 from 10.0.0.0/8 on eth0",
        ),
        ("80:8080 on on", "80:8080 on on"),
        ("port=80:proto=tcp:toport=8080", "80:8080"),
        ("port=80:proto=tcp:toport=8080:toaddr=", "80:8080"),
        ("port=80:proto=tcp:toport=:toaddr=10.0.0.5", "80:10.0.0.5"),
        ("toport=9000:port=8000-8100", "8000-8100:9000"),
        ("port=53:proto=udp:toport=5353 on lo", "53:5353/udp on lo"),
        ("port=80:toport=8080:toaddr=10.0.0.1", "80:10.0.0.1:8080"),
        ("toaddr=10.0.0.1:port=80:proto=udp", "80:10.0.0.1/udp"),
        (
            "port=80:toport=81:toaddr=fd00::5 cut",
            "80:[fd00::5]:81 cut",
        ),
    ] {
        assert_eq!(rule(text).to_string(), canonical, "{text}");
    }
}

#[test]
fn each_rule_with_shared_targets_has_one_text() {
    for (text, canonical) in [
        ("80:10.0.0.1:8080", "80:10.0.0.1:8080"),
        ("80:10.0.0.1:80", "80:10.0.0.1"),
        ("80:[2001:DB8::1]", "80:[2001:db8::1]"),
        ("443:[2001:db8::5]:8443/both", "443:[2001:db8::5]:8443/both"),
        (
            "8000-8100:10.0.0.5:9000-9100",
            "8000-8100:10.0.0.5:9000-9100",
        ),
        ("8000-8100:10.0.0.5:8000-8100", "8000-8100:10.0.0.5"),
        (
            "10.1.1.1:80:8080,10.0.0.5:8080",
            "10.1.1.1:80:8080,10.0.0.5:8080",
        ),
        ("80:80,10.0.0.5:80", "80:80,10.0.0.5"),
        ("80:8080,8081=2", "80:8080,8081=2"),
        ("80:10.0.0.5=1,10.0.0.6=3", "80:10.0.0.5,10.0.0.6=3"),
        ("80:10.0.0.5,10.0.0.6 check tcp", "80:10.0.0.5,10.0.0.6"),
        (
            "80:10.0.0.5,10.0.0.6 check none",
            "80:10.0.0.5,10.0.0.6 check none",
        ),
        ("80:10.0.0.5 check none", "80:10.0.0.5"),
        ("80:10.0.0.5 check tcp", "80:10.0.0.5 check tcp"),
        ("53:10.0.0.5,10.0.0.6/udp", "53:10.0.0.5,10.0.0.6/udp"),
        (
            "53:10.0.0.5/udp every 5s check tcp:53",
            "53:10.0.0.5/udp check tcp:53 every 5s",
        ),
        (
            "80:10.0.0.5 check tcp every 2000ms timeout 1 rise 2 fall 3",
            "80:10.0.0.5 check tcp",
        ),
        (
            "80:10.0.0.5 check tcp every 0.5 timeout 500ms",
            "80:10.0.0.5 check tcp every 500ms",
        ),
        ("80:10.0.0.5 snat never", "80:10.0.0.5"),
        ("80:8080 snat never", "80:8080"),
        ("80:10.0.0.5 cut on cut", "80:10.0.0.5 on cut cut"),
        (
            "80:10.0.0.5:8080=3,10.0.0.6:8080 cut affinity client else 9090 every 5s check \
             http:/healthz from 10.0.0.0/8",
            "80:10.0.0.5:8080=3,10.0.0.6:8080 from 10.0.0.0/8 check http:/healthz every 5s \
             affinity client else 9090 cut",
        ),
        (
            "80:10.0.0.5,[2001:db8::5] else drop",
            "80:10.0.0.5,[2001:db8::5] else drop",
        ),
    ] {
        assert_eq!(rule(text).to_string(), canonical, "{text}");
        assert_eq!(rule(canonical), rule(text), "{text}");
    }
}

#[test]
fn a_rule_says_where_it_leads() {
    let ports = |rule: &Rule| {
        let own = rule.own_targets().map(|ports| ports.to_string());
        own.collect::<Vec<_>>().join(" ")
    };
    let here = rule("8000-8100:9000-9100");
    assert_eq!(here.target_of(Port::new(8042)), Some(Port::new(9042)));
    assert_eq!(here.target_of(Port::new(80)), None);
    assert_eq!(ports(&here), "9000-9100");
    assert!(here.forward().is_none());
    let shared = rule("8000-8100:8000-8100,10.0.0.5:9000-9100/udp else 7000");
    assert_eq!(shared.target_of(Port::new(8042)), None);
    assert_eq!(shared.here(), None);
    assert_eq!(ports(&shared), "8000-8100 7000");
    assert!(shared.redirects(Port::new(8042)) && !shared.redirects(Port::new(9042)));
    let target = &shared.forward().expect("several").targets[1];
    let port = |port| target.port_of(shared.ports, Port::new(port)).map(Port::get);
    assert_eq!(
        (port(8042), port(7999), port(8101)),
        (Some(9042), None, None)
    );
    for (text, key) in [
        ("80:8080", "80"),
        ("80:10.0.0.5=1,8080 cut", "80"),
        ("[2001:db8::1]:80-81:8080/both", "[2001:db8::1]:80-81/both"),
        (
            "80:10.0.0.5/udp cut on eth1,eth0 from 10.0.0.0/8",
            "80/udp from 10.0.0.0/8 on eth0,eth1",
        ),
    ] {
        assert_eq!(rule(text).listen_key(), key);
    }
}

#[test]
fn a_range_leaves_out_its_own_target() {
    for (text, expected) in [
        ("80:8080", "80"),
        ("8000-8100:9000", "8000-8100"),
        ("8000-8100:8050", "8000-8049 8051-8100"),
        ("8000-8100:8000", "8001-8100"),
        ("8000-8100:8100", "8000-8099"),
        ("1-65535:1", "2-65535"),
        ("1-65535:65535", "1-65534"),
        ("80-90:85-95", "80-90"),
        ("80-90:85,10.0.0.5:85", "80-90"),
    ] {
        let rule = rule(text);
        let stretches: Vec<_> = rule.stretches().map(|ports| ports.to_string()).collect();
        assert_eq!(stretches.join(" "), expected, "{text}");
        for port in (1..=u16::MAX).map(Port::new) {
            let is_there = rule.stretches().any(|ports| ports.contains(port));
            assert_eq!(rule.redirects(port), is_there, "{text} {port:?}");
        }
    }
}
