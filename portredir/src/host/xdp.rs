//! The XDP program of an interface.

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::attached_xdp;
use crate::sys::netlink::{NetlinkError, ask};

/// The ID of the XDP program that is attached to an interface, in whatever mode.
///
/// # Errors
///
/// [`NetlinkError`]: there is no such interface, or the kernel cannot be asked.
pub fn attached(index: u32) -> Result<Option<u32>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let question = RouteNetlinkMessage::GetLink(message);
    let answers = ask(NETLINK_ROUTE, question.into(), NLM_F_ACK)?;
    Ok(answers.iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => {
            link.attributes
                .iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::Xdp(attributes) => attached_xdp(attributes),
                    _ => None,
                })
        }
        _ => None,
    }))
}
