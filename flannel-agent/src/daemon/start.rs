//! What comes before the loop: store, config, underlay, and what an earlier run left.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::blackhole;
use flannel_core::blackhole::Blackhole;
use flannel_core::config::NetworkConfig;
use flannel_core::firewall::upstream::Place;
use flannel_core::lease::Lease;
use flannel_core::link::Link;
use flannel_core::mac::MacAddr;
use flannel_core::observed::Observed;
use flannel_core::op::Op;
use flannel_core::plan;
use flannel_core::state::Traces;
use flannel_core::subnet::within;
use flannel_core::text;
use flannel_core::underlay;
use flannel_core::underlay::{Underlay, Wish};
use ipnetwork::Ipv4Network;
use tokio::time::Instant;

use super::StartError;
use crate::backend;
use crate::backoff::Backoff;
use crate::cli::Options;
use crate::files::{state, subnet_env};
use crate::kernel::{self, Kernel, KernelError, PROTOCOL};
use crate::notify;
use crate::source::store::Store;
use crate::source::{Former, LeaseSource, SourceError};
use crate::status::Shared;

/// Retries of what the start waits for.
const FIRST: Duration = Duration::from_millis(250);
const LIMIT: Duration = Duration::from_secs(5);
/// While waiting, the same reason is logged again after this.
const REMIND: Duration = Duration::from_secs(60);

pub(super) async fn connect(options: &Options) -> Result<Arc<Store>, StartError> {
    Store::connect(options.etcd.clone(), options.etcd_api)
        .await
        .map(Arc::new)
        .map_err(|source| StartError::Source { call: "set up the etcd client", source })
}

/// Says once, and then now and again, what the start waits for.
pub(super) struct Waiting<'a> {
    shared: &'a Shared,
    what: &'static str,
    backoff: Backoff,
    said: Option<(String, Instant)>,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(shared: &'a Shared, what: &'static str) -> Self {
        Self { shared, what, backoff: Backoff::new(FIRST, LIMIT), said: None }
    }

    pub(super) async fn because(&mut self, error: &SourceError) {
        let reason = text::shown(&error.to_string(), text::REASON);
        let trouble = error.trouble();
        let due = self
            .said
            .as_ref()
            .is_none_or(|(said, when)| *said != trouble || when.elapsed() >= REMIND);
        if due {
            tracing::warn!(reason, what = self.what, "start waits");
            notify::status(&format!("waiting for {}: {reason}", self.what));
            self.said = Some((trouble, Instant::now()));
        }
        {
            let mut state = self.shared.lock();
            state.store.connected = false;
            state.record.store_failed();
            state.store.detail = Some(format!("waiting for {}: {reason}", self.what));
        }
        tokio::time::sleep(self.backoff.fail()).await;
    }

    pub(super) fn over(self) {
        let mut state = self.shared.lock();
        state.store.connected = true;
        state.store.detail = None;
        if self.said.is_some() {
            tracing::info!(what = self.what, "start goes on");
        }
    }
}

/// Waits until the store has a valid network config.
pub(super) async fn wait_for_config<S: LeaseSource>(source: &S, shared: &Shared) -> NetworkConfig {
    let mut waiting = Waiting::new(shared, "the network config");
    loop {
        match source.config().await {
            Ok(config) => {
                waiting.over();
                return config;
            }
            Err(error) => waiting.because(&error).await,
        }
    }
}

pub(super) async fn choose_underlay<K: Kernel>(
    kernel: &K,
    wish: &Wish,
) -> Result<Underlay, StartError> {
    let links = kernel.links().await?;
    let routes = kernel::routes_for(kernel, wish).await?;
    let underlay = underlay::choose(&links, wish, routes)?;
    tracing::info!(
        interface = underlay.name,
        address = %underlay.address,
        public_ip = %underlay.public_ip,
        mtu = underlay.mtu,
        "underlay chosen"
    );
    Ok(underlay)
}

/// host-gw sends to the PublicIPs themselves, so ours has to be on the
/// interface.
pub(super) fn check_public_ip(links: &[Link], underlay: &Underlay) -> Result<(), StartError> {
    let on_it = |link: &Link| link.ifindex == underlay.ifindex && link.has(underlay.public_ip);
    if links.iter().any(on_it) {
        return Ok(());
    }
    Err(StartError::PublicIp {
        public_ip: underlay.public_ip,
        interface: underlay.name.clone(),
        address: underlay.address,
    })
}

/// Whether the underlay is a network card.
pub(super) fn is_card(links: &[Link], underlay: &Underlay) -> bool {
    links.iter().any(|link| link.ifindex == underlay.ifindex && link.kind.is_empty())
}

/// Removes what earlier runs left by another network config; what could not be removed
/// stays among the traces, for the next start.
pub(super) async fn retire<K: Kernel>(
    kernel: &K,
    traces: &mut Traces,
    network: Ipv4Network,
    device: Option<&str>,
) {
    for old in std::mem::take(&mut traces.former_devices) {
        if !retire_device(kernel, &old, device).await {
            traces.former_devices.insert(old);
        }
    }
    for former in std::mem::take(&mut traces.former_networks) {
        if !retire_network(kernel, former, network, device).await {
            traces.former_networks.insert(former);
        }
    }
}

/// Deletes the device of an earlier run that has another name than ours: the
/// VNI or the backend in the config was changed, and both would route the same
/// subnets. Whether nothing of ours is left of it.
async fn retire_device<K: Kernel>(kernel: &K, old: &str, ours: Option<&str>) -> bool {
    if backend::is_ours(kernel, old).await.is_ok_and(|ours| !ours) {
        return true;
    }
    let why = match ours {
        Some(ours) => format!("it is {ours} now"),
        None => "the backend has no device now".to_owned(),
    };
    let op = Op::DeleteDevice { name: old.to_owned(), why };
    match kernel.apply(old, &[op]).await.into_iter().collect::<Result<(), _>>() {
        Ok(()) => {
            tracing::info!(device = old, "device of an earlier config removed");
            true
        }
        Err(error) => {
            tracing::warn!(%error, "device of an earlier config not removed");
            false
        }
    }
}

/// Removes what an earlier run left of another overlay network than ours: the
/// `network` in the config was changed. Whether nothing of ours is left of it.
async fn retire_network<K: Kernel>(
    kernel: &K,
    former: Ipv4Network,
    network: Ipv4Network,
    device: Option<&str>,
) -> bool {
    let retired = async {
        let mut observed = match device {
            Some(device) if backend::is_ours(kernel, device).await? => {
                kernel.observe(device).await?
            }
            _ => Observed::default(),
        };
        observed.direct = kernel.direct_routes(PROTOCOL).await?;
        let ops = plan::retire(&observed, former, network);
        let (blackholes, _) = blackhole::diff(None, &kernel.blackholes().await?);
        let past = |subnet| within(former, subnet) && !within(network, subnet);
        let blackholes: Vec<Blackhole> =
            blackholes.into_iter().filter(|route| past(route.destination)).collect();
        let removed = ops.len() + blackholes.len();
        if removed > 0 {
            tracing::info!(%former, %network, removed, "overlay network changed");
        }
        let mut results = kernel.apply(device.unwrap_or_default(), &ops).await;
        for route in blackholes {
            results.push(kernel.remove_blackhole(route).await);
        }
        results.into_iter().collect::<Result<(), KernelError>>()
    };
    let retired = retired.await;
    if let Err(error) = &retired {
        tracing::warn!(%error, "entry of the former overlay network not removed");
    }
    retired.is_ok()
}

/// What an earlier run left.
pub(super) struct Before {
    /// The state file.
    pub(super) state: Option<state::NodeState>,
    /// The subnet of the state file, or of subnet.env.
    pub(super) subnet: Option<Ipv4Network>,
    /// Network and subnet of subnet.env.
    pub(super) node: Option<Place>,
    /// MAC of the VXLAN device that is there.
    device_mac: Option<MacAddr>,
}

impl Before {
    /// Of a node that has nothing but its state file, if that.
    #[cfg(test)]
    pub(super) fn of(state: Option<state::NodeState>) -> Self {
        let subnet = super::previous_subnet(state.as_ref(), None);
        Self { state, subnet, node: None, device_mac: None }
    }

    pub(super) async fn read<K: Kernel>(
        options: &Options,
        kernel: &K,
        device: Option<&str>,
    ) -> Self {
        let loaded = state::load(&options.state_dir);
        if let Some(warning) = loaded.warning {
            tracing::warn!(warning, "state file ignored");
        }
        let env = subnet_env::read(&options.subnet_file);
        let node = env.as_ref().map(|env| Place { network: env.network, subnet: env.subnet });
        let env = env.map(|env| env.subnet);
        let observed = match device {
            Some(device) => kernel.observe(device).await.ok(),
            None => None,
        };
        let device_mac = observed
            .and_then(|observed| observed.device)
            .filter(|device| device.vxlan.is_some() && device.mac.is_unicast())
            .map(|device| device.mac);
        Self {
            subnet: super::previous_subnet(loaded.state.as_ref(), env),
            state: loaded.state,
            node,
            device_mac,
        }
    }

    /// The address that these very flags have chosen before.
    pub(super) fn familiar(&self, wish: &Wish) -> Option<Ipv4Addr> {
        let state = self.state.as_ref()?;
        (state.underlay.as_ref() == Some(&wish.text())).then_some(state.public_ip)
    }

    /// The VTEP's MAC: of the state file, else of the device that is there,
    /// else as the lease of our previous subnet has it. No other lease's: two
    /// nodes with one MAC could not be told apart.
    pub(super) fn mac(&self, leases: &[Lease], public_ip: Ipv4Addr) -> Option<MacAddr> {
        let previous = |lease: &&Lease| {
            lease.attrs.public_ip == public_ip && Some(lease.subnet) == self.subnet
        };
        self.state
            .as_ref()
            .map(|state| state.vtep_mac)
            .or(self.device_mac)
            .or_else(|| {
                let lease = leases.iter().find(previous)?;
                lease.attrs.vtep().ok().map(|data| data.vtep_mac)
            })
            .filter(|mac| mac.is_unicast())
    }

    /// The lease that the state file remembers.
    pub(super) fn former(&self) -> Option<Former> {
        self.state.as_ref().map(|state| Former {
            subnet: state.subnet,
            public_ip: state.public_ip,
            vtep_mac: state.vtep_mac,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake::FakeKernel;
    use flannel_core::observed::{DirectRoute, ObservedDevice, ObservedVxlan};

    const NETWORK: &str = "10.5.0.0/16";

    fn vxlan_device() -> Observed {
        let vxlan = ObservedVxlan {
            vni: 1,
            port: 8472,
            local: None,
            underlay: 2,
            gbp: false,
            learning: false,
            ..ObservedVxlan::default()
        };
        let device = ObservedDevice {
            ifindex: 3,
            vxlan: Some(vxlan),
            mac: MacAddr([2; 6]),
            mtu: 1450,
            up: true,
            proto_down: false,
            bridge_port: false,
            addresses: Default::default(),
            unrouted: Default::default(),
            checksum: None,
        };
        Observed { device: Some(device), ..Observed::default() }
    }

    /// Retires what is left of this device; what is left then.
    async fn retired(kernel: &FakeKernel, device: &str, ours: Option<&str>) -> Traces {
        let former_devices = [device.to_owned()].into();
        let mut traces = Traces { former_devices, ..Traces::default() };
        retire(kernel, &mut traces, NETWORK.parse().unwrap(), ours).await;
        traces
    }

    #[test]
    fn host_gw_needs_an_address_of_the_interface_as_public_ip() {
        let public_ip = Ipv4Addr::new(192, 0, 2, 1);
        let underlay = |address, public_ip| Underlay {
            mac: None,
            ifindex: 2,
            name: "eth0".to_owned(),
            address,
            public_ip,
            mtu: 1500,
            ethernet: true,
        };
        let links = |addresses: &[&str]| {
            vec![flannel_core::link::Link {
                ifindex: 2,
                name: "eth0".to_owned(),
                mac: None,
                mtu: 1500,
                up: true,
                carrier: true,
                ethernet: true,
                loopback: false,
                kind: String::new(),
                master: None,
                lower: None,
                lower_netns: None,
                bridge: None,
                qdisc: String::new(),
                addresses: addresses
                    .iter()
                    .map(|address| flannel_core::link::LinkAddress {
                        network: address.parse().unwrap(),
                        permanent: true,
                        deprecated: false,
                        global: true,
                    })
                    .collect(),
            }]
        };
        let other = Ipv4Addr::new(192, 0, 2, 7);
        let both = links(&["192.0.2.7/24", "192.0.2.1/24"]);
        assert!(check_public_ip(&both, &underlay(other, public_ip)).is_ok());
        let error = check_public_ip(&links(&["192.0.2.7/24"]), &underlay(other, public_ip));
        let text = error.unwrap_err().to_string();
        assert!(text.contains("192.0.2.1 is no address of eth0"), "{text}");
    }

    #[tokio::test]
    async fn only_the_device_of_another_vni_goes() {
        let kernel = FakeKernel::default();
        let foreign = vxlan_device().device.map(|device| ObservedDevice { vxlan: None, ..device });
        let foreign = Observed { device: foreign, ..Observed::default() };
        kernel.state().devices.insert("flannel.2".to_owned(), foreign);
        assert_eq!(retired(&kernel, "flannel.2", Some("flannel.1")).await, Traces::default());
        assert_eq!(kernel.state().applied, []);
        for ours in [Some("flannel.7"), None] {
            kernel.state().devices.insert("flannel.1".to_owned(), vxlan_device());
            kernel.state().applied.clear();
            assert_eq!(retired(&kernel, "flannel.1", ours).await, Traces::default());
            assert_eq!(kernel.state().applied.len(), 1);
            assert_eq!(kernel.state().devices["flannel.1"].device, None);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_removed_is_not_forgotten() {
        let kernel = FakeKernel::default();
        kernel.state().devices.insert("flannel.1".to_owned(), vxlan_device());
        let why = "it is flannel.7 now".to_owned();
        let op = Op::DeleteDevice { name: "flannel.1".to_owned(), why };
        kernel.state().failing = vec![(op, libc::EBUSY)];
        let left = retired(&kernel, "flannel.1", Some("flannel.7")).await;
        assert_eq!(left.former_devices, ["flannel.1".to_owned()].into());
        kernel.state().failing.clear();
        assert_eq!(retired(&kernel, "flannel.1", Some("flannel.7")).await, Traces::default());
    }

    #[tokio::test]
    async fn routes_and_blackholes_of_a_former_network_go() {
        let former: Ipv4Network = "10.6.0.0/16".parse().unwrap();
        let kernel = FakeKernel::default();
        let subnet = "10.6.1.0/24".parse().unwrap();
        let direct = DirectRoute::to_peer(subnet, Ipv4Addr::new(192, 0, 2, 7), 2);
        let blackholes = ["10.6.9.0/24", "10.5.1.0/24", "10.7.1.0/24"]
            .map(|subnet| Blackhole::ours(subnet.parse().unwrap()));
        kernel.state().direct.insert(direct);
        kernel.state().blackholes.extend(blackholes);
        kernel.state().failing = vec![(Op::RemoveDirect(direct), libc::EIO)];
        let first = Traces { former_networks: [former].into(), ..Traces::default() };
        let mut traces = first.clone();
        retire(&kernel, &mut traces, NETWORK.parse().unwrap(), None).await;
        assert_eq!(traces, first, "a route is left");
        kernel.state().failing.clear();
        retire(&kernel, &mut traces, NETWORK.parse().unwrap(), None).await;
        assert_eq!(traces, Traces::default());
        assert!(kernel.state().direct.is_empty());
        assert!(kernel.state().blackholes.iter().eq(&blackholes[1..]), "others stay");
    }
}
