//! Parses addresses of this host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portredir_common::net::Port;

use super::{Parser, to};
use crate::rule::error::{EXAMPLE, right};
use crate::rule::{Ports, RuleError};

impl<'a> Parser<'a> {
    /// The address and the ports, without a protocol.
    fn head(&self) -> &'a str {
        self.until(|c| c.is_whitespace() || c == '/')
    }

    /// Reads `ADDR:`, if there is one.
    pub(super) fn addr(&mut self) -> Result<Option<IpAddr>, RuleError> {
        let (addr, length) = if self.next() == Some('[') {
            let Some(end) = self.rest().find(']') else {
                return Err(self.error(
                    "`[` without `]`",
                    "write IPv6 addresses in brackets, as in `[2001:db8::1]:80:8080`",
                ));
            };
            (self.bracketed(&self.rest()[1..end])?, end + 1)
        } else {
            self.no_plain_v6()?;
            let word = self.until(|c| c.is_whitespace() || matches!(c, ':' | '/'));
            let is_port = word.chars().all(|c| c.is_ascii_digit() || c == '-');
            // `80:8080` has one colon, `10.0.0.5:80:8080` two.
            if is_port || (self.head().matches(':').count() < 2 && !is_addr(word)) {
                return Ok(None);
            }
            (self.named(word)?, word.len())
        };
        self.check_local(addr)?;
        self.at += length;
        if self.next() == Some('/') {
            return Err(self.error(
                "expected an address of this host before the ports, found a network",
                "to match the clients of a network, write for example `80:8080 from 10.0.0.0/8`",
            ));
        }
        if self.next() != Some(':') {
            return Err(self.error(
                "expected `:` after the address",
                format!(
                    "write both ports after the address, as in `{}:80:8080`",
                    in_text(addr)
                ),
            ));
        }
        self.at += 1;
        if !self.head().contains(':') {
            self.no_lone_port(addr)?;
        }
        Ok(Some(addr))
    }

    /// Refuses `10.0.0.5:80`, which looks like a whole rule to users of URLs.
    fn no_lone_port(&self, addr: IpAddr) -> Result<(), RuleError> {
        let Ok(port) = self.head().parse::<u16>() else {
            return Ok(());
        };
        let at = self.at + self.head().len();
        let port = to(Ports::one(Port::new(port.max(1))), 8080);
        Err(self.error_at(
            at,
            "the rule has an address but only one port",
            format!("write `{}:{port}`", in_text(addr)),
        ))
    }

    /// Reads the address in brackets.
    fn bracketed(&self, inner: &str) -> Result<IpAddr, RuleError> {
        if let Ok(addr) = inner.parse::<Ipv4Addr>() {
            return Err(self.error(
                "brackets are for IPv6 addresses",
                format!("write `{}`", right(&format!("{addr}:80:8080"), V4)),
            ));
        }
        if let Some((addr, zone)) = inner.split_once('%')
            && let Ok(addr) = addr.parse::<Ipv6Addr>()
        {
            let zone = if zone.is_empty() { "eth0" } else { zone };
            let at = self.at + 1 + inner.find('%').unwrap_or_default();
            return Err(self.error_at(
                at,
                "an address cannot have a zone here",
                with_zone(addr, zone, "80:8080"),
            ));
        }
        let addr = inner.parse::<Ipv6Addr>().map(IpAddr::from);
        addr.map_err(|_| {
            self.error_at(
                self.at + 1,
                match inner {
                    "" => "the brackets are empty".to_owned(),
                    _ => format!("`{inner}` is not an IPv6 address"),
                },
                "write addresses as in `[2001:db8::1]:80:8080`; host names are not resolved",
            )
        })
    }

    /// Refuses an IPv6 address without brackets: the parser cannot tell it from ports.
    fn no_plain_v6(&self) -> Result<(), RuleError> {
        let head = self.head();
        let problem = "an IPv6 address must be in brackets";
        let mut parts = head.rsplitn(3, ':');
        if let (Some(target), Some(dst), Some(addr)) = (parts.next(), parts.next(), parts.next()) {
            let (addr, zone) = addr.split_once('%').unwrap_or((addr, ""));
            let ports = format!("{dst}:{target}");
            if let Ok(addr) = addr.parse::<Ipv6Addr>()
                && ports.parse::<crate::rule::Rule>().is_ok()
            {
                let hint = match zone {
                    "" => format!("write `{}`", v6_rule(addr, &ports)),
                    _ => with_zone(addr, zone, &ports),
                };
                return Err(self.error(problem, hint));
            }
        }
        // `80::8080` is an IPv6 address too, but users mean ports.
        let is_meant =
            head.contains(|c: char| c.is_ascii_alphabetic()) || head.matches(':').count() > 2;
        // `80:2001:db8::1:8080` is one as well, but users mean a port, an address and a
        // port.
        let is_other = head
            .split_once(':')
            .is_some_and(|(_, host)| is_v6_and_port(host));
        if let Ok(addr) = head.parse::<Ipv6Addr>()
            && is_meant
            && !is_other
        {
            return Err(self.error(
                format!("{problem}, followed by the ports"),
                format!("write `{}`", v6_rule(addr, "80:8080")),
            ));
        }
        Ok(())
    }

    fn named(&self, word: &str) -> Result<IpAddr, RuleError> {
        if let Ok(addr) = word.parse::<Ipv4Addr>() {
            return Ok(addr.into());
        }
        let hint = match word {
            "localhost" => "for local clients that connect to 127.0.0.1, write `127.0.0.1:80:8080`",
            "*" => EVERYWHERE,
            "tcp" | "udp" => "the protocol goes after both ports, as in `53:5353/udp`",
            "" => EXAMPLE,
            _ if !word.contains('.') && word.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                let rule = right(&format!("80:8080 on {word}"), "80:8080 on eth0");
                let hint = format!(
                    "to match an interface, write for example `{rule}`; host names are \
                             not resolved"
                );
                return Err(self.error(format!("`{word}` is not an address"), hint));
            }
            _ => {
                "write a numeric address, as in `10.0.0.5:80:8080` or `[2001:db8::1]:80:8080`; \
                 host names are not resolved"
            }
        };
        let problem = match word {
            "" => "expected a port or an address, found `:`".to_owned(),
            _ => format!("`{word}` is not an address"),
        };
        Err(self.error(problem, hint))
    }

    /// Refuses addresses that no host can have. 240.0.0.0/4 is allowed: Linux accepts
    /// such addresses, and some networks use them.
    fn check_local(&self, addr: IpAddr) -> Result<(), RuleError> {
        let problem = match addr {
            _ if addr.is_unspecified() => {
                let problem = format!("{addr} is not the address of a host");
                return Err(self.error(problem, EVERYWHERE));
            }
            _ if addr.is_multicast() => "multicast",
            IpAddr::V4(addr) if addr.is_broadcast() => "broadcast",
            IpAddr::V6(addr) if let Some(mapped) = addr.to_ipv4_mapped() => {
                return Err(self.error(
                    format!("{addr} is an IPv4-mapped IPv6 address"),
                    format!("write `{}`", right(&format!("{mapped}:80:8080"), V4)),
                ));
            }
            _ => return Ok(()),
        };
        Err(self.error(
            format!("{addr} is a {problem} address, not an address of this host"),
            EVERYWHERE,
        ))
    }
}

const V4: &str = "10.0.0.5:80:8080";

/// The rule for an address that was written without brackets.
fn v6_rule(addr: Ipv6Addr, ports: &str) -> String {
    let addr = in_text(IpAddr::from(addr).to_canonical());
    right(&format!("{addr}:{ports}"), "[2001:db8::1]:80:8080")
}

const EVERYWHERE: &str = "to match every address of this host, omit the address, as in `80:8080`";

fn is_addr(word: &str) -> bool {
    word.parse::<IpAddr>().is_ok()
}

/// Whether the text is like `2001:db8::1:8080`, or the address alone.
pub(super) fn is_v6_and_port(head: &str) -> bool {
    let is_long = head.matches(':').count() > 2;
    let addr = head.rsplit_once(':').map_or("", |(addr, _)| addr);
    is_long && addr.parse::<Ipv6Addr>().is_ok()
}

/// The address in the form that it has before ports.
pub(super) fn in_text(addr: IpAddr) -> String {
    match addr {
        IpAddr::V4(addr) => addr.to_string(),
        IpAddr::V6(addr) => format!("[{addr}]"),
    }
}

fn with_zone(addr: Ipv6Addr, zone: &str, ports: &str) -> String {
    let rule = format!("[{addr}]:{ports} on {zone}");
    format!("write `{}`", right(&rule, "[fe80::1]:80:8080 on eth0"))
}
