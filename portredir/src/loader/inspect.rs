//! Asks the kernel about the hooks of an interface: whether our programs are still there,
//! and which programs of others share the hook. Nothing here judges the answers.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use aya::programs::TcAttachType;

use super::link::{Attached, Filter, Hold, Hook};
use super::{Datapath, program};
use crate::host::filters::{self, Direction};
use crate::host::xdp;
use crate::sys::bpf_link;
use crate::sys::bpf_query::{self, AttachType, Target};
use crate::sys::netns::NETNS;

/// A hook of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// XDP.
    Xdp,
    /// TCX, ingress or egress.
    Tcx(AttachType),
    /// The filters of clsact, ingress or egress.
    Clsact(AttachType),
    /// A hook of a cgroup.
    Cgroup(AttachType),
    /// The socket lookup of the network namespace.
    Netns(AttachType),
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xdp => f.write_str("xdp"),
            Self::Tcx(hook) => write!(f, "tcx {}", hook.name()),
            Self::Clsact(hook) => write!(f, "clsact {}", hook.name()),
            Self::Cgroup(hook) => write!(f, "cgroup {}", hook.name()),
            Self::Netns(hook) => f.write_str(hook.name()),
        }
    }
}

/// A program on a hook. A filter of another kind has no ID; the name of a program is
/// unknown without `CAP_SYS_ADMIN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupant {
    /// The ID of the program.
    pub id: Option<u32>,
    /// The name of the program, or the kind of filter.
    pub name: Option<String>,
}

impl From<u32> for Occupant {
    fn from(id: u32) -> Self {
        Self {
            id: Some(id),
            name: None,
        }
    }
}

/// The answer of the kernel about one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The hook.
    pub point: Point,
    /// The name of our program.
    pub program: String,
    /// The ID of our program; `None` when its link or filter is gone.
    pub ours: Option<u32>,
    /// The programs on the hook, in the order in which they run; `None` when the kernel
    /// does not tell.
    pub chain: Option<Vec<Occupant>>,
    /// The program that is at the very place of ours, where only one can be.
    pub instead: Option<Occupant>,
}

impl Inspected {
    /// The answer where the socket lookup could not be attached again.
    fn missing_lookup() -> Self {
        Self {
            point: Point::Netns(AttachType::SkLookup),
            program: program::LOOKUP.to_owned(),
            ours: None,
            chain: Some(Vec::new()),
            instead: None,
        }
    }
}

impl Datapath {
    /// Asks the kernel for all hooks that redirect on an interface.
    #[must_use]
    pub fn inspect(&self, index: u32) -> Vec<Inspected> {
        let hooks: Vec<&Hook> = match self.attached.get(&index) {
            None => Vec::new(),
            Some(Attached::Clients(hooks)) => hooks.iter().rev().collect(),
            Some(Attached::Lookup) => match &self.lookup {
                Some(lookup) => lookup.register.iter().chain([&lookup.link]).collect(),
                None => return vec![Inspected::missing_lookup()],
            },
            Some(Attached::Wire { ingress, egress }) => {
                let watch = self.watch.iter().map(|watch| &watch.hook);
                watch.chain([egress]).chain(ingress).collect()
            }
        };
        let hooks = hooks.into_iter();
        hooks.map(|hook| self.inspect_hook(index, hook)).collect()
    }

    fn inspect_hook(&self, index: u32, hook: &Hook) -> Inspected {
        let point = point(hook);
        let answer = match &hook.hold {
            Hold::Filter(filter) => inspect_filter(index, filter, &hook.program),
            Hold::Pin(pin) => {
                bpf_link::program_id(pin).and_then(|ours| self.ask(index, point, ours))
            }
            Hold::Link(_) => self.ask(index, point, self.loaded_id(&hook.program)),
        };
        let (ours, chain, instead) = match answer {
            Ok((ours, chain, instead)) => (ours, Some(chain), instead),
            Err(error) => {
                log::debug!("{point}: {error}");
                (None, None, None)
            }
        };
        Inspected {
            point,
            program: hook.program.clone(),
            ours,
            chain,
            instead,
        }
    }

    /// The ID of a program that this process has loaded.
    fn loaded_id(&self, name: &str) -> Option<u32> {
        let program = self.object.as_ref()?.program(name)?;
        program.info().ok().map(|info| info.id())
    }

    fn ask(&self, index: u32, point: Point, ours: Option<u32>) -> io::Result<Answer> {
        let ids = match point {
            Point::Xdp => {
                let there = xdp::attached(index).map_err(io::Error::other)?;
                let other = there.filter(|id| Some(*id) != ours);
                let chain = there.into_iter().map(Occupant::from).collect();
                return Ok((ours, chain, other.map(Occupant::from)));
            }
            Point::Tcx(hook) | Point::Clsact(hook) => {
                bpf_query::programs(Target::Interface(index), hook)
            }
            Point::Cgroup(hook) => match self.options.cgroup.as_deref().map(File::open) {
                Some(Ok(cgroup)) => bpf_query::programs(Target::Cgroup(cgroup.as_fd()), hook),
                // With the cgroup go its hooks.
                _ => Ok(Vec::new()),
            },
            Point::Netns(hook) => {
                let netns = File::open(NETNS)?;
                bpf_query::programs(Target::Netns(netns.as_fd()), hook)
            }
        };
        Ok((ours, ids?.into_iter().map(Occupant::from).collect(), None))
    }
}

/// Our program, the programs on the hook, and the one at the place of ours.
type Answer = (Option<u32>, Vec<Occupant>, Option<Occupant>);

fn point(hook: &Hook) -> Point {
    let name = hook.program.as_str();
    match (&hook.hold, program::shared_hook(name)) {
        (_, Some(hook @ AttachType::SkLookup)) => Point::Netns(hook),
        (_, Some(hook)) => Point::Cgroup(hook),
        (Hold::Filter(filter), None) => Point::Clsact(tcx_hook(filter.direction)),
        _ if program::is_xdp(name) => Point::Xdp,
        _ if program::is_ingress(name) => Point::Tcx(AttachType::TcxIngress),
        _ => Point::Tcx(AttachType::TcxEgress),
    }
}

fn tcx_hook(direction: TcAttachType) -> AttachType {
    match direction {
        TcAttachType::Ingress => AttachType::TcxIngress,
        _ => AttachType::TcxEgress,
    }
}

/// Looks for our filter. TCX programs run before all filters.
fn inspect_filter(index: u32, ours: &Filter, program: &str) -> io::Result<Answer> {
    let direction = match ours.direction {
        TcAttachType::Ingress => Direction::Ingress,
        _ => Direction::Egress,
    };
    let tcx = tcx_hook(ours.direction);
    // Before Linux 6.6 there are none.
    let before = bpf_query::programs(Target::Interface(index), tcx).unwrap_or_default();
    // Without the qdisc there are no filters.
    let filters = filters::list(index, direction).unwrap_or_default();
    let is_at_place = |filter: &&filters::Filter| {
        filter.priority == ours.priority && filter.handle == ours.handle
    };
    let there = filters.iter().find(is_at_place);
    let occupant = |filter: &filters::Filter| Occupant {
        id: filter.program,
        name: Some(filter.name.clone()),
    };
    let (own, other): (Option<&filters::Filter>, Option<&filters::Filter>) = match there {
        Some(filter) if filter.name == program => (Some(filter), None),
        other => (None, other),
    };
    let before = before.into_iter().map(Occupant::from);
    let chain = before.chain(filters.iter().map(occupant)).collect();
    Ok((
        own.and_then(|filter| filter.program),
        chain,
        other.map(occupant),
    ))
}
