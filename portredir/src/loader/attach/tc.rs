//! Attaching to an interface by TC: TCX, or clsact filters before Linux 6.6.

use aya::programs::links::LinkOrder;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use aya::sys::SyscallError;

use crate::host::snapshot::Interface;
use crate::loader::error::{DatapathError, chain};
use crate::loader::link::{Filter, Hold, Hook, Link, pin};
use crate::loader::{Datapath, program};
use crate::state::attachment::{Mode, Place};

/// How TC programs may be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By TCX, and by a clsact filter where the kernel has no TCX.
    TcxOrClsact,
    /// By a clsact filter.
    Clsact,
}

/// The interface and direction of a TC program.
#[derive(Clone, Copy)]
struct Spot<'a> {
    interface: &'a Interface,
    direction: TcAttachType,
    program: &'static str,
}

impl Spot<'_> {
    fn is_ingress(self) -> bool {
        self.direction == TcAttachType::Ingress
    }

    fn error(self, what: &'static str, reason: String) -> DatapathError {
        DatapathError::Attach {
            what,
            interface: self.interface.name.clone(),
            reason,
        }
    }
}

impl Datapath {
    /// Attaches a TC program in one direction.
    pub(super) fn attach_tc(
        &mut self,
        interface: &Interface,
        direction: TcAttachType,
        way: Way,
    ) -> Result<(Hook, Mode), DatapathError> {
        let spot = Spot {
            interface,
            direction,
            program: match direction {
                TcAttachType::Ingress => program::ingress(interface.first_header()),
                _ => program::egress(interface.first_header()),
            },
        };
        if way == Way::TcxOrClsact
            && let Some(attached) = self.attach_tcx(spot)?
        {
            return Ok(attached);
        }
        add_clsact(spot)?;
        self.attach_filter(spot)
    }

    /// Attaches the program that gives SYNs to listeners, for `lo`; `None` where the kernel
    /// has no TCX.
    pub(super) fn attach_assign(
        &mut self,
        interface: &Interface,
    ) -> Result<Option<(Hook, Mode)>, DatapathError> {
        self.attach_tcx(Spot {
            interface,
            direction: TcAttachType::Ingress,
            program: program::ASSIGN,
        })
    }

    /// Attaches by TCX; `None` where the kernel has none, which is before 6.6.
    fn attach_tcx(&mut self, spot: Spot<'_>) -> Result<Option<(Hook, Mode)>, DatapathError> {
        // First in both directions: a program before us that ends the chain would
        // leave packets half redirected.
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let name = spot.program;
        let program: &mut SchedClassifier = self.program(name)?;
        let id = match program.attach_with_options(&spot.interface.name, spot.direction, options) {
            Ok(id) => id,
            // The attach type does not exist.
            Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
                if io_error.raw_os_error() == Some(libc::EINVAL) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(spot.error("tcx", chain(&error))),
        };
        let link = program
            .take_link(id)
            .map_err(|error| spot.error("tcx", chain(&error)))?;
        let mut mode = Mode::named("tcx");
        let pin = pin::device(spot.interface.index, spot.direction);
        let hook = self.hold(Link::Tc(link), &pin, name, &mut mode)?;
        Ok(Some((hook, mode)))
    }

    /// Attaches a clsact filter.
    fn attach_filter(&mut self, spot: Spot<'_>) -> Result<(Hook, Mode), DatapathError> {
        let name = spot.program;
        let is_pinned = self.pins.is_some();
        let program: &mut SchedClassifier = self.program(name)?;
        let interface = &spot.interface.name;
        let mut attach = |priority| {
            let options = NlOptions {
                priority,
                handle: TcHandle::AUTO_ASSIGN,
                classid: None,
            };
            let options = TcAttachOptions::Netlink(options);
            program.attach_with_options(interface, spot.direction, options)
        };
        // The first priority there is; of programs with equal priority, the last to
        // come is the first to run.
        let id = attach(1).or_else(|refused| {
            log::warn!(
                "{interface}: another tc filter has priority 1 and runs first; if that filter ends the \
                 chain, nothing is redirected on {name} ({})",
                chain(&refused)
            );
            attach(0)
        });
        let link = id
            .and_then(|id| program.take_link(id))
            .map_err(|error| spot.error("clsact", chain(&error)))?;
        let mut mode = Mode::named("clsact");
        let mut filter =
            filter(&link, spot).map_err(|error| spot.error("clsact", chain(&error)))?;
        if is_pinned {
            let place = Place::Filter {
                is_ingress: spot.is_ingress(),
                priority: filter.priority,
                handle: filter.handle,
            };
            mode.programs.push((place, name.to_owned()));
            std::mem::forget(link);
        } else {
            filter.link = Some(Link::Tc(link));
        }
        let hook = Hook {
            program: name.to_owned(),
            hold: Hold::Filter(filter),
        };
        Ok((hook, mode))
    }
}

/// Adds the clsact qdisc, unless it is there.
fn add_clsact(spot: Spot<'_>) -> Result<(), DatapathError> {
    match tc::qdisc_add_clsact(&spot.interface.name) {
        Ok(()) => Ok(()),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::ENOENT) => {
            let hint = "; check that the kernel modules sch_ingress and cls_bpf are available";
            Err(spot.error("clsact", chain(&error) + hint))
        }
        Err(error) => Err(spot.error("clsact", chain(&error))),
    }
}

/// Where a clsact filter is found again.
fn filter(link: &SchedClassifierLink, spot: Spot<'_>) -> Result<Filter, ProgramError> {
    Ok(Filter {
        direction: spot.direction,
        priority: link.priority()?,
        handle: link.handle()?.into(),
        link: None,
    })
}
