//! The kernel's switches of forwarding, and what puts them back.
//!
//! Over IPv4 the switch of the ingress interface decides alone. Over IPv6 the switch of all
//! interfaces does, unless the kernel has `force_forwarding` for one interface, which came
//! with Linux 6.17.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The directory of the switches of this network namespace.
const DIR: &str = "/proc/sys/net";

/// A switch of forwarding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Switch {
    /// IPv4 packets that come in by an interface.
    Ipv4(String),
    /// IPv6 packets that come in by an interface, whatever the switch of all says.
    Ipv6(String),
    /// IPv6 packets that come in by any interface.
    Ipv6All,
}

/// The position of a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Off,
    On,
}

/// A switch that cannot be read or set.
#[derive(Debug, Error)]
#[error("{}", .switch.name())]
pub struct ForwardingError {
    /// The switch.
    pub switch: Box<Switch>,
    /// The kernel's error.
    #[source]
    pub source: io::Error,
}

impl Switch {
    /// The family, the interface or `all`, and the name.
    fn parts(&self) -> [&str; 3] {
        match self {
            Self::Ipv4(interface) => ["ipv4", interface, "forwarding"],
            Self::Ipv6(interface) => ["ipv6", interface, "force_forwarding"],
            Self::Ipv6All => ["ipv6", "all", "forwarding"],
        }
    }

    /// The name as sysctl(8) takes it.
    #[must_use]
    pub fn name(&self) -> String {
        let [family, interface, name] = self.parts();
        // A dot in the name of an interface would be one between words.
        if interface.contains('.') {
            format!("net/{family}/conf/{interface}/{name}")
        } else {
            format!("net.{family}.conf.{interface}.{name}")
        }
    }

    fn path(&self) -> PathBuf {
        let [family, interface, name] = self.parts();
        conf(family, interface).join(name)
    }

    /// Whether forwarding is on.
    ///
    /// # Errors
    ///
    /// There is no such interface, or no such switch.
    pub fn is_on(&self) -> io::Result<bool> {
        is_on(&self.path())
    }

    fn set(&self, position: Position) -> Result<(), ForwardingError> {
        set(&self.path(), position).map_err(self.failed())
    }

    /// Whether the switch of all interfaces beside this one is on.
    fn is_general_on(&self) -> bool {
        let [family, _, name] = self.parts();
        is_on(&conf(family, "all").join(name)).unwrap_or(false)
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> ForwardingError {
        let switch = Box::new(self.clone());
        move |source| ForwardingError { switch, source }
    }
}

fn conf(family: &str, interface: &str) -> PathBuf {
    Path::new(DIR).join(family).join("conf").join(interface)
}

fn is_on(path: &Path) -> io::Result<bool> {
    fs::read_to_string(path).map(|value| value.trim() != "0")
}

fn set(path: &Path, position: Position) -> io::Result<()> {
    let value = match position {
        Position::Off => "0",
        Position::On => "1",
    };
    fs::write(path, value)
}

/// A number below `net.FAMILY.conf.INTERFACE`; `None` where this kernel has none.
pub(super) fn setting(family: &str, interface: &str, name: &str) -> Option<i32> {
    let value = fs::read_to_string(conf(family, interface).join(name)).ok()?;
    value.trim().parse().ok()
}

/// Whether an interface can forward IPv6 packets while all others do not.
#[must_use]
pub fn has_force_forwarding() -> bool {
    setting("ipv6", "all", "force_forwarding").is_some()
}

/// The switches that have to be on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// The switches, without repetition.
    pub switches: Vec<Switch>,
}

impl Forwarding {
    /// The switches to put back after [`Saved::enable`]. Written down before, they also
    /// serve the process that continues after a kill.
    ///
    /// # Errors
    ///
    /// [`ForwardingError`]: a switch cannot be read.
    pub fn save(&self) -> Result<Saved, ForwardingError> {
        let mut saved = Saved::default();
        for switch in &self.switches {
            if !switch.is_on().map_err(switch.failed())? {
                saved.switches.push(SavedSwitch {
                    was_general_on: switch.is_general_on(),
                    switch: switch.clone(),
                });
            }
        }
        let is_for_all = |saved: &SavedSwitch| saved.switch == Switch::Ipv6All;
        if saved.switches.iter().any(is_for_all) {
            saved.routers = routers();
        }
        Ok(saved)
    }
}

/// The interfaces that are routers over IPv6 on their own. The switch of all interfaces
/// writes over theirs, in both directions.
fn routers() -> Vec<String> {
    let entries = fs::read_dir(Path::new(DIR).join("ipv6/conf"));
    let names = entries.into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut routers: Vec<_> = names
        .filter(|name| name != "all" && setting("ipv6", name, "forwarding") == Some(1))
        .collect();
    routers.sort_unstable();
    routers
}

/// Switches that were off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The switches, all of which were off.
    pub switches: Vec<SavedSwitch>,
    /// The interfaces that were routers over IPv6 on their own.
    #[serde(default)]
    pub routers: Vec<String>,
}

/// A switch that was off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSwitch {
    /// The switch.
    pub switch: Switch,
    /// Whether the switch of all interfaces was on at that time.
    pub was_general_on: bool,
}

impl Saved {
    /// Whether there is nothing to switch on, and nothing to put back.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.switches.is_empty()
    }

    /// Adds switches that were off later.
    pub fn add(&mut self, later: &Self) {
        for saved in &later.switches {
            if !self.has(&saved.switch) {
                self.switches.push(saved.clone());
            }
        }
        if self.routers.is_empty() {
            self.routers.clone_from(&later.routers);
        }
    }

    /// Takes switches away.
    pub fn remove(&mut self, others: &Self) {
        self.switches.retain(|saved| !others.has(&saved.switch));
        if !self.has(&Switch::Ipv6All) {
            self.routers.clear();
        }
    }

    /// Whether a switch is among them.
    #[must_use]
    pub fn has(&self, switch: &Switch) -> bool {
        self.switches.iter().any(|saved| saved.switch == *switch)
    }

    /// Switches all of them on, or none.
    ///
    /// # Errors
    ///
    /// [`ForwardingError`]: the kernel refuses.
    pub fn enable(&self) -> Result<(), ForwardingError> {
        for saved in &self.switches {
            if let Err(error) = saved.switch.set(Position::On) {
                // Those that are on still tell the first cause.
                let _ = self.restore();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Switches off what is still on. A switch stays on where somebody has switched on all
    /// interfaces meanwhile, and so wants this one.
    ///
    /// # Errors
    ///
    /// The first [`ForwardingError`]; all switches are tried. An interface that is gone is
    /// no error.
    pub fn restore(&self) -> Result<(), ForwardingError> {
        let mut result = Ok(());
        for SavedSwitch {
            switch,
            was_general_on,
        } in &self.switches
        {
            let is_on = switch.is_on().unwrap_or(false);
            let is_for_all = *switch == Switch::Ipv6All;
            let is_wanted = !is_for_all && !was_general_on && switch.is_general_on();
            if !is_on || is_wanted {
                continue;
            }
            result = result.and(switch.set(Position::Off));
            if is_for_all {
                for name in &self.routers {
                    // An interface may be gone.
                    let _ = set(&conf("ipv6", name).join("forwarding"), Position::On);
                }
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_sysctl() {
        for (switch, name) in [
            (
                Switch::Ipv4("eth0".to_owned()),
                "net.ipv4.conf.eth0.forwarding",
            ),
            (
                Switch::Ipv4("eth0.10".to_owned()),
                "net/ipv4/conf/eth0.10/forwarding",
            ),
            (
                Switch::Ipv6("eth0".to_owned()),
                "net.ipv6.conf.eth0.force_forwarding",
            ),
            (Switch::Ipv6All, "net.ipv6.conf.all.forwarding"),
        ] {
            assert_eq!(switch.name(), name);
        }
    }

    #[test]
    fn what_was_off_is_kept_as_json() {
        let saved = Saved {
            switches: vec![
                SavedSwitch {
                    switch: Switch::Ipv4("eth0".to_owned()),
                    was_general_on: false,
                },
                SavedSwitch {
                    switch: Switch::Ipv6All,
                    was_general_on: false,
                },
            ],
            routers: vec!["eth1".to_owned()],
        };
        let text = serde_json::to_string(&saved).expect("JSON");
        assert_eq!(
            text,
            r#"{"switches":[{"switch":{"ipv4":"eth0"},"was_general_on":false},{"switch":"ipv6-all","was_general_on":false}],"routers":["eth1"]}"#
        );
        assert_eq!(serde_json::from_str::<Saved>(&text).expect("JSON"), saved);
    }

    #[test]
    fn an_interface_that_does_not_exist_has_no_switch() {
        let gone = Switch::Ipv4("no-such-device".to_owned());
        let forwarding = Forwarding {
            switches: vec![gone.clone()],
        };
        let error = forwarding.save().expect_err("no such switch");
        assert_eq!(*error.switch, gone);
        let saved = Saved {
            switches: vec![SavedSwitch {
                switch: gone,
                was_general_on: false,
            }],
            routers: Vec::new(),
        };
        saved.restore().expect("an interface that is gone");
        saved.enable().expect_err("no such switch");
    }
}
