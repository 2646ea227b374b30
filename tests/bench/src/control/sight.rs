//! Routes of a node as the kernel tells of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flannel_tests::netns::Netns;
use ipnetwork::Ipv4Network;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RECEIVE_BUFFER: usize = 64 << 20;

/// What was told of each destination last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    /// When a route came.
    pub(super) came: Option<Instant>,
    /// When one went.
    pub(super) went: Option<Instant>,
}

type Routes = Arc<Mutex<HashMap<Ipv4Network, Told>>>;

/// Listens until it is dropped.
pub(super) struct Sight {
    routes: Routes,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sight {
    /// Listens in this network namespace from now on.
    ///
    /// # Panics
    /// There is no socket.
    pub(super) fn open(netns: &Netns) -> Self {
        let socket = netns.inside(|| {
            let mut socket = Socket::new(NETLINK_ROUTE).expect("a netlink socket");
            socket.bind(&SocketAddr::new(0, 0)).expect("bind a netlink socket");
            socket.add_membership(RTNLGRP_IPV4_ROUTE).expect("route events");
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).expect("a large buffer");
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000))
                .expect("a limit");
            socket
        });
        let (routes, stop) = (Routes::default(), Arc::new(AtomicBool::new(false)));
        let (noted, stopped) = (Arc::clone(&routes), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = Vec::with_capacity(64 * 1024);
            while !stopped.load(Ordering::Relaxed) {
                buffer.clear();
                if socket.recv(&mut buffer, 0).is_ok() {
                    let now = Instant::now();
                    take(&buffer, now, &mut lock(&noted));
                }
            }
        });
        Self { routes, stop, thread: Some(thread) }
    }

    /// What was told of this destination.
    pub(super) fn of(&self, subnet: Ipv4Network) -> Told {
        lock(&self.routes).get(&subnet).copied().unwrap_or_default()
    }

    /// Waits until a route to it has come after `since`; when it did.
    pub(super) fn wait(
        &self,
        subnet: Ipv4Network,
        since: Instant,
        limit: Duration,
    ) -> Option<Instant> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            let came = self.of(subnet).came.filter(|came| *came >= since);
            if came.is_some() {
                return came;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }
}

impl Drop for Sight {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only ends early if it panicked, which was printed.
            let _ = thread.join();
        }
    }
}

fn lock(routes: &Routes) -> MutexGuard<'_, HashMap<Ipv4Network, Told>> {
    routes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(mut bytes: &[u8], now: Instant, routes: &mut HashMap<Ipv4Network, Told>) {
    while let Some(length) = bytes.first_chunk().map(|four| u32::from_ne_bytes(*four) as usize) {
        let Some(message) = bytes.get(..length).filter(|_| length >= 16) else { return };
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).map(|m| m.payload) {
            Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route))) => {
                if let Some(to) = destination(&route) {
                    routes.entry(to).or_default().came = Some(now);
                }
            }
            Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRoute(route))) => {
                if let Some(to) = destination(&route) {
                    routes.entry(to).or_default().went = Some(now);
                }
            }
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

fn destination(route: &RouteMessage) -> Option<Ipv4Network> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    let IpAddr::V4(address) = IpAddr::from(address?) else { return None };
    Ipv4Network::new(address, route.header.destination_prefix_length).ok()
}
