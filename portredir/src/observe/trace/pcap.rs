//! Packets in a file for Wireshark: pcapng (draft-ietf-opsawg-pcapng), which names interfaces
//! and has a comment for each packet. A packet that was changed is there twice, as it came
//! and as it went on.

use std::io::{self, Write};

use jiff::Timestamp;
use portredir_common::map::trace::TracedPacket;

use super::Line;
use super::ports::bytes;

/// Types of blocks.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;

/// Types of links: with an Ethernet header, and beginning with the IP header.
const ETHERNET: u16 = 1;
const RAW: u16 = 101;

/// Options.
const COMMENT: u16 = 1;
const IF_NAME: u16 = 2;
const END_OF_OPTIONS: [u8; 4] = [0; 4];

/// A file of packets.
#[derive(Debug)]
pub struct Capture<W> {
    file: W,
    /// The interfaces that the file names, in the order of their numbers.
    interfaces: Vec<(String, u16)>,
}

impl<W: Write> Capture<W> {
    /// Begins a file.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn new(file: W) -> io::Result<Self> {
        let mut capture = Self {
            file,
            interfaces: Vec::new(),
        };
        let mut body = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
        // Version 1.0, and a section of unknown length.
        body.extend([1, 0, 0, 0]);
        body.extend(u64::MAX.to_le_bytes());
        capture.block(SECTION, &body)?;
        Ok(capture)
    }

    /// Writes a packet, with its line as a comment.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write(&mut self, packet: &TracedPacket, line: &Line) -> io::Result<()> {
        let before = bytes(packet, &packet.before);
        let after = bytes(packet, &packet.after);
        let name = line.interface.as_deref().unwrap_or("-");
        let link = if packet.is_ethernet == 1 {
            ETHERNET
        } else {
            RAW
        };
        let interface = self.interface(name, link)?;
        let mut write = |bytes: &[u8], comment: &str| {
            let mut body = interface.to_le_bytes().to_vec();
            body.extend(time(line.time));
            let captured = u32::try_from(bytes.len()).map_err(io::Error::other)?;
            body.extend(captured.to_le_bytes());
            body.extend(packet.len.to_le_bytes());
            body.extend(padded(bytes));
            body.extend(option(COMMENT, comment));
            body.extend(END_OF_OPTIONS);
            self.block(PACKET, &body)
        };
        if before == after {
            return write(&before, &format!("unchanged: {line}"));
        }
        write(&before, &format!("before: {line}"))?;
        write(&after, &format!("after: {line}"))
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// The number of an interface, which is written when it is new.
    fn interface(&mut self, name: &str, link: u16) -> io::Result<u32> {
        let known = self.interfaces.iter();
        let place = known
            .into_iter()
            .position(|(other, kind)| other == name && *kind == link);
        let place = match place {
            Some(place) => place,
            None => {
                let mut body = link.to_le_bytes().to_vec();
                // Reserved; packets of any length.
                body.extend([0; 6]);
                body.extend(option(IF_NAME, name));
                body.extend(END_OF_OPTIONS);
                self.block(INTERFACE, &body)?;
                self.interfaces.push((name.to_owned(), link));
                self.interfaces.len() - 1
            }
        };
        u32::try_from(place).map_err(io::Error::other)
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let len = u32::try_from(body.len() + 12).map_err(io::Error::other)?;
        self.file.write_all(&kind.to_le_bytes())?;
        self.file.write_all(&len.to_le_bytes())?;
        self.file.write_all(body)?;
        self.file.write_all(&len.to_le_bytes())
    }
}

/// Microseconds, the upper half first.
fn time(time: Timestamp) -> [u8; 8] {
    let micros = u64::try_from(time.as_microsecond()).unwrap_or_default();
    (micros.rotate_left(32)).to_le_bytes()
}

/// Bytes up to a border of four.
fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(4), 0);
    padded
}

fn option(code: u16, text: &str) -> Vec<u8> {
    let text = text.as_bytes();
    let text = &text[..text.len().min(usize::from(u16::MAX) - 3)];
    let len = u16::try_from(text.len()).unwrap_or_default();
    let mut option = code.to_le_bytes().to_vec();
    option.extend(len.to_le_bytes());
    option.extend(padded(text));
    option
}
