//! Lists of rules, and flows, at random.

use portredir::rule::from_words;
use portredir::ruleset::shadow;

/// The addresses of the host.
pub const HOST: [&str; 5] = [
    "10.9.1.1",
    "10.9.1.3",
    "10.9.2.1",
    "fd09:0:0:1::1",
    "fd09:0:0:1::3",
];

/// The client's addresses of each IP version.
pub const CLIENT: [&[&str]; 2] = [
    &["10.9.1.2", "10.9.1.12", "10.9.1.13"],
    &["fd09:0:0:1::2", "fd09:0:0:1::12"],
];

/// The addresses of each IP version of the host behind the second link.
pub const FAR: [&[&str]; 2] = [
    &["10.9.2.2", "10.9.2.12"],
    &["fd09:0:0:2::2", "fd09:0:0:2::12"],
];

/// The destination ports, in rules and in flows.
pub const PORTS: std::ops::RangeInclusive<u16> = 80..=84;

const NETWORKS: [&str; 9] = [
    "10.9.0.0/16",
    "10.9.1.0/24",
    "10.9.1.8/29",
    "10.9.2.12",
    "0.0.0.0/0",
    "127.0.0.0/8",
    "fd09::/16",
    "fd09:0:0:1::/64",
    "fd09:0:0:2::12",
];

/// A word of a list.
pub fn one<'a>(below: &mut impl FnMut(u64) -> u64, words: &[&'a str]) -> &'a str {
    let number = below(words.len() as u64);
    words[usize::try_from(number).expect("an index")]
}

/// A number from `first` on.
fn number(below: &mut impl FnMut(u64) -> u64, first: u16, count: u64) -> u16 {
    first + u16::try_from(below(count)).expect("a small number")
}

/// A list of rules that may stand beside each other, with some of the protocols.
pub fn rules(protocols: &[&str], below: &mut impl FnMut(u64) -> u64) -> Vec<String> {
    let wanted = usize::try_from(2 + below(12)).expect("few");
    let mut rules: Vec<String> = Vec::new();
    // Some rules would never match beside the others.
    for _ in 0..200 {
        if rules.len() == wanted {
            break;
        }
        rules.insert(0, rule(protocols, below));
        let sourced = from_words(&rules);
        if !sourced.is_ok_and(|sourced| shadow::check(&sourced).is_ok()) {
            rules.remove(0);
        }
    }
    rules
}

fn rule(protocols: &[&str], below: &mut impl FnMut(u64) -> u64) -> String {
    let mut text = String::new();
    let addr = match below(9) {
        0 => Some("127.0.0.1"),
        1..=3 => Some(one(below, &HOST)),
        _ => None,
    };
    if let Some(addr) = addr {
        text += &match addr.contains(':') {
            true => format!("[{addr}]:"),
            false => format!("{addr}:"),
        };
    }
    let first = number(below, *PORTS.start(), 5);
    let last = number(below, first, u64::from(PORTS.end() - first) + 1);
    let target = number(below, 8080, 5);
    text += &match below(4) {
        0 if first < last => format!("{first}-{last}:{target}"),
        1 if first < last => format!("{first}-{last}:{target}-{}", target + last - first),
        // A rule may lead to a destination port of others.
        2 => format!("{first}:{}", number(below, *PORTS.start(), 5)),
        _ => format!("{first}:{target}"),
    };
    text += one(below, protocols);
    if below(2) == 0 {
        let same =
            |network: &&&str| addr.is_none_or(|addr| addr.contains(':') == network.contains(':'));
        let networks: Vec<_> = NETWORKS.iter().filter(same).copied().collect();
        text += &format!(" from {}", one(below, &networks));
    }
    if below(3) == 0 {
        text += &format!(" on {}", one(below, &["h0", "h1", "h*", "lo", "h1,lo"]));
    }
    text
}
