//! The messages of the program that tests wait for or compare, or the part of
//! them that tests look at.

/// The program redirects.
pub const REDIRECTING: &str = "redirecting";
/// The program drains connections before it ends.
pub const DRAINING: &str = "waiting";
/// The program ended before its connections did.
pub const ONE_CUT_OFF: &str = "cutting off 1 connection";
/// The service got SIGHUP and found a file that is wrong.
pub const NOT_RELOADED: &str = "reload failed";
/// A rule is changed while no watcher runs.
pub const NO_WATCHER: &str = "no watcher process tracks interfaces";
/// Somebody detached a program of ours, and it is attached again.
pub const REPAIRED: &str = "another program detached portredir; attached again";
/// An interface was deleted.
pub const H2_IS_GONE: &str = "h2: the interface was removed";

/// A second instance is refused in a network namespace.
pub const ANOTHER_INSTANCE: &str = "portredir is already running in this network namespace";
/// Another command holds the lock.
pub const ANOTHER_COMMAND: &str = "another portredir command is running";
/// A change waiting for confirmation.
pub const UNCONFIRMED: &str = "waiting for confirmation";
/// `apply` cannot change the interfaces.
pub const IFACE_CANNOT_CHANGE: &str = "`iface` cannot be changed";
/// `rm` got a rule that does not run.
pub const NO_SUCH_RULE: &str = "rule `81:9999` does not exist";
/// `up` removes a running rule.
pub const LOSES_A_RULE: &str = "replaces the running rules and removes 1 rule";
/// A change was not confirmed in time.
pub const ROLLED_BACK: &str = "the last change was rolled back";
/// The foreground is refused where `up` was run; the hint names this command.
pub const RUN_DOWN_FIRST: &str = "portredir down";
/// bpffs would be mounted in a mount namespace that does not last.
pub const OWN_MOUNT_NAMESPACE: &str = "mount namespace of its own";

/// A rule takes over the port of SSH.
pub const SSH_PORT: &str = "port 22, the SSH port";
/// A rule takes over the port of the current SSH session.
pub const SSH_SESSION: &str = "your current SSH session";
/// Users without rights may join this group.
pub const GROUP: &str = "group `portredir`";

/// A foreign XDP program is in the way; its name and ID follow or come before.
pub const TAKEN_BY_DISPATCHER: &str = "XDP program xdp_dispatcher (id ";
/// One of our XDP programs, which another instance attached, is in the way.
pub const TAKEN_BY_OURS: &str = "portredir_xdp (id ";
/// A filter of another program runs first.
pub const FILTER_BEFORE_OURS: &str = "has priority 1 and runs first";
/// A bridge whose ports carry the programs.
pub const PORTS_ARE_USED: &str = "bridge ports are used";
/// A port whose bridge carries the programs.
pub const BRIDGE_IS_USED: &str = "port of bridge br0; br0 is used instead";
/// An interface without an Ethernet header cannot have native XDP.
pub const NO_ETHERNET_HEADER: &str = "no Ethernet header";
/// Native XDP is refused on a tun device.
pub const XDP_IMPOSSIBLE: &str = "tun0: --engine xdp is not available: tun has no Ethernet header";
/// `check` found that a file of two rules is valid.
pub const TWO_RULES_ARE_VALID: &str = "OK: 2 rules\n";

/// The benchmark was interrupted.
pub const INTERRUPTED: &str = "interrupted; everything that was made is removed";
/// The benchmark could not measure something that a gate needs.
pub const NOT_MEASURED: &str = "FAILED  nothing, not measured";
