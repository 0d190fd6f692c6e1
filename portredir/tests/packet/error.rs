//! ICMP errors, with the packet they quote.

use std::net::IpAddr;

use super::builder::{Body, Packet};

/// An ICMP error, from `router` to whoever sent `about`.
#[derive(Clone, Debug)]
pub struct IcmpError {
    pub kind: u8,
    pub code: u8,
    pub rest: [u8; 4],
    pub router: IpAddr,
    pub about: Packet,
    /// How much of the quoted packet's IP payload there is.
    pub quoted: usize,
    /// Quoted ports instead of the packet's own: all that a rewrite may change.
    pub ports: Option<(u16, u16)>,
}

impl IcmpError {
    pub fn new(kind: u8, code: u8, about: Packet) -> Self {
        let router = about.dst;
        Self {
            kind,
            code,
            rest: [0, 0, 5, 0x14],
            router,
            about,
            quoted: usize::MAX,
            ports: None,
        }
    }

    pub fn router(mut self, addr: IpAddr) -> Self {
        self.router = addr;
        self
    }

    pub fn quoted(mut self, bytes: usize) -> Self {
        self.quoted = bytes;
        self
    }

    /// Puts other ports into the quote, without any other change there.
    pub fn ports(mut self, src: u16, dst: u16) -> Self {
        self.ports = Some((src, dst));
        self
    }

    /// The packet that carries the error.
    pub fn packet(&self) -> Packet {
        let mut quote = self.about.ip_bytes();
        let header = self.about.ip_header_len();
        quote.truncate(header.saturating_add(self.quoted));
        if let Some((src, dst)) = self.ports {
            quote[header..header + 2].copy_from_slice(&src.to_be_bytes());
            quote[header + 2..header + 4].copy_from_slice(&dst.to_be_bytes());
        }
        let Self {
            kind, code, rest, ..
        } = *self;
        let mut packet = Packet::new(
            self.router,
            self.about.src,
            0,
            Body::Icmp { kind, code, rest },
        );
        packet.link = self.about.link;
        packet.tags.clone_from(&self.about.tags);
        packet.payload(&quote)
    }
}
