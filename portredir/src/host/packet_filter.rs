//! The packet filters of this host, nftables and iptables: their rules, and the way of a
//! packet through them as far as it can be known.

mod exact;
pub mod iptables;
pub mod nft;
mod redirected;
pub mod ruleset;

use std::fs;

use portredir_common::net::Version;

pub use self::exact::{Filtered, NOT_EVALUATED, Seen, filtered};
pub use self::redirected::redirected;
use self::ruleset::Ruleset;
use crate::sys::tool::{self, ToolError};

/// The rules of all packet filters, as far as they can be read.
#[derive(Clone, Debug, Default)]
pub struct Rulesets {
    /// The rules, by tool.
    pub rulesets: Vec<Ruleset>,
    /// The reasons why some are not known.
    pub unread: Vec<String>,
}

impl Rulesets {
    /// Reads the rules of all packet filters.
    #[must_use]
    pub fn read() -> Self {
        let mut all = Self::default();
        all.read_iptables();
        let json = tool::output("nft", &["-j", "list", "ruleset"]);
        let text = tool::output("nft", &["-a", "list", "ruleset"]);
        match json.map(|json| nft::parse(&json, text.as_deref().unwrap_or_default())) {
            Ok(Ok(mut ruleset)) => {
                // The tables of iptables-nft are nftables, too; their own tool knows them
                // better.
                ruleset.chains.retain(|chain| {
                    let mut known = all.rulesets.iter().flat_map(|ruleset| &ruleset.chains);
                    !known.any(|other| (&other.table, &other.name) == (&chain.table, &chain.name))
                });
                all.rulesets.push(ruleset);
            }
            Ok(Err(error)) => all.unread.push(format!("nft: {error}")),
            Err(ToolError::NotPermitted) => all.unread.push("nft needs root".to_owned()),
            Err(error) => all.unread.push(error.to_string()),
        }
        all
    }

    fn read_iptables(&mut self) {
        let saved = [
            ("iptables-save", Version::V4),
            ("ip6tables-save", Version::V6),
        ];
        let mut has_iptables = true;
        for (program, version) in saved {
            match tool::output(program, &[]) {
                Ok(text) => self.rulesets.push(iptables::parse(&text, version)),
                Err(ToolError::Missing(_)) => has_iptables = false,
                Err(error) => self.unread.push(format!("{program}: {error}")),
            }
        }
        if !has_iptables && has_legacy_tables() {
            let why = "there are iptables rules, but iptables-save is not installed";
            self.unread.push(why.to_owned());
        }
    }
}

/// Whether the kernel has tables of the older iptables in this network namespace.
fn has_legacy_tables() -> bool {
    ["ip_tables_names", "ip6_tables_names"].iter().any(|name| {
        let path = format!("/proc/thread-self/net/{name}");
        fs::read_to_string(path).is_ok_and(|names| !names.trim().is_empty())
    })
}
