//! Start, change and end: what each command does to the running program and
//! to connections that are open meanwhile.

pub mod drain;
pub mod follow;
pub mod hotplug;
pub mod life;
pub mod outlive;
