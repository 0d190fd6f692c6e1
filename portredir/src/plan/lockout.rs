//! Rules that would lock an administrator out of this host; commands refuse them
//! without `--force`.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use portredir_common::abi::Protocol;
use thiserror::Error;

use crate::exit::ExitCode;
use crate::rule::Rule;

/// A rule takes a guarded port.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("rule `{rule}` {how} port {port}, {what}; use --force if you are sure")]
pub struct GuardError {
    /// The rule.
    pub rule: Box<Rule>,
    /// The effect of the rule on the port.
    pub how: &'static str,
    /// The port.
    pub port: u16,
    /// The use of the port.
    pub what: &'static str,
}

impl GuardError {
    /// The exit code of a command that ends with this error.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        ExitCode::Failed
    }
}

/// A port that a host needs to be reached, or to get its address.
#[derive(Clone, Copy)]
struct Guarded {
    protocol: Protocol,
    port: u16,
    what: &'static str,
}

const fn guarded(protocol: Protocol, port: u16, what: &'static str) -> Guarded {
    Guarded {
        protocol,
        port,
        what,
    }
}

const GUARDED: [Guarded; 7] = [
    guarded(Protocol::Tcp, 22, "the SSH port"),
    guarded(Protocol::Tcp, 6443, "the Kubernetes API port"),
    guarded(Protocol::Tcp, 10250, "the kubelet port"),
    guarded(Protocol::Udp, 67, "the DHCP server port"),
    guarded(Protocol::Udp, 68, "the DHCP client port"),
    guarded(Protocol::Udp, 546, "the DHCPv6 client port"),
    guarded(Protocol::Udp, 547, "the DHCPv6 server port"),
];

/// The TCP connection of an SSH session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SshConnection {
    /// The address and port of the client.
    pub client: SocketAddr,
    /// The address and port of this host.
    pub server: SocketAddr,
}

/// Whether other hosts may connect to target ports directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TargetPorts {
    Open,
    Blocked,
}

/// The rules that take a guarded port, each with the first such port. The port of the SSH
/// session of this process is guarded too.
#[must_use]
pub fn findings(rules: &[Rule], hide_target: bool) -> Vec<GuardError> {
    let ssh = ssh_connection();
    let targets = if hide_target {
        TargetPorts::Blocked
    } else {
        TargetPorts::Open
    };
    rules
        .iter()
        .filter_map(|rule| finding(rule, targets, ssh.as_ref()))
        .collect()
}

fn finding(rule: &Rule, targets: TargetPorts, ssh: Option<&SshConnection>) -> Option<GuardError> {
    let session = ssh
        .filter(|SshConnection { client, server }| {
            rule.addr.is_none_or(|addr| addr == server.ip())
                && rule.from.is_none_or(|from| from.contains(&client.ip()))
        })
        .map(|ssh| {
            let what = "which carries your current SSH session";
            guarded(Protocol::Tcp, ssh.server.port(), what)
        });
    GUARDED
        .into_iter()
        .chain(session)
        .find_map(|guarded| taken(rule, targets, guarded))
}

fn taken(rule: &Rule, targets: TargetPorts, guarded: Guarded) -> Option<GuardError> {
    let Guarded {
        protocol,
        port,
        what,
    } = guarded;
    if !rule.protocols.each().contains(&protocol) {
        return None;
    }
    let how = if rule.redirects(port) {
        "would redirect"
    } else if targets == TargetPorts::Blocked && rule.target.contains(port) {
        "would block"
    } else {
        return None;
    };
    Some(GuardError {
        rule: Box::new(rule.clone()),
        how,
        port,
        what,
    })
}

/// The SSH connection of this process or of a process that started it: sudo does not pass
/// the variable on.
#[must_use]
pub fn ssh_connection() -> Option<SshConnection> {
    const DEEPEST: usize = 64;
    if let Ok(text) = std::env::var("SSH_CONNECTION") {
        return parse(&text);
    }
    let mut pid = std::process::id();
    for _ in 0..DEEPEST {
        pid = parent(pid)?;
        // This user may not read the environment of some processes.
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

/// `CLIENT PORT SERVER PORT`, as sshd(8) writes it.
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

    use TargetPorts::{Blocked, Open};

    fn refused(rule: &str, targets: TargetPorts, ssh: Option<&str>) -> Option<String> {
        let ssh = ssh.map(|text| parse(text).expect("a connection"));
        let rule = rule.parse().expect("a rule");
        finding(&rule, targets, ssh.as_ref()).map(|error| error.to_string())
    }

    #[test]
    fn what_is_refused() {
        for (rule, targets, words) in [
            ("22:2222", Open, "would redirect port 22, the SSH port"),
            ("20-30:1020-1030", Open, "would redirect port 22"),
            ("22:2222/udp", Open, ""),
            ("6443:8443", Open, "Kubernetes API"),
            ("10250:8443/both", Open, "kubelet"),
            ("67:6767/udp", Open, "DHCP"),
            ("68:6868/both", Open, "DHCP"),
            ("546:5546/udp", Open, "DHCPv6"),
            ("67:6767", Open, ""),
            ("2222:22", Open, ""),
            ("2222:22", Blocked, "would block port 22"),
            ("80:8080", Blocked, ""),
        ] {
            let message = refused(rule, targets, None).unwrap_or_default();
            assert!(message.contains(words), "{rule}: {message}");
            assert_eq!(message.is_empty(), words.is_empty(), "{rule}: {message}");
            assert!(
                words.is_empty() || message.ends_with("use --force if you are sure"),
                "{message}"
            );
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
            let message = refused(rule, Open, ssh).unwrap_or_default();
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
