//! [`RealKernel`]: the kernel of the calling thread's network namespace.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flannel_core::checksum::TunnelChecksum;
use flannel_core::forwarding::SwitchedOff;
use flannel_core::link::{Link, RouteTo};
use flannel_core::mac::MacAddr;
use flannel_core::observed::{DirectRoute, Observed, ObservedVxlan};
use flannel_core::op::Op;
use flannel_core::subnet::within;
use ipnetwork::Ipv4Network;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::inspect::Inspector;
use super::socket::{BATCH, Refused, Request, RouteSocket, explain};
use super::sysctl::Sysctl;
use super::{
    Inspect, Kernel, KernelError, Own, answer, device, links, message, netconf, offload, outputs,
};
use flannel_core::blackhole::Blackhole;

/// So many routes to peers are made exactly as flannel makes them; see
/// [`message::request`] for the others.
const PLAIN: usize = 1000;

/// The kernel, through one rtnetlink socket.
///
/// Requests do not block: rtnetlink answers before the call returns. Between
/// batches other tasks get their turn.
pub struct RealKernel {
    socket: Mutex<RouteSocket>,
    pub(super) sysctl: Sysctl,
    /// Routes of the device, as last seen and put since.
    routes: AtomicUsize,
    own: Own,
    /// Index of the device, as made or seen last; 0: none yet. Nobody else has it,
    /// whatever the device is called by now.
    pub(super) device: AtomicU32,
}

impl RealKernel {
    /// Opens the socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn open() -> Result<Self, KernelError> {
        let socket = RouteSocket::open()
            .map_err(|source| KernelError::new("socket", "NETLINK_ROUTE", source))?;
        let own = Own::default();
        own.set_port(socket.port());
        let (routes, device) = (AtomicUsize::new(0), AtomicU32::new(0));
        let socket = Mutex::new(socket);
        Ok(Self { socket, sysctl: Sysctl::default(), routes, own, device })
    }

    /// What this one does itself.
    pub fn own(&self) -> Own {
        self.own.clone()
    }

    /// A poisoned lock only means that an earlier call panicked; answers that
    /// it left unread are told apart by their sequence numbers.
    pub(super) fn socket(&self) -> MutexGuard<'_, RouteSocket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `pick` takes of a dump.
    pub(super) fn dump<T>(
        &self,
        call: &'static str,
        object: &str,
        message: &RouteNetlinkMessage,
        pick: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        let found = self.socket().dump(message, pick);
        found.map_err(|refused| explain(call, object.to_owned(), refused))
    }

    /// All VXLAN devices by name, with their attributes.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn vxlans(&self) -> Result<Vec<(String, ObservedVxlan)>, KernelError> {
        self.dump("RTM_GETLINK", "all", &all_links(), |message| match message {
            RouteNetlinkMessage::NewLink(link) => {
                Some((device::name(&link)?.to_owned(), device::vxlan(&link)?))
            }
            _ => None,
        })
    }

    /// Where a VXLAN device sends frames for this MAC.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn fdb_destination(
        &self,
        ifindex: u32,
        mac: MacAddr,
    ) -> Result<Option<Ipv4Addr>, KernelError> {
        let ask = entries(AddressFamily::Bridge, ifindex);
        let found = self.dump("RTM_GETNEIGH", "FDB", &ask, |message| {
            answer::fdb_entry(ifindex, &message).filter(|(of, _)| *of == mac)
        })?;
        Ok(found.first().map(|(_, to)| *to))
    }

    /// Interface index of the bridge's port behind which this MAC is.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn bridge_port(&self, bridge: u32, mac: MacAddr) -> Result<Option<u32>, KernelError> {
        let mut ask = NeighbourMessage::default();
        ask.header.family = AddressFamily::Bridge;
        let ask = RouteNetlinkMessage::GetNeighbour(ask);
        let found = self.dump("RTM_GETNEIGH", "FDB", &ask, |message| {
            answer::bridge_port(bridge, mac, &message)
        })?;
        Ok(found.first().copied())
    }

    /// The link of this name, if there is one.
    fn link(&self, name: &str) -> Result<Option<LinkMessage>, KernelError> {
        let ask = message::link(0, vec![LinkAttribute::IfName(name.to_owned())]);
        let answer = self.socket().get(RouteNetlinkMessage::GetLink(ask));
        match answer {
            Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(link)),
            Ok(_) => Ok(None),
            Err(refused) if refused.errno() == libc::ENODEV => Ok(None),
            Err(refused) => Err(explain("RTM_GETLINK", name.to_owned(), refused)),
        }
    }

    /// Index of a device, if it is there. Unlike RTM_GETLINK the first way waits for no
    /// lock of the kernel's (`dev_ioctl` looks under RCU), and others may hold that for
    /// long. But it opens a socket, and the agent may have as many as it is allowed.
    fn index_of(&self, name: &str) -> Result<Option<u32>, KernelError> {
        match if_nametoindex(name) {
            Ok(ifindex) => Ok(Some(ifindex)),
            Err(Errno::ENODEV) => Ok(None),
            Err(_) => Ok(self.link(name)?.map(|link| link.header.index)),
        }
    }

    fn set_checksum(&self, name: &str, by: TunnelChecksum) -> Result<(), KernelError> {
        let op = Op::SetChecksum(by);
        let link = self.link(name)?.ok_or_else(|| no_device(name, &op))?;
        offload::set_checksum(link.header.index, by)
            .map_err(|refused| explain(offload::SET, message::object(name, &op), refused))
    }

    pub(super) fn one(&self, request: &Request) -> Result<(), Refused> {
        let results = self.socket().batch(std::slice::from_ref(request));
        results.into_iter().next().unwrap_or(Ok(()))
    }

    /// One batch of operations on the device of this name and index.
    fn send(&self, device: &str, ifindex: u32, ops: &[&Op]) -> Vec<Result<(), KernelError>> {
        let put = ops.iter().filter(|op| matches!(op, Op::PutRoute(_))).count();
        let crowd = self.routes.fetch_add(put, Ordering::Relaxed) >= PLAIN;
        let requests: Vec<Request> =
            ops.iter().filter_map(|op| message::request(ifindex, op, crowd)).collect();
        self.own.expect(ifindex, ops);
        let results = self.socket().batch(&requests);
        ops.iter()
            .zip(results)
            .map(|(op, result)| {
                let Err(refused) = self.second_try(ifindex, op, result) else { return Ok(()) };
                self.own.refused(ifindex, op);
                if is_gone(op, &refused) { Ok(()) } else { Err(self.failed(device, op, refused)) }
            })
            .collect()
    }

    fn failed(&self, device: &str, op: &Op, refused: Refused) -> KernelError {
        let errno = refused.errno();
        let mut error = explain(message::call(op), message::object(device, op), refused);
        match (op, errno) {
            (Op::SetUp, libc::EADDRINUSE) => {
                let own = self.link(device).ok().flatten();
                if let Some(vxlan) = own.as_ref().and_then(device::vxlan) {
                    error.hint = self.conflict(device, vxlan.vni, vxlan.port, errno);
                }
            }
            (Op::PutNeighbour(..), libc::ENOBUFS) => {
                error.hint = Some(
                    "the neighbour table is full: raise net.ipv4.neigh.default.gc_thresh3".into(),
                );
            }
            _ => {}
        }
        error
    }
}

impl Kernel for RealKernel {
    async fn observe(&self, name: &str) -> Result<Observed, KernelError> {
        let Some(link) = self.link(name)? else { return Ok(Observed::default()) };
        let ifindex = link.header.index;
        let mut found = device::observed(&link);
        let address = |message| {
            let (index, address) = links::address(&message)?;
            (index == ifindex).then_some(address.network)
        };
        let addresses = self.dump("RTM_GETADDR", name, &addresses_of(ifindex), address)?;
        found.addresses = addresses.into_iter().collect();
        found.unrouted = self.unrouted(name, ifindex, &found.addresses)?;
        found.checksum = offload::checksum(ifindex)
            .map_err(|refused| explain(offload::GET, name.to_owned(), refused))
            .inspect_err(|error| tracing::debug!(%error, "who makes checksums"))
            .ok();
        let mut observed = Observed { device: Some(found), ..Observed::default() };
        let route = |message| answer::route(ifindex, &message);
        let ask = routes_by(ifindex, RouteHeader::RT_TABLE_MAIN);
        let routes = self.dump("RTM_GETROUTE", name, &ask, route)?;
        observed.routes = routes.into_iter().collect();
        self.routes.store(observed.routes.len(), Ordering::Relaxed);
        if observed.device.as_ref().is_none_or(|device| device.vxlan.is_none()) {
            return Ok(observed);
        }
        self.device.store(ifindex, Ordering::Relaxed);
        tokio::task::yield_now().await;
        let (neighbour, entry) = (
            |message| answer::neighbour(ifindex, &message),
            |message| answer::fdb_entry(ifindex, &message),
        );
        let ask = entries(AddressFamily::Inet, ifindex);
        observed.neighbours =
            self.dump("RTM_GETNEIGH", name, &ask, neighbour)?.into_iter().collect();
        tokio::task::yield_now().await;
        let ask = entries(AddressFamily::Bridge, ifindex);
        observed.fdb = self.dump("RTM_GETNEIGH", name, &ask, entry)?.into_iter().collect();
        Ok(observed)
    }

    async fn apply(&self, name: &str, ops: &[Op]) -> Vec<Result<(), KernelError>> {
        let mut results = Vec::with_capacity(ops.len());
        let mut ifindex = None;
        let mut rest = ops;
        while let Some(first) = rest.first() {
            let count = match first {
                Op::DeleteDevice { name, .. } => {
                    results.push(self.delete(name));
                    ifindex = None;
                    1
                }
                Op::CreateDevice(want) => {
                    results.push(self.create(want));
                    ifindex = None;
                    1
                }
                Op::SetChecksum(by) => {
                    results.push(self.set_checksum(name, *by));
                    1
                }
                Op::PutDirect(_) | Op::RemoveDirect(_) => {
                    let batch: Vec<&Op> =
                        rest.iter().take(BATCH).take_while(|op| op.is_direct()).collect();
                    results.extend(self.send(name, 0, &batch));
                    batch.len()
                }
                Op::PutMaps(_) | Op::RemoveMaps(_) => {
                    results.push(Err(not_ours(name, first)));
                    1
                }
                _ => {
                    let batch: Vec<&Op> = rest
                        .iter()
                        .take(BATCH)
                        .take_while(|op| {
                            !op.is_direct() && message::request(0, op, false).is_some()
                        })
                        .collect();
                    match ifindex.map_or_else(|| self.index_of(name), |known| Ok(Some(known))) {
                        Ok(Some(known)) => {
                            ifindex = Some(known);
                            results.extend(self.send(name, known, &batch));
                        }
                        Ok(None) => results.extend(batch.iter().map(|op| Err(no_device(name, op)))),
                        Err(error) => results.extend(batch.iter().map(|_| Err(error.again()))),
                    }
                    batch.len()
                }
            };
            rest = &rest[count..];
            tokio::task::yield_now().await;
        }
        results
    }

    async fn direct_routes(&self, protocol: u8) -> Result<BTreeSet<DirectRoute>, KernelError> {
        let mut ask = RouteMessage::default();
        ask.header.address_family = AddressFamily::Inet;
        ask.header.table = RouteHeader::RT_TABLE_MAIN;
        ask.header.protocol = protocol.into();
        let object = format!("proto {protocol}");
        let route = |message| answer::direct_route(protocol, &message);
        let ask = RouteNetlinkMessage::GetRoute(ask);
        Ok(self.dump("RTM_GETROUTE", &object, &ask, route)?.into_iter().collect())
    }

    async fn behind(
        &self,
        network: Ipv4Network,
        overlay: Option<u32>,
    ) -> Result<BTreeSet<Ipv4Network>, KernelError> {
        self.routes_behind(network, overlay)
    }

    fn inspector(&self) -> Box<dyn Inspect> {
        Box::new(Inspector::open())
    }

    async fn links(&self) -> Result<Vec<Link>, KernelError> {
        let found = self.socket().dump_raw(links::RTM_GETLINK, &links::question(0));
        let found = found.map_err(|refused| explain("RTM_GETLINK", "all".to_owned(), refused))?;
        let links = found.iter().filter_map(|link| links::link(&link.body)).collect();
        let address = |message| links::address(&message);
        let addresses = self.dump("RTM_GETADDR", "all", &addresses_of(0), address)?;
        Ok(links::join(links, addresses))
    }

    async fn default_routes(&self) -> Result<Vec<RouteTo>, KernelError> {
        // Of the main table there may be very many.
        let default = |message| answer::is_default(&message).then_some(message);
        let routes =
            self.dump("RTM_GETROUTE", "default", &routes_of(RouteHeader::RT_TABLE_MAIN), default)?;
        Ok(answer::default_routes(&routes))
    }

    async fn route_to(&self, destination: Ipv4Addr) -> Result<Option<RouteTo>, KernelError> {
        let ask = RouteNetlinkMessage::GetRoute(address_question(destination));
        let answer = self.socket().get(ask);
        match answer {
            Ok(Some(RouteNetlinkMessage::NewRoute(route))) => Ok(answer::hop(&route)),
            Ok(_) => Ok(None),
            Err(refused)
                if [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL]
                    .contains(&refused.errno()) =>
            {
                Ok(None)
            }
            Err(refused) => Err(explain("RTM_GETROUTE", destination.to_string(), refused)),
        }
    }

    async fn uplinks(
        &self,
        candidates: &BTreeSet<u32>,
        network: Ipv4Network,
    ) -> Result<BTreeSet<u32>, KernelError> {
        let ask = outputs::question(candidates);
        let routes = self.socket().dump_raw(outputs::RTM_GETROUTE, &ask);
        let routes =
            routes.map_err(|refused| explain("RTM_GETROUTE", "main".to_owned(), refused))?;
        let outputs = routes
            .iter()
            .filter_map(|route| outputs::of(&route.body))
            .filter(|(destination, _)| !within(network, *destination))
            .flat_map(|(_, outputs)| outputs);
        Ok(outputs.filter(|ifindex| candidates.contains(ifindex)).collect())
    }

    async fn switched_off(&self) -> Result<SwitchedOff, KernelError> {
        let all = self.socket().dump_raw(netconf::RTM_GETNETCONF, &netconf::question());
        let all = all.map_err(|refused| explain("RTM_GETNETCONF", "all".to_owned(), refused))?;
        let mut off = SwitchedOff::default();
        all.iter().for_each(|device| netconf::take(&device.body, &mut off));
        Ok(off)
    }

    async fn blackholes(&self) -> Result<Vec<Blackhole>, KernelError> {
        self.blackhole_routes()
    }

    async fn add_blackhole(&self, route: Blackhole) -> Result<(), KernelError> {
        self.put_blackhole(route)
    }

    async fn remove_blackhole(&self, route: Blackhole) -> Result<(), KernelError> {
        self.delete_blackhole(route)
    }
}

pub(super) fn all_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

pub(super) fn new_link(message: RouteNetlinkMessage) -> Option<LinkMessage> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}

/// IPv4 addresses of one interface, or of all (0).
fn addresses_of(ifindex: u32) -> RouteNetlinkMessage {
    let mut ask = AddressMessage::default();
    ask.header.family = AddressFamily::Inet;
    ask.header.index = ifindex;
    RouteNetlinkMessage::GetAddress(ask)
}

pub(super) fn entries(family: AddressFamily, ifindex: u32) -> RouteNetlinkMessage {
    let mut ask = NeighbourMessage::default();
    ask.header.family = family;
    ask.attributes = vec![NeighbourAttribute::IfIndex(ifindex)];
    RouteNetlinkMessage::GetNeighbour(ask)
}

fn table_question(table: u8) -> RouteMessage {
    let mut ask = RouteMessage::default();
    ask.header.address_family = AddressFamily::Inet;
    ask.header.table = table;
    ask
}

pub(super) fn routes_of(table: u8) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetRoute(table_question(table))
}

/// The question for the way to an address.
pub(super) fn address_question(ip: Ipv4Addr) -> RouteMessage {
    let mut ask = RouteMessage::default();
    ask.header.address_family = AddressFamily::Inet;
    ask.header.destination_prefix_length = 32;
    ask.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(ip))];
    ask
}

pub(super) fn routes_by(ifindex: u32, table: u8) -> RouteNetlinkMessage {
    let mut ask = table_question(table);
    ask.attributes.push(RouteAttribute::Oif(ifindex));
    RouteNetlinkMessage::GetRoute(ask)
}

/// Whether a removal failed because there is nothing (any more) to remove.
fn is_gone(op: &Op, refused: &Refused) -> bool {
    let removal = matches!(
        op,
        Op::RemoveAddress(_)
            | Op::RemoveNeighbour(..)
            | Op::RemoveFdb(..)
            | Op::RemoveRoute(_)
            | Op::RemoveDirect(_)
    );
    removal
        && [libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL, libc::ENODEV].contains(&refused.errno())
}

fn no_device(device: &str, op: &Op) -> KernelError {
    let mut error = KernelError::new(
        message::call(op),
        message::object(device, op),
        std::io::Error::from_raw_os_error(libc::ENODEV),
    );
    error.hint = Some(format!("there is no device {device}").into());
    error
}

fn not_ours(device: &str, op: &Op) -> KernelError {
    let error = std::io::Error::new(
        std::io::ErrorKind::InvalidInput,
        "not an operation of the kernel's tables",
    );
    KernelError::new(message::call(op), message::object(device, op), error)
}
