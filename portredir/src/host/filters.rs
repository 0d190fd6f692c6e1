//! The clsact filters of portredir, which outlive a process that is killed: before Linux 6.6
//! the kernel has no links for TC programs.

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::features::OURS;
use crate::sys::netlink::{NetlinkError, ask};

/// The direction of the packets that a filter sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Packets that come in.
    Ingress,
    /// Packets that leave.
    Egress,
}

impl Direction {
    const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The constants `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` of
    /// include/uapi/linux/pkt_sched.h, below `TC_H_CLSACT`.
    const fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => 0xfff2,
            Self::Egress => 0xfff3,
        };
        TcHandle {
            major: 0xffff,
            minor,
        }
    }
}

/// A filter of a clsact qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The priority: a lower one runs first.
    pub priority: u16,
    /// The handle, which is unique among filters of one priority.
    pub handle: u32,
    /// The name of the eBPF program, or of the kind of filter.
    pub name: String,
    /// The ID of the eBPF program, if it is one.
    pub program: Option<u32>,
}

/// The names of the interfaces that carry filters of portredir.
///
/// # Errors
///
/// [`NetlinkError`]: interfaces or filters cannot be listed.
pub fn carriers() -> Result<Vec<String>, NetlinkError> {
    let interfaces = nix::net::if_::if_nameindex().map_err(std::io::Error::from)?;
    let mut names = Vec::new();
    for interface in &interfaces {
        // An interface may be gone meanwhile, or have no such qdisc.
        let has_ours = |direction: &Direction| {
            list(interface.index(), *direction)
                .is_ok_and(|filters| filters.iter().any(|filter| filter.name.starts_with(OURS)))
        };
        if Direction::BOTH.iter().any(has_ours) {
            names.push(interface.name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// The filters of an interface, in the order in which they run.
///
/// # Errors
///
/// [`NetlinkError`]: the interface has no such qdisc, or the kernel cannot be asked.
pub fn list(index: u32, direction: Direction) -> Result<Vec<Filter>, NetlinkError> {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = direction.parent();
    let question = RouteNetlinkMessage::GetTrafficFilter(message);
    let answers = ask(NETLINK_ROUTE, question.into(), NLM_F_DUMP)?;
    let filters = answers.iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(filter) => Filter::of(filter),
        _ => None,
    });
    Ok(filters.collect())
}

impl Filter {
    /// The filter of a message; `None` for the heading of a priority.
    fn of(message: &TcMessage) -> Option<Self> {
        let handle = u32::from(message.header.handle);
        if handle == 0 {
            return None;
        }
        let (mut kind, mut name, mut program) = (String::new(), None, None);
        for attribute in &message.attributes {
            match attribute {
                TcAttribute::Kind(text) => kind.clone_from(text),
                TcAttribute::Options(options) => {
                    for option in options {
                        match option {
                            TcOption::Bpf(TcFilterBpfOption::ProgName(text)) => {
                                name = Some(text.clone());
                            }
                            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(*id),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Some(Self {
            // The lower half is the protocol.
            priority: u16::try_from(message.header.info >> 16).ok()?,
            handle,
            name: name.unwrap_or(kind),
            program,
        })
    }
}
