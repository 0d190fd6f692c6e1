//! Checksums, as tcpdump and the kernel see them.

use nix::sys::signal::Signal;

use crate::Cell;
use crate::lab::capture::tcpdump;
use crate::lab::namespace::Namespace;
use crate::lab::process::{Process, wait_for};

/// Reads along, and looks at all checksums. Idle where the devices compute
/// them, as they are wrong before.
pub struct ChecksumWatch(Option<Process>);

impl ChecksumWatch {
    /// Starts to listen.
    pub fn start(cell: &Cell, namespace: &Namespace, interface: &str) -> Self {
        let start = || tcpdump(namespace, &["-lnvvi", interface]);
        Self((!cell.is_offloaded).then(start))
    }

    /// No packet had a bad checksum, and some had a good one.
    pub fn finish(self) {
        let Some(mut process) = self.0 else { return };
        let is_good = |line: &&str| line.contains("(correct)") || line.contains("udp sum ok");
        // One that does not depend on when the others were printed.
        wait_for("tcpdump to print a good checksum", || {
            process.out().lines().find(is_good).map(|_| ())
        });
        process.signal(Signal::SIGINT);
        process.wait();
        let out = process.out();
        let is_bad = |line: &str| {
            let words = [
                "incorrect",
                "bad cksum",
                "bad udp cksum",
                "bad icmp6",
                "wrong icmp",
            ];
            words.iter().any(|words| line.contains(words))
        };
        let lines: Vec<_> = std::iter::once("").chain(out.lines()).collect();
        let bad: Vec<_> = lines
            .windows(2)
            // Behind a tab is what an ICMP error quotes. That checksum was made
            // for the target port; nobody looks at it, and it is left as it is.
            .filter(|pair| is_bad(pair[1]) && !pair[0].starts_with('\t'))
            .collect();
        assert!(bad.is_empty(), "bad checksums: {bad:#?}");
    }
}

/// No packet with a bad checksum arrived in a namespace.
pub fn check(namespace: &Namespace) {
    let bad = errors(namespace);
    assert_eq!(bad, [], "bad checksums arrived in {}", namespace.name);
}

/// The kernel's counters of bad checksums that are not zero.
pub fn errors(namespace: &Namespace) -> Vec<(String, u64)> {
    let mut counters = Vec::new();
    let snmp = namespace.proc_net("snmp");
    let lines: Vec<_> = snmp.lines().collect();
    // Pairs of lines: names, then values.
    for pair in lines.chunks_exact(2) {
        let values = pair[1].split_whitespace().skip(1);
        let (protocol, names) = pair[0].split_once(':').expect("a protocol");
        for (name, value) in names.split_whitespace().zip(values) {
            counters.push((format!("{protocol}{name}"), value.to_owned()));
        }
    }
    for line in namespace.proc_net("snmp6").lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        counters.extend(words.next().zip(words.next()));
    }
    counters.retain(|(name, _)| name.ends_with("InCsumErrors"));
    for name in ["Tcp", "Udp", "Icmp", "Icmp6", "Udp6"] {
        let name = format!("{name}InCsumErrors");
        assert!(counters.iter().any(|c| c.0 == name), "no counter {name}");
    }
    counters
        .into_iter()
        .map(|(name, value)| (name, value.parse().expect("a number")))
        .filter(|(_, value)| *value > 0)
        .collect()
}
