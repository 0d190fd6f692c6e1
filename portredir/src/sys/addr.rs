//! Addresses as the kernel's programs see them.

use std::net::IpAddr;

use portredir_common::abi::Addr;

/// An address as the maps hold it.
#[must_use]
pub const fn to_bytes(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => Addr::v4(addr.octets()).octets(),
        IpAddr::V6(addr) => addr.octets(),
    }
}
