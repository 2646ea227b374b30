//! Netfilter rules as nodes have them.

use std::fmt::Write as _;

use crate::netns::Netns;

/// Services whose rules stand on the node; no packet of the load is for them.
const SERVICES: u8 = 50;

/// What stands on a node besides the agent's rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Rules {
    /// What kube-proxy puts there in its default mode, in its order and with
    /// its matches: services, INVALID dropped, ESTABLISHED accepted, marked
    /// packets masqueraded
    #[default]
    Iptables,
    /// The same meaning in a few rules of nftables
    Nftables,
    /// Nothing
    None,
}

impl Rules {
    /// Loads them.
    ///
    /// # Panics
    /// The tool refuses them.
    pub fn load(self, netns: &Netns) {
        match self {
            Self::Iptables => netns.iptables(&format!("{FILTER}{}", nat())),
            Self::Nftables => nftables(netns),
            Self::None => {}
        }
    }
}

impl std::fmt::Display for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Iptables => "kube-proxy's in iptables",
            Self::Nftables => "kube-proxy's in nftables",
            Self::None => "no others",
        })
    }
}

const FILTER: &str = r#"*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"#;

fn nat() -> String {
    let mut chains = String::new();
    let mut services = String::new();
    for number in 0..SERVICES {
        let (service, endpoint) =
            (format!("KUBE-SVC-{number:016}"), format!("KUBE-SEP-{number:016}"));
        let (address, pod) = (format!("10.96.1.{number}"), format!("10.244.250.{number}"));
        let comment = format!(r#"-m comment --comment "default/service-{number}:https""#);
        let _ = write!(chains, ":{service} - [0:0]\n:{endpoint} - [0:0]\n");
        let _ = write!(
            services,
            "-A KUBE-SERVICES -d {address}/32 -p tcp {comment} -m tcp --dport 443 -j {service}\n\
             -A {service} ! -s 10.244.0.0/16 -d {address}/32 -p tcp {comment} -m tcp --dport 443 -j KUBE-MARK-MASQ\n\
             -A {service} {comment} -j {endpoint}\n\
             -A {endpoint} -s {pod}/32 {comment} -j KUBE-MARK-MASQ\n\
             -A {endpoint} -p tcp {comment} -m tcp -j DNAT --to-destination {pod}:6443\n"
        );
    }
    format!(
        r#"*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
{chains}-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
{services}-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
COMMIT
"#
    )
}

fn nftables(netns: &Netns) {
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
