//! UDP load: the same frame again and again, for one flow or for as many as there are
//! frames.
//!
//! The kernel itself is the sender where it can be (`BPF_PROG_TEST_RUN` with live frames,
//! Linux 5.18): it sends some millions of frames a second, all on this processor, and
//! receives them there too. It reports the time of the whole batch.

use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrIn, sendmmsg,
    socket,
};
use portredir_common::trafficgen::{Frame, Recipe};

use crate::bench::load::request::{Link, Request, Source, Target};
use crate::bench::schedule::{Load, WARM_UP};
use crate::bench::traffic::{FLOWS, Traffic};
use crate::loader::OBJECT;

/// The number of frames that are sent before the receiver has a turn; its ring has 256
/// places.
const BATCH: u32 = 64;

/// The number of frames in the first turn.
const FIRST: u32 = 4 * BATCH;

/// The largest number of frames in a turn.
const MOST: u32 = 100 * BATCH;

/// The approximate number of new flows in all turns: less than the entries of a
/// connection table, 65 536 on small machines.
const MOST_FLOWS: u32 = 52_000;

/// The frames for each target.
pub struct Packets {
    sender: Sender,
    frames: Vec<(Frame, Link, SocketAddrV4)>,
    /// The number of frames in the next turn.
    counts: Vec<u32>,
    most: u32,
    sent: Vec<u64>,
}

enum Sender {
    Kernel(Box<Ebpf>),
    Raw(OwnedFd),
}

impl Packets {
    pub fn new(request: &Request) -> anyhow::Result<Self> {
        let is_new_flow = request.traffic == Traffic::UdpNew;
        let frame = |target: &Target| {
            let link = target.link.context("find the link to the server")?;
            let frame = Frame::new(&Recipe {
                src_mac: link.mac,
                dst_mac: link.server_mac,
                src: if is_new_flow { FLOWS.into() } else { link.addr },
                dst: *target.addr.ip(),
                src_port: 40_000,
                dst_port: target.addr.port(),
                ifindex: link.ifindex,
                is_new_flow,
            });
            anyhow::Ok((frame, link, target.addr))
        };
        let frames: Vec<_> = request
            .targets
            .iter()
            .map(frame)
            .collect::<Result<_, _>>()?;
        let turns = u32::try_from(request.cycles + WARM_UP).unwrap_or(u32::MAX);
        let most = if is_new_flow {
            (MOST_FLOWS / turns).clamp(BATCH, MOST)
        } else {
            MOST
        };
        let mut packets = Self {
            sender: Sender::raw()?,
            counts: vec![FIRST.min(most); frames.len()],
            most,
            sent: vec![0; frames.len()],
            frames,
        };
        if request.is_raw {
            return Ok(packets);
        }
        match Sender::kernel().and_then(|mut kernel| {
            let first = packets.frames.first().context("find a server")?;
            // A kernel without live frames refuses.
            kernel.send(first, BATCH)?;
            Ok(kernel)
        }) {
            Ok(kernel) => {
                packets.sender = kernel;
                if let Some(sent) = packets.sent.first_mut() {
                    *sent += u64::from(BATCH);
                }
            }
            Err(error) => log::warn!("no live frames, so a socket sends: {error:#}"),
        }
        Ok(packets)
    }

    /// The number of frames that were sent, by target.
    pub fn sent(&self) -> &[u64] {
        &self.sent
    }

    /// The source of the frames.
    pub const fn source(&self) -> Source {
        match self.sender {
            Sender::Kernel(_) => Source::LiveFrames,
            Sender::Raw(_) => Source::RawSocket,
        }
    }
}

impl Load for Packets {
    fn slice(&mut self, target: usize, length: Duration) -> anyhow::Result<f64> {
        let count = self.counts[target];
        let cost_ns = self.sender.send(&self.frames[target], count)?;
        self.sent[target] += u64::from(count);
        ensure!(cost_ns > 0.0, "the kernel says that it took no time");
        // The next turn is as long as asked for.
        let fitting = length.as_secs_f64() * 1e9 / cost_ns / f64::from(BATCH);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a number from 1 to the most batches"
        )]
        let batches = fitting.clamp(1.0, f64::from(self.most / BATCH)) as u32;
        self.counts[target] = batches * BATCH;
        Ok(cost_ns)
    }
}

impl Sender {
    fn kernel() -> anyhow::Result<Self> {
        // Loading makes the tables of the datapath too, so they are made small.
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("TCP", 1024)
            .map_max_entries("SYN", 1024)
            .map_max_entries("UDP", 1024)
            .load(OBJECT)
            .context("load the eBPF object")?;
        let generator: &mut Xdp = ebpf
            .program_mut("portredir_gen")
            .context("find the generator")?
            .try_into()?;
        generator.load().context("load the generator")?;
        Ok(Self::Kernel(Box::new(ebpf)))
    }

    fn raw() -> anyhow::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let raw = SockProtocol::Raw;
        let socket = socket(AddressFamily::Inet, SockType::Raw, flags, raw);
        Ok(Self::Raw(socket.context("open a raw socket")?))
    }

    /// Sends a number of frames; returns nanoseconds per frame.
    fn send(
        &mut self,
        (frame, link, addr): &(Frame, Link, SocketAddrV4),
        count: u32,
    ) -> anyhow::Result<f64> {
        match self {
            Self::Kernel(ebpf) => {
                let generator: &mut Xdp = ebpf
                    .program_mut("portredir_gen")
                    .context("find the generator")?
                    .try_into()?;
                // `struct xdp_md` of include/uapi/linux/bpf.h.
                let mut context = [0; 24];
                context[4..8].copy_from_slice(&u32::try_from(frame.0.len())?.to_ne_bytes());
                context[12..16].copy_from_slice(&link.ifindex.to_ne_bytes());
                let options = TestRunOptions {
                    data_in: Some(&frame.0),
                    ctx_in: Some(&context),
                    repeat: count,
                    attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                    ..TestRunOptions::new()
                };
                let result = generator.test_run(options).context("send live frames")?;
                Ok(result.duration.as_secs_f64() * 1e9)
            }
            Self::Raw(socket) => {
                let to = [Some(SockaddrIn::from(*addr)); BATCH as usize];
                let mut frames = [*frame; BATCH as usize];
                let mut headers = MultiHeaders::preallocate(to.len(), None);
                let start = Instant::now();
                for _ in 0..count / BATCH {
                    for frame in &mut frames {
                        frame.renew(fastrand::u32(..));
                    }
                    let slices = frames
                        .each_ref()
                        .map(|frame| [std::io::IoSlice::new(frame.packet())]);
                    let fd = socket.as_raw_fd();
                    let sent = sendmmsg(fd, &mut headers, &slices, to, [], MsgFlags::empty());
                    let sent = sent.context("send by a raw socket")?.count();
                    ensure!(
                        sent == to.len(),
                        "the raw socket sent {sent} of {BATCH} packets"
                    );
                }
                Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(count))
            }
        }
    }
}
