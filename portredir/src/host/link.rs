//! An interface, as a link message of rtnetlink describes it.

use netlink_packet_route::link::{
    InfoBridge, InfoData, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
};
use portredir_common::wire::Link;

use crate::host::snapshot::Interface;
use crate::sys::ethtool;

/// Reads an interface from a message, and asks for its driver.
pub(super) fn interface(message: &LinkMessage) -> Interface {
    let index = message.header.index;
    let mut interface = Interface {
        index,
        name: String::new(),
        is_up: message.header.flags.contains(LinkFlags::Up),
        link: match message.header.link_layer_type {
            LinkLayerType::Ether | LinkLayerType::Loopback => Link::Ethernet,
            _ => Link::Ip,
        },
        kind: None,
        driver: None,
        master: None,
        is_tracked_bridge: false,
        lower: None,
        xdp: None,
        mtu: 0,
        xdp_features: None,
    };
    let mut is_lower_elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Controller(master) => interface.master = Some(*master),
            LinkAttribute::Link(lower) if *lower != 0 && *lower != index => {
                interface.lower = Some(*lower);
            }
            LinkAttribute::LinkNetNsId(_) => is_lower_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                infos
                    .iter()
                    .for_each(|info| read_info(info, &mut interface));
            }
            LinkAttribute::Xdp(attributes) => {
                interface.xdp = attributes.iter().find_map(program_id);
            }
            _ => {}
        }
    }
    // The peer of a veth device is no lower device, wherever the peer is.
    if is_lower_elsewhere || interface.kind.as_deref() == Some("veth") {
        interface.lower = None;
    }
    interface.driver = ethtool::driver(&interface.name);
    interface
}

fn read_info(info: &LinkInfo, interface: &mut Interface) {
    match info {
        LinkInfo::Kind(kind) => interface.kind = Some(kind.to_string()),
        LinkInfo::Data(InfoData::Bridge(attributes)) => {
            let calls_iptables = |attribute: &InfoBridge| {
                matches!(
                    attribute,
                    InfoBridge::NfCallIpTables(true) | InfoBridge::NfCallIp6Tables(true)
                )
            };
            interface.is_tracked_bridge = attributes.iter().any(calls_iptables);
        }
        _ => {}
    }
}

/// The ID of the attached XDP program, of whatever mode.
fn program_id(attribute: &LinkXdp) -> Option<u32> {
    match attribute {
        LinkXdp::ProgId(id)
        | LinkXdp::DrvProgId(id)
        | LinkXdp::SkbProgId(id)
        | LinkXdp::HwProgId(id)
            if *id != 0 =>
        {
            Some(*id)
        }
        _ => None,
    }
}
