//! Servers and clients that communicate through the program under test, and senders
//! of single packets.

pub mod conn;
pub mod dns;
pub mod echo;
pub mod http;
pub mod listener;
pub mod many;
pub mod pair;
pub mod raw;
pub mod tcp_variant;
pub mod udp;
pub mod whoami;
