//! What changes in the kernel, from rtnetlink and nfnetlink multicast groups.

use std::collections::HashSet;
use std::io;

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::packet_core::{NlaBuffer, NlasIterator};
use rtnetlink::packet_route::link::{InfoKind, LinkMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::sync::mpsc;

use super::socket::{RouteSocket, split};
use super::{KernelError, KernelEvent, device};

/// Events that wait for the reader; more of them wait in the socket.
const QUEUE: usize = 256;
/// Receive buffer of the route socket in bytes: programming 5,000 peers makes
/// about 15,000 messages.
const RECEIVE_BUFFER: usize = 16 << 20;
const DATAGRAM: usize = 64 * 1024;
const HEADER_LEN: usize = 16;

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const NFNLGRP_NFTABLES: u32 = 7;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;

/// Length of `struct rtmsg`.
const RTMSG_LEN: usize = 12;
/// RTA_OIF.
const RTA_OIF: u16 = 4;
/// RT_TABLE_LOCAL: follows from addresses, which have their own events.
const RT_TABLE_LOCAL: u8 = 255;

/// Follows changes of links, IPv4 addresses and routes, neighbour and FDB
/// entries of VXLAN devices, and nftables rule sets, in the network namespace
/// of the calling thread, until the receiver is dropped. Must be called within
/// a tokio runtime.
///
/// Neighbour events of other devices are left out: they are resolution at
/// work. Events of one burst are given once each.
///
/// # Errors
/// When the route socket cannot be opened. A kernel without nftables only
/// means that there are no [`KernelEvent::Ruleset`].
pub fn subscribe() -> Result<mpsc::Receiver<KernelEvent>, KernelError> {
    subscribe_with_buffer(RECEIVE_BUFFER)
}

/// [`subscribe`] with receive buffers of this size in bytes. When one is full,
/// events are lost and [`KernelEvent::Overrun`] tells so.
///
/// # Errors
/// As [`subscribe`].
pub fn subscribe_with_buffer(bytes: usize) -> Result<mpsc::Receiver<KernelEvent>, KernelError> {
    let failed = |object: &'static str| {
        move |source: io::Error| KernelError::new("subscribe", object, source)
    };
    let route = open(
        NETLINK_ROUTE,
        &[RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE],
        bytes,
    )
    .map_err(failed("NETLINK_ROUTE"))?;
    // After the subscription, so that no device is missed in between.
    let vxlans = vxlan_devices().map_err(failed("NETLINK_ROUTE links"))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(follow(route, Filter { vxlans: Some(vxlans) }, sender.clone()));
    match open(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES], bytes) {
        Ok(netfilter) => {
            tokio::spawn(follow(netfilter, Filter { vxlans: None }, sender));
        }
        Err(error) => {
            tracing::info!(%error, "no events of nftables rule sets");
        }
    }
    Ok(receiver)
}

fn open(protocol: isize, groups: &[u32], buffer: usize) -> io::Result<TokioSocket> {
    let mut tokio = TokioSocket::new(protocol)?;
    let socket = tokio.socket_mut();
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    // Above net.core.rmem_max only with CAP_NET_ADMIN; what fits, fits.
    if setsockopt(socket, sockopt::RcvBufForce, &buffer).is_err() {
        setsockopt(socket, sockopt::RcvBuf, &buffer)?;
    }
    Ok(tokio)
}

fn vxlan_devices() -> io::Result<HashSet<u32>> {
    let ask = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let links = RouteSocket::open()?.dump(&ask).map_err(|refused| refused.source)?;
    let vxlans = links.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) if device::kind(link) == Some(&InfoKind::Vxlan) => {
            Some(link.header.index)
        }
        _ => None,
    });
    Ok(vxlans.collect())
}

async fn follow(socket: TokioSocket, mut filter: Filter, sender: mpsc::Sender<KernelEvent>) {
    let mut buffer = Vec::with_capacity(DATAGRAM);
    loop {
        buffer.clear();
        let mut received = tokio::select! {
            received = socket.recv(&mut buffer) => received,
            () = sender.closed() => return,
        };
        let mut burst = Burst::default();
        loop {
            match received {
                Ok(()) => split(&buffer).for_each(|message| burst.extend(filter.event(message))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    burst.extend(Some(KernelEvent::Overrun));
                }
                Err(error) => {
                    tracing::error!(%error, "kernel events end");
                    return;
                }
            }
            buffer.clear();
            received = socket.socket_ref().recv(&mut buffer, 0).map(drop);
        }
        for event in burst.events {
            if sender.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// Events in the order of their first occurrence.
#[derive(Default)]
struct Burst {
    events: Vec<KernelEvent>,
    seen: HashSet<KernelEvent>,
}

impl Burst {
    fn extend(&mut self, event: Option<KernelEvent>) {
        if let Some(event) = event.filter(|event| self.seen.insert(*event)) {
            self.events.push(event);
        }
    }
}

/// Turns messages into events.
struct Filter {
    /// Indexes of VXLAN devices; `None` on the nfnetlink socket, where every
    /// message is about a rule set.
    vxlans: Option<HashSet<u32>>,
}

impl Filter {
    fn event(&mut self, message: &[u8]) -> Option<KernelEvent> {
        let Some(vxlans) = &mut self.vxlans else { return Some(KernelEvent::Ruleset) };
        let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
        let body = message.get(HEADER_LEN..)?;
        // ifinfomsg, ifaddrmsg and ndmsg all have the index at this place.
        let index = || Some(u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?));
        match kind {
            RTM_NEWLINK | RTM_DELLINK => {
                let ifindex = index()?;
                // Bridges tell about their ports in AF_BRIDGE: not about the link itself.
                if body.first() == Some(&u8::from(AddressFamily::Bridge)) {
                    return None;
                }
                if kind == RTM_DELLINK {
                    vxlans.remove(&ifindex);
                } else if is_vxlan(body) {
                    vxlans.insert(ifindex);
                }
                Some(KernelEvent::Link { ifindex })
            }
            RTM_NEWADDR | RTM_DELADDR => Some(KernelEvent::Address { ifindex: index()? }),
            RTM_NEWROUTE | RTM_DELROUTE => route(body),
            RTM_NEWNEIGH | RTM_DELNEIGH => {
                let ifindex = index()?;
                vxlans.contains(&ifindex).then_some(KernelEvent::Neighbour { ifindex })
            }
            _ => None,
        }
    }
}

fn is_vxlan(body: &[u8]) -> bool {
    use rtnetlink::packet_core::Parseable;
    LinkMessage::parse(body).is_ok_and(|link| device::kind(&link) == Some(&InfoKind::Vxlan))
}

/// Byte 4 of `struct rtmsg` is the table (252 when it does not fit).
fn route(body: &[u8]) -> Option<KernelEvent> {
    if body.get(4) == Some(&RT_TABLE_LOCAL) {
        return None;
    }
    let attributes: &[u8] = body.get(RTMSG_LEN..)?;
    let output = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute: &NlaBuffer<&[u8]>| attribute.kind() == RTA_OIF)
        .and_then(|attribute| attribute.value().try_into().ok().map(u32::from_ne_bytes));
    Some(KernelEvent::Route { ifindex: output.unwrap_or(0) })
}
