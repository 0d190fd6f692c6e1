//! The results of readers, and of the whole import.

use std::collections::BTreeSet;
use std::fmt;

use super::redirect::Redirect;
use crate::rule::Labelled;

/// The redirects of another program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// The equivalent rules.
    pub rules: Vec<Labelled>,
    /// The lines without an equivalent.
    pub refused: Vec<Refused>,
    /// The differences between the lines and the rules.
    pub notes: BTreeSet<Note>,
}

/// A line that cannot be taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The line, or the name of an object.
    pub line: String,
    /// The reason.
    pub why: String,
}

/// A difference between the lines that were read and the rules that were made of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// Rules are for addresses of this host alone.
    OtherHosts,
    /// Rules are for both IP versions.
    BothVersions,
    /// Rules are for clients on this host as well.
    LocalClients,
    /// Addresses of containers change.
    Containers,
    /// The first match does not decide.
    Specific,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherHosts => {
                "connections that only pass through this host are not redirected: rules are for \
                 addresses of this host"
            }
            Self::BothVersions => {
                "some lines are for one IP version, and their rules are for both; to keep that, \
                 add for example `from 0.0.0.0/0`, which means all IPv4 clients"
            }
            Self::LocalClients => {
                "clients on this host are redirected as well; to leave them alone, use --no-local"
            }
            Self::Containers => {
                "a container may get another address when it starts again; give it a fixed one"
            }
            Self::Specific => {
                "where several rules match, the most specific one wins, and not the first one"
            }
        })
    }
}

/// The result of a reader, before redirects become rules.
#[derive(Default)]
pub(super) struct Found {
    pub(super) redirects: Vec<Redirect>,
    pub(super) refused: Vec<Refused>,
    pub(super) notes: BTreeSet<Note>,
}

impl Found {
    /// Notes that a line without an address was also for connections to other hosts.
    pub(super) fn note_other_hosts(&mut self) {
        let mut redirects = self.redirects.iter();
        if redirects.any(|redirect| redirect.addrs.is_empty()) {
            self.notes.insert(Note::OtherHosts);
        }
    }

    pub(super) fn refuse(&mut self, line: impl Into<String>, why: impl Into<String>) {
        let (line, why) = (line.into(), why.into());
        self.refused.push(Refused { line, why });
    }
}
