//! Virtual services of IPVS, to which kube-proxy and keepalived send connections.
//!
//! IPVS takes packets at the hook `input`, after a packet filter of that hook has let them
//! in, and so after portredir has redirected them.

use std::net::IpAddr;

use portredir_common::net::{Port, Protocol};

use super::firewall::REDIRECTS;
use crate::config::engine::EngineChoice;
use crate::config::settings::Settings;
use crate::host::ipvs::Service;
use crate::observe::listening::name_of;
use crate::plan::finding::{Diagnosis, Severity};
use crate::rule::Rule;

/// Looks for services on the ports of rules.
pub fn check(services: &[Service], settings: &Settings, diagnosis: &mut Diagnosis) {
    let is_before = settings.engine != EngineChoice::Socket;
    for service in services {
        let Service {
            protocol,
            addr,
            port,
        } = *service;
        let place = match addr {
            IpAddr::V4(addr) => format!("{addr}:{port}"),
            IpAddr::V6(addr) => format!("[{addr}]:{port}"),
        };
        let mut rules = settings.rules.iter().filter(|rule| {
            rule.protocols.each().contains(&protocol) && rule.addr.is_none_or(|own| own == addr)
        });
        let is_dst = |rule: &&Rule| rule.redirects(Port::new(port));
        let is_target = |rule: &&Rule| rule.is_own_target(Port::new(port));
        let found = if is_before {
            let target = rules.clone().find(is_target);
            target
                .map(|rule| (rule, true))
                .or(rules.find(is_dst).map(|rule| (rule, false)))
        } else {
            rules.find(is_dst).map(|rule| (rule, true))
        };
        let Some((rule, is_taken)) = found else {
            continue;
        };
        let name = name_of(protocol);
        let what = format!("{rule}: IPVS has a virtual service at {place}/{name}");
        let (severity, why) = if is_taken && is_before {
            (
                Severity::Note,
                "clients of the rule end there, and not at a server of this host",
            )
        } else if is_taken {
            (
                Severity::Error,
                "that service comes first, so portredir gets none of its clients",
            )
        } else {
            (
                Severity::Warning,
                "portredir comes first, so the service gets no clients from outside",
            )
        };
        let option = match protocol {
            Protocol::Tcp => "-t",
            Protocol::Udp => "-u",
        };
        let fix = format!("ipvsadm -D {option} {place}; or: portredir rm '{rule}'");
        diagnosis.find(REDIRECTS, severity, [what, why.to_owned(), fix]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ipvs::parse;

    const SERVICES: &str = "IP Virtual Server version 1.2.1 (size=4096)\n\
        Prot LocalAddress:Port Scheduler Flags\n  \
        -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
        TCP  0A600001:1F90 rr \n  \
        -> 0AF40003:0050      Masq    1      0          0         \n\
        UDP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0035 rr \n\
        FWM  00000001 wlc \n";

    #[test]
    fn services_on_the_ports_of_rules() {
        let services = parse(SERVICES);
        assert_eq!(services.len(), 2);
        for (rule, engine, expected) in [
            ("80:8080", EngineChoice::Auto, Some(Severity::Note)),
            ("80:8080", EngineChoice::Socket, None),
            ("8080:9000", EngineChoice::Socket, Some(Severity::Error)),
            ("8080:9000", EngineChoice::Auto, Some(Severity::Warning)),
            ("10.96.0.2:80:8080", EngineChoice::Auto, None),
            ("80:8080/udp", EngineChoice::Auto, None),
            (
                "[2001:db8::1]:5353:53/udp",
                EngineChoice::Auto,
                Some(Severity::Note),
            ),
        ] {
            let settings = Settings {
                engine,
                rules: vec![rule.parse().expect(rule)],
                ..Settings::default()
            };
            let mut diagnosis = Diagnosis::default();
            check(&services, &settings, &mut diagnosis);
            let found = diagnosis.findings.first().map(|finding| finding.severity);
            assert_eq!(found, expected, "{rule}: {diagnosis:?}");
        }
    }

    #[test]
    fn the_cure_names_the_service() {
        let settings = Settings {
            rules: vec!["53:53000/udp".parse().expect("a rule")],
            ..Settings::default()
        };
        let mut diagnosis = Diagnosis::default();
        check(&parse(SERVICES), &settings, &mut diagnosis);
        assert_eq!(
            diagnosis.findings[0].fix,
            "ipvsadm -D -u [2001:db8::1]:53; or: portredir rm '53:53000/udp'"
        );
    }
}
