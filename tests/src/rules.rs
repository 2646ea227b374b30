//! Netfilter rules as nodes have them.

use crate::netns::Netns;

/// Loads what flannel and kube-proxy put on a node together: forward and
/// masquerade rules, conntrack in use, INVALID dropped, and some services that
/// no packet of the load matches.
///
/// # Panics
/// nft refuses it.
pub fn as_on_a_cluster(netns: &Netns) {
    let services: String = (0..50)
        .map(|number| {
            format!("ip daddr 10.96.1.{number} tcp dport 443 dnat to 10.244.250.{number}:6443\n")
        })
        .collect();
    netns.nft(&format!(
        "table ip cluster {{
            chain services {{
                {services}
            }}
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                jump services
            }}
            chain output {{
                type nat hook output priority -100;
                jump services
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat + 5;
                meta mark and 0x4000 == 0 return
                masquerade
            }}
            chain forward {{
                type filter hook forward priority filter + 5;
                ct state invalid drop
                meta mark and 0x4000 != 0 accept
                ct state established,related accept
            }}
            chain input {{
                type filter hook input priority filter + 5;
                ct state invalid drop
                ct state established,related accept
            }}
        }}"
    ));
}
