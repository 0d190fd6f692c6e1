//! The rule for a packet, and where it goes by it.

use crate::flow::{FlowKey, NOT_BEGUN, Original};
use crate::kernel::{Choice, Socket, Tables};
use crate::map::rules::{Old, PortEntry};
use crate::net::{Flags, Port, Protocol};
use crate::packed;
use crate::verdict::Reason;

/// The rule for a packet to a port, if there is one for it.
#[inline(always)]
pub(crate) fn choose<T: Tables>(
    tables: &T,
    entry: PortEntry,
    key: &FlowKey,
    port: Port,
) -> Option<Choice> {
    if !entry.is_match() {
        None
    } else if entry.set == 0 {
        Some(Choice {
            target: entry.target,
            rule: entry.rule,
        })
    } else {
        tables.choose(entry, key, port)
    }
}

/// Where a packet goes.
#[derive(Clone, Copy)]
pub(crate) struct Route {
    /// Host order.
    pub(crate) target: u16,
    /// The rule, if there is one for it.
    pub(crate) rule: u16,
    /// Whether a rule redirects it, else it goes to a target by itself.
    pub(crate) is_match: bool,
}

impl Route {
    const MATCH: u64 = 1 << 32;

    /// By a port whose rule is for everybody.
    #[inline(always)]
    pub(crate) const fn of(entry: PortEntry, dialled_port: Port) -> Self {
        let is_match = entry.is_match();
        Self {
            target: if is_match {
                entry.target
            } else {
                dialled_port.get()
            },
            rule: entry.rule,
            is_match,
        }
    }

    #[inline(always)]
    pub(crate) fn to_word(self) -> u64 {
        let is_match = if self.is_match { Self::MATCH } else { 0 };
        u64::from(self.target) | u64::from(self.rule) << 16 | is_match
    }

    #[expect(clippy::cast_possible_truncation, reason = "16 bits of it")]
    #[inline(always)]
    pub(crate) fn from_word(word: u64) -> Result<Self, Reason> {
        let word = packed::from_word(word)?;
        Ok(Self {
            target: word as u16,
            rule: (word >> 16) as u16,
            is_match: word & Self::MATCH != 0,
        })
    }
}

#[inline(always)]
pub(super) fn try_find_route<T: Tables>(
    tables: &T,
    key: &mut FlowKey,
    entry: PortEntry,
    flags: Flags,
) -> Result<Route, Reason> {
    let protocol = key.protocol()?;
    let dialled_port = key.local_port;
    let original = Original {
        dialled_port,
        client_port: key.client_port,
        rule: entry.rule,
    };
    if entry.is_old() {
        let old = tables.old(entry, protocol, dialled_port);
        for i in 0..Old::COUNT {
            let target = old.targets[i];
            if target == 0 {
                break;
            }
            key.local_port = Port::new(target);
            let rule = tables.has_begun(key, original, flags);
            if rule != NOT_BEGUN {
                #[expect(clippy::cast_possible_truncation, reason = "not NOT_BEGUN")]
                let rule = rule as u16;
                return Ok(Route {
                    target,
                    rule,
                    is_match: true,
                });
            }
        }
    }
    let Some(Choice { target, rule }) = choose(tables, entry, key, dialled_port) else {
        if !entry.is_target() {
            return Err(if entry.is_old() {
                Reason::Draining
            } else {
                Reason::NoRule
            });
        }
        key.local_port = dialled_port;
        if entry.is_hidden() && !tables.is_from_here() {
            let is_connected = protocol == Protocol::Tcp
                && (!flags.is_syn() || tables.socket(key) == Socket::Connection);
            if !is_connected {
                return Err(Reason::Hidden);
            }
        }
        return Ok(Route {
            target: dialled_port.get(),
            rule: entry.rule,
            is_match: false,
        });
    };
    key.local_port = Port::new(target);
    if entry.is_if_listening() && !tables.is_served(key) {
        let has_begun =
            protocol == Protocol::Tcp && tables.has_begun(key, original, flags) != NOT_BEGUN;
        if !has_begun {
            return Err(Reason::NotListening);
        }
    }
    Ok(Route {
        target,
        rule,
        is_match: true,
    })
}
