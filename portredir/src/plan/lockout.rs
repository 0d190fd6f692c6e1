//! Refuses rules that would lock an administrator out of this host, unless forced.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use portredir_common::net::{Port, Protocol};
use thiserror::Error;

use crate::rule::Rule;

/// The lock-out by a rule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("rule `{rule}` {how} port {}, {what}; use --force if you are sure", .port.get())]
pub struct LockoutError {
    /// The rule.
    pub rule: Box<Rule>,
    /// The effect of the rule on the port.
    pub how: &'static str,
    /// The port.
    pub port: Port,
    /// The service that needs the port.
    pub what: String,
}

/// A port that a rule must not redirect or block without --force.
#[derive(Clone, Copy)]
struct Guarded {
    protocol: Protocol,
    port: Port,
    /// The use of the port, for the message.
    what: &'static str,
}

/// The ports by which hosts are reached, or reach others.
const GUARDED: [Guarded; 7] = [
    guarded(Protocol::Tcp, 22, "the SSH port"),
    guarded(Protocol::Tcp, 6443, "the Kubernetes API port"),
    guarded(Protocol::Tcp, 10250, "the kubelet port"),
    guarded(Protocol::Udp, 67, "the DHCP server port"),
    guarded(Protocol::Udp, 68, "the DHCP client port"),
    guarded(Protocol::Udp, 546, "the DHCPv6 client port"),
    guarded(Protocol::Udp, 547, "the DHCPv6 server port"),
];

const fn guarded(protocol: Protocol, port: u16, what: &'static str) -> Guarded {
    Guarded {
        protocol,
        port: Port::new(port),
        what,
    }
}

/// The SSH connection of the user: the client, then this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SshConnection {
    /// The client's end.
    pub client: SocketAddr,
    /// This end.
    pub server: SocketAddr,
}

/// The rules that take over or hide a guarded port, in view of the SSH connection of this
/// process: each with the first such port.
#[must_use]
pub fn findings(rules: &[Rule], hides_targets: bool) -> Vec<LockoutError> {
    let ssh = ssh_connection();
    rules
        .iter()
        .filter_map(|rule| check(std::slice::from_ref(rule), hides_targets, ssh.as_ref()).err())
        .collect()
}

/// Refuses rules that take over or hide such ports.
///
/// # Errors
///
/// [`LockoutError`] for the first of them.
pub fn check(
    rules: &[Rule],
    is_hiding: bool,
    ssh: Option<&SshConnection>,
) -> Result<(), LockoutError> {
    for rule in rules {
        for guarded in GUARDED {
            refuse(rule, guarded, is_hiding)?;
        }
        let Some(SshConnection { client, server }) = ssh else {
            continue;
        };
        let is_for_it = rule.addr.is_none_or(|addr| addr == server.ip())
            && rule.from.is_none_or(|from| from.contains(&client.ip()));
        if is_for_it {
            let what = "which carries your current SSH session";
            let guarded = guarded(Protocol::Tcp, server.port(), what);
            refuse(rule, guarded, is_hiding)?;
        }
    }
    Ok(())
}

fn refuse(rule: &Rule, guarded: Guarded, is_hiding: bool) -> Result<(), LockoutError> {
    let Guarded {
        protocol,
        port,
        what,
    } = guarded;
    if !rule.protocols.each().contains(&protocol) {
        return Ok(());
    }
    let how = if rule.redirects(port) {
        "would redirect"
    } else if is_hiding && rule.is_own_target(port) {
        "would block"
    } else {
        return Ok(());
    };
    Err(LockoutError {
        rule: Box::new(rule.clone()),
        how,
        port,
        what: what.to_owned(),
    })
}

/// The SSH connection of this process or of its ancestors: sudo does not pass the
/// variable on.
#[must_use]
pub fn ssh_connection() -> Option<SshConnection> {
    const DEEPEST: usize = 64;
    if let Ok(text) = std::env::var("SSH_CONNECTION") {
        return parse(&text);
    }
    let mut pid = std::process::id();
    for _ in 0..DEEPEST {
        pid = parent(pid)?;
        // Processes that this user may not read are skipped.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let variable = environment
            .split(|&byte| byte == 0)
            .find_map(|variable| variable.strip_prefix(b"SSH_CONNECTION="));
        if let Some(text) = variable {
            return parse(std::str::from_utf8(text).ok()?);
        }
    }
    None
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok().filter(|&parent| parent > 0)
}

/// Parses `CLIENT PORT SERVER PORT`, as sshd(8) writes it.
fn parse(text: &str) -> Option<SshConnection> {
    let mut words = text.split_whitespace();
    let mut end = || {
        let addr: IpAddr = words.next()?.split('%').next()?.parse().ok()?;
        let port = words.next()?.parse().ok()?;
        Some(SocketAddr::new(addr.to_canonical(), port))
    };
    Some(SshConnection {
        client: end()?,
        server: end()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case<'a> {
        rule: &'a str,
        is_hiding: bool,
        ssh: Option<&'a str>,
    }

    fn refused(case: &Case<'_>) -> Option<String> {
        let ssh = case.ssh.map(|text| parse(text).expect("a connection"));
        let rules = [case.rule.parse().expect("a rule")];
        check(&rules, case.is_hiding, ssh.as_ref())
            .err()
            .map(|error| error.to_string())
    }

    #[test]
    fn what_is_refused() {
        for (rule, is_hiding, words) in [
            ("22:2222", false, "would redirect port 22, the SSH port"),
            ("20-30:1020-1030", false, "would redirect port 22"),
            ("22:2222/udp", false, ""),
            ("6443:8443", false, "Kubernetes API"),
            ("10250:8443/both", false, "kubelet"),
            ("67:6767/udp", false, "DHCP"),
            ("68:6868/both", false, "DHCP"),
            ("546:5546/udp", false, "DHCPv6"),
            ("67:6767", false, ""),
            ("2222:22", false, ""),
            ("2222:22", true, "would block port 22"),
            ("80:8080", true, ""),
        ] {
            let case = Case {
                rule,
                is_hiding,
                ssh: None,
            };
            let message = refused(&case).unwrap_or_default();
            assert!(message.contains(words), "{rule}: {message}");
            assert_eq!(message.is_empty(), words.is_empty(), "{rule}: {message}");
            assert!(
                words.is_empty() || message.ends_with("use --force if you are sure"),
                "{message}"
            );
        }
    }

    #[test]
    fn targets_beyond_this_host_are_guarded_as_others() {
        for (rule, is_hiding, words) in [
            // The port stays the same, and the host is another one.
            ("22:10.0.0.5", false, "would redirect port 22, the SSH port"),
            ("22:[2001:db8::5]:22", false, "would redirect port 22"),
            ("20-30:10.0.0.5:1020-1030", false, "would redirect port 22"),
            // Some of the clients would get to another host.
            ("22:22,10.0.0.5:22", false, "would redirect port 22"),
            ("22:10.0.0.5/udp", false, ""),
            ("6443:10.0.0.5,10.0.0.6", false, "Kubernetes API"),
            ("67:10.0.0.5/udp", false, "DHCP"),
            // The SSH port of another host is not the one of this.
            ("2222:10.0.0.5:22", false, ""),
            ("2222:10.0.0.5:22", true, ""),
            ("2222:22,10.0.0.5:22", true, "would block port 22"),
            ("2222:10.0.0.5:22 else 22", true, "would block port 22"),
        ] {
            let case = Case {
                rule,
                is_hiding,
                ssh: None,
            };
            let message = refused(&case).unwrap_or_default();
            assert!(message.contains(words), "{rule}: {message}");
            assert_eq!(message.is_empty(), words.is_empty(), "{rule}: {message}");
        }
        let ssh = Some("192.0.2.9 50123 192.0.2.1 2022");
        for (rule, is_refused) in [
            ("2022:10.0.0.5", true),
            ("2000-2100:10.0.0.5", true),
            ("2022:10.0.0.5 from 192.0.2.0/24", true),
            ("2022:10.0.0.5 from 10.0.0.0/8", false),
            ("192.0.2.2:2022:10.0.0.5", false),
            // The client of the session is the target.
            ("80:192.0.2.9:50123", false),
        ] {
            let case = Case {
                rule,
                is_hiding: false,
                ssh,
            };
            assert_eq!(refused(&case).is_some(), is_refused, "{rule}");
        }
    }

    #[test]
    fn the_connection_one_types_in_is_guarded() {
        let ssh = Some("192.0.2.9 50123 192.0.2.1 2022");
        for (rule, is_refused) in [
            ("2022:8080", true),
            ("2000-2100:8080", true),
            ("192.0.2.1:2022:8080", true),
            ("192.0.2.2:2022:8080", false),
            ("2022:8080 from 192.0.2.0/24", true),
            ("2022:8080 from 10.0.0.0/8", false),
            ("2022:8080/udp", false),
        ] {
            let case = Case {
                rule,
                is_hiding: false,
                ssh,
            };
            let message = refused(&case).unwrap_or_default();
            assert_eq!(
                message.contains("2022, which carries your current SSH session"),
                is_refused,
                "{rule}: {message}"
            );
        }
        let mapped = parse("::ffff:192.0.2.9 1 fe80::1%eth0 22").expect("a connection");
        assert_eq!(mapped.client, "192.0.2.9:1".parse().expect("an address"));
        assert_eq!(mapped.server, "[fe80::1]:22".parse().expect("an address"));
        assert_eq!(parse("nonsense"), None);
    }
}
