//! Frames with other ends, and the checksums that go with them.

use std::net::IpAddr;

use portredir_common::net::Protocol;

use super::headers::{Carried, Headers, number, sum};

/// One end of a packet.
pub type End = (IpAddr, u16);

/// The frame with these ends in `at`, which is `packet` itself or what it quotes. Every
/// checksum stays as right, or as wrong, as it was: the sum over all that it covers does not
/// change.
pub fn with_ends(frame: &[u8], packet: &Headers, at: &Headers, (src, dst): (End, End)) -> Vec<u8> {
    let mut new = frame.to_vec();
    set_addrs(&mut new, at, (src.0, dst.0));
    new[at.start..at.start + 2].copy_from_slice(&src.1.to_be_bytes());
    new[at.start + 2..at.start + 4].copy_from_slice(&dst.1.to_be_bytes());
    sum_again(frame, new, packet, at.start..at.start + 4)
}

/// The frame with other addresses; what it carries has them in its pseudo-header.
pub fn with_addrs(frame: &[u8], packet: &Headers, addrs: (IpAddr, IpAddr)) -> Vec<u8> {
    let mut new = frame.to_vec();
    set_addrs(&mut new, packet, addrs);
    sum_again(frame, new, packet, packet.start..packet.start)
}

/// Writes addresses into an IP header.
fn set_addrs(frame: &mut [u8], at: &Headers, (src, dst): (IpAddr, IpAddr)) {
    let addrs = at.addrs();
    let before = sum(&frame[addrs.clone()]);
    let bytes: Vec<u8> = [src, dst].into_iter().flat_map(octets).collect();
    if frame[addrs.clone()] == bytes[..] {
        return;
    }
    frame[addrs].copy_from_slice(&bytes);
    if src.is_ipv4() {
        let check = number(frame, at.ip + 10).expect("an IPv4 header");
        let check = updated(check, before, sum(&bytes));
        frame[at.ip + 10..at.ip + 12].copy_from_slice(&check.to_be_bytes());
    }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// The frame with the checksum of the packet, whose addresses or `ports` may have changed.
fn sum_again(
    old: &[u8],
    mut new: Vec<u8>,
    packet: &Headers,
    ports: std::ops::Range<usize>,
) -> Vec<u8> {
    let at = packet.checksum();
    let check = number(old, at).expect("it is there");
    let is_udp = packet.carried == Carried::Ports(Protocol::Udp);
    let covered = |frame: &[u8]| {
        let has_pseudo_header = packet.carried != Carried::Icmp || packet.src.is_ipv6();
        let addrs = if has_pseudo_header {
            frame[packet.addrs()].to_vec()
        } else {
            Vec::new()
        };
        // What an error quotes is its payload.
        let payload = match packet.carried {
            Carried::Icmp => &frame[packet.start + 4..packet.end],
            Carried::Ports(_) => &frame[ports.clone()],
        };
        [&addrs[..], payload].concat()
    };
    let (before, after) = (covered(old), covered(&new));
    // RFC 768: zero means that there is none.
    if before == after || is_udp && check == 0 {
        return new;
    }
    let mut check = updated(check, sum(&before), sum(&after));
    if is_udp && check == 0 {
        check = 0xffff;
    }
    new[at..at + 2].copy_from_slice(&check.to_be_bytes());
    new
}

/// A checksum whose data changed from one sum to another.
fn updated(check: u16, before: u64, after: u64) -> u16 {
    let sum = (u64::from(check) + before + 65_535 - after) % 65_535;
    u16::try_from(sum).expect("less than 65 535")
}
