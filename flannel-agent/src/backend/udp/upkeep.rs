//! [`UdpBackend`]: device, address, route and proxy as the loop keeps them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flannel_core::observed::{Observed, ObservedRoute};
use flannel_core::op::Op;
use flannel_core::subnet::within;
use ipnetwork::Ipv4Network;
use tokio::sync::Notify;

use super::proxy::{Proxy, ProxySettings};
use crate::kernel::Kernel;
use flannel_core::status::UdpCounters;

pub use flannel_core::backend::udp::DEVICE;

/// A proxy that has run for so long is well.
const LASTING: Duration = Duration::from_secs(5);

/// The running proxy, shared with who reads its counters.
#[derive(Clone, Debug, Default)]
pub struct SharedProxy(Arc<Mutex<Option<Proxy>>>);

impl SharedProxy {
    /// Packets by outcome; `None` if no proxy runs.
    pub fn outcomes(&self) -> Option<BTreeMap<&'static str, u64>> {
        self.with(|proxy| proxy.as_ref().map(Proxy::outcomes))
    }

    /// Counters by peer; `None` if no proxy runs.
    pub fn peer_counters(&self) -> Option<BTreeMap<Ipv4Network, UdpCounters>> {
        let routes = self.with(|proxy| proxy.as_ref().map(Proxy::routes))?;
        Some(routes.iter().map(|route| (route.subnet, route.stats.read())).collect())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Option<Proxy>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a node's overlay should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedProxy {
    /// The proxy's settings.
    pub settings: ProxySettings,
    /// MTU of the device in bytes.
    pub mtu: u32,
}

/// Keeps device, address, route and proxy.
#[derive(Debug, Default)]
pub struct UdpBackend {
    proxy: SharedProxy,
    ifindex: Option<u32>,
    /// Is notified when a worker of the proxy has ended.
    ended: Arc<Notify>,
    /// Why an earlier proxy failed, and when: it is told until one lasts.
    failed: Option<(String, Instant)>,
}

impl UdpBackend {
    /// The proxy, for those who read its counters.
    pub fn proxy(&self) -> SharedProxy {
        self.proxy.clone()
    }

    /// Index of the device, as read back.
    pub fn ifindex(&self) -> Option<u32> {
        self.ifindex
    }

    /// Whether the workers run. They end when their device is deleted.
    pub fn is_alive(&self) -> bool {
        self.proxy.with(|proxy| proxy.as_ref().is_some_and(Proxy::is_alive))
    }

    /// Waits until a worker of the proxy has ended. Cancel safe.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }

    /// From now on these are the peers: public addresses by subnet.
    pub fn set_peers(&self, peers: &BTreeMap<Ipv4Network, Ipv4Addr>) {
        self.proxy.with(|proxy| {
            if let Some(proxy) = proxy {
                proxy.set_peers(peers);
            }
        });
    }

    /// Looks at everything and makes it what is wanted. The second value is
    /// what works less well than it could.
    ///
    /// # Errors
    /// What failed, as text; to be tried again.
    pub async fn ensure<K: Kernel>(
        &mut self,
        kernel: &K,
        wanted: &WantedProxy,
        peers: &BTreeMap<Ipv4Network, Ipv4Addr>,
    ) -> Result<Option<String>, String> {
        let device = wanted.settings.device.as_str();
        let lost = |observed: &Observed| {
            observed.device.as_ref().is_none_or(|found| Some(found.ifindex) != self.ifindex)
        };
        let mut observed = kernel.observe(device).await.map_err(|error| error.to_string())?;
        let fits = self.proxy.with(|proxy| {
            proxy.as_ref().is_some_and(|proxy| {
                proxy.is_alive() && *proxy.settings() == wanted.settings && !lost(&observed)
            })
        });
        let failure = self
            .proxy
            .with(|proxy| proxy.as_ref().and_then(|proxy| proxy.failure().map(str::to_owned)));
        if let Some(failure) = failure {
            self.failed = Some((failure, Instant::now()));
        }
        if !fits {
            self.start(wanted, peers)?;
            observed = kernel.observe(device).await.map_err(|error| error.to_string())?;
            self.ifindex = observed.device.as_ref().map(|device| device.ifindex);
        }
        self.set_peers(peers);
        let ops = plan(wanted, &observed);
        let results = kernel.apply(device, &ops).await;
        let mut failures = Vec::new();
        for (op, result) in ops.iter().zip(results) {
            match result {
                Ok(()) => tracing::info!(device, change = describe(op), "device changed"),
                Err(error) => failures.push(error.to_string()),
            }
        }
        if !failures.is_empty() {
            return Err(failures.join("; "));
        }
        self.failed.take_if(|(_, since)| since.elapsed() >= LASTING);
        if let Some((failure, _)) = &self.failed {
            return Err(format!("{failure}; the proxy was started anew"));
        }
        Ok(self
            .proxy
            .with(|proxy| proxy.as_ref().and_then(|proxy| proxy.icmp_refused().map(str::to_owned))))
    }

    fn start(
        &mut self,
        wanted: &WantedProxy,
        peers: &BTreeMap<Ipv4Network, Ipv4Addr>,
    ) -> Result<(), String> {
        self.proxy.with(|proxy| {
            // The old one first: it has the port.
            *proxy = None;
            let started = Proxy::start(wanted.settings.clone(), Arc::clone(&self.ended))
                .map_err(|error| error.to_string())?;
            started.set_peers(peers);
            tracing::info!(
                device = wanted.settings.device,
                local = %wanted.settings.local,
                port = wanted.settings.port,
                queues = wanted.settings.queues,
                "udp proxy started"
            );
            *proxy = Some(started);
            Ok(())
        })
    }
}

/// What is to be done to the device, in order. Within the overlay network,
/// address and routes on it are ours.
fn plan(wanted: &WantedProxy, observed: &Observed) -> Vec<Op> {
    let ProxySettings { network, subnet, .. } = wanted.settings;
    let mut ops = Vec::new();
    let Some(device) = &observed.device else { return ops };
    if device.mtu != wanted.mtu {
        ops.push(Op::SetMtu(wanted.mtu));
    }
    let own = Ipv4Network::from(subnet.network());
    if !device.addresses.contains(&own) {
        ops.push(Op::AddAddress(subnet.network()));
    }
    if !device.up {
        ops.push(Op::SetUp);
    }
    let others = device.addresses.iter().filter(|other| **other != own);
    ops.extend(
        others.filter(|other| network.contains(other.ip())).map(|other| Op::RemoveAddress(*other)),
    );
    let route = ObservedRoute::to_link(network);
    // A device that was down has lost its routes.
    if !device.up || !observed.routes.contains(&route) {
        ops.push(Op::PutLinkRoute(network));
    }
    let others = observed
        .routes
        .iter()
        .filter(|other| device.up && **other != route && within(network, other.destination));
    ops.extend(others.map(|other| Op::RemoveRoute(*other)));
    ops
}

fn describe(op: &Op) -> String {
    match op {
        Op::SetMtu(mtu) => format!("set the MTU to {mtu}"),
        Op::AddAddress(address) => format!("added the address {address}"),
        Op::SetUp => "set it up".to_owned(),
        Op::PutLinkRoute(network) => format!("put the route to {network}"),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::VerifySource;
    use flannel_core::mac::MacAddr;
    use flannel_core::model;
    use flannel_core::observed::ObservedDevice;

    fn wanted() -> WantedProxy {
        let settings = ProxySettings {
            device: DEVICE.to_owned(),
            local: Ipv4Addr::new(192, 0, 2, 11),
            port: 8285,
            network: "10.2.0.0/16".parse().unwrap(),
            subnet: "10.2.5.0/24".parse().unwrap(),
            verify_source: VerifySource::Drop,
            queues: 1,
        };
        WantedProxy { settings, mtu: 1472 }
    }

    fn new_device() -> Observed {
        let device = ObservedDevice {
            ifindex: 9,
            vxlan: None,
            mac: MacAddr::default(),
            mtu: 1500,
            up: false,
            proto_down: false,
            bridge_port: false,
            addresses: Default::default(),
            unrouted: Default::default(),
            checksum: None,
        };
        Observed { device: Some(device), ..Observed::default() }
    }

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    #[test]
    fn a_new_device_gets_everything_and_then_nothing_more() {
        let mut observed = new_device();
        let ops = super::plan(&wanted(), &observed);
        let own = Ipv4Addr::new(10, 2, 5, 0);
        let expected = [
            Op::SetMtu(1472),
            Op::AddAddress(own),
            Op::SetUp,
            Op::PutLinkRoute(net("10.2.0.0/16")),
        ];
        assert_eq!(ops, expected);
        ops.iter().for_each(|op| model::apply(&mut observed, op));
        assert_eq!(super::plan(&wanted(), &observed), []);
    }

    #[test]
    fn what_changed_is_put_right_and_what_is_not_ours_stays() {
        let mut observed = new_device();
        for op in super::plan(&wanted(), &observed) {
            model::apply(&mut observed, &op);
        }
        let settled = observed.clone();
        let device = observed.device.as_mut().unwrap();
        device.mtu = 1400;
        device.addresses.insert(net("10.2.9.0/32"));
        device.addresses.insert(net("192.0.2.77/32"));
        let stale = ObservedRoute {
            destination: net("10.2.9.0/24"),
            ..ObservedRoute::to_link(net("10.2.0.0/16"))
        };
        let foreign = ObservedRoute { destination: net("172.16.0.0/12"), ..stale };
        observed.routes.extend([stale, foreign]);
        let ops = super::plan(&wanted(), &observed);
        let expected =
            [Op::SetMtu(1472), Op::RemoveAddress(net("10.2.9.0/32")), Op::RemoveRoute(stale)];
        assert_eq!(ops, expected);
        let mut down = settled;
        down.device.as_mut().unwrap().up = false;
        assert_eq!(
            super::plan(&wanted(), &down),
            [Op::SetUp, Op::PutLinkRoute(net("10.2.0.0/16"))]
        );
    }

    #[test]
    fn without_a_device_there_is_nothing_to_do() {
        assert_eq!(super::plan(&wanted(), &Observed::default()), []);
    }
}
