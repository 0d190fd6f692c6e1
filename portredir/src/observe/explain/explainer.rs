//! The redirect that runs, as far as it was read, and what its flows are explained with.

use std::collections::HashMap;

use portredir_common::net::{Addr, LOOPBACK_IFINDEX};

use super::error::ExplainError;
use crate::config::settings::Settings;
use crate::host::packet_filter::Rulesets;
use crate::host::snapshot::Snapshot;
use crate::loader::live::{Live, RuleCopy};
use crate::loader::trial::Trial;
use crate::observe::attached::Interface;
use crate::observe::listening::Listeners;
use crate::observe::targets::Line;
use crate::rule::Rule;

/// A redirect that runs, as far as it was read.
#[derive(Debug)]
pub struct Redirect {
    /// The options.
    pub settings: Settings,
    /// The rules, each with its number.
    pub rules: Vec<(u16, Rule)>,
    /// The interfaces that are attached.
    pub interfaces: Vec<Interface>,
    /// The host.
    pub host: Snapshot,
    /// The maps.
    pub live: Live,
    /// The targets of rules that have several, or one with an address, with their states.
    pub targets: Vec<Line>,
}

/// Explains flows of one redirect.
#[derive(Debug)]
pub struct Explainer {
    pub(super) redirect: Redirect,
    pub(super) rules: RuleCopy,
    pub(super) servers: Listeners,
    pub(super) rulesets: Rulesets,
    /// The programs, once a packet has come to one.
    pub(super) trial: Option<Trial>,
    /// Whether the programs have the rules in force.
    pub(super) is_filled: bool,
    /// Whether the program of an interface is the one that runs here, as far as it is known.
    pub(super) compared: HashMap<u32, Option<bool>>,
}

impl Explainer {
    /// Reads rules and sockets.
    ///
    /// # Errors
    ///
    /// [`ExplainError::Datapath`], [`ExplainError::Sockets`].
    pub fn new(redirect: Redirect) -> Result<Self, ExplainError> {
        let rules: Vec<_> = redirect
            .rules
            .iter()
            .map(|(_, rule)| rule.clone())
            .collect();
        Ok(Self {
            rules: redirect.live.rules()?,
            servers: Listeners::read(&rules)?,
            rulesets: Rulesets::read(),
            redirect,
            trial: None,
            is_filled: false,
            compared: HashMap::new(),
        })
    }

    /// Goes on with what the redirect is now. The programs stay.
    ///
    /// # Errors
    ///
    /// The errors of [`Self::new`].
    pub fn renew(&mut self, redirect: Redirect) -> Result<(), ExplainError> {
        let trial = self.trial.take();
        *self = Self::new(redirect)?;
        self.trial = trial;
        Ok(())
    }

    /// The rules, each with its number.
    #[must_use]
    pub fn rules(&self) -> &[(u16, Rule)] {
        &self.redirect.rules
    }

    /// Whether an address is one of this host.
    #[must_use]
    pub fn is_own(&self, addr: Addr) -> bool {
        self.rules.is_local(&addr, LOOPBACK_IFINDEX)
    }
}
