use portredir_common::net::Version;

use super::*;
use crate::host::packet_filter::{iptables, nft};

fn filtered_by(saved: &str) -> Ways {
    let mut facts = facts();
    facts.filters.rulesets = vec![iptables::parse(saved, Version::V4)];
    plan(&facts, &wanted("172.17.0.2"))
}

#[test]
fn filters_see_the_address_of_the_target() {
    let ways = filtered_by("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n");
    let finding = only(&ways);
    assert_eq!(
        (finding.check, finding.severity),
        (FIREWALL, Severity::Error)
    );
    assert_eq!(
        finding.what,
        "the policy of chain FORWARD of table ip filter drops packets to 172.17.0.2:8080/tcp"
    );
    assert!(
        finding
            .fix
            .contains("-I FORWARD -d 172.17.0.2 -p tcp --dport 8080 -j ACCEPT")
    );
    // Someone may mend it while the redirect is active.
    ways.check().expect("a way");
    let ways = filtered_by(
        "*filter\n:FORWARD DROP [0:0]\n\
         -A FORWARD -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp --dport 8080 -j ACCEPT\nCOMMIT\n",
    );
    assert_eq!(found(&ways), [], "{ways}");
    let ways = filtered_by(
        "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m u32 --u32 0x0=0x1 -j ACCEPT\nCOMMIT\n",
    );
    assert_eq!(found(&ways), [], "{ways}");
    assert!(
        ways.diagnosis
            .unchecked
            .iter()
            .any(|it| it.check == FIREWALL)
    );
    assert_eq!(ways.diagnosis.passed.len(), 2, "{ways}");
    let ways = filtered_by(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         -A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 10.0.0.1\nCOMMIT\n",
    );
    assert!(only(&ways).what.contains("redirects packets"), "{ways}");
    let ways = filtered_by(
        "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o docker0 -j MASQUERADE\nCOMMIT\n",
    );
    let finding = only(&ways);
    assert_eq!(finding.severity, Severity::Warning);
    assert_eq!(
        finding.fix,
        "iptables -t nat -D POSTROUTING -o docker0 -j MASQUERADE"
    );
}

#[test]
fn docker_drops_before_connection_tracking() {
    let json = r#"{"nftables": [
        {"chain": {"family": "ip", "table": "raw", "name": "PREROUTING", "handle": 1,
            "type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"}},
        {"rule": {"family": "ip", "table": "raw", "chain": "PREROUTING", "handle": 3, "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}},
                "right": "172.17.0.2"}},
            {"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": "docker0"}},
            {"drop": null}]}}]}"#;
    let mut facts = facts();
    facts.filters.rulesets = vec![nft::parse(json, "").expect("JSON")];
    let finding = only(&plan(&facts, &wanted("172.17.0.2")));
    assert!(finding.why.starts_with("Docker 28"), "{finding}");
    assert!(finding.fix.contains("gateway_mode_ipv4=nat-unprotected"));
    // A bridge of another name is not Docker's.
    facts.devices.get_mut(&DOCKER0).expect("a bridge").name = "br0".to_owned();
    let finding = only(&plan(&facts, &wanted("172.17.0.2")));
    assert_eq!(finding.fix, "nft delete rule ip raw PREROUTING handle 3");
}
