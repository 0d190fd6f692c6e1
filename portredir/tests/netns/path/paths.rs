//! Every path to a host, as a table: for each engine, TCP and UDP, IPv4 and
//! IPv6, whether it is redirected, and what client, server and conntrack see
//! of that. `docs/PATHS.md` has the tables; [`document`] writes it.

mod document;
mod path;
mod site;

use std::fmt::{self, Debug, Formatter};
use std::sync::OnceLock;

use self::path::{PATHS, Path, Setting};

use self::site::{Place, Site};
pub use self::site::{add_way_back, has_br_netfilter};
use crate::lab::Family;
use crate::lab::program::Redirector;
use crate::peer::conn::Proto;
use crate::peer::whoami::ask_server;
use crate::{Tests, skip};

/// The tools that these tests need beyond those of all tests.
const TOOLS: &[&str] = &["nft", "python3"];

/// The engines that have a table, by the names the program has for them.
const ENGINES: [&str; 4] = ["auto", "tc", "xdp", "socket"];

pub fn add(tests: &mut Tests) {
    tests.add("paths/none", TOOLS, none);
    tests.add("paths/auto", TOOLS, auto);
    for engine in &ENGINES[1..] {
        tests.add(format!("paths/{engine}"), TOOLS, || forced(engine));
    }
    tests.add("paths/document", TOOLS, document);
}

/// Without the program no client is redirected; otherwise the tables would prove
/// nothing.
fn none() {
    let site = Site::new();
    site.raise_bridge();
    let wrong = Table::fill("none", &site).differences(|path| match path.server {
        Place::Host => "refused",
        _ => path.right(),
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Under `auto` every cell is correct.
fn auto() {
    let wrong = Table::of("auto").differences(Path::right);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The table of a forced engine is the one in the document.
fn forced(engine: &'static str) {
    need_br_netfilter();
    document::check_section(Table::of(engine));
}

/// The document says all of it, and nothing else.
fn document() {
    need_br_netfilter();
    document::check(&ENGINES.map(Table::of));
}

/// The document has rows about it.
fn need_br_netfilter() {
    if !has_br_netfilter() {
        skip("needs br_netfilter");
    }
}

/// The columns.
const COLUMNS: [(Proto, Family); 4] = [
    (Proto::Tcp, Family::V4),
    (Proto::Tcp, Family::V6),
    (Proto::Udp, Family::V4),
    (Proto::Udp, Family::V6),
];

/// The outcomes under one engine.
#[derive(Debug)]
struct Table {
    engine: &'static str,
    /// The cells, in the order of [`PATHS`] and [`COLUMNS`].
    rows: Vec<[Option<String>; 4]>,
}

/// A cell that does not say what it should.
struct Difference {
    engine: &'static str,
    /// Index in [`PATHS`].
    row: usize,
    path: &'static Path,
    proto: Proto,
    family: Family,
    cell: String,
}

impl Debug for Difference {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { engine, cell, .. } = self;
        let (from, to) = (self.path.from.name(), self.path.to);
        let (proto, family) = (self.proto, self.family);
        write!(f, "{engine}: {from} to {to}, {proto:?} {family:?}: {cell}")
    }
}

impl Table {
    /// The table of an engine, which is made once.
    fn of(engine: &'static str) -> &'static Self {
        static TABLES: [OnceLock<Table>; ENGINES.len()] =
            [const { OnceLock::new() }; ENGINES.len()];
        let index = ENGINES.iter().position(|name| *name == engine);
        TABLES[index.expect("an engine")].get_or_init(|| measure(engine))
    }

    /// Tries every path.
    fn fill(engine: &'static str, site: &Site) -> Self {
        let row = |path: &Path| {
            let has_br_netfilter = path.setting == Setting::BrNetfilter;
            site.set_br_netfilter(has_br_netfilter);
            if !["none", "socket"].contains(&engine) {
                site.wait_for_carriers(engine, has_br_netfilter);
            }
            let is_masqueraded = path.setting == Setting::Masquerade;
            let _masquerade = is_masqueraded.then(|| site.masquerade());
            COLUMNS.map(|(proto, family)| {
                let addr = path.addr(family)?;
                if path.setting == Setting::LinkFlap {
                    site.flap();
                }
                let before = site.invalid();
                let from = site.at(path.from);
                let answers = ask_server(from, &site.cgroup, proto, (addr, path.from_port));
                Some(path.cell(addr, &answers, site.invalid() > before))
            })
        };
        let rows = PATHS.iter().map(row).collect();
        Self { engine, rows }
    }

    /// The cells that are not as they should be.
    fn differences(&self, right: impl Fn(&Path) -> &'static str) -> Vec<Difference> {
        let mut differences = Vec::new();
        for (row, (path, cells)) in PATHS.iter().zip(&self.rows).enumerate() {
            for ((proto, family), cell) in COLUMNS.into_iter().zip(cells) {
                let Some(cell) = cell else { continue };
                if cell != right(path) {
                    differences.push(Difference {
                        engine: self.engine,
                        row,
                        path,
                        proto,
                        family,
                        cell: cell.clone(),
                    });
                }
            }
        }
        differences
    }
}

fn measure(engine: &'static str) -> Table {
    let site = Site::new();
    site.raise_bridge();
    // The program recognizes local clients by their cgroup.
    let mut args = vec!["--iface", "lo,h0,h1,br0,port-*", "--engine", engine];
    args.extend(["--cgroup", site.cgroup.path()]);
    let rule = "80:8080/both";
    if engine == "socket" {
        site.refuses(2, &[&args[..], &[rule]].concat());
        args.push("80:8080");
    } else {
        args.push(rule);
    }
    let redirector = Redirector::start(&site.lab.host, &args);
    let table = Table::fill(engine, &site);
    redirector.finish(&site.lab);
    table
}
