//! The program under test, and the programs that it attaches.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use aya::programs::tc::TcAttachType;
use aya::programs::{SchedClassifier, loaded_programs};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Cell;
use crate::lab::Lab;
use crate::lab::message::REDIRECTING;
use crate::lab::namespace::Namespace;
use crate::lab::process::{Process, wait_for};
use crate::peer::conn::{PROTOS, is_refused};

/// The executable.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_portredir");

/// `portredir`, redirecting.
pub struct Redirector {
    pub process: Process,
}

impl Redirector {
    /// Starts it, and waits until it redirects.
    pub fn start(namespace: &Namespace, args: &[&str]) -> Self {
        let mut all = vec![PROGRAM, "--json", "--interval", "0.1"];
        all.extend(args);
        Self::wait_until_redirecting(namespace.start(&all))
    }

    /// For a process that was started another way.
    pub fn wait_until_redirecting(mut process: Process) -> Self {
        process.wait_for_words(REDIRECTING);
        Self { process }
    }

    /// Starts the program on the host of a lab, with the engine of the cell, on the
    /// links to other hosts. Checks first that the destination ports are refused
    /// without the program.
    pub fn of(cell: &Cell, lab: &Lab, rules: &[&str]) -> Self {
        for rule in rules {
            let dst_server = rule.split(':').next().expect("a port");
            let to = cell.family.host(dst_server.parse().expect("a port"));
            for proto in PROTOS {
                assert!(
                    is_refused(&lab.client, proto, to),
                    "{proto:?} {to} answers without us"
                );
            }
        }
        Self::beside(cell, lab, rules)
    }

    /// Starts the program as [`Self::of`] does, where servers listen on the
    /// destination ports.
    pub fn beside(cell: &Cell, lab: &Lab, rules: &[&str]) -> Self {
        let has_h1 = lab.host.enter(|| nix::net::if_::if_nametoindex("h1"));
        let iface = if has_h1.is_ok() { "h0,h1" } else { "h0" };
        let mut args = vec!["--iface", iface, "--engine", cell.engine];
        args.extend(rules);
        Self::start(&lab.host, &args)
    }

    /// The newest report.
    fn report(&self) -> Option<Value> {
        let out = self.process.out();
        let (whole, _) = out.rsplit_once('\n')?;
        let last = whole.lines().next_back()?;
        Some(serde_json::from_str(last).expect("JSON"))
    }

    /// Waits for a report about what is later than now.
    pub fn fresh_report(&self) -> Value {
        let lines = || self.process.out().matches('\n').count();
        let before = lines();
        // The first report may have been under way.
        wait_for("a report", || (lines() >= before + 2).then_some(()));
        self.report().expect("a report")
    }

    /// Waits for a report that says so.
    pub fn wait_for_report(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || self.report().filter(|report| is_it(report)))
    }

    /// Ends it by Ctrl-C, and returns the final report.
    pub fn stop(self) -> Value {
        self.stop_by(Signal::SIGINT)
    }

    /// Ends it by a signal, and returns the final report.
    pub fn stop_by(mut self, signal: Signal) -> Value {
        self.process.signal(signal);
        let status = self.process.wait();
        assert_eq!(status.code(), Some(0), "exit code after {signal}");
        self.report().expect("a final report")
    }

    /// Ends it after a test of traffic: it dropped nothing, and no checksum
    /// was wrong.
    pub fn finish(self, lab: &Lab) -> Value {
        let report = self.stop();
        let drops = report["drops"].as_object().expect("drops");
        assert!(!drops.is_empty());
        assert!(drops.values().all(|count| *count == 0), "drops: {drops:?}");
        lab.check_checksums();
        report
    }
}

/// Packets that a rule redirected.
pub fn packets(report: &Value, rule: usize) -> u64 {
    report["rules"][rule]["packets"].as_u64().expect("a number")
}

/// The programs that are attached in a namespace, each as `interface hook program`,
/// and the clsact qdiscs.
pub fn attached(namespace: &Namespace) -> Vec<String> {
    namespace.enter(|| {
        let interfaces = nix::net::if_::if_nameindex().expect("interfaces");
        let mut all = Vec::new();
        for interface in &interfaces {
            let name = interface.name().to_str().expect("a name");
            all.extend(xdp(name).map(|program| format!("{name} xdp {program}")));
            for (hook, direction) in [
                ("ingress", TcAttachType::Ingress),
                ("egress", TcAttachType::Egress),
            ] {
                // Kernels before 6.6 have no TCX.
                if let Ok((_, programs)) = SchedClassifier::query_tcx(name, direction) {
                    all.extend(programs.iter().map(|program| {
                        let program = program.name_as_str().unwrap_or("?");
                        format!("{name} tcx-{hook} {program}")
                    }));
                }
                let filters = text("tc", &["filter", "show", "dev", name, hook]);
                // A filter, of bpf or u32, and not the heading of its kind.
                let is_filter = |line: &&str| line.contains(" handle ") || line.contains(" order ");
                for line in filters.lines().filter(is_filter) {
                    let mut words = line.split_whitespace();
                    let program = words.find(|word| word.starts_with("portredir"));
                    let program = program.unwrap_or("foreign");
                    all.push(format!("{name} tc-{hook} {program}"));
                }
            }
            if text("tc", &["qdisc", "show", "dev", name]).contains("clsact") {
                all.push(format!("{name} clsact"));
            }
        }
        all
    })
}

/// Everything that attaching may change, on both ends of the link.
pub fn link_state(lab: &Lab) -> Vec<String> {
    let mut state = attached(&lab.host);
    for (at, interface) in [(&lab.host, "h0"), (&lab.client, "c0")] {
        state.push(at.run(&["ip", "-details", "link", "show", interface]));
        state.push(at.run(&["ethtool", "-k", interface]));
        state.push(at.run(&["tc", "qdisc", "show", "dev", interface]));
    }
    state
}

/// Whether this kernel has TCX, which Linux 6.6 brought.
pub fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

fn xdp(interface: &str) -> Option<String> {
    let links = text("ip", &["-json", "-details", "link", "show", interface]);
    let links: Value = serde_json::from_str(&links).expect("JSON");
    let id = links[0]["xdp"]["prog"]["id"].as_u64()?;
    let program = loaded_programs()
        .flatten()
        .find(|program| u64::from(program.id()) == id);
    let program = program.expect("the program that is attached");
    Some(program.name_as_str().unwrap_or("?").to_owned())
}

fn text(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("run {program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// The links between programs and hooks that there are, of anybody.
pub fn links() -> BTreeSet<u32> {
    // Links of other programs come and go meanwhile.
    let links = aya::programs::loaded_links().filter_map(Result::ok);
    links.map(|link| link.id()).collect()
}

/// Copies the program to where everybody may run it.
pub fn copy_world_executable(dir: &Path) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let everybody = || std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir, everybody()).expect("open the directory");
    let copy = dir.join("portredir");
    let name = copy.to_str().expect("text").to_owned();
    // Not by ourselves: a program that another test is about to start would have
    // a copy of the file, open for writing, and nobody could run it.
    text("cp", &[PROGRAM, &name]);
    std::fs::set_permissions(&copy, everybody()).expect("make it executable");
    name
}
