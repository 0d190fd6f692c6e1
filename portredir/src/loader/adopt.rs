//! Adopts the programs that another process has attached; replaces and detaches them.

use std::io;
use std::os::fd::AsFd as _;

use aya::programs::tc::{self, SchedClassifierLink};
use aya::programs::{SchedClassifier, TcAttachType};

use super::error::DatapathError;
use super::link::{Attached, Filter, Hold, Hook, Lookup, Watch, pin};
use super::{Datapath, program};
use crate::config::engine::Engine;
use crate::host::snapshot::Interface;
use crate::state::attachment::{Mode, Place};
use crate::sys::bpf_link;
use crate::sys::bpffs::PinDir;

impl Datapath {
    /// Ends the watch for accepted connections, if packets are rewritten on no interface.
    pub(super) fn end_watch(&mut self) {
        if !self.is_rewriting()
            && let Some(watch) = self.watch.take()
        {
            watch.hook.detach("");
        }
    }

    /// Drops the records of attached programs. Pinned programs stay attached.
    pub fn forget(&mut self) {
        self.attached.clear();
        self.lookup = None;
        self.ipsec.clear();
        self.watch = None;
    }

    /// Adopts the programs that another process has left active on an interface.
    pub fn adopt(&mut self, index: u32, engine: Engine, mode: &Mode) {
        let Some(pins) = self.pins.clone() else {
            return;
        };
        let hook = |(place, program): &(Place, String)| adopted(&pins, place, program);
        // The order is that of attaching: programs that answer, or rewrite replies, come
        // first.
        let mut hooks: Vec<_> = mode.programs.iter().map(hook).collect();
        let attached = match engine {
            Engine::Lookup => {
                if let Some(link) = hooks.pop() {
                    let register = hooks.pop();
                    let mode = mode.clone();
                    self.lookup = Some(Lookup {
                        link,
                        register,
                        mode,
                    });
                }
                Attached::Lookup
            }
            Engine::Cgroup => {
                hooks.reverse();
                Attached::Clients(hooks)
            }
            _ => {
                if mode
                    .programs
                    .first()
                    .is_some_and(|(_, name)| name == program::ACCEPT)
                {
                    self.watch = Some(Watch {
                        hook: hooks.remove(0),
                        programs: mode.programs[..1].to_vec(),
                    });
                }
                if hooks.is_empty() {
                    return;
                }
                let egress = hooks.remove(0);
                let ingress = hooks.pop();
                Attached::Wire { ingress, egress }
            }
        };
        self.attached.insert(index, attached);
    }

    /// Replaces the programs that another process has left active on an interface with
    /// those of this process. No packet is missed.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Replace`]: the old program is no longer attached, or the kernel
    /// refuses. [`DatapathError::Program`].
    pub fn replace(&mut self, interface: &str, mode: &Mode) -> Result<(), DatapathError> {
        let pins = self.pins.clone().expect("what was left is pinned");
        for (place, name) in &mode.programs {
            let name = program::known(name).ok_or_else(|| DatapathError::Unknown(name.clone()))?;
            let fd = self.program_fd(name)?;
            let result = match place {
                Place::Pin(pin) => bpf_link::replace(&pins.path(pin), fd.as_fd()),
                Place::Filter {
                    is_ingress,
                    priority,
                    handle,
                } => {
                    let program: &mut SchedClassifier = self.program(name)?;
                    let (direction, handle) = (direction(*is_ingress), (*handle).into());
                    SchedClassifierLink::attached(interface, direction, *priority, handle, None)
                        .and_then(|link| {
                            let new = program
                                .attach_to_link(link)
                                .and_then(|id| program.take_link(id))
                                .map_err(io::Error::other)?;
                            std::mem::forget(new);
                            Ok(())
                        })
                }
            };
            result.map_err(|source| DatapathError::Replace {
                program: name,
                interface: interface.to_owned(),
                source,
            })?;
        }
        Ok(())
    }

    /// Removes clsact filters of a killed run, which outlive it: we hold the lock, so no
    /// other process uses them. Returns whether there were any.
    pub fn sweep(interface: &Interface) -> bool {
        let (name, header) = (&interface.name, interface.first_header());
        let ours = [
            (TcAttachType::Ingress, program::ingress(header)),
            (TcAttachType::Egress, program::egress(header)),
        ];
        ours.into_iter()
            .filter(|(direction, program)| {
                tc::qdisc_detach_program(name, *direction, program).is_ok()
            })
            .count()
            > 0
    }

    /// Detaches the programs of a process that was killed before it could record them.
    pub fn clear(&mut self, engine: Engine, index: u32) {
        if let Engine::Lookup | Engine::Cgroup = engine {
            self.leave_scope(index);
        }
        let Some(pins) = &self.pins else {
            return;
        };
        let names = match engine {
            Engine::Cgroup => {
                let assign = pin::device(index, TcAttachType::Ingress);
                let clients = program::CLIENT.map(str::to_owned);
                clients.into_iter().chain([assign]).collect()
            }
            Engine::Lookup if self.lookup.is_some() => Vec::new(),
            Engine::Lookup => [pin::REGISTER, pin::LOOKUP].map(str::to_owned).to_vec(),
            _ => {
                let watch = self.watch.is_none().then(|| pin::ACCEPT.to_owned());
                let directions = [TcAttachType::Egress, TcAttachType::Ingress];
                let device = directions.map(|direction| pin::device(index, direction));
                watch.into_iter().chain(device).collect()
            }
        };
        // Programs that redirect go before those that rewrite replies.
        for name in names.iter().rev() {
            // Most pins do not exist.
            let _ = bpf_link::detach(&pins.path(name));
        }
    }

    /// Detaches the socket lookup, if it serves no interface.
    pub(super) fn end_lookup(&mut self) {
        let is_lookup = |attached: &Attached| matches!(attached, Attached::Lookup);
        if self.ipsec.is_empty()
            && !self.attached.values().any(is_lookup)
            && let Some(lookup) = self.lookup.take()
        {
            lookup.detach();
        }
    }

    /// Detaches from an interface.
    pub fn detach(&mut self, index: u32, name: &str) {
        match self.attached.remove(&index) {
            None => {}
            Some(Attached::Clients(hooks)) => {
                self.leave_scope(index);
                hooks.into_iter().for_each(|hook| hook.detach(name));
            }
            Some(Attached::Lookup) => {
                self.leave_scope(index);
                self.end_lookup();
            }
            Some(Attached::Wire { ingress, egress }) => {
                // Ingress goes first: a packet must not be rewritten once its reply no
                // longer is.
                if let Some(ingress) = ingress {
                    ingress.detach(name);
                }
                egress.detach(name);
                self.end_watch();
            }
        }
    }
}

/// The program that another process has left at a place.
fn adopted(pins: &PinDir, place: &Place, program: &str) -> Hook {
    let hold = match place {
        Place::Pin(pin) => Hold::Pin(pins.path(pin)),
        Place::Filter {
            is_ingress,
            priority,
            handle,
        } => Hold::Filter(Filter {
            direction: direction(*is_ingress),
            priority: *priority,
            handle: *handle,
            link: None,
        }),
    };
    Hook {
        program: program.to_owned(),
        hold,
    }
}

const fn direction(is_ingress: bool) -> TcAttachType {
    if is_ingress {
        TcAttachType::Ingress
    } else {
        TcAttachType::Egress
    }
}
