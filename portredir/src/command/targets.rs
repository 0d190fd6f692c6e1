//! `portredir targets`: the targets of rules and their states.

use super::print;
use super::read::print_nothing;
use crate::cli::ReadArgs;
use crate::controller::status;
use crate::observe::targets::text;

/// `portredir targets`.
///
/// # Errors
///
/// Nothing runs, or this user may not read it.
pub fn targets(args: ReadArgs) -> anyhow::Result<()> {
    let list = status::targets();
    if args.json {
        print_nothing(&list)?;
        return print(&(serde_json::to_string(&list?)? + "\n"));
    }
    print(&text(&list?))
}
