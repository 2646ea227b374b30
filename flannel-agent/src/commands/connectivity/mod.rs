//! `flannel-agent connectivity`: which peers are reached through the overlay.

mod ask;
mod show;

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use flannel_core::check::facts::Unknown;
use flannel_core::connectivity::{Matrix, PeerResult, Reach, Way, WayKind};
use flannel_core::probe::Answer;
use ipnetwork::Ipv4Network;

use super::known::{Daemon, KnownPeer};
use super::{complain, print, print_json};
use crate::cli::ConnectivityArgs;
use crate::kernel::Kernel as _;
use crate::kernel::netlink::RealKernel;
use crate::probe::{self, Echo};

/// Exit code if some peers are not reached, or not by everything.
const SOME: u8 = 10;
/// Exit code if none is.
const NONE: u8 = 20;
/// Length of an echo in bytes.
const ECHO: u16 = 64;

/// Tries all peers, or those that `args` selects. The exit code says how it went.
pub async fn run(args: &ConnectivityArgs) -> u8 {
    match matrix(args).await {
        Ok(matrix) => {
            match args.reader.json {
                true => print_json(&matrix),
                false => print(&show::table(&matrix)),
            }
            if matrix.peers.is_empty() && !args.peers.is_empty() {
                complain("connectivity: no peer fits --peer; `flannel-agent peers` has all");
                return NONE;
            }
            code(&matrix)
        }
        Err(error) => {
            complain(&format!("connectivity: {error}"));
            1
        }
    }
}

fn code(matrix: &Matrix) -> u8 {
    let (all, reached) = (matrix.peers.len(), matrix.count(Reach::Reached));
    match matrix.count(Reach::Unreached) {
        _ if reached == all => 0,
        unreached if unreached == all => NONE,
        _ => SOME,
    }
}

async fn matrix(args: &ConnectivityArgs) -> io::Result<Matrix> {
    let daemon = Daemon::ask(&args.reader.state.dir);
    let peers = match daemon.pid {
        Some(_) => daemon.peers.clone(),
        None => {
            let told = super::known::leases(&daemon, &args.etcd).await;
            told.map_err(|reason: Unknown| {
                io::Error::other(format!(
                    "no daemon runs here, and etcd does not tell the peers (the --etcd flags \
                     say where it is): {reason}"
                ))
            })?
        }
    };
    let chosen: Vec<KnownPeer> =
        peers.iter().filter(|peer| is_chosen(&args.peers, peer)).copied().collect();
    let port = args.port.or_else(|| daemon.flags.as_ref().map(|flags| flags.connectivity_port));
    let port = port.filter(|port| *port != 0);
    let gap = Duration::from_secs(1) / args.rate.max(1);
    let targets: Vec<Ipv4Addr> = chosen.iter().map(address).collect();
    let patience = args.patience;
    let echoes: Vec<Echo> = targets.iter().map(|to| Echo { to: *to, length: ECHO }).collect();
    let pings = tokio::task::spawn_blocking(move || probe::echo(&echoes, gap, patience));
    let asked = async {
        match port {
            Some(port) => ask::all(&targets, port, gap, patience).await.map(Some),
            None => Ok(None),
        }
    };
    let (pings, asked) = tokio::join!(pings, asked);
    let (pings, asked) = (pings.map_err(io::Error::other)??, asked?);
    let mut asked = asked.unwrap_or_default().into_iter();
    let ways = ways(&daemon, &chosen).await;
    let results = chosen.iter().zip(pings).zip(ways).map(|((peer, icmp), way)| {
        let (udp, tcp) = asked.next().unwrap_or_default();
        result(peer, way, icmp, udp, tcp)
    });
    Ok(Matrix::new(daemon.pid.is_some(), peers.len(), results.collect()))
}

fn result(
    peer: &KnownPeer,
    way: Way,
    icmp: Answer,
    udp: Option<Answer>,
    tcp: Option<Answer>,
) -> PeerResult {
    let state = Reach::of(&icmp, udp.as_ref(), tcp.as_ref());
    let KnownPeer { subnet, public_ip, .. } = *peer;
    PeerResult { subnet, public_ip, address: address(peer), way, icmp, udp, tcp, state }
}

/// A peer's address on the overlay: its VTEP's; where there is no tunnel, that of the
/// pods' gateway by custom.
fn address(peer: &KnownPeer) -> Ipv4Addr {
    let first = peer.subnet.network();
    if peer.vtep { first } else { Ipv4Addr::from(u32::from(first).wrapping_add(1)) }
}

fn is_chosen(wanted: &[Ipv4Network], peer: &KnownPeer) -> bool {
    let subnet = peer.subnet;
    wanted.is_empty()
        || wanted.iter().any(|wanted| {
            wanted.contains(peer.public_ip)
                || wanted.contains(subnet.network())
                || subnet.contains(wanted.ip())
        })
}

async fn ways(daemon: &Daemon, peers: &[KnownPeer]) -> Vec<Way> {
    let none = || Way { device: None, kind: WayKind::None };
    let Ok(kernel) = RealKernel::open() else { return peers.iter().map(|_| none()).collect() };
    let links = kernel.links().await.unwrap_or_default();
    let own = daemon.network.as_ref().and_then(|network| network.device.as_deref());
    let mut ways = Vec::new();
    for peer in peers {
        let route = kernel.route_to(address(peer)).await.ok().flatten();
        let link = route.and_then(|route| links.iter().find(|link| link.ifindex == route.ifindex));
        ways.push(match link {
            Some(link) if Some(link.name.as_str()) == own => {
                Way { device: Some(link.name.clone()), kind: WayKind::Tunnel }
            }
            Some(link) => Way { device: Some(link.name.clone()), kind: WayKind::Direct },
            None => none(),
        });
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(subnet: &str, public_ip: [u8; 4]) -> KnownPeer {
        let subnet = subnet.parse().unwrap();
        KnownPeer { subnet, public_ip: public_ip.into(), direct: false, vtep: true, vtep_mac: None }
    }

    #[test]
    fn peers_are_chosen_by_public_ip_subnet_or_pod() {
        let one = peer("10.5.7.0/24", [192, 0, 2, 7]);
        let chosen = |text: &str| is_chosen(&[text.parse().unwrap()], &one);
        assert!(chosen("192.0.2.7") && chosen("10.5.7.0/24") && chosen("10.5.0.0/16"));
        assert!(chosen("10.5.7.2"), "a pod of it");
        assert!(!chosen("192.0.2.8") && !chosen("10.5.8.0/24") && !chosen("10.5.8.2"));
        assert!(is_chosen(&[], &one));
    }

    #[test]
    fn the_exit_code_tells_some_from_none() {
        let matrix = |answers: &[bool]| {
            let way = || Way { device: None, kind: WayKind::None };
            let peers = answers.iter().map(|came| {
                let answer = if *came { Answer::Came { micros: 1 } } else { Answer::Silent };
                result(&peer("10.5.7.0/24", [192, 0, 2, 7]), way(), answer, None, None)
            });
            Matrix::new(true, answers.len(), peers.collect())
        };
        assert_eq!(code(&matrix(&[])), 0);
        assert_eq!(code(&matrix(&[true, true])), 0);
        assert_eq!(code(&matrix(&[true, false])), SOME);
        assert_eq!(code(&matrix(&[false, false])), NONE);
    }

    #[test]
    fn without_a_tunnel_the_gateway_is_tried() {
        let vtep = peer("10.5.7.0/24", [192, 0, 2, 7]);
        assert_eq!(address(&vtep), Ipv4Addr::new(10, 5, 7, 0));
        assert_eq!(address(&KnownPeer { vtep: false, ..vtep }), Ipv4Addr::new(10, 5, 7, 1));
    }
}
