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
        ("toport=9000:port=8000-8100", "8000-8100:9000"),
        ("port=53:proto=udp:toport=5353 on lo", "53:5353/udp on lo"),
    ] {
        assert_eq!(rule(text).to_string(), canonical, "{text}");
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
