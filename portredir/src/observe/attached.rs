//! Whether our programs are attached, judged by what the kernel answers and not by what was
//! once recorded.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::host::features::OURS;
use crate::loader::inspect::{Inspected, Occupant};
use crate::state::attachment::InterfaceReport;

/// The state of a hook, or of all hooks of an interface; a later one is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookState {
    /// Our program is attached, and no program of others runs before it.
    Attached,
    /// Our program is attached, and a program of others runs before it.
    Behind,
    /// The kernel does not tell this process.
    Unknown,
    /// Another program is at the place of ours.
    Replaced,
    /// Our program is not attached.
    Missing,
}

impl HookState {
    /// Whether packets may pass this hook without being redirected.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        matches!(self, Self::Replaced | Self::Missing)
    }
}

impl fmt::Display for HookState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Attached => "attached",
            Self::Behind => "behind",
            Self::Unknown => "unknown",
            Self::Replaced => "replaced",
            Self::Missing => "missing",
        })
    }
}

/// A program that somebody else attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Other {
    /// The ID of the program; a filter of another kind has none.
    pub id: Option<u32>,
    /// The name, if this process may read it.
    pub name: Option<String>,
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.id) {
            (Some(name), Some(id)) => write!(f, "{name} (id {id})"),
            (Some(name), None) => f.write_str(name),
            (None, Some(id)) => write!(f, "program id {id}"),
            (None, None) => f.write_str("another program"),
        }
    }
}

impl From<Occupant> for Other {
    fn from(Occupant { id, name }: Occupant) -> Self {
        Self { id, name }
    }
}

/// One of the hooks that redirect on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookReport {
    /// The hook, such as `tcx ingress`.
    pub hook: String,
    /// The name of our program.
    pub program: String,
    /// The state.
    pub state: HookState,
    /// The programs of others that run before ours, or that are in its place.
    pub others: Vec<Other>,
}

impl HookReport {
    /// Judges the answer of the kernel.
    #[must_use]
    pub fn judge(inspected: Inspected) -> Self {
        let Inspected {
            point,
            program,
            ours,
            chain,
            instead,
        } = inspected;
        let place = |chain: &[Occupant]| {
            let id = ours?;
            chain.iter().position(|occupant| occupant.id == Some(id))
        };
        let (state, others) = match chain {
            None => (HookState::Unknown, Vec::new()),
            Some(mut chain) => match (place(&chain), instead) {
                (Some(place), _) => {
                    chain.truncate(place);
                    (HookState::Behind, chain)
                }
                (None, Some(other)) => (HookState::Replaced, vec![other]),
                (None, None) => (HookState::Missing, Vec::new()),
            },
        };
        let mut report = Self {
            hook: point.to_string(),
            program,
            state,
            others: others.into_iter().map(Other::from).collect(),
        };
        report.leave_out_ours();
        report
    }

    /// Whether the hook belongs to all interfaces: the programs for accepted connections
    /// and for listening sockets.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.hook.as_str(), "cgroup sock_ops" | "sk_lookup")
    }

    /// Looks up names that are unknown. Programs of portredir itself, which redirect for
    /// another network namespace, are none of others.
    pub fn name_others(&mut self, name: impl Fn(u32) -> Option<String>) {
        for other in &mut self.others {
            if other.name.is_none() {
                other.name = other.id.and_then(&name);
            }
        }
        self.leave_out_ours();
    }

    fn leave_out_ours(&mut self) {
        let is_ours = |other: &Other| matches!(&other.name, Some(name) if name.starts_with(OURS));
        if self.state == HookState::Behind {
            self.others.retain(|other| !is_ours(other));
            if self.others.is_empty() {
                self.state = HookState::Attached;
            }
        }
    }
}

impl fmt::Display for HookReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others: Vec<_> = self.others.iter().map(ToString::to_string).collect();
        let others = others.join(", ");
        write!(f, "{} {}: ", self.hook, self.program)?;
        match self.state {
            HookState::Behind => write!(f, "behind {others}"),
            HookState::Replaced => write!(f, "replaced by {others}"),
            HookState::Unknown => f.write_str("unknown, the kernel does not tell this user"),
            state => write!(f, "{state}"),
        }
    }
}

/// An interface that is attached, and what the kernel says about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The attachment as it was recorded.
    #[serde(flatten)]
    pub report: InterfaceReport,
    /// The worst state of the hooks. An older process does not tell.
    #[serde(default)]
    pub state: Option<HookState>,
    /// The hooks, in the order in which they were attached.
    #[serde(default)]
    pub hooks: Vec<HookReport>,
    /// The reason why nothing could be attached.
    #[serde(default)]
    pub error: Option<String>,
}

impl Interface {
    /// An interface with these hooks.
    #[must_use]
    pub fn new(report: InterfaceReport, hooks: Vec<Inspected>) -> Self {
        let hooks = hooks.into_iter().map(HookReport::judge).collect();
        let mut interface = Self {
            report,
            state: None,
            hooks,
            error: None,
        };
        interface.sum_up();
        interface
    }

    /// An interface to which nothing could be attached.
    #[must_use]
    pub const fn lost(report: InterfaceReport, error: String) -> Self {
        Self {
            report,
            state: Some(HookState::Missing),
            hooks: Vec::new(),
            error: Some(error),
        }
    }

    /// Looks up the names of programs of others.
    pub fn name_others(&mut self, name: impl Fn(u32) -> Option<String>) {
        for hook in &mut self.hooks {
            hook.name_others(&name);
        }
        self.sum_up();
    }

    fn sum_up(&mut self) {
        let worst = self.hooks.iter().map(|hook| hook.state).max();
        self.state = worst.or(self.state);
    }
}

/// An interface of tests, with one TC program that the kernel knows by `ours`; the program
/// with the ID 7 is attached.
#[cfg(test)]
pub(crate) fn sample(
    name: &str,
    ifindex: u32,
    ours: Option<u32>,
    instead: Option<Occupant>,
) -> Interface {
    use crate::loader::inspect::Point;
    use crate::sys::bpf_query::AttachType;

    let report = InterfaceReport {
        name: name.to_owned(),
        ifindex,
        engine: "tc".to_owned(),
        mode: "tcx".to_owned(),
        why: String::new(),
    };
    let hook = Inspected {
        point: Point::Tcx(AttachType::TcxIngress),
        program: "portredir_in".to_owned(),
        ours,
        chain: Some(vec![7.into()]),
        instead,
    };
    Interface::new(report, vec![hook])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::inspect::Point;
    use crate::sys::bpf_query::AttachType;

    const TCX: Point = Point::Tcx(AttachType::TcxIngress);

    fn named(id: u32, name: &str) -> Occupant {
        Occupant {
            id: Some(id),
            name: Some(name.to_owned()),
        }
    }

    fn judge(point: Point, ours: Option<u32>, chain: Vec<Occupant>) -> HookReport {
        let instead = (point == Point::Xdp)
            .then(|| chain.iter().find(|other| other.id != ours).cloned())
            .flatten();
        HookReport::judge(Inspected {
            point,
            program: "portredir_in".to_owned(),
            ours,
            chain: Some(chain),
            instead,
        })
    }

    #[test]
    fn answers_of_the_kernel_are_judged() {
        let behind_two = vec![named(3, "shaper"), 4.into(), 7.into()];
        for (point, ours, chain, expected) in [
            (TCX, Some(7), vec![7.into(), named(9, "later")], "attached"),
            (TCX, Some(7), vec![named(9, "later")], "missing"),
            (TCX, Some(7), vec![], "missing"),
            (TCX, None, vec![named(9, "later")], "missing"),
            (
                TCX,
                Some(7),
                behind_two,
                "behind shaper (id 3), program id 4",
            ),
            (
                TCX,
                Some(7),
                vec![named(3, "portredir_in"), 7.into()],
                "attached",
            ),
            (Point::Xdp, Some(7), vec![7.into()], "attached"),
            (
                Point::Xdp,
                Some(7),
                vec![named(9, "lb")],
                "replaced by lb (id 9)",
            ),
            (Point::Xdp, None, vec![9.into()], "replaced by program id 9"),
            (Point::Xdp, None, vec![], "missing"),
        ] {
            let report = judge(point, ours, chain.clone());
            let text = report.to_string();
            assert_eq!(
                text.split_once(": ").map(|(_, state)| state),
                Some(expected),
                "{point:?} {ours:?} {chain:?}"
            );
        }
    }

    #[test]
    fn a_kernel_that_does_not_answer_is_no_fault() {
        let report = HookReport::judge(Inspected {
            point: TCX,
            program: "portredir_in".to_owned(),
            ours: Some(7),
            chain: None,
            instead: None,
        });
        assert_eq!(report.state, HookState::Unknown);
        assert!(!report.state.is_fault());
    }

    /// The watcher may not read names; a command of root can.
    #[test]
    fn names_are_filled_in_later() {
        let mut interface = Interface::new(
            InterfaceReport {
                name: "eth0".to_owned(),
                ifindex: 2,
                engine: "tc".to_owned(),
                mode: "tcx".to_owned(),
                why: String::new(),
            },
            vec![Inspected {
                point: Point::Cgroup(AttachType::Connect4),
                program: "portredir_conn4".to_owned(),
                ours: Some(7),
                chain: Some(vec![3.into(), 7.into()]),
                instead: None,
            }],
        );
        assert_eq!(interface.state, Some(HookState::Behind));
        let mut other = interface.clone();
        other.name_others(|id| (id == 3).then(|| "cilium_c4".to_owned()));
        assert_eq!(
            other.hooks[0].to_string(),
            "cgroup connect4 portredir_conn4: behind cilium_c4 (id 3)"
        );
        interface.name_others(|_| Some("portredir_conn4".to_owned()));
        assert_eq!(interface.state, Some(HookState::Attached));
        let json = serde_json::to_value(&other).expect("JSON");
        assert_eq!(json["name"], "eth0");
        assert_eq!(json["state"], "behind");
        assert_eq!(json["hooks"][0]["others"][0]["name"], "cilium_c4");
        // What an older watcher answers.
        let old = r#"{"name":"eth0","ifindex":2,"engine":"tc","mode":"tcx","why":""}"#;
        let old: Interface = serde_json::from_str(old).expect("an interface");
        assert_eq!((old.state, old.hooks.len()), (None, 0));
    }
}
