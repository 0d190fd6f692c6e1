//! The machine, as far as the figures depend on it.

use std::fs;
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::bench::process::Scheduling;

/// The properties of the machine that figures depend on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Environment {
    /// Release and version of the kernel.
    pub kernel: String,
    /// The model of the processors.
    pub cpu: String,
    /// The number of processors.
    pub cpus: usize,
    /// The name that the hypervisor or the maker gives; `None` on bare metal that gives
    /// none.
    pub machine: Option<String>,
    /// Whether the machine is virtual.
    pub is_virtual: bool,
    /// The kernel's mitigations of processor faults, where they are active.
    pub mitigations: Vec<String>,
    /// Ticks a second; `None` where the kernel's configuration cannot be read.
    pub hz: Option<u32>,
    /// The frequency governor; `None` where the kernel does not choose the frequency.
    pub governor: Option<String>,
    /// Whether two threads share a core.
    pub smt: Option<bool>,
    /// Whether eBPF is compiled.
    pub jit: bool,
    /// The number of processes that wanted to run, on average of the last minute, before
    /// and after the benchmark.
    pub load_average: [f64; 2],
    /// The part of the time that the hypervisor gave to other machines meanwhile.
    pub steal: Option<f64>,
    /// The scheduling of the traffic.
    pub scheduling: Scheduling,
}

/// The values that are read twice: at the beginning and at the end.
#[derive(Clone, Debug)]
pub struct Before {
    load_average: f64,
    ticks: Option<[u64; 2]>,
}

impl Before {
    /// The values now.
    #[must_use]
    pub fn read() -> Self {
        Self {
            load_average: load_average(),
            ticks: ticks(),
        }
    }
}

impl Environment {
    /// The environment, with the values now, at the end.
    #[must_use]
    pub fn read(before: &Before, scheduling: Scheduling) -> Self {
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let steal = before.ticks.zip(ticks()).and_then(|(before, after)| {
            let [all, stolen] = [0, 1].map(|i| after[i].saturating_sub(before[i]));
            #[expect(clippy::cast_precision_loss, reason = "few ticks")]
            (all > 0).then(|| stolen as f64 / all as f64)
        });
        Self {
            kernel: [
                read("/proc/sys/kernel/osrelease"),
                read("/proc/sys/kernel/version"),
            ]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" "),
            cpu: field(&cpuinfo, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: cpuinfo.matches("processor\t").count().max(1),
            machine: machine(),
            is_virtual: field(&cpuinfo, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            mitigations: mitigations(),
            hz: hz(),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            smt: read("/sys/devices/system/cpu/smt/active").map(|active| active == "1"),
            jit: read("/proc/sys/net/core/bpf_jit_enable").is_some_and(|jit| jit != "0"),
            load_average: [before.load_average, load_average()],
            steal,
            scheduling,
        }
    }

    /// Names and values for people.
    #[must_use]
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let yes = |is_so: bool| if is_so { "yes" } else { "no" }.to_owned();
        let unknown = || "not known".to_owned();
        let [before, after] = self.load_average;
        let scheduling = self.scheduling;
        let how = if scheduling.is_realtime {
            "SCHED_FIFO"
        } else {
            "nice -20, as SCHED_FIFO is not allowed here: expect more noise"
        };
        let virtual_ = if self.is_virtual {
            "virtual"
        } else {
            "bare metal"
        };
        let machine = self.machine.clone().unwrap_or_else(unknown);
        let steal = self
            .steal
            .map_or_else(unknown, |steal| format!("{:.1} %", steal * 100.0));
        vec![
            ("kernel", self.kernel.clone()),
            ("processor", format!("{}, {} of them", self.cpu, self.cpus)),
            ("machine", format!("{machine} ({virtual_})")),
            ("mitigations", self.mitigations.join("; ")),
            ("HZ", self.hz.map_or_else(unknown, |hz| hz.to_string())),
            ("governor", self.governor.clone().unwrap_or_else(unknown)),
            ("SMT", self.smt.map_or_else(unknown, yes)),
            ("eBPF JIT", yes(self.jit)),
            (
                "load average",
                format!("{before:.2} before, {after:.2} after"),
            ),
            ("steal", steal),
            (
                "traffic",
                format!("clients and servers on processor {}, {how}", scheduling.cpu),
            ),
        ]
    }
}

fn read(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// A field of the first processor.
fn field(cpuinfo: &str, name: &str) -> Option<String> {
    let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let mut values = lines.filter(|(key, _)| key.trim() == name);
    values.next().map(|(_, value)| value.trim().to_owned())
}

fn machine() -> Option<String> {
    let parts = ["sys_vendor", "product_name"];
    let parts = parts.map(|part| read(&format!("/sys/class/dmi/id/{part}")));
    let words: Vec<_> = parts.into_iter().flatten().collect();
    (!words.is_empty()).then(|| words.join(" "))
}

fn mitigations() -> Vec<String> {
    let entries = fs::read_dir("/sys/devices/system/cpu/vulnerabilities");
    let entries = entries.into_iter().flatten().flatten();
    let mut lines: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let state = fs::read_to_string(entry.path()).ok()?;
            let state = state.trim();
            (state != "Not affected").then(|| format!("{name}: {state}"))
        })
        .collect();
    lines.sort();
    lines
}

fn hz() -> Option<u32> {
    let release = read("/proc/sys/kernel/osrelease")?;
    let text = fs::read_to_string(format!("/boot/config-{release}")).ok();
    let text = text.or_else(|| {
        let mut zcat = Command::new("zcat");
        let output = zcat.arg("/proc/config.gz").stderr(Stdio::null()).output();
        Some(String::from_utf8_lossy(&output.ok()?.stdout).into_owned())
    })?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("CONFIG_HZ="))?;
    value.parse().ok()
}

fn load_average() -> f64 {
    let text = read("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    first.unwrap_or(f64::NAN)
}

/// All ticks of all processors, and the stolen ones (proc_stat(5)).
fn ticks() -> Option<[u64; 2]> {
    let stat = read("/proc/stat")?;
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    // The ticks of users already include those of guests.
    Some([ticks.iter().take(8).sum(), *ticks.get(7)?])
}

/// An environment for tests.
#[cfg(test)]
pub fn sample() -> Environment {
    Environment {
        kernel: "6.18.44 #1 SMP".to_owned(),
        cpu: "Some Processor".to_owned(),
        cpus: 2,
        machine: None,
        is_virtual: true,
        mitigations: vec!["spectre_v2: Mitigation: Retpolines".to_owned()],
        hz: Some(250),
        governor: None,
        smt: Some(false),
        jit: true,
        load_average: [0.5, 1.25],
        steal: Some(0.012),
        scheduling: Scheduling {
            cpu: 1,
            is_realtime: true,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_told() {
        let scheduling = sample().scheduling;
        let environment = Environment::read(&Before::read(), scheduling);
        assert!(!environment.kernel.is_empty());
        assert!(environment.cpus > 0);
        assert!(environment.load_average.iter().all(|load| load.is_finite()));
        assert_eq!(environment.lines().len(), 11);
    }

    #[test]
    fn fields_of_cpuinfo() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A: B\nflags\t\t: fpu hypervisor\n";
        assert_eq!(field(cpuinfo, "model name").as_deref(), Some("A: B"));
        assert_eq!(field(cpuinfo, "nothing"), None);
    }
}
