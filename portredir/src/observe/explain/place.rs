//! The program that a flow comes to first.

use portredir_common::net::LOOPBACK_IFINDEX;
use portredir_common::wire::frame::Link;

use super::error::ExplainError;
use super::explainer::Redirect;
use super::query::{Client, Query};
use crate::host::routes;
use crate::host::snapshot::{Interface as Device, Snapshot};
use crate::loader::Role;
use crate::observe::attached::{HookReport, Interface};

/// The place where a flow comes in.
#[derive(Debug)]
pub struct Place {
    /// The name of the interface.
    pub name: String,
    /// The ifindex of the interface.
    pub ifindex: u32,
    /// The kind of header that frames of the interface begin with.
    pub link: Link,
    /// The names by which rules know the interface.
    pub names: Vec<String>,
    /// The ifindex by which the stack knows the interface: that of its bridge or bond.
    pub stack_index: u32,
    /// The engine.
    pub engine: Option<String>,
    /// The program.
    pub way: Way,
    /// The programs of others that run before ours, where the hook is one of a cgroup.
    pub others: Vec<String>,
    /// Everything that was assumed.
    pub assumed: Vec<String>,
}

/// The program that redirects there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A program that rewrites packets.
    Packets {
        /// The name of the program.
        program: String,
        /// The hook.
        hook: String,
    },
    /// The socket lookup.
    Lookup {
        /// The name of the program.
        program: String,
        /// Whether connections that come in by any interface are meant.
        is_everywhere: bool,
    },
    /// The programs for local clients.
    Clients {
        /// The name of the program for connections.
        program: String,
        /// The hook.
        hook: String,
    },
    /// None.
    Nowhere {
        /// The reason.
        why: String,
    },
}

impl Way {
    /// The hook.
    #[must_use]
    pub fn hook(&self) -> Option<&str> {
        match self {
            Self::Packets { hook, .. } | Self::Clients { hook, .. } => Some(hook),
            Self::Lookup { .. } => Some("sk_lookup"),
            Self::Nowhere { .. } => None,
        }
    }

    /// The name of the program.
    #[must_use]
    pub fn program(&self) -> Option<&str> {
        match self {
            Self::Packets { program, .. }
            | Self::Clients { program, .. }
            | Self::Lookup { program, .. } => Some(program),
            Self::Nowhere { .. } => None,
        }
    }

    /// The way by an interface that is attached; none where it restores replies alone.
    fn of(interface: &Interface, is_v4: bool) -> Option<Self> {
        let hooks = interface.hooks.iter();
        let (role, hook) = hooks
            .clone()
            .find_map(|hook| Some((Role::of(&hook.program)?, hook)))?;
        if hook.state.is_fault() {
            let why = format!("{}: {hook}", interface.report.name);
            return Some(Self::Nowhere { why });
        }
        let HookReport { hook, program, .. } = hook;
        let (hook, program) = (hook.clone(), program.clone());
        Some(match role {
            Role::Packets => Self::Packets { program, hook },
            Role::Lookup { is_everywhere } => Self::Lookup {
                program,
                is_everywhere,
            },
            Role::Clients if is_v4 => Self::Clients { program, hook },
            Role::Clients => Self::Clients {
                program: program.replace('4', "6"),
                hook: hook.replace('4', "6"),
            },
        })
    }
}

impl Place {
    /// Finds the place of a flow.
    ///
    /// # Errors
    ///
    /// [`ExplainError::NoInterface`], [`ExplainError::Elsewhere`].
    pub fn find(redirect: &Redirect, query: &Query, is_local: bool) -> Result<Self, ExplainError> {
        let host = &redirect.host;
        let mut assumed = Vec::new();
        let device = device(redirect, query, is_local)?;
        if query.on.is_none() && !is_local {
            let name = &device.name;
            assumed.push(format!("it comes in on {name}, by which answers leave"));
        }
        let is_v4 = query.addr.is_ipv4();
        let way = |device: &Device| {
            let interface = attached(redirect, device)?;
            Some((Way::of(interface, is_v4)?, interface.report.engine.clone()))
        };
        if let Some((way, engine)) = way(device) {
            let place = Self::new(host, device, (way, Some(engine)), assumed);
            return Ok(Self {
                others: others(redirect, device),
                ..place
            });
        }
        let below = below(host, device);
        let below: Vec<_> = below
            .into_iter()
            .filter_map(|below| Some((below, way(below)?)))
            .collect();
        match below.as_slice() {
            [] => {
                let why = format!("no program of portredir is attached to {}", device.name);
                let way = (Way::Nowhere { why }, None);
                Ok(Self::new(host, device, way, assumed))
            }
            [(one, (way, engine))] => {
                assumed.push(format!(
                    "packets of {} come in on {} first, and are redirected there",
                    device.name, one.name
                ));
                let way = (way.clone(), Some(engine.clone()));
                Ok(Self::new(host, one, way, assumed))
            }
            several => {
                let others = several.iter().map(|(other, _)| other.name.as_str());
                Err(ExplainError::Elsewhere {
                    name: device.name.clone(),
                    others: others.collect::<Vec<_>>().join(", "),
                })
            }
        }
    }

    fn new(
        host: &Snapshot,
        device: &Device,
        (way, engine): (Way, Option<String>),
        assumed: Vec<String>,
    ) -> Self {
        Self {
            name: device.name.clone(),
            ifindex: device.index,
            link: device.link,
            names: host.names(device).map(str::to_owned).collect(),
            stack_index: host
                .with_masters(device.index)
                .last()
                .map_or(device.index, |master| master.index),
            others: Vec::new(),
            engine,
            way,
            assumed,
        }
    }
}

/// The interface by which a flow comes in.
fn device<'a>(
    redirect: &'a Redirect,
    query: &Query,
    is_local: bool,
) -> Result<&'a Device, ExplainError> {
    let host = &redirect.host;
    match (&query.on, query.client) {
        (Some(name), _) => named(host, name),
        (None, Client::At(client)) if !is_local => {
            let index = routes::way_to(client).or_else(|| only(redirect));
            let device = index.and_then(|index| host.interfaces.get(&index));
            device.ok_or(ExplainError::NoRoute(client))
        }
        (None, _) => {
            let lo = host.interfaces.get(&LOOPBACK_IFINDEX);
            lo.ok_or_else(|| no_interface(host, "lo"))
        }
    }
}

/// The programs of an interface.
fn attached<'a>(redirect: &'a Redirect, device: &Device) -> Option<&'a Interface> {
    let mut interfaces = redirect.interfaces.iter();
    interfaces.find(|other| other.report.ifindex == device.index)
}

/// The programs of others that run before those for local clients.
fn others(redirect: &Redirect, device: &Device) -> Vec<String> {
    let hooks = attached(redirect, device).map_or(&[][..], |interface| &interface.hooks);
    let is_its = |hook: &&HookReport| Role::of(&hook.program) == Some(Role::Clients);
    let others = hooks.iter().find(is_its).map(|hook| &hook.others);
    others
        .into_iter()
        .flatten()
        .map(ToString::to_string)
        .collect()
}

/// The devices on which the packets of another one come in: its ports, and the device that
/// it stands on.
fn below<'a>(host: &'a Snapshot, device: &Device) -> Vec<&'a Device> {
    let devices = host.interfaces.values();
    devices
        .filter(|other| {
            let is_port = other.index != device.index
                && host
                    .with_masters(other.index)
                    .any(|master| master.index == device.index);
            is_port || device.lower == Some(other.index)
        })
        .collect()
}

fn named<'a>(host: &'a Snapshot, name: &str) -> Result<&'a Device, ExplainError> {
    let mut devices = host.interfaces.values();
    devices
        .find(|device| device.name == name)
        .ok_or_else(|| no_interface(host, name))
}

fn no_interface(host: &Snapshot, name: &str) -> ExplainError {
    let known = host.interfaces.values().map(|device| device.name.as_str());
    ExplainError::NoInterface {
        name: name.to_owned(),
        known: known.collect::<Vec<_>>().join(", "),
    }
}

/// The one interface beside `lo` that is attached.
fn only(redirect: &Redirect) -> Option<u32> {
    let attached = redirect.interfaces.iter().map(|other| other.report.ifindex);
    let mut others = attached.filter(|index| *index != LOOPBACK_IFINDEX);
    others.next().filter(|_| others.next().is_none())
}
