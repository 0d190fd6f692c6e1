//! Parses `port=80:proto=tcp:toport=8080`, the syntax of firewalld.

use super::Parser;
use crate::rule::{Ports, Protocols, Rule, RuleError};

const HINT: &str = "write `port=80:proto=tcp:toport=8080`, or `80:8080`";

impl Parser<'_> {
    pub(super) fn is_firewalld(&self) -> bool {
        let keys = ["port=", "proto=", "toport=", "toaddr="];
        keys.iter().any(|key| self.rest().starts_with(key))
    }

    pub(super) fn firewalld(&mut self) -> Result<Rule, RuleError> {
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
        let target = fields.target.ok_or_else(|| missing("toport"))?;
        self.check_ports(ports, target, fields.target_at)?;
        let mut rule = Rule {
            addr: None,
            ports,
            target,
            protocols: fields.protocols.unwrap_or_default(),
            from: None,
            on: Vec::new(),
        };
        self.conditions(&mut rule)?;
        Ok(rule)
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
            "toport" => {
                fields.target_at = self.at;
                fields.target = Some(self.ports("the port that the server listens on")?);
            }
            "proto" => {
                fields.protocols = Some(self.protocol(value)?);
                self.at += value.len();
            }
            // firewalld itself prints this.
            "toaddr" if value.is_empty() => {}
            "toaddr" => {
                return Err(self.error_at(
                    key_at,
                    "`toaddr` names another host; redirects to other hosts are not supported",
                    "to redirect to a port of this host, omit toaddr: \
                     `port=80:proto=tcp:toport=8080`",
                ));
            }
            _ => {
                return Err(self.error_at(
                    key_at,
                    format!("unknown key `{key}`"),
                    "the keys are port, proto and toport, as in `port=80:proto=tcp:toport=8080`",
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
    protocols: Option<Protocols>,
}

impl Fields {
    fn has(&self, key: &str) -> bool {
        match key {
            "port" => self.ports.is_some(),
            "toport" => self.target.is_some(),
            "proto" => self.protocols.is_some(),
            _ => false,
        }
    }
}
