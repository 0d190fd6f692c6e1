//! IPsec with fixed keys between host and client.

use std::net::IpAddr;

use crate::lab::Lab;
use crate::skip;

/// A key of AES-GCM with its salt.
const KEY: &str = "0x1111111111111111111111111111111111111111";

/// Security associations between host and client, and the policies that use them.
#[derive(Clone, Copy)]
pub struct Esp {
    /// The ends: the addresses of the host and of the client in packets of ESP.
    pub ends: [IpAddr; 2],
    /// The mode: `tunnel` or `transport`.
    pub mode: &'static str,
    /// The words of `ip xfrm` that limit the associations and policies: `if_id` or `mark`.
    pub limit: &'static str,
}

impl Esp {
    /// Adds the associations for both directions on both hosts. A kernel without ESP skips
    /// the test.
    pub fn add_states(&self, lab: &Lab) {
        let Self { ends, mode, limit } = self;
        let is_tunnel = *mode == "tunnel";
        let any_family = if is_tunnel { "flag af-unspec" } else { "" };
        for at in [&lab.host, &lab.client] {
            for (src, dst, spi) in [(ends[0], ends[1], "0x100"), (ends[1], ends[0], "0x200")] {
                let add = format!(
                    "ip xfrm state add src {src} dst {dst} proto esp spi {spi} reqid 1 \
                     mode {mode} {limit} aead rfc4106(gcm(aes)) {KEY} 128 {any_family}"
                );
                if !at.succeeds(&add.split_whitespace().collect::<Vec<_>>()) {
                    skip("needs CONFIG_INET_ESP, CONFIG_INET6_ESP and CONFIG_CRYPTO_GCM");
                }
            }
        }
    }

    /// Adds the policies on both hosts for packets between a prefix at the host and one at
    /// the client.
    pub fn add_policies(&self, lab: &Lab, [host, client]: [&str; 2]) {
        let Self { ends, mode, limit } = self;
        let [host_end, client_end] = ends;
        for (at, own, other, (own_end, other_end)) in [
            (&lab.host, host, client, (host_end, client_end)),
            (&lab.client, client, host, (client_end, host_end)),
        ] {
            at.ip(&format!(
                "xfrm policy add src {own} dst {other} dir out {limit} \
                 tmpl src {own_end} dst {other_end} proto esp reqid 1 mode {mode}\n\
                 xfrm policy add src {other} dst {own} dir in {limit} \
                 tmpl src {other_end} dst {own_end} proto esp reqid 1 mode {mode}"
            ));
        }
    }
}
