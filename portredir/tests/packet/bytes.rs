//! Frames as bytes.

use std::fmt;

use portredir_common::net::{Addr, Port};
use portredir_common::verdict::Reason;
use portredir_common::wire::checksum;
use portredir_common::wire::frame::{AddrField, Check, Cover, Frame};

/// A frame in one buffer.
pub struct Bytes<'a>(pub &'a mut [u8]);

impl Frame for Bytes<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn linear_len(&self) -> usize {
        self.len()
    }

    fn segments(&self) -> u32 {
        1
    }

    fn pull(&mut self, _end: usize) {}

    fn barrier_var(&self, value: u64) -> u64 {
        value
    }

    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let bytes = self.0.get(offset..offset + 4 * N)?;
        let words = std::array::from_fn(|i| *bytes[4 * i..].first_chunk().expect("a word"));
        Some(words.map(u32::from_ne_bytes))
    }

    fn half(&self, offset: usize) -> Option<u16> {
        let bytes = self.0.get(offset..)?.first_chunk()?;
        Some(u16::from_ne_bytes(*bytes))
    }

    fn set_port(
        &mut self,
        offset: usize,
        from: Port,
        to: Port,
        check: Check,
    ) -> Result<(), Reason> {
        let port = self.half(offset).ok_or(Reason::WriteFailed)?;
        let sum = self.half(check.offset).ok_or(Reason::WriteFailed)?;
        assert_eq!(port, from.half(), "the datapath read another port");
        let sum = check.kind.update(sum, from.half(), to.half());
        self.0[check.offset..check.offset + 2].copy_from_slice(&sum.to_ne_bytes());
        self.0[offset..offset + 2].copy_from_slice(&to.bytes());
        Ok(())
    }

    /// In a way of its own: by the sum over all bytes that change.
    fn set_addr(&mut self, field: AddrField, from: Addr, to: Addr) -> Result<(), Reason> {
        let (from, to) = (from.octets(), to.octets());
        let start = if field.header_check.is_some() { 12 } else { 0 };
        let (from, to) = (&from[start..], &to[start..]);
        let at = field.offset..field.offset + to.len();
        assert_eq!(
            &self.0[at.clone()],
            from,
            "the datapath read another address"
        );
        let halves = from.chunks(2).zip(to.chunks(2));
        let half = |bytes: &[u8]| u16::from_ne_bytes([bytes[0], bytes[1]]);
        let halves: Vec<_> = halves.map(|(from, to)| (half(from), half(to))).collect();
        let mut update = |offset: usize, kind: checksum::Kind| {
            let sum = half(&self.0[offset..offset + 2]);
            let sum = halves
                .iter()
                .fold(sum, |sum, (from, to)| kind.update(sum, *from, *to));
            self.0[offset..offset + 2].copy_from_slice(&sum.to_ne_bytes());
        };
        if let Some(offset) = field.header_check {
            update(offset, checksum::Kind::Plain);
        }
        if field.cover != Cover::Nothing {
            update(field.check.offset, field.check.kind);
        }
        self.0[at].copy_from_slice(to);
        Ok(())
    }
}

/// Bytes that are shown as a dump: all headers, and no more of long packets.
#[derive(PartialEq)]
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Debug for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 192;
        for (i, byte) in self.0.iter().take(SHOWN).enumerate() {
            let gap = if i == 0 {
                ""
            } else if i % 16 == 0 {
                "\n         "
            } else {
                " "
            };
            write!(f, "{gap}{byte:02x}")?;
        }
        if self.0.len() > SHOWN {
            write!(f, " … {} bytes", self.0.len())?;
        }
        Ok(())
    }
}
