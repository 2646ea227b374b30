//! Netfilter rules as nodes have them.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::netns::Netns;

/// Services whose rules stand on the node.
const SERVICES: u8 = 50;
/// The one that can have an endpoint that answers: in the middle of the list.
const SERVED: u8 = 25;
/// Address and port of the service that can have an endpoint that answers, TCP
/// and UDP.
pub const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 1, SERVED), 443);

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
    /// Loads them; no service has an endpoint that is there.
    ///
    /// # Panics
    /// The tool refuses them.
    pub fn load(self, netns: &Netns) {
        self.load_ports(netns, &ports(None));
    }

    /// Loads them, and lets `endpoint` answer for [`SERVICE`].
    ///
    /// # Panics
    /// The tool refuses them.
    pub fn load_serving(self, netns: &Netns, endpoint: SocketAddrV4) {
        self.load_ports(netns, &ports(Some(endpoint)));
    }

    /// Whether they have services.
    pub fn serve(self) -> bool {
        self != Self::None
    }

    fn load_ports(self, netns: &Netns, ports: &[Port]) {
        match self {
            Self::Iptables => netns.iptables(&format!("{FILTER}{}", nat(ports))),
            Self::Nftables => nftables(netns, ports),
            Self::None => {}
        }
    }
}

/// One port of a service and its one endpoint.
struct Port {
    service: SocketAddrV4,
    protocol: &'static str,
    endpoint: SocketAddrV4,
    /// As kube-proxy's comments have it.
    name: String,
    /// End of the names of its chains.
    chain: String,
}

/// One TCP port for each service; those of [`SERVICE`] lead to `endpoint`, if
/// there is one, with TCP and UDP.
fn ports(endpoint: Option<SocketAddrV4>) -> Vec<Port> {
    let mut ports = Vec::new();
    for number in 0..SERVICES {
        let served = endpoint.filter(|_| number == SERVED);
        let absent = SocketAddrV4::new(Ipv4Addr::new(10, 244, 250, number), 6443);
        let protocols: &[_] = if served.is_some() { &["tcp", "udp"] } else { &["tcp"] };
        ports.extend(protocols.iter().map(|protocol| Port {
            service: SocketAddrV4::new(Ipv4Addr::new(10, 96, 1, number), SERVICE.port()),
            protocol,
            endpoint: served.unwrap_or(absent),
            name: format!("default/service-{number}:{protocol}"),
            chain: format!("{number:013}{}", protocol.to_uppercase()),
        }));
    }
    ports
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

fn nat(ports: &[Port]) -> String {
    let mut chains = String::new();
    let mut services = String::new();
    for Port { service, protocol, endpoint, name, chain } in ports {
        let (ip, port) = (service.ip(), service.port());
        let to = format!("-d {ip}/32 -p {protocol}");
        let comment = format!(r#"-m comment --comment "{name}""#);
        let (chain, end) = (format!("KUBE-SVC-{chain}"), format!("KUBE-SEP-{chain}"));
        let _ = write!(chains, ":{chain} - [0:0]\n:{end} - [0:0]\n");
        let _ = write!(
            services,
            "-A KUBE-SERVICES {to} {comment} -m {protocol} --dport {port} -j {chain}\n\
             -A {chain} ! -s 10.244.0.0/16 {to} {comment} -m {protocol} --dport {port} -j KUBE-MARK-MASQ\n\
             -A {chain} {comment} -j {end}\n\
             -A {end} -s {}/32 {comment} -j KUBE-MARK-MASQ\n\
             -A {end} -p {protocol} {comment} -m {protocol} -j DNAT --to-destination {endpoint}\n",
            endpoint.ip()
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

fn nftables(netns: &Netns, ports: &[Port]) {
    let mut services = String::new();
    for Port { service, protocol, endpoint, .. } in ports {
        let (ip, port) = (service.ip(), service.port());
        let _ = writeln!(services, "ip daddr {ip} {protocol} dport {port} dnat to {endpoint}");
    }
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
