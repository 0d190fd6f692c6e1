use portredir_common::map::targets::{SLOTS, Slot};

use super::*;
use crate::ruleset::services::endpoint::Endpoint;
use crate::ruleset::services::service::{Affinity, Otherwise};
use crate::ruleset::services::{WantedService, WantedTarget};

fn probe(last: u8) -> Probe {
    Probe {
        host: Some([10, 0, 0, last].into()),
        port: Port::new(80),
        check: Check::Tcp,
        timing: Timing::default(),
    }
}

fn target(number: u16, last: u8) -> Watched {
    Watched {
        number,
        probe: probe(last),
        is_up: true,
    }
}

fn refused() -> Result<Answer, String> {
    Err("refused".to_owned())
}

/// The changes of a target, `+` for up and `-` for down, with each result, `y` or `n`. The
/// first letter is the state at the beginning.
fn story(results: &str) -> String {
    story_every(Timing::default().every, results)
}

/// The changes of a target that is asked with this interval; `s` is silence.
fn story_every(every: Duration, results: &str) -> String {
    let timing = Timing {
        every,
        ..Timing::default()
    };
    let probe = Probe { timing, ..probe(5) };
    let is_up = results.starts_with('+');
    let mut monitor = Monitor::new(1);
    let target = Watched {
        is_up,
        probe: probe.clone(),
        ..target(1, 5)
    };
    assert_eq!(monitor.watch(&[target], Instant::now()), []);
    let mut said = String::new();
    for result in results.chars().skip(1) {
        let result = match result {
            'y' => Ok(Answer::Some),
            's' => Ok(Answer::None),
            _ => refused(),
        };
        let changed = monitor.finish(&probe, result);
        said.push(match changed.as_slice() {
            [] => '.',
            [change] if change.why.is_none() => '+',
            [change] => {
                assert_eq!(change.why.as_deref(), Some("refused"));
                '-'
            }
            more => panic!("{more:?}"),
        });
    }
    said
}

#[test]
fn three_failures_in_a_row_and_two_good_results_count() {
    assert_eq!(story("+yyy"), "...");
    assert_eq!(story("+nnnn"), "..-.");
    assert_eq!(story("+nnynnynnn"), "........-");
    assert_eq!(story("+nnnynyy"), "..-...+");
    assert_eq!(story("+nnnyynnn"), "..-.+..-");
    // A target that is known to be down, when the process begins.
    assert_eq!(story("-y"), "+");
    assert_eq!(story("-nyy"), "..+");
    assert_eq!(story("-ynnn"), "+..-");
}

/// A host sends one ICMP error a second: where probes come more often, the silence between
/// two errors is not that of a server.
#[test]
fn silence_counts_where_an_error_would_have_come() {
    assert_eq!(story("+nnnss"), "..-.+");
    assert_eq!(story("+nnsnnn"), ".....-");
    let quick = |results| story_every(Duration::from_millis(200), results);
    assert_eq!(quick("+nnnssssssnssssssss"), "..-..............+");
    assert_eq!(quick("+nsnsn"), "....-");
    assert_eq!(quick("+nsnyn"), ".....");
    assert_eq!(quick("-ss"), "+.");
    assert_eq!(story_every(Duration::from_secs(1), "+nnnsss"), "..-..+");
}

#[test]
fn probes_are_due_every_two_seconds_or_a_little_earlier() {
    let mut monitor = Monitor::new(7);
    let start = Instant::now();
    assert_eq!(monitor.next_due(), None);
    monitor.watch(&[target(1, 5)], start);
    let mut now = start;
    let mut intervals = Vec::new();
    for _ in 0..100 {
        assert_eq!(monitor.next_due(), Some(now));
        assert_eq!(monitor.begin(now, 9), [probe(5)]);
        assert_eq!(monitor.begin(now, 9), [], "the probe runs");
        assert_eq!(monitor.next_due(), None, "the probe runs");
        monitor.finish(&probe(5), Ok(Answer::Some));
        let next = monitor.next_due().expect("a time");
        assert_eq!(monitor.begin(next - Duration::from_millis(1), 9), []);
        intervals.push(next - now);
        now = next;
    }
    let (least, most) = (intervals.iter().min(), intervals.iter().max());
    let (least, most) = (*least.expect("many"), *most.expect("many"));
    assert!(least >= Duration::from_millis(1800), "{least:?}");
    assert!(most <= Duration::from_secs(2), "{most:?}");
    assert!(
        most - least > Duration::from_millis(150),
        "{least:?} {most:?}"
    );
}

#[test]
fn a_slow_probe_is_not_made_twice_at_a_time() {
    let mut monitor = Monitor::new(1);
    let start = Instant::now();
    monitor.watch(&[target(1, 5)], start);
    assert_eq!(monitor.begin(start, 9).len(), 1);
    let late = start + Duration::from_secs(9);
    assert_eq!(monitor.begin(late, 9), []);
    monitor.watch(&[target(1, 5), target(2, 5)], late);
    assert_eq!(monitor.begin(late, 9), [], "the probe still runs");
    monitor.finish(&probe(5), Ok(Answer::Some));
    assert_eq!(monitor.begin(late, 9).len(), 1, "overdue");
}

#[test]
fn probes_that_wait_longest_come_first() {
    let mut monitor = Monitor::new(1);
    let start = Instant::now();
    monitor.watch(&[target(1, 1)], start);
    let later = start + Duration::from_millis(5);
    let all = [1, 2, 3].map(|last| target(last.into(), last));
    monitor.watch(&all, later);
    assert_eq!(monitor.begin(later, 1), [probe(1)]);
    assert_eq!(monitor.begin(later, 9).len(), 2);
}

#[test]
fn targets_with_the_same_probe_share_it() {
    let mut monitor = Monitor::new(1);
    let now = Instant::now();
    let down = Watched {
        is_up: false,
        ..target(2, 5)
    };
    let other = Watched {
        probe: Probe {
            check: Check::Http {
                path: "/".to_owned(),
            },
            ..probe(5)
        },
        ..target(3, 5)
    };
    monitor.watch(&[target(1, 5), down, other], now);
    assert_eq!(monitor.begin(now, 9).len(), 2);
    let changed = monitor.finish(&probe(5), Ok(Answer::Some));
    let changed: Vec<_> = changed.iter().map(|change| change.number).collect();
    assert_eq!(changed, [2]);
}

#[test]
fn other_lists_keep_counts_and_tell_what_was_not_heard() {
    let mut monitor = Monitor::new(1);
    let now = Instant::now();
    monitor.watch(&[target(1, 5)], now);
    monitor.begin(now, 9);
    monitor.finish(&probe(5), refused());
    monitor.finish(&probe(5), refused());
    assert_eq!(monitor.watch(&[target(1, 5), target(2, 6)], now), []);
    assert_eq!(monitor.finish(&probe(5), refused()).len(), 1);
    let told = monitor.watch(&[target(1, 5)], now);
    let [told] = told.as_slice() else {
        panic!("{told:?}");
    };
    let since = Timestamp::UNIX_EPOCH;
    let why = "refused".to_owned();
    assert_eq!(told.health(since), Health::Down { since, why });
    assert_eq!(monitor.finish(&probe(6), refused()), [], "no longer asked");

    // The same number with another address is another target.
    assert_eq!(monitor.watch(&[target(1, 6)], now), []);
    assert_eq!(monitor.finish(&probe(5), refused()), []);
}

#[test]
fn the_targets_of_rules_with_a_check_are_watched() {
    let endpoint = |last: u8, port: u16| Endpoint {
        host: Some([10, 0, 0, last].into()),
        port: Port::new(port),
        range: None,
    };
    let wanted_target = |last| WantedTarget {
        endpoint: endpoint(last, 8080),
        weight: 1,
    };
    let wanted = |key: &str| WantedService {
        key: key.to_owned(),
        rule: 0,
        affinity: Affinity::None,
        cut: false,
        targets: vec![wanted_target(5), wanted_target(6)],
        otherwise: Otherwise::Target(endpoint(9, 8080)),
    };
    let mut slots = vec![Slot::default(); SLOTS as usize];
    let services = Services::default().next(&[wanted("80"), wanted("53/udp")], &mut slots);
    let services = services.expect("services");
    let mut services = services
        .next(&[wanted("80")], &mut slots)
        .expect("services");
    let since = Timestamp::UNIX_EPOCH;
    let why = "refused".to_owned();
    services.set_health(2, &Health::Down { since, why }, &mut slots);
    let check = |port| RuleCheck {
        check: Check::Tcp,
        port,
        timing: Timing::default(),
    };
    let all = watched(&services, |_| Some(check(None)));
    let told = |target: &Watched| (target.number, target.probe.port.get(), target.is_up);
    let told: Vec<_> = all.iter().map(told).collect();
    assert_eq!(told, [(1, 8080, true), (2, 8080, false)]);
    let all = watched(&services, |_| Some(check(Some(Port::new(80)))));
    assert_eq!(all[0].probe, probe(5));
    assert_eq!(watched(&services, |_| None), []);
}

#[test]
fn a_hurried_probe_is_due_at_once_and_others_wait() {
    let mut monitor = Monitor::new(7);
    let start = Instant::now();
    monitor.watch(&[target(1, 5), target(2, 6)], start);
    assert_eq!(monitor.begin(start, 9).len(), 2);
    monitor.finish(&probe(5), Ok(Answer::Some));
    monitor.finish(&probe(6), Ok(Answer::Some));
    let soon = start + Duration::from_millis(10);
    assert_eq!(monitor.begin(soon, 9), []);
    let hosts = [IpAddr::from([10, 0, 0, 5]), IpAddr::from([10, 0, 0, 7])];
    monitor.hurry(&hosts.into(), soon);
    assert_eq!(monitor.begin(soon, 9), [probe(5)]);
    // While the probe runs, another one is asked for.
    monitor.hurry(&hosts.into(), soon);
    assert_eq!(monitor.begin(soon, 9), []);
    monitor.finish(&probe(5), refused());
    assert_eq!(monitor.begin(soon, 9), [probe(5)]);
}
