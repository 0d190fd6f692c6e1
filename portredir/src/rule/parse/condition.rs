//! Parses `from CIDR` and `on IFACE,…`, and the options and the label between them, in any order.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use super::options::{self, Words};
use super::target::Listen;
use super::{Parser, is_comment};
use crate::rule::error::{EXAMPLE, spelled, visible};
use crate::rule::{Rule, RuleError};

/// The longest name of an interface in bytes, without the zero byte at its end
/// (`IFNAMSIZ` in include/uapi/linux/if.h).
const LONGEST_NAME: usize = 15;

impl Parser<'_> {
    /// Reads the text after the protocol, to the end.
    pub(super) fn conditions(
        &mut self,
        rule: &mut Rule,
        words: &mut Words,
    ) -> Result<(), RuleError> {
        let (mut has_from, mut has_on) = (false, false);
        loop {
            let before = self.at;
            self.skip_spaces();
            let word = self.word();
            if word.is_empty() {
                return Ok(());
            }
            match word {
                _ if self.at == before => return Err(self.junk(word, has_on)),
                "from" if has_from => {
                    return Err(
                        self.error("`from` is given twice", "write one rule per client network")
                    );
                }
                "on" if has_on => {
                    return Err(self.error(
                        "`on` is given twice",
                        "separate interfaces with commas: `on eth0,wg0`",
                    ));
                }
                "from" => {
                    self.at += word.len();
                    rule.from = Some(self.from(rule.addr)?);
                    has_from = true;
                }
                "on" => {
                    self.at += word.len();
                    rule.on = self.on()?;
                    has_on = true;
                }
                "name" => self.name_of_rule(words)?,
                _ if is_comment(word) => return self.comment(words),
                _ if options::is_option(word) => {
                    let (addr, ports) = (rule.addr, rule.ports);
                    self.option(word, Listen { addr, ports }, words)?;
                }
                _ => return Err(self.junk(word, has_on)),
            }
        }
    }

    /// The error for a word that is neither of the two.
    fn junk(&self, word: &str, has_on: bool) -> RuleError {
        let two = spelled(["80:8080", "443:8443"]);
        let lower = word.to_ascii_lowercase();
        let (problem, hint) = if word.starts_with([',', ';', '+', '&', '|']) {
            (
                "rules are separated only by spaces",
                format!("write each rule as a separate argument: {two}"),
            )
        } else if [":tcp", ":udp", ":both"].contains(&lower.as_str()) {
            (
                "the protocol goes after `/`",
                format!("as in `80:8080/{}`", &lower[1..]),
            )
        } else if is_comment(word) {
            (
                "the rule should end here",
                "put a space before a comment, as in `80:8080 # OPS-1`".to_owned(),
            )
        } else if word.starts_with(':') {
            (
                "a rule has two ports",
                "an address goes before both ports, as in `10.0.0.5:80:8080`".to_owned(),
            )
        } else if word.starts_with('-') && word[1..].starts_with(|c: char| c.is_ascii_digit()) {
            (
                "the rule should end here",
                "a range has two ports, as in `8000-8100:9000-9100`".to_owned(),
            )
        } else if word.parse::<Rule>().is_ok() {
            (
                "a second rule begins here",
                format!("write each rule as a separate argument: {two}"),
            )
        } else if let Some(protocol) = ["/tcp", "/udp", "/both"].iter().find(|p| lower == **p) {
            (
                "no space is allowed before the protocol",
                format!("as in `80:8080{protocol}`"),
            )
        } else if ["from", "on"].contains(&lower.as_str()) || options::is_option(&lower) {
            (
                "conditions and options are lower case",
                "as in `from 10.0.0.0/8` and `on eth0`".to_owned(),
            )
        } else if ["tcp", "udp", "both"].contains(&lower.as_str()) {
            (
                "the protocol goes after `/`",
                format!("as in `80:8080/{lower}`"),
            )
        } else if has_on {
            (
                "the rule should end here",
                "separate interfaces with commas, without spaces: `on eth0,wg0`".to_owned(),
            )
        } else {
            ("the rule should end here", EXAMPLE.to_owned())
        };
        self.error(problem, hint)
    }

    fn from(&mut self, local: Option<IpAddr>) -> Result<IpNet, RuleError> {
        self.skip_spaces();
        let word = self.word();
        if word.is_empty() {
            return Err(self.error(
                "expected a network after `from`",
                "write a network or an address, as in `from 10.0.0.0/8`",
            ));
        }
        let plain = without_brackets(word);
        let net = plain
            .parse::<IpNet>()
            .or_else(|_| plain.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| self.no_network(word, &plain))?;
        if net != net.trunc() {
            return Err(self.error(
                format!("{net} has host bits set"),
                format!(
                    "for the network write `{}`, for the one host `{}`",
                    right_from(&net.trunc().to_string()),
                    right_from(&net.addr().to_canonical().to_string())
                ),
            ));
        }
        if let IpNet::V6(v6) = net
            && let Some(mapped) = v6.addr().to_ipv4_mapped()
        {
            let length = v6.prefix_len().saturating_sub(96);
            let net = Ipv4Net::new(mapped, length)
                .map_or_else(|_| mapped.to_string(), |net| shortest(net.into()));
            return Err(self.error(
                format!("{word} is an IPv4-mapped IPv6 address"),
                format!("write `{}`", right_from(&net)),
            ));
        }
        if net.addr().is_unspecified() && net.prefix_len() == net.max_prefix_len() {
            let all = if net.addr().is_ipv4() {
                "0.0.0.0/0"
            } else {
                "::/0"
            };
            return Err(self.error(
                format!("{} cannot be the address of a client", net.addr()),
                format!("to match all clients of this IP version, write `from {all}`"),
            ));
        }
        if let Some(local) = local.filter(|local| local.is_ipv4() != net.addr().is_ipv4()) {
            return Err(self.error(
                format!("clients in {net} cannot connect to {local}"),
                "use two IPv4 addresses or two IPv6 addresses; this rule would never match",
            ));
        }
        self.at += word.len();
        Ok(net)
    }

    fn no_network(&self, word: &str, plain: &str) -> RuleError {
        let problem = format!("`{word}` is not a network");
        if word.contains(',') {
            return self.error(
                problem,
                "write one rule per network, as in `from 10.0.0.0/8`",
            );
        }
        if let Some((addr, zone)) = plain.split_once('%')
            && addr.parse::<Ipv6Addr>().is_ok()
        {
            return self.error(
                problem,
                match format!("80:8080 from {addr} on {zone}").parse::<Rule>() {
                    Ok(_) if !zone.contains('`') => {
                        format!("an address cannot have a zone here; write `from {addr} on {zone}`")
                    }
                    _ => "an address cannot have a zone here; write `from fe80::1 on eth0`"
                        .to_owned(),
                },
            );
        }
        let addr = plain
            .split_once('/')
            .map(|(addr, _)| addr.parse::<IpAddr>());
        let hint = match addr {
            Some(Ok(IpAddr::V4(_))) => "an IPv4 prefix length is 0 to 32, as in `from 10.0.0.0/8`",
            Some(Ok(IpAddr::V6(_))) => {
                "an IPv6 prefix length is 0 to 128, as in `from 2001:db8::/32`"
            }
            _ => {
                "write a network or an address, as in `from 10.0.0.0/8`; host names are not \
                  resolved"
            }
        };
        self.error(problem, hint)
    }

    fn on(&mut self) -> Result<Vec<String>, RuleError> {
        self.skip_spaces();
        let list = self.word();
        let start = self.at;
        let mut names = Vec::<String>::new();
        for name in list.split(',') {
            self.name(name)?;
            names.push(name.to_owned());
            self.at += name.len() + 1;
        }
        self.at = start + list.len();
        // The order means nothing, so the names are sorted: there is one text for each
        // rule.
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Checks the name or glob of an interface.
    fn name(&self, name: &str) -> Result<(), RuleError> {
        if name.is_empty() {
            return Err(self.error(
                "expected an interface name",
                "separate interfaces with commas, without spaces: `on eth0,wg*`",
            ));
        }
        if name == "all" || name == "any" {
            return Err(self.error(
                format!("`{name}` is the default; a rule without `on` matches every interface"),
                "omit the condition, as in `80:8080`",
            ));
        }
        if let Some(name) = name.strip_prefix('!') {
            return Err(self.error(
                "a rule cannot exclude interfaces",
                format!("to exclude {name} from all rules, use --iface 'all,!{name}'"),
            ));
        }
        if let Err(error) = glob::Pattern::new(name) {
            return Err(self.error(
                format!("bad glob `{name}`: {}", error.msg),
                "write globs as in `on wg*` or `on eth?`",
            ));
        }
        // `dev_valid_name` in net/core/dev.c refuses these. Control characters are
        // refused too, as rules are printed on terminals.
        let is_name = !name.contains(['/', ':'])
            && !name.contains(|c| visible(c) != c)
            && !matches!(name, "." | "..");
        if !is_name || (!is_glob(name) && name.len() > LONGEST_NAME) {
            return Err(self.error(
                format!("`{name}` is not a valid interface name"),
                format!(
                    "a name has at most {LONGEST_NAME} characters and no slash, colon or \
                         control character"
                ),
            ));
        }
        Ok(())
    }
}

/// A condition for these clients, or an example if it would be refused.
fn right_from(net: &str) -> String {
    let condition = format!("from {net}");
    match format!("80:8080 {condition}").parse::<Rule>() {
        Ok(_) => condition,
        Err(_) => "from 10.0.0.0/8".to_owned(),
    }
}

/// Whether the text can stand for more than one name.
pub(crate) fn is_glob(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// The text of a network; a bare address where the network is one host.
fn shortest(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

/// Reads `[2001:db8::]/32` as `2001:db8::/32`.
fn without_brackets(word: &str) -> String {
    let inner = word.strip_prefix('[').and_then(|word| word.split_once(']'));
    match inner {
        Some((addr, length)) if addr.parse::<Ipv6Addr>().is_ok() => format!("{addr}{length}"),
        _ => word.to_owned(),
    }
}
