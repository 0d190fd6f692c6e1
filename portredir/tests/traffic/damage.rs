//! Damage to a frame on its way, by accident or on purpose.

use arbitrary::{Result, Unstructured};
use portredir_common::net::Protocol;
use portredir_common::wire::frame::Link;

use super::scene::Scene;
use crate::reference::{self, Carried, Headers};

/// Bytes that are on the edge of something.
const EDGES: [u8; 8] = [0, 1, 0x45, 0x60, 0x7f, 0x80, 0xfe, 0xff];

/// Behind these many bytes there is nothing that anybody looks at.
const HEADERS: usize = 160;

/// Does one thing to a frame.
pub fn apply(
    bytes: &mut Unstructured<'_>,
    scene: &Scene,
    link: Link,
    frame: &mut Vec<u8>,
) -> Result<()> {
    let headers = frame.len().min(HEADERS);
    if headers < 2 {
        frame.extend([0; 20]);
        return Ok(());
    }
    let kind = bytes.int_in_range(0..=13_u8)?;
    if let (6.., Some(packet)) = (kind, reference::of(frame, link)) {
        let mut victim = Victim {
            frame,
            packet: &packet,
        };
        return victim.lie(bytes, scene, kind);
    }
    let at = bytes.int_in_range(0..=headers - 2)?;
    match kind % 6 {
        0 => frame[at] ^= 1 << bytes.int_in_range(0..=7_u8)?,
        1 => frame[at] = *bytes.choose(&EDGES)?,
        2 => frame[at..at + 2].copy_from_slice(&bytes.arbitrary::<[u8; 2]>()?),
        3 => frame.truncate(bytes.int_in_range(0..=frame.len())?),
        4 => frame.extend(vec![bytes.arbitrary::<u8>()?; bytes.int_in_range(1..=40)?]),
        _ => {
            let end = (at + bytes.int_in_range(1..=8)?).min(frame.len());
            frame.drain(at..end);
        }
    }
    Ok(())
}

/// A frame with headers that are to lie.
struct Victim<'a> {
    frame: &'a mut [u8],
    packet: &'a Headers,
}

impl Victim<'_> {
    fn is_ipv4(&self) -> bool {
        self.packet.src.is_ipv4()
    }

    /// Writes a field, if the frame reaches that far.
    fn put(&mut self, at: usize, value: &[u8]) {
        if let Some(field) = self.frame.get_mut(at..at + value.len()) {
            field.copy_from_slice(value);
        }
    }

    /// Has a header say what is not so.
    fn lie(&mut self, bytes: &mut Unstructured<'_>, scene: &Scene, kind: u8) -> Result<()> {
        let Headers { ip, start, .. } = *self.packet;
        let is_udp = self.packet.carried == Carried::Ports(Protocol::Udp);
        match kind {
            6 | 7 => self.lie_about_len(bytes)?,
            // Its version, and the length of an IPv4 header.
            8 => {
                let first = *bytes.choose(&[0x45, 0x46, 0x4f, 0x44, 0x60, 0x65, 0x55])?;
                self.put(ip, &[first]);
            }
            // What it carries.
            9 => {
                let next = *bytes.choose(&[6, 17, 1, 58, 0, 43, 44, 51, 60, 132])?;
                self.put(ip + if self.is_ipv4() { 9 } else { 6 }, &[next]);
            }
            // The length in a UDP header, or the one of a TCP header.
            10 if is_udp => {
                let len: u16 = bytes.int_in_range(0..=64)?;
                self.put(start + 4, &len.to_be_bytes());
            }
            10 => self.put(start + 12, &[bytes.int_in_range(0..=15_u8)? << 4]),
            // Which fragment it is.
            11 if self.is_ipv4() => {
                let fragment = bytes.choose(&[[0x20, 0], [0, 1], [0x40, 0], [0x20, 1]])?;
                self.put(ip + 6, fragment);
            }
            11 | 12 => self.lie_about_sum(bytes, scene)?,
            // The ports.
            _ => {
                let port = bytes.choose(scene.ports)?.to_be_bytes();
                self.put(start + 2 * usize::from(bytes.ratio(1, 2)?), &port);
            }
        }
        Ok(())
    }

    /// Gives the IP packet another length.
    fn lie_about_len(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        let Headers { ip, end, .. } = *self.packet;
        let is_ipv4 = self.is_ipv4();
        let len = end - if is_ipv4 { ip } else { ip + 40 };
        let len = if bytes.ratio(1, 2)? {
            (len + 20).saturating_sub(bytes.int_in_range(0..=60)?)
        } else {
            bytes.int_in_range(0..=100)?
        };
        let at = ip + if is_ipv4 { 2 } else { 4 };
        self.put(at, &u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
        Ok(())
    }

    /// Gives the packet another checksum: none, one on the edge, that of a packet
    /// which is changed to one with none, or what a sender leaves to its device:
    /// the sum over the pseudo-header.
    fn lie_about_sum(&mut self, bytes: &mut Unstructured<'_>, scene: &Scene) -> Result<()> {
        let (from, to) = (*bytes.choose(scene.ports)?, *bytes.choose(scene.ports)?);
        let zero_later = (u32::from(to) + 65_535 - u32::from(from)) % 65_535;
        let zero_later = u16::try_from(zero_later).expect("less than 65 535");
        let check = *bytes.choose(&[0, 0xffff, 1, 0xfffe, zero_later, zero_later])?;
        self.put(self.packet.checksum(), &check.to_be_bytes());
        Ok(())
    }
}
