//! Parses `port=80:proto=tcp:toport=8080`, the syntax of firewalld.

use std::net::IpAddr;

use portredir_common::net::Port;

use super::Parser;
use super::target::{Listen, Placed};
use crate::rule::{Labelled, Ports, Protocols, RuleError, RuleTarget};

const HINT: &str = "write `port=80:proto=tcp:toport=8080`, or `80:8080`";

impl Parser<'_> {
    pub(super) fn is_firewalld(&self) -> bool {
        let keys = ["port=", "proto=", "toport=", "toaddr="];
        keys.iter().any(|key| self.rest().starts_with(key))
    }

    pub(super) fn firewalld(&mut self) -> Result<Labelled, RuleError> {
        let mut fields = Fields {
            target_at: self.at,
            ..Fields::default()
        };
        loop {
            self.field(&mut fields)?;
            match self.next() {
                Some(':') => self.at += 1,
                Some(c) if !c.is_whitespace() => {
                    return Err(self.error(format!("expected `:` or the end, found `{c}`"), HINT));
                }
                _ => break,
            }
        }
        let missing = |name| self.error(format!("`{name}=` is missing"), HINT);
        let ports = fields.ports.ok_or_else(|| missing("port"))?;
        let target = match (fields.target, fields.host) {
            (Some(target), _) => target,
            (None, Some(_)) => ports,
            (None, None) => return Err(missing("toport")),
        };
        let listen = Listen { addr: None, ports };
        let target = Placed {
            target: RuleTarget {
                host: fields.host,
                ports: target,
                weight: 1,
            },
            at: fields.target_at,
            weight_at: None,
        };
        self.finish(listen, fields.protocols.unwrap_or_default(), vec![target])
    }

    /// Reads the address of the target, which firewalld writes without brackets.
    fn toaddr(&mut self, ports: Ports) -> Result<IpAddr, RuleError> {
        let rest = self.word();
        let value = self.until(|c| c.is_whitespace() || c == ':');
        let read = |text: &str| text.parse::<IpAddr>().ok();
        // Only an IPv4 address can have other keys behind it.
        let found = read(rest).map(|addr| (addr, rest.len()));
        let found = found.or_else(|| Some((read(value)?, value.len())));
        let Some((addr, length)) = found else {
            return Err(self.error(
                format!("`{value}` is not an address; host names are not resolved"),
                "write `port=80:proto=tcp:toport=8080:toaddr=10.0.0.5`",
            ));
        };
        self.check_host(addr, Listen { addr: None, ports })?;
        self.at += length;
        Ok(addr)
    }

    /// Reads one KEY=VALUE.
    fn field(&mut self, fields: &mut Fields) -> Result<(), RuleError> {
        let word = self.until(|c| c.is_whitespace() || c == ':');
        let Some((key, value)) = word.split_once('=') else {
            let problem = match word {
                "" => "expected KEY=VALUE".to_owned(),
                _ => format!("expected KEY=VALUE, found `{word}`"),
            };
            return Err(self.error(problem, HINT));
        };
        if fields.has(key) {
            return Err(self.error(format!("`{key}=` is given twice"), HINT));
        }
        let key_at = self.at;
        self.at += key.len() + 1;
        match key {
            "port" => fields.ports = Some(self.ports("the port that clients connect to")?),
            "toport" if !value.is_empty() => {
                fields.target_at = self.at;
                fields.target = Some(self.ports("the port that the server listens on")?);
            }
            "proto" => {
                fields.protocols = Some(self.protocol(value)?);
                self.at += value.len();
            }
            // firewalld itself prints these.
            "toport" | "toaddr" if value.is_empty() => {}
            "toaddr" => {
                let ports = fields.ports.unwrap_or(Ports::one(Port::new(80)));
                fields.host = Some(self.toaddr(ports)?);
            }
            _ => {
                return Err(self.error_at(
                    key_at,
                    format!("unknown key `{key}`"),
                    "the keys are port, proto, toport and toaddr, as in `port=80:proto=tcp:toport=8080`",
                ));
            }
        }
        Ok(())
    }
}

/// The fields that were read so far.
#[derive(Default)]
struct Fields {
    ports: Option<Ports>,
    target: Option<Ports>,
    /// The place of the target in the text.
    target_at: usize,
    /// The address of the target.
    host: Option<IpAddr>,
    protocols: Option<Protocols>,
}

impl Fields {
    fn has(&self, key: &str) -> bool {
        match key {
            "port" => self.ports.is_some(),
            "toport" => self.target.is_some(),
            "proto" => self.protocols.is_some(),
            "toaddr" => self.host.is_some(),
            _ => false,
        }
    }
}
