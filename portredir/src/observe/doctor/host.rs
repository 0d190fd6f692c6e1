//! Checks of the kernel and of the host, apart from rules.

use std::fs;
use std::io;

use crate::config::engine::{Engine, EngineChoice};
use crate::config::settings::Settings;
use crate::host::features::Features;
use crate::host::preflight::{self, PreflightError};
use crate::loader::chain;
use crate::observe::report::counted;
use crate::plan::finding::{Diagnosis, Severity};
use crate::plan::{Plan, Planned};
use crate::rule::{Ports, Protocols, Rule, WhenDown};
use crate::sys::bpffs::{self, Mount};
use crate::sys::ethtool;
use crate::sys::sock_destroy::{self, SockDestroyError};

/// All checks of the host.
pub fn check(settings: &Settings, features: &Features, diagnosis: &mut Diagnosis) {
    let capabilities = preflight::check_capabilities();
    let is_permitted = capabilities.is_ok();
    if let Err(PreflightError::Capabilities(missing)) = &capabilities {
        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
        let why = format!("this process lacks {}: use sudo", missing.join(", "));
        diagnosis.not_checked("privileges", why);
    } else {
        diagnosis.pass("privileges", "this process may load and attach programs");
    }
    kernel(is_permitted, settings, diagnosis);
    let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable");
    self::jit(jit, diagnosis);
    bpffs(bpffs::mount(), diagnosis);
    cgroup(settings, features, diagnosis);
    let read = |name| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"));
    let range = read("ip_local_port_range");
    let reserved = read("ip_local_reserved_ports").unwrap_or_default();
    source_ports(settings, range, &reserved, diagnosis);
    sockets(settings, sock_destroy::is_supported(), diagnosis);
}

/// The kernel's way to end sockets of this host whose target is down, where a rule says `cut`.
fn sockets(
    settings: &Settings,
    is_supported: Result<bool, SockDestroyError>,
    diagnosis: &mut Diagnosis,
) {
    const CHECK: &str = "cut";
    let is_cut = |rule: &&Rule| {
        let forward = rule.forward();
        forward.is_some_and(|forward| forward.when_down == WhenDown::Cut)
    };
    let Some(rule) = settings.rules.iter().find(is_cut) else {
        return;
    };
    match is_supported {
        Ok(true) => {
            diagnosis.pass(CHECK, "the kernel can end sockets of this host");
        }
        Ok(false) => {
            let what = "this kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY is not set)";
            let why = format!(
                "clients on this host that have a target of rule `{rule}` stay connected to it \
                 when it goes down"
            );
            let fix = "boot a kernel with this option, or restart these clients".to_owned();
            diagnosis.find(CHECK, Severity::Warning, [what.to_owned(), why, fix]);
        }
        Err(error) => diagnosis.not_checked(CHECK, chain(&error)),
    }
}

/// The version and the features of the kernel.
fn kernel(is_permitted: bool, settings: &Settings, diagnosis: &mut Diagnosis) {
    const CHECK: &str = "kernel";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    if !is_permitted {
        let why = format!("Linux {release}: features cannot be probed without root");
        diagnosis.not_checked(CHECK, why);
        return;
    }
    if let Err(error) = preflight::check_kernel() {
        let fix = "boot a newer kernel, or one with this feature".to_owned();
        let why = "no engine works without it".to_owned();
        diagnosis.find(CHECK, Severity::Error, [error.to_string(), why, fix]);
    }
    if settings.engine == EngineChoice::Socket && preflight::has_sk_lookup() == Some(false) {
        let what = "this kernel lacks BPF sk_lookup, added in Linux 5.9".to_owned();
        let why = "--engine socket needs it".to_owned();
        let fix = "portredir up --engine auto".to_owned();
        diagnosis.find(CHECK, Severity::Error, [what, why, fix]);
    }
    diagnosis.pass(CHECK, format!("Linux {release}"));
}

/// The compiler of BPF programs.
fn jit(value: io::Result<String>, diagnosis: &mut Diagnosis) {
    const CHECK: &str = "jit";
    const FILE: &str = "/proc/sys/net/core/bpf_jit_enable";
    match value {
        Ok(value) if value.trim() == "0" => {
            let what = "the BPF JIT compiler is off (net.core.bpf_jit_enable = 0)".to_owned();
            let why = "the kernel interprets the programs, which takes several times as long";
            let fix = "sysctl -w net.core.bpf_jit_enable=1".to_owned();
            diagnosis.find(CHECK, Severity::Warning, [what, why.to_owned(), fix]);
        }
        Ok(_) => diagnosis.pass(CHECK, "the kernel compiles BPF programs"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let why = format!("only the first network namespace has {FILE}");
            diagnosis.not_checked(CHECK, why);
        }
        Err(_) => diagnosis.not_checked(CHECK, format!("{FILE}: needs root")),
    }
}

/// The file system of pinned maps.
fn bpffs(mount: Mount, diagnosis: &mut Diagnosis) {
    const CHECK: &str = "bpffs";
    match mount {
        Mount::Mounted => diagnosis.pass(CHECK, "mounted"),
        Mount::Missing => diagnosis.pass(CHECK, "not mounted; `portredir up` mounts it"),
        Mount::OwnNamespace => {
            let what = "bpffs is not mounted, and this process has mounts of its own".to_owned();
            let why = "`portredir up` needs a mount that lasts".to_owned();
            let fix = "mount -t bpf bpf /sys/fs/bpf, in the mount namespace of the host";
            diagnosis.find(CHECK, Severity::Warning, [what, why, fix.to_owned()]);
        }
    }
}

/// The hierarchy whose hooks redirect local clients.
fn cgroup(settings: &Settings, features: &Features, diagnosis: &mut Diagnosis) {
    const CHECK: &str = "cgroup";
    let is_needed = !settings.no_local && settings.iface.selects("lo").is_some();
    match &features.cgroup {
        Some(path) => diagnosis.pass(CHECK, path.display()),
        None if !is_needed => diagnosis.pass(CHECK, "no cgroup v2; local clients are left alone"),
        None => {
            let what = "the root of the cgroup v2 hierarchy is not mounted".to_owned();
            let why =
                "packets of local clients are rewritten on lo, and conntrack classifies them \
                       as INVALID"
                    .to_owned();
            let fix = "mount -t cgroup2 none DIR, or name a directory: portredir up --cgroup DIR";
            diagnosis.find(CHECK, Severity::Warning, [what, why, fix.to_owned()]);
        }
    }
}

/// The use of XDP on each interface, and the reason against it. A driver without XDP is no
/// fault; an engine that was asked for and is impossible is one of the interface.
pub fn xdp(plan: &Plan, features: &Features, diagnosis: &mut Diagnosis) {
    const CHECK: &str = "xdp";
    let fact = |planned: &Planned| {
        let interface = &planned.interface;
        let native = match interface.xdp_features {
            Some(features) if features.has_native() && features.has_frags() => {
                "native XDP with multi-buffer"
            }
            Some(features) if features.has_native() => "native XDP without multi-buffer",
            Some(_) => "no native XDP",
            None => "XDP features unknown before Linux 6.3",
        };
        let lro = match ethtool::features(&interface.name, &["rx-lro"]) {
            Ok(on) if on == [true] => "on",
            Ok(_) => "off",
            Err(_) => "unknown",
        };
        format!(
            "{}: engine {}, {native}, MTU {} (without multi-buffer at most {}), LRO {lro}",
            interface.name,
            planned.engine.name(),
            interface.mtu,
            features.linear_mtu()
        )
    };
    let on_device = plan
        .attach
        .values()
        .filter(|planned| !matches!(planned.engine, Engine::Cgroup | Engine::Lookup));
    for fact in on_device.map(fact) {
        diagnosis.pass(CHECK, fact);
    }
}

/// Whether the kernel tracks connections, which decides which engine is the cheapest.
pub fn conntrack(settings: &Settings, count: io::Result<String>, diagnosis: &mut Diagnosis) {
    const CHECK: &str = "conntrack";
    let count = count
        .ok()
        .and_then(|count| count.trim().parse::<u64>().ok());
    let Some(count) = count.filter(|count| *count > 0) else {
        diagnosis.pass(CHECK, "no connection is tracked in this network namespace");
        return;
    };
    let tracked = counted(count, "connection");
    let has_tcp = settings
        .rules
        .iter()
        .any(|rule| rule.protocols != Protocols::Udp);
    let is_socket = settings.engine == EngineChoice::Socket;
    let fact = if has_tcp && !is_socket {
        format!("{tracked} tracked; for TCP, --engine socket is then the cheaper engine")
    } else {
        format!("{tracked} tracked")
    };
    diagnosis.pass(CHECK, fact);
}

/// Destination ports from which this host's own clients send.
fn source_ports(
    settings: &Settings,
    range: io::Result<String>,
    reserved: &str,
    diagnosis: &mut Diagnosis,
) {
    const CHECK: &str = "source-ports";
    let Some(range) = range.ok().and_then(|range| port_range(&range)) else {
        diagnosis.not_checked(CHECK, "cannot read net.ipv4.ip_local_port_range");
        return;
    };
    let reserved = reserved.trim();
    let kept: Vec<_> = reserved.split(',').filter_map(ports).collect();
    for rule in &settings.rules {
        let both = Ports {
            first: rule.ports.first.max(range.first),
            last: rule.ports.last.min(range.last),
        };
        if rule.protocols == Protocols::Tcp || both.first > both.last || is_kept(both, &kept) {
            continue;
        }
        let what = format!(
            "{rule}: {both}/udp are also source ports of this host's own clients \
             (net.ipv4.ip_local_port_range = {range})"
        );
        let why = "a datagram to a client of this host, on such a port, can go to the target port";
        let comma = if reserved.is_empty() { "" } else { "," };
        let fix = format!("sysctl -w net.ipv4.ip_local_reserved_ports={reserved}{comma}{both}");
        diagnosis.find(CHECK, Severity::Warning, [what, why.to_owned(), fix]);
    }
    diagnosis.pass(
        CHECK,
        "no UDP rule has source ports of this host's own clients",
    );
}

/// Two numbers, as the kernel prints them.
fn port_range(text: &str) -> Option<Ports> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(Ports { first, last })
}

/// `40000` or `40000-40100`.
fn ports(text: &str) -> Option<Ports> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    Some(Ports { first, last })
}

/// Whether ranges, which are in order, contain all of the ports.
fn is_kept(ports: Ports, kept: &[Ports]) -> bool {
    let mut next = u32::from(ports.first);
    for range in kept {
        if u32::from(range.first) <= next && next <= u32::from(range.last) {
            next = u32::from(range.last) + 1;
        }
    }
    next > u32::from(ports.last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(rules: &[&str]) -> Settings {
        Settings {
            rules: rules.iter().map(|rule| rule.parse().expect(rule)).collect(),
            ..Settings::default()
        }
    }

    #[test]
    fn the_compiler_is_on_or_off() {
        for (value, findings, unchecked) in [
            (Ok("1\n".to_owned()), 0, 0),
            (Ok("0\n".to_owned()), 1, 0),
            (Err(io::ErrorKind::NotFound.into()), 0, 1),
            (Err(io::ErrorKind::PermissionDenied.into()), 0, 1),
        ] {
            let mut diagnosis = Diagnosis::default();
            jit(value, &mut diagnosis);
            let counts = (diagnosis.findings.len(), diagnosis.unchecked.len());
            assert_eq!(counts, (findings, unchecked), "{diagnosis:?}");
        }
    }

    #[test]
    fn the_kernel_may_not_end_sockets() {
        for (rule, is_supported, findings, passed) in [
            ("80:10.0.0.5:8080", false, 0, 0),
            ("80:10.0.0.5:8080 cut", true, 0, 1),
            ("80:10.0.0.5:8080 cut", false, 1, 0),
        ] {
            let mut diagnosis = Diagnosis::default();
            sockets(&settings(&[rule]), Ok(is_supported), &mut diagnosis);
            let counts = (diagnosis.findings.len(), diagnosis.passed.len());
            assert_eq!(counts, (findings, passed), "{diagnosis:?}");
        }
    }

    #[test]
    fn udp_ranges_over_source_ports() {
        for (rule, reserved, fix) in [
            ("53:5353/udp", "\n", ""),
            ("40000-50000:5353", "\n", ""),
            ("40000-50000:5353/udp", "\n", "40000-50000"),
            (
                "20000-50000:443/both",
                "8080,9148\n",
                "8080,9148,32768-50000",
            ),
            ("40000-50000:5353/udp", "40000-50000\n", ""),
            ("40000-50000:5353/udp", "100,32000-45000,45001-60000\n", ""),
            (
                "40000-50000:5353/udp",
                "40000-45000,45002-60000\n",
                "40000-45000,45002-60000,40000-50000",
            ),
        ] {
            let mut diagnosis = Diagnosis::default();
            let range = Ok("32768\t60999\n".to_owned());
            source_ports(&settings(&[rule]), range, reserved, &mut diagnosis);
            let fixes: Vec<_> = diagnosis.findings.iter().map(|f| f.fix.as_str()).collect();
            let expected = format!("sysctl -w net.ipv4.ip_local_reserved_ports={fix}");
            let expected = if fix.is_empty() {
                vec![]
            } else {
                vec![expected.as_str()]
            };
            assert_eq!(fixes, expected, "{rule} {reserved}");
        }
    }

    #[test]
    fn tracked_connections_favour_another_engine() {
        let socket = Settings {
            engine: EngineChoice::Socket,
            ..settings(&["80:8080"])
        };
        for (settings, count, expected) in [
            (&settings(&["80:8080"]), Ok("0\n"), "no connection"),
            (
                &settings(&["80:8080"]),
                Err(io::ErrorKind::NotFound),
                "no connection",
            ),
            (
                &settings(&["80:8080"]),
                Ok("3\n"),
                "3 connections tracked; for TCP, --engine socket",
            ),
            (
                &settings(&["53:5353/udp"]),
                Ok("1\n"),
                "1 connection tracked",
            ),
            (&socket, Ok("2\n"), "2 connections tracked"),
        ] {
            let mut diagnosis = Diagnosis::default();
            let count = count.map(str::to_owned).map_err(io::Error::from);
            conntrack(settings, count, &mut diagnosis);
            let fact = &diagnosis.passed[0].fact;
            assert!(fact.starts_with(expected), "{fact}");
            assert_eq!(
                fact.contains("--engine"),
                expected.contains("--engine"),
                "{fact}"
            );
            assert!(diagnosis.findings.is_empty());
        }
    }

    #[test]
    fn a_mount_that_would_not_last_is_a_finding() {
        for (mount, findings) in [
            (Mount::Mounted, 0),
            (Mount::Missing, 0),
            (Mount::OwnNamespace, 1),
        ] {
            let mut diagnosis = Diagnosis::default();
            bpffs(mount, &mut diagnosis);
            assert_eq!(diagnosis.findings.len(), findings);
        }
    }

    #[test]
    fn local_clients_need_a_hierarchy() {
        let features = |cgroup: Option<&str>| Features {
            cgroup: cgroup.map(Into::into),
            tcx: Some(true),
            page_bytes: 4096,
        };
        let no_local = Settings {
            no_local: true,
            ..Settings::default()
        };
        for (settings, features, findings) in [
            (&Settings::default(), features(Some("/sys/fs/cgroup")), 0),
            (&Settings::default(), features(None), 1),
            (&no_local, features(None), 0),
        ] {
            let mut diagnosis = Diagnosis::default();
            cgroup(settings, &features, &mut diagnosis);
            assert_eq!(diagnosis.findings.len(), findings);
        }
    }
}
