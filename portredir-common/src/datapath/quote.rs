//! The packet that an ICMP error quotes, or an ICMP redirect (RFC 792, RFC 4443, RFC 4861).

use crate::datapath::rewrite::{Change, Rewrite, rewrite};
use crate::net::{Port, Protocol, Version};
use crate::verdict::Reason;
use crate::wire::checksum;
use crate::wire::fields::{icmp, ports};
use crate::wire::frame::{Check, Frame, be16};
use crate::wire::headers::{Packet, Payload};

/// The packet that an ICMP error quotes.
pub(super) struct Quote {
    pub(super) packet: Packet,
    pub(super) protocol: Protocol,
    /// Whether the error says that the packet was refused.
    pub(super) is_refusal: bool,
    /// Whether this is no error, but names a better route.
    pub(super) is_redirect: bool,
    /// Checksum of the ICMP message.
    pub(super) check: Check,
    pub(super) src_port: Port,
    pub(super) dst_port: Port,
}

impl Quote {
    #[inline(always)]
    pub(super) fn parse<F: Frame>(frame: &mut F, outer: &Packet) -> Result<Self, Reason> {
        let kind_and_code = be16(frame, outer.transport).ok_or(Reason::NoRule)?;
        let (kind, code) = (kind_and_code >> 8, kind_and_code & 0xff);
        let is_error = match outer.version {
            // Unreachable, source quench, time exceeded, parameter problem.
            Version::V4 => matches!(kind, 3 | 4 | 11 | 12),
            // RFC 4443, 2.1: errors have the high bit clear; these four are defined.
            Version::V6 => matches!(kind, 1..=4),
        };
        let is_redirect = match outer.version {
            Version::V4 => kind == 5,
            Version::V6 => kind == 137,
        };
        // An error is never sent about, or in, more than one fragment.
        if !is_error && !is_redirect || outer.is_fragment {
            return Err(Reason::NoRule);
        }
        let start = if is_redirect && outer.version == Version::V6 {
            redirected(frame, outer.transport)?
        } else {
            outer.transport + icmp::LEN
        };
        let packet = Packet::network(frame, start, outer.version)?;
        let Payload::Ports(protocol) = packet.payload else {
            return Err(Reason::IcmpForeign);
        };
        let (src_port, dst_port) = packet.ports(frame)?;
        // The frame may go on behind the message.
        if packet.transport + ports::LEN > outer.transport + outer.transport_len(frame)? {
            return Err(Reason::Malformed);
        }
        let is_refusal = match outer.version {
            // Code 4 is about the size of the packet (RFC 1191).
            Version::V4 => kind == 3 && code != 4,
            Version::V6 => kind == 1,
        };
        let check = Check {
            offset: outer.transport + icmp::CHECKSUM,
            kind: checksum::Kind::Plain,
        };
        Ok(Self {
            packet,
            protocol,
            is_refusal,
            is_redirect,
            check,
            src_port,
            dst_port,
        })
    }
    /// [`Self::parse`] without redirects, which are about routes alone.
    #[inline(always)]
    pub(super) fn parse_error<F: Frame>(frame: &mut F, outer: &Packet) -> Result<Self, Reason> {
        let quote = Self::parse(frame, outer)?;
        if quote.is_redirect {
            Err(Reason::NoRule)
        } else {
            Ok(quote)
        }
    }

    /// Writes the quoted ports.
    #[inline(always)]
    pub(super) fn rewrite(
        &self,
        frame: &mut impl Frame,
        src: Port,
        dst: Port,
    ) -> Result<Reason, Reason> {
        let changes = Rewrite {
            offset: self.packet.transport,
            check: self.check,
            src: Change::new(self.src_port, src),
            dst: Change::new(self.dst_port, dst),
        };
        rewrite(frame, changes)?;
        Ok(Reason::IcmpTranslated)
    }
}

/// The offset of the packet that an ICMPv6 redirect quotes: in an option (RFC 4861, 4.6.3),
/// before which there may be one with the address of the link.
#[inline(always)]
fn redirected<F: Frame>(frame: &F, transport: usize) -> Result<usize, Reason> {
    const OPTIONS: usize = 40;
    const OPTION: usize = 8;
    const REDIRECTED_HEADER: u16 = 4;
    for option in [transport + OPTIONS, transport + OPTIONS + OPTION] {
        let kind = be16(frame, option).ok_or(Reason::NoRule)? >> 8;
        if kind == REDIRECTED_HEADER {
            return Ok(option + OPTION);
        }
    }
    Err(Reason::NoRule)
}
