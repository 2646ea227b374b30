//! What changes in the kernel, from rtnetlink and nfnetlink multicast groups.

mod memory;
mod scope;

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::sync::mpsc;

use self::memory::Memory;
pub use self::scope::Scope;
use super::links::{IFLA_EXT_MASK, RTM_GETLINK, ifinfo, question};
use super::raw;
use super::socket::{RouteSocket, split};
use super::{EventSource, KernelError, KernelEvent};
use crate::backoff::Backoff;

/// Events that wait for the reader; more of them wait in the socket.
const QUEUE: usize = 256;
/// Receive buffer of the route socket in bytes: programming 5,000 peers makes
/// about 15,000 messages.
const RECEIVE_BUFFER: usize = 16 << 20;
const DATAGRAM: usize = 64 * 1024;
/// Between attempts to hear again.
const FIRST: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(30);

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_TC: u32 = 4;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV4_RULE: u32 = 8;
const RTNLGRP_IPV4_NETCONF: u32 = 24;
/// Since Linux 5.3.
const RTNLGRP_NEXTHOP: u32 = 32;
const NFNLGRP_NFTABLES: u32 = 7;
const XFRMNLGRP_POLICY: u32 = 4;

const RTM_GETNEIGH: u16 = 30;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWNEIGH: u16 = 28;
/// RTEXT_FILTER_BRVLAN_COMPRESSED: as the kernel's events have it.
const VLANS: u32 = 1 << 2;

/// Follows what may change a decision of the kernel, in the network namespace of
/// the calling thread, until the receiver is dropped: links, bridge ports, IPv4
/// addresses, routes and rules, neighbour and FDB entries, traffic control,
/// nftables rule sets, and IPsec policies. Must be called within a tokio runtime.
///
/// Resolution at work is no event: of neighbour and FDB entries only a MAC or a
/// port that is another than before, and all on VXLAN devices. `scope` tells
/// which changes are a [`KernelEvent::Decision`]. Events of one burst are given
/// once each.
///
/// # Errors
/// When the route socket cannot be opened. A kernel without nftables or IPsec only
/// means that there are no events of it.
pub fn subscribe(scope: &Scope) -> Result<mpsc::Receiver<KernelEvent>, KernelError> {
    subscribe_with_buffer(scope, RECEIVE_BUFFER)
}

/// [`subscribe`] with receive buffers of this size in bytes. When one is full,
/// events are lost and [`KernelEvent::Overrun`] tells so.
///
/// # Errors
/// As [`subscribe`].
pub fn subscribe_with_buffer(
    scope: &Scope,
    bytes: usize,
) -> Result<mpsc::Receiver<KernelEvent>, KernelError> {
    let failed = |source| KernelError::new("subscribe", "NETLINK_ROUTE", source);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let routing = Stream { source: EventSource::Routing, bytes, scope: scope.clone() };
    let heard = routing.open().map_err(failed)?;
    let optional = |source| {
        let stream = Stream { source, bytes, scope: scope.clone() };
        let sender = sender.clone();
        let heard = match stream.open() {
            Ok(heard) => Some(heard),
            Err(error) => {
                tracing::info!(?source, %error, "kernel events unavailable");
                None
            }
        };
        async move {
            if let Some(heard) = heard {
                stream.follow(heard, sender).await;
            }
        }
    };
    let (netfilter, ipsec) = (optional(EventSource::Netfilter), optional(EventSource::Ipsec));
    // One task: a panic in any ends all, and so the receiver.
    tokio::spawn(async move {
        tokio::join!(routing.follow(heard, sender), netfilter, ipsec);
    });
    Ok(receiver)
}

/// Tells of changed rule sets of nftables alone, as [`subscribe`] does.
///
/// # Errors
/// The kernel has no nftables.
pub fn rule_sets() -> Result<mpsc::Receiver<KernelEvent>, KernelError> {
    let failed = |source| KernelError::new("subscribe", "NETLINK_NETFILTER", source);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let source = EventSource::Netfilter;
    let stream = Stream { source, bytes: RECEIVE_BUFFER, scope: Scope::default() };
    let heard = stream.open().map_err(failed)?;
    tokio::spawn(stream.follow(heard, sender));
    Ok(receiver)
}

/// One socket that events come from.
struct Stream {
    source: EventSource,
    bytes: usize,
    scope: Scope,
}

/// An open socket, and what was there when it was opened.
struct Heard {
    socket: TokioSocket,
    memory: Memory,
}

impl Stream {
    fn open(&self) -> io::Result<Heard> {
        let alone = match self.source {
            EventSource::Netfilter => Some((NETLINK_NETFILTER, NFNLGRP_NFTABLES)),
            EventSource::Ipsec => Some((NETLINK_XFRM, XFRMNLGRP_POLICY)),
            EventSource::Routing => None,
        };
        if let Some((protocol, group)) = alone {
            let socket = open(protocol, &[group], self.bytes)?;
            return Ok(Heard { socket, memory: Memory::default() });
        }
        let groups = [
            RTNLGRP_LINK,
            RTNLGRP_NEIGH,
            RTNLGRP_TC,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV4_RULE,
            RTNLGRP_IPV4_NETCONF,
        ];
        let mut socket = open(NETLINK_ROUTE, &groups, self.bytes)?;
        if let Err(error) = socket.socket_mut().add_membership(RTNLGRP_NEXTHOP) {
            tracing::debug!(%error, "kernel events of nexthop objects unavailable");
        }
        // After the subscription, so that nothing is missed in between.
        let memory = self.remember()?;
        Ok(Heard { socket, memory })
    }

    /// What is there now: by it changes are known. Events before it may be lost.
    fn remember(&self) -> io::Result<Memory> {
        self.scope.own().forget();
        let mut memory = Memory::default();
        let mut socket = RouteSocket::open()?;
        let now = Instant::now();
        let mut bridge_ports = ifinfo(0);
        bridge_ports[0] = libc::AF_BRIDGE as u8;
        raw::put(&mut bridge_ports, IFLA_EXT_MASK, &VLANS.to_ne_bytes());
        let entries = |family: i32| [&[family as u8][..], &[0; 11]].concat();
        for (ask, kind, body) in [
            (RTM_GETLINK, RTM_NEWLINK, question(0)),
            (RTM_GETLINK, RTM_NEWLINK, bridge_ports),
            (RTM_GETNEIGH, RTM_NEWNEIGH, entries(libc::AF_INET)),
            (RTM_GETNEIGH, RTM_NEWNEIGH, entries(libc::AF_BRIDGE)),
        ] {
            for found in socket.dump_raw(ask, &body).map_err(|refused| refused.source)? {
                let message = raw::request(kind, 0, 0, &found.body);
                memory.take(&message, &self.scope, now);
            }
        }
        Ok(memory)
    }

    /// Gives events until nobody wants them; opens the socket anew when it ends.
    async fn follow(self, mut heard: Heard, sender: mpsc::Sender<KernelEvent>) {
        let mut backoff = Backoff::new(FIRST, LIMIT);
        loop {
            let Some(error) = self.read(&mut heard, &sender).await else { return };
            tracing::warn!(source = ?self.source, %error, "kernel events ended; they are asked for again");
            if sender.send(KernelEvent::Deaf(self.source)).await.is_err() {
                return;
            }
            heard = loop {
                tokio::time::sleep(backoff.fail()).await;
                match self.open() {
                    Ok(heard) => break heard,
                    Err(error) => tracing::debug!(%error, "kernel events still unavailable"),
                }
            };
            backoff.reset();
            tracing::debug!(source = ?self.source, "kernel events recovered");
            if sender.send(KernelEvent::Hears(self.source)).await.is_err() {
                return;
            }
        }
    }

    /// `None` when nobody wants events any more, else why there are none.
    async fn read(
        &self,
        heard: &mut Heard,
        sender: &mpsc::Sender<KernelEvent>,
    ) -> Option<io::Error> {
        let Heard { socket, memory } = heard;
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            buffer.clear();
            let mut received = tokio::select! {
                received = socket.recv(&mut buffer) => received.map(drop),
                () = sender.closed() => return None,
            };
            let mut burst = Burst::default();
            loop {
                match received {
                    Ok(()) => {
                        let now = Instant::now();
                        for message in split(&buffer) {
                            self.events(memory, message, now).into_iter().for_each(|event| {
                                burst.extend(event);
                            });
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        // What was remembered may be wrong.
                        match self.remembered_anew() {
                            Ok(anew) => *memory = anew,
                            Err(error) => return Some(error),
                        }
                        burst.extend(Some(KernelEvent::Overrun));
                    }
                    Err(error) => return Some(error),
                }
                buffer.clear();
                received = socket.socket_ref().recv(&mut buffer, 0).map(drop);
            }
            for event in burst.events {
                sender.send(event).await.ok()?;
            }
        }
    }

    fn events(
        &self,
        memory: &mut Memory,
        message: &[u8],
        now: Instant,
    ) -> [Option<KernelEvent>; 2] {
        match self.source {
            EventSource::Routing => memory.take(message, &self.scope, now),
            // Every message there is about a rule set.
            EventSource::Netfilter => [Some(KernelEvent::Ruleset), None],
            EventSource::Ipsec => [Some(KernelEvent::IpsecPolicy), None],
        }
    }

    fn remembered_anew(&self) -> io::Result<Memory> {
        match self.source {
            EventSource::Routing => self.remember(),
            EventSource::Netfilter | EventSource::Ipsec => Ok(Memory::default()),
        }
    }
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use flannel_core::mac::MacAddr;
    use flannel_core::op::Op;

    use super::*;
    use crate::kernel::own::Own;

    #[test]
    fn an_echo_that_was_lost_is_not_waited_for() {
        let own = Own::default();
        let scope = Scope::default();
        scope.set_own(own.clone());
        let (mac, to) = (MacAddr([2; 6]), Ipv4Addr::new(192, 0, 2, 7));
        own.expect(3, &[&Op::RemoveFdb(mac, to)]);
        Stream { source: EventSource::Routing, bytes: 0, scope }.remember().unwrap();
        assert!(!own.told(true, 3, Some(mac), to), "somebody else removes it");
    }
}
