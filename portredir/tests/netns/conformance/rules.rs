//! The rules of the redirects, for portredir and for nft.
//!
//! | port | goes to | where |
//! |---|---|---|
//! | 80 | 8080 | an echo |
//! | 81 | 8081 | nobody listens |
//! | 82 | 8082 | four servers share the port |
//! | 83 | 8083 | TCP bound to a loopback address, UDP to none |
//! | 84 | 8084 | IPv6 only |
//! | 85 | 8085 | another host, by a foreign DNAT rule |
//! | 86 to 88 | 8086 | an echo |
//! | 90 | 9090 | an echo; 9090 itself goes to 9191, another one |
//! | 93 | 8093 | an echo; another one listens on 93 |
//! | 94 | 8094 | a server that hangs up |
//! | 95 to 97 | 8095 to 8097 | what a case starts there |
//! | 98 | 8098 | for the lower half of the network |
//! | 99 | 8099 | at the second address of the host |
//! | 100 | 8100 | by the second interface |
//! | 101 | 8101 | UDP that is answered from any address |
//! | 9000 to 9010 | 9100 to 9110 | echoes on 9100 and 9103, what a case starts on 9105 |

/// A rule in both languages; what `nft` has to match comes after the protocol.
struct Rule {
    portredir: &'static str,
    nft: &'static str,
}

const fn rule(portredir: &'static str, nft: &'static str) -> Rule {
    Rule { portredir, nft }
}

const RULES: &[Rule] = &[
    rule("80:8080", "th dport 80 redirect to :8080"),
    rule("81:8081", "th dport 81 redirect to :8081"),
    rule("82:8082", "th dport 82 redirect to :8082"),
    rule("83:8083", "th dport 83 redirect to :8083"),
    rule("84:8084", "th dport 84 redirect to :8084"),
    rule("85:8085", "th dport 85 redirect to :8085"),
    rule("86-88:8086", "th dport 86-88 redirect to :8086"),
    rule("90:9090", "th dport 90 redirect to :9090"),
    rule("9090:9191", "th dport 9090 redirect to :9191"),
    rule("93:8093", "th dport 93 redirect to :8093"),
    rule("94:8094", "th dport 94 redirect to :8094"),
    rule("95:8095", "th dport 95 redirect to :8095"),
    rule("96:8096", "th dport 96 redirect to :8096"),
    rule("97:8097", "th dport 97 redirect to :8097"),
    rule(
        "98:8098 from 10.9.1.0/25",
        "ip saddr 10.9.1.0/25 th dport 98 redirect to :8098",
    ),
    rule(
        "98:8098 from fd09:0:0:1::/121",
        "ip6 saddr fd09:0:0:1::/121 th dport 98 redirect to :8098",
    ),
    rule(
        "10.9.1.11:99:8099",
        "ip daddr 10.9.1.11 th dport 99 redirect to :8099",
    ),
    rule(
        "[fd09:0:0:1::b]:99:8099",
        "ip6 daddr fd09:0:0:1::b th dport 99 redirect to :8099",
    ),
    rule(
        "100:8100 on h1",
        "iifname h1 th dport 100 redirect to :8100",
    ),
    rule("101:8101", "th dport 101 redirect to :8101"),
    rule(
        "9000-9010:9100-9110",
        "th dport 9000-9010 redirect to :th dport map { 9000 : 9100, 9003 : 9103, 9005 : 9105 }",
    ),
];

/// The rules as arguments of portredir; `socket` takes TCP rules alone.
pub fn portredir(engine: &str) -> Vec<String> {
    let protocol = if engine == "socket" { "" } else { "/both" };
    let insert = |rule: &Rule| {
        // The protocol comes before conditions.
        let mut words = rule.portredir.splitn(2, ' ');
        let ports = words.next().expect("ports");
        let conditions = words
            .next()
            .map_or(String::new(), |rest| format!(" {rest}"));
        format!("{ports}{protocol}{conditions}")
    };
    RULES.iter().map(insert).collect()
}

/// The ruleset that a user of nftables would write for the same redirects.
pub fn nft() -> String {
    let line = |rule: &Rule| {
        format!(
            "fib daddr type local meta l4proto {{ tcp, udp }} {}\n",
            rule.nft
        )
    };
    let prerouting: String = RULES.iter().map(line).collect();
    // Local traffic has no interface on which it came in.
    let has_no_iifname = |rule: &&Rule| !rule.nft.starts_with("iifname");
    let output: String = RULES.iter().filter(has_no_iifname).map(line).collect();
    format!(
        "table inet redirects {{
            chain prerouting {{
                type nat hook prerouting priority dstnat
                {prerouting}
            }}
            chain output {{
                type nat hook output priority -100
                {output}
            }}
        }}"
    )
}
