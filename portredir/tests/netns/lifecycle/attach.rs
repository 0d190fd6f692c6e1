//! Attaching and detaching while the host is busy: no client may notice.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::process::{DEADLINE, Process, note, slow, wait_for};
use crate::lab::program::{Redirector, attached};
use crate::lab::{Family, Lab};
use crate::peer::many::sized_http_server;
use crate::{Cell, Tests};

pub fn add(tests: &mut Tests) {
    // clsact is left out: when that qdisc comes or goes, the kernel throws away what
    // is being sent (`dev_deactivate` in `qdisc_graft`, net/sched/sch_api.c; of
    // 8000 pings, 13 were lost by `tc qdisc add` and `del` alone).
    for (engine, times) in [("tc", 100), ("xdp", 30)] {
        let name = format!("{engine}/attach_and_detach");
        tests.add(name, &["curl", "python3"], move || {
            over_veth(engine, times, Clients::Busy);
        });
        let name = format!("{engine}/attach_under_load");
        tests.add(name, &["curl", "python3"], move || {
            over_veth(engine, 20, Clients::Resting);
        });
    }
}

/// One request after the other until there is a file `stop`; a line for each:
/// curl's exit code, what it got, and when it ended. Rests, and says so, while
/// there is a file `rest`.
const CLIENT: &str = r#"
while [ ! -e "$1/stop" ]; do
    if [ -e "$1/rest" ]; then
        echo resting
        while [ -e "$1/rest" ]; do sleep 0.01; done
    fi
    got=$(curl -qsSfg --noproxy '*' --max-time 20 --output /dev/null \
        --write-out '%{size_download} %{local_port}' "$2")
    echo "$? $got $(date +%s.%N)"
done
"#;

/// The activity of the clients while the program detaches.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// The clients send requests.
    Busy,
    /// The clients send requests, and one of them was redirected before.
    Redirected,
    /// The clients rest: none has a connection.
    Resting,
}

/// Starts clients of both IP versions, with short and with long answers, and
/// waits for the first answer of each.
fn start_clients(lab: &Lab) -> Vec<Process> {
    let dir = lab.dir.0.to_str().expect("text");
    let clients: Vec<_> = ["", "", "slow", "slow"]
        .into_iter()
        .zip(Family::BOTH.into_iter().cycle())
        .map(|(path, family)| {
            let url = format!("http://{}/{path}", family.host(80));
            lab.client.start(&["sh", "-c", CLIENT, "sh", dir, &url])
        })
        .collect();
    wait_for("the first answers", || {
        let has_answer = |client: &Process| !client.out().is_empty();
        clients.iter().all(has_answer).then_some(())
    });
    clients
}

fn over_veth(engine: &'static str, times: usize, at_detach: Clients) {
    let cell = Cell {
        engine,
        is_offloaded: true,
        family: Family::V4,
    };
    let lab = Lab::new(&cell);
    let link = LinkWatch::start(&lab);
    attach_and_detach(&cell, &lab, times, at_detach);
    link.check_is_kept();
}

/// Attaches and detaches some times while clients send requests, and checks each answer.
pub fn attach_and_detach(cell: &Cell, lab: &Lab, times: usize, at_detach: Clients) {
    DEADLINE.set(Some(Instant::now() + slow(Duration::from_secs(480))));
    // Both servers give the same answers.
    let _servers = [80, 8080].map(|port| sized_http_server(&lab.host, port, BODY));
    let before = attached(&lab.host);
    let [stop, rest] = ["stop", "rest"].map(|name| lab.dir.0.join(name));
    let clients = start_clients(lab);
    let mut redirected = 0;
    for number in 0..times {
        let redirector = Redirector::beside(cell, lab, &["80:8080"]);
        // The delays hit all moments in the life of a request.
        std::thread::sleep(Duration::from_millis((number * 7 % 40) as u64));
        if at_detach == Clients::Redirected {
            redirector.wait_for_report("a request", |report| flows(report) > 0);
        }
        if at_detach == Clients::Resting {
            fs::write(&rest, "").expect("write a file");
            wait_for("the clients to rest", || {
                let rests = |client: &Process| client.out().ends_with("resting\n");
                clients.iter().all(rests).then_some(())
            });
        }
        let report = redirector.stop_by(Signal::SIGTERM);
        if at_detach == Clients::Resting {
            fs::remove_file(&rest).expect("remove a file");
        }
        redirected += flows(&report);
        let failed = clients.iter().find_map(failure);
        assert_eq!(failed, None, "after {} times", number + 1);
    }
    fs::write(&stop, "").expect("write a file");
    let mut served = 0;
    for mut client in clients {
        client.wait();
        assert_eq!(failure(&client), None);
        served += client.out().lines().count();
    }
    note(&format!("{served} requests, {redirected} redirected"));
    assert!(redirected > times as u64 / 2, "{redirected} of {served}");
    assert_eq!(attached(&lab.host), before);
    lab.check_checksums();
}

/// The state of the host's link to the client, as long as it is watched.
pub struct LinkWatch<'a> {
    lab: &'a Lab,
    carrier: u64,
    monitor: Process,
}

impl<'a> LinkWatch<'a> {
    /// Begins to watch.
    pub fn start(lab: &'a Lab) -> Self {
        let monitor = ["ip", "-oneline", "monitor", "link", "dev", "h0"];
        Self {
            lab,
            carrier: carrier_changes(lab),
            monitor: lab.host.start(&monitor),
        }
    }

    /// How often the link has come or gone meanwhile.
    pub fn changes(&self) -> u64 {
        carrier_changes(self.lab) - self.carrier
    }

    /// Checks that the link was up all the time.
    pub fn check_is_kept(&self) {
        assert_eq!(self.changes(), 0, "changes of the carrier");
        let is_down = |line: &&str| !line.contains("LOWER_UP") || !line.contains("state UP");
        let news = self.monitor.out();
        assert_eq!(news.lines().find(is_down), None, "the link has gone down");
    }
}

fn flows(report: &Value) -> u64 {
    report["rules"][0]["flows"].as_u64().expect("a number")
}

/// A request that failed, or of whose answer something is missing.
fn failure(client: &Process) -> Option<String> {
    let out = client.out();
    let (whole, _) = out.rsplit_once('\n').unwrap_or_default();
    let good = format!("0 {BODY} ");
    let mut requests = whole.lines().filter(|line| *line != "resting");
    let bad = requests.find(|line| !line.starts_with(&good))?;
    Some(format!("{bad}: {}", client.err()))
}

/// How often the link has come and gone.
fn carrier_changes(lab: &Lab) -> u64 {
    // `ip netns exec` mounts the `/sys` of the namespace.
    let file = "/sys/class/net/h0/carrier_changes";
    let read = ["ip", "netns", "exec", &lab.host.name, "cat", file];
    lab.host.run(&read).trim().parse().expect("a number")
}

/// Bytes of an answer.
const BODY: usize = 100_000;
