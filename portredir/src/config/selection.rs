//! The interfaces that `--iface` selects: names, globs, exclusions.

use std::fmt;
use std::str::FromStr;

use glob::Pattern;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// The value of `--iface`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Whether every interface is selected that is not excluded: `all`, or exclusions
    /// alone.
    pub is_all: bool,
    /// Exact names.
    pub names: Vec<String>,
    /// Globs.
    pub globs: Vec<Pattern>,
    /// Exclusions, which take precedence over all the others.
    pub excluded: Vec<Pattern>,
    /// The text as the user wrote it.
    text: String,
}

/// How an interface was selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SelectedBy {
    /// The exact name selects the interface. It stays selected when it is renamed.
    Name,
    /// `all`, a glob or an exclusion selects the interface. A new name is matched again.
    Pattern,
}

/// The text of `--iface` is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SelectionError {
    /// An element of the list is empty.
    #[error("empty interface name; write names (eth0,eth1), globs (wg*) or `all`")]
    Empty,
    /// The list has a name and `all`.
    #[error("`all` already includes `{0}`; remove one of them, or exclude the interface: all,!{0}")]
    BesideAll(String),
    /// A glob is invalid.
    #[error("bad glob `{glob}`: {reason}")]
    Glob {
        /// The glob.
        glob: String,
        /// The message of the library.
        reason: &'static str,
    },
}

impl Selection {
    /// Selects every interface.
    #[must_use]
    pub fn all() -> Self {
        Self {
            is_all: true,
            text: "all".to_owned(),
            ..Self::default()
        }
    }

    /// How an interface of this name is selected, if it is.
    #[must_use]
    pub fn selects(&self, name: &str) -> Option<SelectedBy> {
        if self.excludes(name).is_some() {
            None
        } else if self.names.iter().any(|n| n == name) {
            Some(SelectedBy::Name)
        } else if self.is_all || self.globs.iter().any(|glob| glob.matches(name)) {
            Some(SelectedBy::Pattern)
        } else {
            None
        }
    }

    /// The exclusion that matches a name.
    #[must_use]
    pub fn excludes(&self, name: &str) -> Option<&Pattern> {
        self.excluded.iter().find(|glob| glob.matches(name))
    }

    /// Whether every interface is selected.
    #[must_use]
    pub const fn is_everything(&self) -> bool {
        self.is_all && self.excluded.is_empty()
    }

    /// Whether interfaces can be selected that do not exist yet.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.is_all || !self.globs.is_empty()
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Selection {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selection {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl FromStr for Selection {
    type Err = SelectionError;

    fn from_str(text: &str) -> Result<Self, SelectionError> {
        let glob = |glob: &str| {
            Pattern::new(glob).map_err(|error| SelectionError::Glob {
                glob: glob.to_owned(),
                reason: error.msg,
            })
        };
        let mut selection = Self {
            text: text.to_owned(),
            ..Self::default()
        };
        for word in text.split(',').map(str::trim) {
            match word.strip_prefix('!') {
                _ if matches!(word, "" | "!") => return Err(SelectionError::Empty),
                Some(excluded) => selection.excluded.push(glob(excluded)?),
                None if word == "all" => selection.is_all = true,
                None if word.contains(['*', '?', '[']) => selection.globs.push(glob(word)?),
                None => selection.names.push(word.to_owned()),
            }
        }
        let mut others = selection
            .names
            .iter()
            .map(String::as_str)
            .chain(selection.globs.iter().map(Pattern::as_str));
        match others.next() {
            Some(other) if selection.is_all => {
                return Err(SelectionError::BesideAll(other.to_owned()));
            }
            Some(_) => {}
            None => selection.is_all = true,
        }
        Ok(selection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_selected() {
        use SelectedBy::{Name, Pattern};
        for (text, name, expected) in [
            ("all", "eth0", Some(Pattern)),
            ("eth0", "eth0", Some(Name)),
            ("eth0", "eth1", None),
            ("wg*, eth?", "wg0", Some(Pattern)),
            ("wg*,eth?", "eth0", Some(Pattern)),
            ("wg*,eth?", "eth10", None),
            ("eth*,eth0", "eth0", Some(Name)),
            ("!docker0", "eth0", Some(Pattern)),
            ("!docker0", "docker0", None),
            ("all,!veth*", "veth1", None),
            ("all,!veth*", "lo", Some(Pattern)),
            ("eth*,!eth1", "eth1", None),
            ("eth1,!eth1", "eth1", None),
        ] {
            let selection: Selection = text.parse().expect(text);
            assert_eq!(selection.selects(name), expected, "{text} {name}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (text, expected) in [
            ("", "empty interface name"),
            ("eth0,", "empty interface name"),
            ("!", "empty interface name"),
            ("all,eth0", "`all` already includes `eth0`"),
            ("eth[", "bad glob `eth[`"),
        ] {
            let error = text.parse::<Selection>().expect_err(text).to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
