//! Packets whose checksum the sender has left to its device: the field has the sum over the
//! pseudo-header alone (`CHECKSUM_PARTIAL`, Documentation/networking/checksum-offloads.rst).

use portredir_common::datapath::{egress, ingress};
use portredir_common::net::{Addr, Port};
use portredir_common::verdict::Reason;
use portredir_common::wire::checksum;
use portredir_common::wire::frame::{AddrField, Check, Cover, Frame};

use crate::forwarding::host;
use crate::packet::Hook;
use crate::packet::builder::{Body, Packet};
use crate::packet::forward::scenarios;
use crate::packet::mock::{Bytes, Hex, Mock};
use crate::packet::scenario::{Event, GIVEN, Step};

/// A frame whose sum of TCP or UDP its device completes. As the kernel does it
/// (`inet_proto_csum_replace4`), only changes of the pseudo-header change the field.
struct Partial<'a>(Bytes<'a>);

impl Frame for Partial<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn linear_len(&self) -> usize {
        self.0.linear_len()
    }

    fn segments(&self) -> u32 {
        1
    }

    fn pull(&mut self, _end: usize) {}

    fn barrier_var(&self, value: u64) -> u64 {
        value
    }

    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.0.words(offset)
    }

    fn half(&self, offset: usize) -> Option<u16> {
        self.0.half(offset)
    }

    fn set_port(
        &mut self,
        offset: usize,
        from: Port,
        to: Port,
        check: Check,
    ) -> Result<(), Reason> {
        let sum = self.half(check.offset).ok_or(Reason::WriteFailed)?;
        self.0.set_port(offset, from, to, check)?;
        self.put(check.offset, sum);
        Ok(())
    }

    fn set_addr(&mut self, mut field: AddrField, from: Addr, to: Addr) -> Result<(), Reason> {
        let (at, cover) = (field.check.offset, field.cover);
        let sum = self.half(at).ok_or(Reason::WriteFailed)?;
        // The field has the sum itself, and a checksum is the complement of one.
        self.put(at, !sum);
        field.check.kind = checksum::Kind::Plain;
        self.0.set_addr(field, from, to)?;
        let changed = self.half(at).ok_or(Reason::WriteFailed)?;
        let is_covered = cover == Cover::PseudoHeader;
        self.put(at, if is_covered { !changed } else { sum });
        Ok(())
    }
}

impl Partial<'_> {
    fn put(&mut self, at: usize, half: u16) {
        self.0.0[at..at + 2].copy_from_slice(&half.to_ne_bytes());
    }
}

/// The sum of 16-bit words (RFC 1071).
fn sum(bytes: &[u8]) -> u32 {
    let word = |word: &[u8]| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
    bytes.chunks(2).map(word).sum::<u32>() % 65_535
}

/// Leaves of the checksum of a packet the sum over its pseudo-header.
fn leave_to_device(mut frame: Vec<u8>, packet: &Packet) -> Vec<u8> {
    let start = packet.transport();
    let check = start
        + if matches!(packet.body, Body::Udp) {
            6
        } else {
            16
        };
    let whole = u32::from(frame[check]) << 8 | u32::from(frame[check + 1]);
    frame[check..check + 2].fill(0);
    let data = sum(&frame[start..]);
    let pseudo_header = (65_535 - whole + 65_535 - data) % 65_535;
    let pseudo_header = u16::try_from(pseudo_header).expect("less than 65 535");
    frame[check..check + 2].copy_from_slice(&pseudo_header.to_be_bytes());
    frame
}

/// Runs a packet, and compares it where it is rewritten.
fn check(mock: &Mock, step: &Step) -> bool {
    let (before, after) = step.bytes(0);
    let Some(out) = &step.out else {
        mock.run(step.hook, step.packet.link, &before);
        return false;
    };
    let mut bytes = leave_to_device(before, &step.packet);
    let mut frame = Partial(Bytes(&mut bytes));
    let link = step.packet.link;
    let reason = match step.hook {
        Hook::Ingress => ingress::ingress(&mut frame, mock, link),
        Hook::Egress => egress::egress(&mut frame, mock, link),
    };
    assert_eq!(reason, step.reason);
    assert_eq!(Hex(&bytes), Hex(&leave_to_device(after, out)));
    true
}

/// Addresses change the sum that the device begins with, ports do not.
#[test]
fn a_checksum_is_left_to_the_device() {
    let mut count = 0;
    for scenario in scenarios() {
        let is_plain = |step: &Step| {
            let is_sent = |packet: &Packet| !matches!(packet.body, Body::Icmp { .. });
            is_sent(&step.packet) && !step.is_unsummed && !step.gives() && !is_given(step)
        };
        let mock = host(scenario.rules, &scenario.plan);
        for event in &scenario.events {
            match event {
                Event::Plan(plan) => mock.set_plan(plan),
                Event::Packet(step) if is_plain(step) => count += u32::from(check(&mock, step)),
                // What follows has a port that was given.
                Event::Packet(_) => break,
                Event::Live(_) => {}
            }
        }
    }
    assert!(count > 200, "{count} packets");
}

/// Whether a packet has a client port that was given.
fn is_given(step: &Step) -> bool {
    let packets = [Some(&step.packet), step.out.as_ref()];
    let mut ports = packets
        .into_iter()
        .flatten()
        .flat_map(|p| [p.src_port, p.dst_port]);
    ports.any(|port| port == GIVEN)
}
