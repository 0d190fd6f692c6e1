//! The clsact filters of portredir, which outlive a process that is killed: before Linux 6.6
//! the kernel has no links for TC programs.

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::features::OURS;
use crate::sys::netlink::{NetlinkError, ask};

/// The constants `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` of
/// include/uapi/linux/pkt_sched.h, below `TC_H_CLSACT`.
const PARENTS: [TcHandle; 2] = [
    TcHandle {
        major: 0xffff,
        minor: 0xfff2,
    },
    TcHandle {
        major: 0xffff,
        minor: 0xfff3,
    },
];

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
        let has_some = PARENTS
            .iter()
            .any(|parent| has_ours(interface.index(), *parent).unwrap_or(false));
        if has_some {
            names.push(interface.name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

fn has_ours(index: u32, parent: TcHandle) -> Result<bool, NetlinkError> {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    let question = RouteNetlinkMessage::GetTrafficFilter(message);
    let filters = ask(NETLINK_ROUTE, question.into(), NLM_F_DUMP)?;
    Ok(filters.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(filter) => is_ours(filter),
        _ => false,
    }))
}

fn is_ours(filter: &TcMessage) -> bool {
    let options = filter
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
    options.flatten().any(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => name.starts_with(OURS),
        _ => false,
    })
}
