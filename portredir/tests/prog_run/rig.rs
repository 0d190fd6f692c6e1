//! The programs and their maps, ready to run on one packet at a time.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use aya::maps::{Array, HashMap as BpfHashMap, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp};
use aya::util::nr_cpus;
use nix::time::{ClockId, clock_gettime};
use portredir::loader::flows::Flows;
use portredir::loader::forward::Forwards;
use portredir::loader::{Datapath, Sizes};
use portredir_common::flow::{Epoch, FlowKey, FlowTable};
use portredir_common::map::counters::{Counter, CounterKey, Hits, Outcomes};
use portredir_common::map::entry::Entry;
use portredir_common::map::port_remap::remap_bloom_slot;
use portredir_common::net::{Addr, LOOPBACK_IFINDEX, Port, Protocol};
use portredir_common::verdict::{Reason, Verdict};
use portredir_common::wire::headers::{End, Packet, Payload};

use crate::namespace::OTHER_IFINDEX;
use crate::packet::mock::{Bytes, Hex, NOW_NS, OTHER, Tables};
use crate::packet::{Hook, Iface, Setup, local_addrs};
use crate::program::Program;

/// Room for what tests put into the tables, and to spare: buckets do not fill
/// evenly.
pub const SIZES: Sizes = Sizes {
    tcp_flows: 512,
    udp_flows: 512,
};

/// Field offsets of `struct __sk_buff` and `struct xdp_md` (include/uapi/linux/bpf.h).
const SKB_LEN: usize = 192;
const SKB_IFINDEX: Range<usize> = 40..44;
const SKB_GSO_SEGS: Range<usize> = 164..168;
const SKB_GSO_SIZE: Range<usize> = 176..180;
const XDP_LEN: usize = 24;
const XDP_DATA_END: Range<usize> = 4..8;
const XDP_IFINDEX: Range<usize> = 12..16;

/// How a program is run, beyond the packet.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub iface: Iface,
    /// Segments that a GRO packet stands for; 0 for others.
    pub gso_segs: u32,
}

impl From<Iface> for Setting {
    fn from(iface: Iface) -> Self {
        Self { iface, gso_segs: 0 }
    }
}

/// The result of one run of a program.
#[derive(Clone)]
pub struct Outcome {
    pub verdict: Verdict,
    pub packet: Vec<u8>,
    /// The reasons that were counted.
    pub reasons: Vec<Reason>,
    /// The packets that were counted for rules.
    pub counters: Vec<(CounterKey, Counter)>,
    /// The replies that were counted for rules.
    pub replies: Vec<(CounterKey, Counter)>,
    /// The flows of rules that were counted as refused.
    pub refused: Vec<(u32, u64)>,
    /// All flow state.
    pub tables: Tables,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            verdict,
            packet,
            reasons,
            counters,
            replies,
            refused,
            tables,
        } = self;
        writeln!(
            f,
            "{verdict:?} {reasons:?} {counters:?} {replies:?} {refused:?}"
        )?;
        write!(f, "{tables:?}packet   {:?}", Hex(packet))
    }
}

/// The programs with one list of rules.
pub struct Rig {
    datapath: Datapath,
    flows: Flows,
    pub forwards: Forwards,
    /// The number of rules.
    pub rules: u16,
    reasons: Vec<u64>,
    /// The contents of the flow maps.
    tables: Tables,
    /// The targets of the rules.
    targets: Vec<Port>,
}

impl Rig {
    pub fn new(setup: Setup, sizes: Sizes) -> Self {
        let mut datapath = Datapath::load(sizes.into(), None).expect("load the object");
        datapath
            .set_local(&local_addrs().into())
            .expect("fill LOCAL");
        let reasons = datapath.reasons().expect("read REASONS");
        let flows = datapath.flows().expect("map FLOWS");
        let forwards = datapath.forwards().expect("map FORWARDS");
        let mut rig = Self {
            datapath,
            flows,
            forwards,
            rules: 0,
            reasons,
            tables: Tables::default(),
            targets: Vec::new(),
        };
        rig.set_rules(setup);
        rig
    }

    /// Replaces the rules; the programs stay.
    pub fn set_rules(&mut self, setup: Setup) {
        let table = setup.table();
        self.rules = u16::try_from(setup.rules.len()).expect("few");
        self.datapath.commit(&table).expect("fill the maps");
        let generation = self.datapath.generation();
        let masks = [("lo", LOOPBACK_IFINDEX), (OTHER, OTHER_IFINDEX)].map(|(name, index)| {
            let lists = table.on_lists().iter().zip(1..);
            let is_in = |list: &[String]| list.iter().any(|iface| iface == name);
            let mask = lists.fold(0, |mask, (list, bit)| mask | u64::from(is_in(list)) << bit);
            (index, mask)
        });
        self.datapath
            .set_on(generation, &masks.into())
            .expect("fill IFACES");
        let is_target = |port: &Port| {
            let protocols = [Protocol::Tcp, Protocol::Udp];
            protocols
                .into_iter()
                .any(|protocol| table.is_target(protocol, *port))
        };
        self.targets = (0..=u16::MAX).map(Port::new).filter(is_target).collect();
    }

    pub fn datapath(&mut self) -> &mut Datapath {
        &mut self.datapath
    }

    /// Replaces all flow state.
    pub fn set_tables(&mut self, tables: &Tables) {
        self.tables = tables.clone();
        self.flows.clear();
        self.clear_marks();
        for name in ["GIVEN", "GIVEN_TCP", "REMAP", "REMAP_TCP"] {
            let keys: Result<Vec<_>, _> = self.ports(name).keys().collect();
            for key in keys.expect("read the keys") {
                self.ports(name).remove(&key).expect("remove a port");
            }
        }
        for table in FLOWS {
            for (key, flow) in tables.get(table) {
                let is_remapped = flow.client_port != key.client_port;
                if is_remapped {
                    let mut given = self.ports(match table {
                        FlowTable::Tcp => "GIVEN_TCP",
                        FlowTable::Syn | FlowTable::Udp => "GIVEN",
                    });
                    given
                        .insert(*key, flow.client_port.bytes(), 0)
                        .expect("insert a port");
                }
                let (bucket, hash) = self.flows.bucket(table, key);
                let entry = Entry::new(hash, flow);
                let entry = if is_remapped { entry.remapped() } else { entry };
                bucket.put(hash, key.local_port, entry);
            }
        }
        for &(client, port) in &tables.marks {
            self.set_mark(client, port);
        }
        for (key, port) in &tables.remap {
            self.set_mark(key.client, key.client_port);
            let mut remap = self.ports("REMAP");
            remap.insert(*key, port.bytes(), 0).expect("insert a port");
        }
    }

    fn marks(&mut self) -> Array<&mut MapData, [u8; 64]> {
        let map = self.datapath.map_mut("REMAPPED");
        map.try_into().expect("of bytes")
    }

    fn set_mark(&mut self, client: Addr, port: Port) {
        let (element, byte) = remap_bloom_slot(client, port);
        let mut marks = self.marks();
        let mut bytes = marks.get(&element, 0).expect("read an element");
        bytes[byte] = 1;
        marks.set(element, bytes, 0).expect("write an element");
    }

    fn clear_marks(&mut self) {
        let mut marks = self.marks();
        for element in 0..marks.len() {
            if marks.get(&element, 0).expect("read an element") != [0; 64] {
                marks.set(element, [0; 64], 0).expect("write an element");
            }
        }
    }

    /// Reads all flow state. What is kept of a flow does not tell whose it is:
    /// it is of one of those that were there before, or of one of `keys` to any
    /// target, by any client port that was given.
    pub fn read_tables(&mut self, keys: impl IntoIterator<Item = FlowKey>) -> Tables {
        let mut both = |one, other| {
            let mut ports = HashMap::new();
            for name in [one, other] {
                let read: Result<HashMap<_, _>, _> = self.ports(name).iter().collect();
                ports.extend(read.expect("read the ports"));
            }
            ports
        };
        // A port of a connection comes before one that was given since.
        let remap = both("REMAP", "REMAP_TCP");
        let given = both("GIVEN", "GIVEN_TCP");
        let mut tables = Tables::default();
        for (key, port) in remap {
            tables
                .remap
                .insert(key, Port::from_half(u16::from_ne_bytes(port)));
        }
        let to_targets = |key: FlowKey| {
            let ports = self.targets.iter().copied().chain([key.local_port]);
            ports.map(move |local_port| FlowKey { local_port, ..key })
        };
        let remapped = tables.remap.iter().map(|(original, port)| FlowKey {
            client_port: *port,
            ..*original
        });
        let keys: Vec<_> = keys
            .into_iter()
            .chain(remapped)
            .flat_map(to_targets)
            .collect();
        let flows = &self.flows;
        for table in FLOWS {
            let found = tables.get_mut(table);
            let protocol = match table {
                FlowTable::Udp => Protocol::Udp,
                FlowTable::Syn | FlowTable::Tcp => Protocol::Tcp,
            };
            let keys = keys.iter().filter(|key| key.protocol == protocol as u8);
            // What was there before may be in the wrong table.
            for key in keys.chain(self.tables.get(table).keys()) {
                if let Some(entry) = flows.entry(table, key) {
                    let own = given.get(key).filter(|_| entry.is_remapped());
                    let client_port = own.map_or(key.client_port, |port| {
                        Port::from_half(u16::from_ne_bytes(*port))
                    });
                    found.insert(*key, entry.flow(client_port));
                }
            }
        }
        let all = flows.entries().count();
        let known: usize = FLOWS.into_iter().map(|table| tables.get(table).len()).sum();
        assert_eq!(all, known, "entries of unknown flows, beside {tables:?}");
        self.tables = tables.clone();
        tables
    }

    fn ports(&mut self, name: &str) -> BpfHashMap<&mut MapData, FlowKey, [u8; 2]> {
        let map = self.datapath.map_mut(name);
        map.try_into().expect("a hash map of ports")
    }

    /// The counters of a few rules on the interfaces of tests, summed over the
    /// CPUs: reading all places takes longer than a run.
    fn counters(&self, places: &str) -> Vec<(CounterKey, Counter)> {
        let map = self.datapath.map(places);
        let map = PerCpuArray::<_, Hits>::try_from(map).expect("of hits");
        let mut counters = Vec::new();
        let keys = [LOOPBACK_IFINDEX, OTHER_IFINDEX]
            .into_iter()
            .flat_map(|ifindex| (0..RULES).map(move |rule| CounterKey { ifindex, rule }));
        for key in keys {
            let mut sum = Counter::default();
            let per_cpu = map.get(&key.place(), 0).expect("read a place");
            for hits in per_cpu.iter().filter(|hits| hits.key == key) {
                sum.add(&hits.counter);
            }
            if sum.last_hit_ns != 0 {
                counters.push((key, sum));
            }
        }
        counters
    }

    /// The flows that were counted as refused, by rule.
    fn refused(&self) -> Vec<(u32, u64)> {
        let map = self.datapath.map("OUTCOMES");
        let map = PerCpuHashMap::<_, u32, Outcomes>::try_from(map).expect("of outcomes");
        let mut refused = Vec::new();
        for rule in 0..RULES {
            if let Ok(per_cpu) = map.get(&rule, 0) {
                assert!(per_cpu.iter().all(|outcomes| outcomes.accepted == 0));
                refused.push((rule, per_cpu.iter().map(|outcomes| outcomes.refused).sum()));
            }
        }
        refused
    }

    /// Forgets what was counted for rules.
    pub fn clear_counters(&mut self) {
        for places in ["HITS", "REPLIES"] {
            let keys = self.counters(places);
            let map = self.datapath.map_mut(places);
            let mut map = PerCpuArray::<_, Hits>::try_from(map).expect("of hits");
            for (key, _) in keys {
                let none = vec![Hits::default(); nr_cpus().expect("the CPUs")];
                let none = PerCpuValues::try_from(none).expect("one for each CPU");
                map.set(key.place(), none, 0).expect("clear a place");
            }
        }
        let map = self.datapath.map_mut("OUTCOMES");
        let mut map = PerCpuHashMap::<_, u32, Outcomes>::try_from(map).expect("of outcomes");
        let rules: Vec<_> = map.keys().filter_map(Result::ok).collect();
        for rule in rules {
            map.remove(&rule).expect("clear an outcome");
        }
    }

    /// Runs a program once. `None` when the kernel refuses such a packet: all
    /// that are shorter than an Ethernet header, and in newer versions also
    /// those at TC that end in the IP header.
    pub fn run(&mut self, program: Program, setting: Setting, packet: &[u8]) -> Option<Outcome> {
        self.clear_counters();
        let flow = key(program, packet);
        let (verdict, packet) = self.once(program, setting, packet)?;
        let reasons = self.datapath.reasons().expect("read REASONS");
        let counted = Reason::ALL
            .iter()
            .zip(reasons.iter().zip(&self.reasons))
            .flat_map(|(reason, (now, before))| {
                std::iter::repeat_n(*reason, usize::try_from(now - before).expect("few"))
            })
            .collect();
        self.reasons = reasons;
        Some(Outcome {
            verdict,
            packet,
            reasons: counted,
            counters: self.counters("HITS"),
            replies: self.counters("REPLIES"),
            refused: self.refused(),
            tables: self.read_tables(flow),
        })
    }

    /// Runs a program once, without a look at what it left in the maps.
    pub fn once(
        &mut self,
        program: Program,
        setting: Setting,
        packet: &[u8],
    ) -> Option<(Verdict, Vec<u8>)> {
        // Bytes that look like the begin of an IP header.
        let outer = vec![0x45; program.outer_len];
        let whole = [&outer, packet].concat();
        // The kernel does not say how long the packet is before it is there.
        let mut out = vec![0; whole.len() + 64];
        let result = match self.test_run(program, setting, &whole, &mut out) {
            Ok(result) => result,
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::EINVAL) && packet.len() < 54 =>
            {
                return None;
            }
            Err(error) => panic!("run {}: {error}", program.name),
        };
        out.truncate(usize::try_from(result.data_size_out).expect("a length"));
        let packet = out.split_off(program.outer_len);
        assert_eq!(out, outer, "{} leaves the outer header alone", program.name);
        Some((verdict(program, result.return_value), packet))
    }

    /// Runs a program once, and has the kernel write the packet to `out`.
    fn test_run(
        &mut self,
        program: Program,
        setting: Setting,
        packet: &[u8],
        out: &mut [u8],
    ) -> Result<TestRunResult, ProgramError> {
        let ctx = context(program, setting, packet.len());
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(out),
            ctx_in: ctx.as_deref(),
            repeat: 1,
            ..Default::default()
        };
        if program.is_xdp {
            let program: &mut Xdp = self.datapath.program(program.name).expect("load");
            program.test_run(options)
        } else {
            let program: &mut SchedClassifier = self.datapath.program(program.name).expect("load");
            program.test_run(options)
        }
    }
}

/// The number of rules whose counters are read.
const RULES: u32 = 20;

const FLOWS: [FlowTable; 3] = [FlowTable::Syn, FlowTable::Tcp, FlowTable::Udp];

/// The flow of a packet as its ports say.
fn key(program: Program, packet: &[u8]) -> Option<FlowKey> {
    let mut packet = packet.to_vec();
    let mut frame = Bytes(&mut packet);
    let headers = Packet::parse(&mut frame, program.link).ok()?;
    let Payload::Ports(protocol) = headers.payload else {
        return None;
    };
    let (src_port, dst_port) = headers.ports(&frame).ok()?;
    let (end, client_port, local_port) = match program.hook {
        Hook::Ingress => (End::Dst, src_port, dst_port),
        Hook::Egress => (End::Src, dst_port, src_port),
    };
    Some(FlowKey {
        client_port,
        local_port,
        ..headers.key(&frame, end, protocol).ok()?
    })
}

/// The context of a run that is not a plain one on `lo`.
fn context(program: Program, setting: Setting, len: usize) -> Option<Vec<u8>> {
    let Setting { iface, gso_segs } = setting;
    if iface == Iface::Lo && gso_segs == 0 {
        return None;
    }
    let ifindex = if iface == Iface::Lo { 1 } else { OTHER_IFINDEX };
    let mut ctx = vec![0; if program.is_xdp { XDP_LEN } else { SKB_LEN }];
    let mut set = |at: Range<usize>, value: u32| ctx[at].copy_from_slice(&value.to_ne_bytes());
    if program.is_xdp {
        set(XDP_DATA_END, u32::try_from(len).expect("a length"));
        set(XDP_IFINDEX, ifindex);
    } else {
        set(SKB_IFINDEX, ifindex);
        set(SKB_GSO_SEGS, gso_segs);
        set(SKB_GSO_SIZE, if gso_segs == 0 { 0 } else { 1448 });
    }
    Some(ctx)
}

fn verdict(program: Program, action: u32) -> Verdict {
    // XDP_DROP and XDP_PASS; TCX_DROP and TCX_NEXT.
    let (drop, pass) = if program.is_xdp {
        (1, 2)
    } else {
        (2, u32::MAX)
    };
    match action {
        _ if action == drop => Verdict::Drop,
        _ if action == pass => Verdict::Pass,
        _ => panic!("{} returned {action}", program.name),
    }
}

/// `CLOCK_MONOTONIC`.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("read the clock");
    let ns = now.tv_sec() * 1_000_000_000 + now.tv_nsec();
    u64::try_from(ns).expect("a time after boot")
}

/// Flow state of the cases, on the clock of the kernel.
pub fn at_time(tables: &Tables, now_ns: u64) -> Tables {
    let mut tables = tables.clone();
    for table in FLOWS {
        for flow in tables.get_mut(table).values_mut() {
            let age = Epoch::at(NOW_NS).since(flow.seen);
            flow.seen = Epoch(Epoch::at(now_ns).0.wrapping_sub(age));
        }
    }
    tables
}
