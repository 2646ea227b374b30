//! Asks the node for all facts.

use flannel_core::check::facts::{
    Bpffs, Known, NodeFacts, RpFilter, StoreFault, SubnetEnvFacts, Unknown,
};
use flannel_core::firewall::packet_rules::ranges::Addresses;

use super::node::DeviceRoles;
use super::{hooks, port, probes, rules, store};
use crate::bpf::features;
use crate::cli::CheckArgs;
use crate::commands::known::{Daemon, KnownPeer};
use crate::files::subnet_env;
use crate::kernel::Kernel as _;
use crate::kernel::netlink::RealKernel;
use crate::kernel::sysctl::Sysctl;

/// Peers whose ways are looked at, and that packets are sent to.
const PEERS: usize = 256;

/// All facts.
pub(super) async fn facts(args: &CheckArgs) -> NodeFacts {
    let daemon = Daemon::ask(&args.reader.state.dir);
    let kernel = RealKernel::open().map_err(Unknown::because);
    let node = match &kernel {
        Ok(kernel) => DeviceRoles::look(kernel, &daemon).await,
        Err(reason) => Err(reason.clone()),
    };
    let (kernel, known) = (kernel.as_ref(), node.as_ref());
    let pin_dir = daemon.pin_dir(&args.pins.dir);
    let port = known.ok().and_then(DeviceRoles::port);
    let (etcd, api) = daemon.etcd(&args.etcd);
    let certificates = store::certificates(&etcd).await;
    let named = daemon.flags.is_some() || etcd.is_named();
    let (store, clock) = store::ask(etcd, api).await;
    let store = store.map_err(|fault| match fault {
        StoreFault::Unavailable(why) if !named => StoreFault::NotNamed(why),
        fault => fault,
    });
    let peers = daemon.peers_or(store.as_ref().map_or(&[], |store| &store.leases));
    let store_settings = daemon.etcd_settings().map(str::to_owned);
    NodeFacts {
        features: features::features(),
        capabilities: daemon.capabilities(),
        bpffs: Bpffs { mounted: features::is_on_bpffs(&pin_dir), path: pin_dir },
        foreign: with(kernel, known, |kernel, node| hooks::foreign(kernel, node, &daemon)),
        forwarding: match (kernel, known) {
            (Ok(kernel), Ok(node)) => node.unforwarded(kernel, &daemon).await,
            (Err(reason), _) | (_, Err(reason)) => Err(reason.clone()),
        },
        rp_filters: match (kernel, known) {
            (Ok(kernel), Ok(node)) => rp_filters(kernel, node, &peers).await,
            _ => Vec::new(),
        },
        firewall_services: rules::services().await,
        rules: match known {
            Ok(node) => rules::ruled(node, &daemon).await,
            Err(reason) => Err(reason.clone()),
        },
        underlay: known.map(DeviceRoles::underlay).map_err(Clone::clone),
        devices: known.map(DeviceRoles::tunnels).map_err(Clone::clone),
        port_holders: port.map_or(Ok(Vec::new()), port::holders),
        ipsec: kernel.map_err(Clone::clone).and_then(|kernel| ipsec(kernel, port, &peers)),
        probes: match known {
            Ok(node) => probes::tried(node, &peers).await,
            Err(reason) => Err(reason.clone()),
        },
        store,
        store_settings,
        clock,
        certificates,
        subnet_file: subnet_file(args, &daemon),
        network: daemon.network,
        agent: daemon.agent,
    }
}

fn with<T>(
    kernel: Result<&RealKernel, &Unknown>,
    node: Result<&DeviceRoles, &Unknown>,
    ask: impl FnOnce(&RealKernel, &DeviceRoles) -> Known<T>,
) -> Known<T> {
    ask(kernel.map_err(Clone::clone)?, node.map_err(Clone::clone)?)
}

fn subnet_file(args: &CheckArgs, daemon: &Daemon) -> SubnetEnvFacts {
    let path = daemon.subnet_file(&args.subnet_file.path);
    let says = subnet_env::read(&path).map(|env| (env.subnet, env.mtu));
    SubnetEnvFacts { path, says }
}

async fn rp_filters(kernel: &RealKernel, node: &DeviceRoles, peers: &[KnownPeer]) -> Vec<RpFilter> {
    let sysctl = Sysctl::default();
    let mut filters = Vec::new();
    for link in [&node.underlay, &node.overlay].into_iter().flatten() {
        let tunnel = node.overlay.as_ref() == Some(link);
        let mut otherwise = Vec::new();
        for peer in peers.iter().filter(|peer| !(tunnel && peer.direct)).take(PEERS) {
            let from = if tunnel { peer.subnet.network() } else { peer.public_ip };
            let back = kernel.route_to(from).await.ok().flatten();
            if back.is_some_and(|back| back.ifindex != link.ifindex) {
                otherwise.push(peer.public_ip);
            }
        }
        let value = sysctl.rp_filter(&link.name).map_err(Unknown::because);
        filters.push(RpFilter { device: link.name.clone(), value, otherwise });
    }
    filters
}

fn ipsec(kernel: &RealKernel, port: Option<u16>, peers: &[KnownPeer]) -> Known<Vec<String>> {
    let policies = kernel.inspector().ipsec_policies().map_err(Unknown::because)?;
    let has_peer = |addresses: &Addresses| {
        let is_in = |peer: &KnownPeer| {
            !addresses.and(&Addresses::prefix(peer.public_ip.into(), 32)).is_empty()
        };
        peers.is_empty() || peers.iter().any(is_in)
    };
    let about = policies
        .iter()
        .filter(|policy| port.is_some_and(|port| policy.is_about_tunnel(port, has_peer)));
    Ok(about.map(|policy| format!("{} ({})", policy.text, policy.does)).collect())
}
