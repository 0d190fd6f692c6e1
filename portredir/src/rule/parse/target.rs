//! Parses the targets of a rule.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::addr::{in_text, is_v6_and_port};
use super::{Parser, to};
use crate::rule::error::right;
use crate::rule::target::Spelled;
use crate::rule::{Ports, Rule, RuleError, RuleTarget};

/// The largest number of targets of one rule.
const MOST_TARGETS: usize = 256;

/// The part of a rule before its targets.
#[derive(Clone, Copy)]
pub(super) struct Listen {
    pub(super) addr: Option<IpAddr>,
    pub(super) ports: Ports,
}

/// A target, and its place in the text.
pub(super) struct Placed {
    pub(super) target: RuleTarget,
    pub(super) at: usize,
    /// The place of the weight, if it is given.
    pub(super) weight_at: Option<usize>,
}

impl Parser<'_> {
    /// Reads `TARGET[,TARGET…]`.
    pub(super) fn targets(&mut self, listen: Listen) -> Result<Vec<Placed>, RuleError> {
        self.no_braces()?;
        let mut targets = Vec::new();
        loop {
            let target = self.target(listen)?;
            self.no_twin(listen, &targets, &target)?;
            targets.push(target);
            let Some(behind) = self.rest().strip_prefix(',') else {
                return Ok(targets);
            };
            if behind.starts_with(char::is_whitespace) {
                return Err(self.error(
                    "targets are separated by commas without spaces",
                    "as in `80:10.0.0.5:8080,10.0.0.6:8080`",
                ));
            }
            let end = behind.find(char::is_whitespace).unwrap_or(behind.len());
            if behind[..end].parse::<Rule>().is_ok() && !is_host(behind) {
                return Err(self.error(
                    "rules are separated only by spaces",
                    "write each rule as a separate argument: `80:8080` `443:8443`",
                ));
            }
            if targets.len() == MOST_TARGETS {
                return Err(self.error(
                    format!("a rule has at most {MOST_TARGETS} targets"),
                    "write several rules for different clients, as in `80:8080 from 10.0.0.0/8`",
                ));
            }
            self.at += 1;
        }
    }

    /// Reads `PORT[-PORT]` or `HOST[:PORT[-PORT]]`, and `=WEIGHT` behind it.
    pub(super) fn target(&mut self, listen: Listen) -> Result<Placed, RuleError> {
        let at = self.at;
        let host = self.host(listen)?;
        let ports = match host {
            None => self.ports("the port that the server listens on")?,
            Some(_) if self.next() == Some(':') => {
                self.at += 1;
                self.ports("the port of the target")?
            }
            Some(_) => listen.ports,
        };
        let weight_at = matches!(self.next(), Some('=' | '*')).then_some(self.at);
        let weight = match weight_at {
            Some(_) => self.weight()?,
            None => 1,
        };
        let target = RuleTarget {
            host,
            ports,
            weight,
        };
        if host.is_some() {
            self.check_count(listen.ports, &target, at)?;
        }
        Ok(Placed {
            target,
            at,
            weight_at,
        })
    }

    fn weight(&mut self) -> Result<u16, RuleError> {
        const HINT: &str = "weights are 1 to 100, as in `80:10.0.0.5=3,10.0.0.6`";
        if self.next() == Some('*') {
            let problem = "a weight is written with `=`: shells replace `*`";
            return Err(self.error(problem, HINT));
        }
        self.at += 1;
        let word = self.until(|c| c.is_whitespace() || matches!(c, ',' | '/' | ':'));
        let is_plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_digit());
        match word.parse::<u16>() {
            Ok(0) if is_plain => Err(self.error(
                "a target with weight 0 would get no flows",
                "omit the target, or give it a weight, as in `80:10.0.0.5=3,10.0.0.6`",
            )),
            Ok(weight) if is_plain && weight <= RuleTarget::MOST_WEIGHT => {
                self.at += word.len();
                Ok(weight)
            }
            _ => Err(self.error(format!("`{word}` is not a weight"), HINT)),
        }
    }

    /// Refuses a target that is given again.
    fn no_twin(&self, listen: Listen, targets: &[Placed], new: &Placed) -> Result<(), RuleError> {
        let new_end = (new.target.host, new.target.ports);
        let is_same = |other: &Placed| (other.target.host, other.target.ports) == new_end;
        if !targets.iter().any(is_same) {
            return Ok(());
        }
        Err(self.error_at(
            new.at,
            format!(
                "target {} is given twice",
                Spelled(&new.target, listen.ports)
            ),
            "for a larger share give it a weight, as in `80:10.0.0.5=2,10.0.0.6`",
        ))
    }

    /// Refuses a number of target ports that does not fit that of destination ports.
    pub(super) fn check_count(
        &self,
        ports: Ports,
        target: &RuleTarget,
        at: usize,
    ) -> Result<(), RuleError> {
        if target.ports.is_one() || ports.count() == target.ports.count() {
            return Ok(());
        }
        let host = target
            .host
            .map_or(String::new(), |host| in_text(host) + ":");
        let first = target.ports.first;
        let to_one = format!("{ports}:{host}{first}");
        let last = u32::from(first) + ports.count() - 1;
        let hint = if ports.count() == 1 || last > 65535 {
            format!("write for example `{to_one}`")
        } else {
            let each = format!("{ports}:{host}{first}-{last}");
            format!("write for example `{each}`, or `{to_one}` for one target port")
        };
        let from = match ports.count() {
            1 => "one port".to_owned(),
            count => format!("{count} ports"),
        };
        let problem = format!(
            "{from} cannot be redirected to {} ports",
            target.ports.count()
        );
        Err(self.error_at(at, problem, hint))
    }

    /// Refuses `80:{A,B}`, of which a shell makes two rules.
    fn no_braces(&self) -> Result<(), RuleError> {
        let word = self.word();
        let Some(brace) = word.find(['{', '}']) else {
            return Ok(());
        };
        let plain = self.text.replace(['{', '}'], "");
        let hint = format!("write `{}`", right(&plain, "80:8080,10.0.0.5:8080"));
        Err(self.error_at(
            self.at + brace,
            "targets stand without braces: a shell makes two rules of them",
            hint,
        ))
    }

    /// Reads the address of a target, if there is one.
    fn host(&mut self, listen: Listen) -> Result<Option<IpAddr>, RuleError> {
        let rest = self.until(|c| c.is_whitespace() || matches!(c, ',' | '/' | '=' | '*'));
        if let Some(inner) = rest.strip_prefix('[') {
            let Some(end) = inner.find(']') else {
                return Err(self.error(
                    "`[` without `]`",
                    "write IPv6 addresses in brackets, as in `80:[2001:db8::5]:8080`",
                ));
            };
            let addr = self.v6_host(&inner[..end], listen)?;
            self.check_host(addr, listen)?;
            self.at += end + 2;
            return Ok(Some(addr));
        }
        if let Ok(addr) = rest.parse::<Ipv6Addr>()
            && rest.contains("::")
            && !is_v6_and_port(rest)
        {
            return Err(self.plain_v6(addr, "", listen));
        }
        if is_v6_and_port(rest)
            && let Some((addr, port)) = rest.rsplit_once(':')
            && let Ok(addr) = addr.parse::<Ipv6Addr>()
        {
            return Err(self.plain_v6(addr, port, listen));
        }
        let word = self.until(|c| c.is_whitespace() || matches!(c, ':' | ',' | '/' | '=' | '*'));
        if let Ok(addr) = word.parse::<Ipv4Addr>() {
            self.check_host(addr.into(), listen)?;
            self.at += word.len();
            return Ok(Some(addr.into()));
        }
        self.no_name(word, listen)?;
        Ok(None)
    }

    /// The error of an IPv6 address without brackets.
    fn plain_v6(&self, addr: Ipv6Addr, port: &str, listen: Listen) -> RuleError {
        let ports = listen.ports;
        let port = if port.is_empty() { "8080" } else { port };
        let addr = IpAddr::from(addr).to_canonical();
        let rule = format!("{ports}:{}:{port}", in_text(addr));
        self.error(
            "an IPv6 address must be in brackets",
            format!("write `{}`", right(&rule, "80:[2001:db8::5]:8080")),
        )
    }

    /// Reads the address in brackets.
    fn v6_host(&self, inner: &str, listen: Listen) -> Result<IpAddr, RuleError> {
        if let Ok(addr) = inner.parse::<Ipv4Addr>() {
            let rule = format!("{}:{addr}:8080", listen.ports);
            return Err(self.error(
                "brackets are for IPv6 addresses",
                format!("write `{}`", right(&rule, "80:10.0.0.5:8080")),
            ));
        }
        if let Some(zone) = inner.find('%') {
            return Err(self.error_at(
                self.at + 1 + zone,
                "the address of a target cannot have a zone",
                "write an address that is routed, as in `80:[2001:db8::5]:8080`",
            ));
        }
        inner.parse::<Ipv6Addr>().map(IpAddr::from).map_err(|_| {
            let problem = match inner {
                "" => "the brackets are empty".to_owned(),
                _ => format!("`{inner}` is not an IPv6 address"),
            };
            let hint = "write targets as in `80:[2001:db8::5]:8080`; host names are not resolved";
            self.error_at(self.at + 1, problem, hint)
        })
    }

    /// Refuses addresses that no target can have.
    pub(super) fn check_host(&self, addr: IpAddr, listen: Listen) -> Result<(), RuleError> {
        let own = || self.own_port(listen);
        let is_link_local = |v6: &Ipv6Addr| v6.is_unicast_link_local();
        let is_zero_net = |v4: &Ipv4Addr| v4.octets()[0] == 0;
        let (problem, hint) = match addr {
            _ if addr.is_loopback() || addr.is_unspecified() => (
                format!("{addr} is not the address of another host"),
                format!("for a port of this host write only the port: `{}`", own()),
            ),
            _ if listen.addr == Some(addr) => (
                format!("{addr} is the address that clients connect to"),
                format!("for a port of this host write only the port: `{}`", own()),
            ),
            IpAddr::V6(v6) if let Some(mapped) = v6.to_ipv4_mapped() => (
                format!("{addr} is an IPv4-mapped IPv6 address"),
                format!(
                    "write `{}`",
                    right(
                        &format!("{}:{mapped}:8080", listen.ports),
                        "80:10.0.0.5:8080"
                    )
                ),
            ),
            IpAddr::V6(v6) if is_link_local(&v6) => (
                format!("{addr} is a link-local address, which does not name its interface"),
                "write an address that is routed, as in `80:[2001:db8::5]:8080`".to_owned(),
            ),
            _ if addr.is_multicast() => no_unicast(addr, "a multicast address"),
            IpAddr::V4(v4) if v4.is_broadcast() => no_unicast(addr, "a broadcast address"),
            IpAddr::V4(v4) if is_zero_net(&v4) => no_unicast(addr, "no address of a host"),
            _ => return self.check_family(listen, addr, self.at),
        };
        Err(self.error(problem, hint))
    }

    /// Refuses a target that clients of the address cannot reach.
    fn check_family(&self, listen: Listen, addr: IpAddr, at: usize) -> Result<(), RuleError> {
        match listen.addr {
            Some(own) if own.is_ipv4() != addr.is_ipv4() => Err(self.error_at(
                at,
                format!("clients that connect to {own} cannot be sent to {addr}"),
                other_version(own.is_ipv4()),
            )),
            _ => Ok(()),
        }
    }

    /// The rule with a port of this host in place of the target that comes next.
    fn own_port(&self, listen: Listen) -> String {
        let word = self.until(|c| c.is_whitespace() || matches!(c, ',' | '/' | '='));
        let behind = word.rsplit_once(']').map_or(word, |(_, behind)| behind);
        let rule = if behind.contains(':') {
            self.to_number(listen.ports, behind)
        } else {
            to(listen.ports, 8080)
        };
        match listen.addr {
            Some(addr) => format!("{}:{rule}", in_text(addr)),
            None => rule,
        }
    }

    /// Refuses names of hosts and of containers.
    fn no_name(&self, word: &str, listen: Listen) -> Result<(), RuleError> {
        let behind = &self.rest()[word.len()..];
        let is_name = word.starts_with(char::is_alphabetic)
            && (behind.starts_with(':') || word.contains('.'));
        let is_number = word.starts_with(|c: char| c.is_ascii_digit())
            && word.contains('.')
            && !word.contains("..");
        let example = || {
            let text = format!("{}:10.0.0.5:8080", listen.ports);
            right(&text, "80:10.0.0.5:8080")
        };
        let (problem, hint) = match word {
            "localhost" => (
                "`localhost` is this host".to_owned(),
                format!("write only the port: `{}`", self.own_port(listen)),
            ),
            "container" | "docker" | "pod" if is_name => (
                "containers are not found by their names".to_owned(),
                format!("write the address of the container, as in `{}`", example()),
            ),
            _ if is_name => (
                format!("`{word}` is not an address; host names are not resolved"),
                format!("write the address of the target, as in `{}`", example()),
            ),
            _ if is_number => (
                format!("`{word}` is not an IPv4 address"),
                format!("write targets as in `{}`", example()),
            ),
            _ => return Ok(()),
        };
        Err(self.error(problem, hint))
    }
}

fn no_unicast(addr: IpAddr, what: &str) -> (String, String) {
    (
        format!("{addr} is {what}, so it cannot be a target"),
        "write the address of one host, as in `80:10.0.0.5:8080`".to_owned(),
    )
}

/// The hint where a rule and its target have different IP versions.
pub(super) const fn other_version(is_v4: bool) -> &'static str {
    if is_v4 {
        "give an IPv4 target, as in `80:10.0.0.5:8080`"
    } else {
        "give an IPv6 target, as in `80:[2001:db8::5]:8080`"
    }
}

/// Whether a text begins with the address of a host.
fn is_host(text: &str) -> bool {
    let end = text.find([':', ',', '/', '=']).unwrap_or(text.len());
    text.starts_with('[') || text[..end].parse::<Ipv4Addr>().is_ok()
}
