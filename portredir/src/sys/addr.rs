//! Addresses in the layout of the maps.

use std::net::IpAddr;

use portredir_common::abi::Addr;

/// The 16 bytes of an address in the layout of the maps.
#[must_use]
pub const fn to_bytes(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => Addr::v4(addr.octets()).octets(),
        IpAddr::V6(addr) => addr.octets(),
    }
}
