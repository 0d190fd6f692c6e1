//! Start, change and end: what each command does to the running program and
//! to connections that are open meanwhile.

pub mod attach;
pub mod bridge;
pub mod change;
pub mod churn;
pub mod command;
pub mod confirm;
pub mod connections;
pub mod doctor;
pub mod drain;
pub mod explain;
pub mod follow;
pub mod forwarding;
pub mod host;
pub mod hotplug;
pub mod import;
pub mod keep;
pub mod kill;
pub mod labels;
pub mod life;
pub mod local_routes;
pub mod metrics;
pub mod objects;
pub mod operations;
pub mod oracle;
pub mod permissions;
pub mod rules;
pub mod schema;
pub mod service;
pub mod status;
pub mod trace;
pub mod up;
pub mod upgrade;
pub mod ways;
pub mod world;

use crate::Tests;

pub fn add(tests: &mut Tests) {
    up::add(tests);
    change::add(tests);
    command::add(tests);
    rules::add(tests);
    labels::add(tests);
    import::add(tests);
    confirm::add(tests);
    connections::add(tests);
    doctor::add(tests);
    explain::add(tests);
    kill::add(tests);
    upgrade::add(tests);
    service::add(tests);
    status::add(tests);
    trace::add(tests);
    permissions::add(tests);
    life::add(tests);
    drain::add(tests);
    follow::add(tests);
    forwarding::add(tests);
    ways::add(tests);
    hotplug::add(tests);
    churn::add(tests);
    bridge::add(tests);
    attach::add(tests);
    keep::add(tests);
    metrics::add(tests);
    schema::add(tests);
    operations::add(tests);
    local_routes::add(tests);
}
