//! One packet through a program and through the datapath on the host: both
//! must do the same.

use portredir_common::flow::Epoch;
use portredir_common::kernel::Hit;
use portredir_common::map::counters::{Counter, CounterKey};
use portredir_common::verdict::Reason;

use crate::packet::Hook;
use crate::packet::mock::{Hex, Mock};
use crate::program::Program;
use crate::rig::{Outcome, Rig, at_time, now_ns};

/// How far the times of the two runs may be apart, in epochs. Ages in tests are
/// further than that from where they matter.
pub const SLACK: u16 = 1;

/// The result of a packet on the host, once the program was seen to do the same.
pub struct Agreed {
    pub reason: Reason,
    pub outcome: Outcome,
    /// When it was, on the kernel's clock.
    pub now_ns: u64,
}

/// Runs `program` in the state of `host`, which is given on the clock of the
/// cases.
///
/// `None` when the kernel does not take the packet; the error says what
/// differs.
pub fn compare(
    rig: &mut Rig,
    program: Program,
    host: &Mock,
    packet: &[u8],
) -> Result<Option<Agreed>, String> {
    let mut host = host.clone();
    let cases_tables = host.tables.take();
    let outcome = loop {
        host.now_ns = now_ns();
        let before = at_time(&cases_tables, host.now_ns);
        rig.set_tables(&before);
        host.tables.replace(before);
        let Some(outcome) = rig.run(program, host.iface.into(), packet) else {
            return Ok(None);
        };
        // Else the machine was busy with something else for too long.
        if now_ns() - host.now_ns < Epoch::UNIT_NS / 2 {
            break outcome;
        }
    };

    let before = host.clone();
    // The kernel's random number is known by what came of it.
    if let Some(port) = outcome.tables.new_client_port(&before.tables.borrow()) {
        host.random.set(Mock::random_for(port));
    }
    let (reason, expected) = host.run(program.hook, program.link, packet);

    let differences = differences(&outcome, &host, reason, &expected);
    if differences.is_empty() {
        return Ok(Some(Agreed {
            reason,
            outcome,
            now_ns: host.now_ns,
        }));
    }
    let way = if program.hook == Hook::Ingress {
        "in"
    } else {
        "out"
    };
    Err(format!(
        "{} disagrees with the host on a packet {way}: {}\nbefore\n{before:?}packet   {:?}",
        program.name,
        differences.join("\n"),
        Hex(packet)
    ))
}

/// The rule, packets, bytes and flows of a counter.
type Count = (u32, u64, u64, u64);

fn counted((key, counter): &(CounterKey, Counter)) -> Count {
    (key.rule, counter.packets, counter.bytes, counter.flows)
}

fn expected_count(hit: &Hit) -> Count {
    let bytes = u64::try_from(hit.bytes).expect("a length");
    let flows = u64::from(hit.begins_flow());
    (hit.rule.into(), hit.segments.into(), bytes, flows)
}

/// The differences between a program and the host.
fn differences(outcome: &Outcome, host: &Mock, reason: Reason, expected: &[u8]) -> Vec<String> {
    let mut differences = Vec::new();
    let mut differ = |what: &str, kernel: &dyn std::fmt::Debug, host: &dyn std::fmt::Debug| {
        differences.push(format!("{what}\n  kernel {kernel:?}\n  host   {host:?}"));
    };
    let reasons: Vec<_> = [reason]
        .into_iter()
        .filter(|reason| reason.is_counted_for_packets())
        .collect();
    if outcome.reasons != reasons {
        differ("reasons", &outcome.reasons, &reasons);
    }
    if outcome.verdict != reason.verdict() {
        differ("verdict", &outcome.verdict, &reason.verdict());
    }
    if outcome.packet != expected {
        differ("packet", &Hex(&outcome.packet), &Hex(expected));
    }
    for (what, counters, hits) in [
        ("packets", &outcome.counters, host.hits.borrow()),
        ("replies", &outcome.replies, host.replies.borrow()),
    ] {
        let counters: Vec<_> = counters.iter().map(counted).collect();
        let hits: Vec<_> = hits.iter().map(expected_count).collect();
        if counters != hits {
            let what = format!("counters of {what}: rule, packets, bytes, flows");
            differ(&what, &counters, &hits);
        }
    }
    let refused = host.outcomes.borrow();
    let refused = refused.iter().map(|(rule, _)| (u32::from(*rule), 1));
    let refused: Vec<_> = refused.collect();
    if outcome.refused != refused {
        differ("refused flows by rule", &outcome.refused, &refused);
    }
    if !outcome.tables.is(&host.tables.borrow(), SLACK) {
        differ("flow state", &outcome.tables, &host.tables.borrow());
    }
    differences
}
