//! `portredir targets`: the targets of rules and their states.

use super::read::print_nothing;
use super::{print, say};
use crate::cli::ReadArgs;
use crate::controller::status;
use crate::host::netlink::Netlink;
use crate::observe::targets::{List, text};

/// `portredir targets`.
///
/// # Errors
///
/// Nothing runs, or this user may not read it.
pub async fn targets(args: ReadArgs) -> anyhow::Result<()> {
    let mut list = status::targets();
    if let Ok(list) = &mut list
        && let Err(error) = look(list).await
    {
        say(&format!("cannot read the ways to targets: {error:#}"));
    }
    if args.json {
        print_nothing(&list)?;
        return print(&(serde_json::to_string(&list?)? + "\n"));
    }
    print(&text(&list?))
}

/// Asks the kernel for the present ways.
async fn look(list: &mut List) -> anyhow::Result<()> {
    if list.targets.iter().all(|target| target.addr.is_none()) {
        return Ok(());
    }
    let host = Netlink::open()?.snapshot().await?;
    Ok(list.look(&host)?)
}
