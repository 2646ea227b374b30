//! Routes of the local table to the device's own addresses: by them the kernel takes in
//! what is for the node.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use flannel_core::op::Op;
use ipnetwork::Ipv4Network;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::RouteFlags;

use super::netlink::{RealKernel, address_question, routes_by, routes_of};
use super::socket::Refused;
use super::{KernelError, answer, message};

/// The table's number, as questions have it.
const TABLE: u8 = message::LOCAL_TABLE as u8;

impl RealKernel {
    /// The addresses of a device that have no route there, or one behind another.
    pub(super) fn unrouted(
        &self,
        name: &str,
        ifindex: u32,
        addresses: &BTreeSet<Ipv4Network>,
    ) -> Result<BTreeSet<Ipv4Addr>, KernelError> {
        let local = |message| answer::local(ifindex, &message);
        let routed = self.dump("RTM_GETROUTE", name, &routes_by(ifindex, TABLE), local)?;
        let mut unrouted = BTreeSet::new();
        for ip in addresses.iter().map(|address| address.ip()) {
            if !routed.contains(&ip) || self.is_behind(ifindex, ip)? {
                unrouted.insert(ip);
            }
        }
        Ok(unrouted)
    }

    /// A local route that is there, behind another one, cannot be put in its place at once.
    pub(super) fn second_try(
        &self,
        ifindex: u32,
        op: &Op,
        result: Result<(), Refused>,
    ) -> Result<(), Refused> {
        match (op, &result) {
            (Op::PutLocal(ip), Err(refused)) if refused.errno() == libc::EEXIST => {
                let requests = message::local_first(ifindex, *ip);
                self.socket().batch(&requests).into_iter().next_back().unwrap_or(result)
            }
            _ => result,
        }
    }

    /// Whether another route of the local table goes before ours to this address.
    fn is_behind(&self, ifindex: u32, ip: Ipv4Addr) -> Result<bool, KernelError> {
        let ours = |message: &RouteNetlinkMessage| answer::local(ifindex, message) == Some(ip);
        let mut ask = address_question(ip);
        ask.header.flags = RouteFlags::FibMatch;
        let answer = self.socket().get(RouteNetlinkMessage::GetRoute(ask));
        if matches!(answer, Ok(Some(ref used)) if ours(used)) {
            return Ok(false);
        }
        // A routing rule may have answered. In the table the first one counts.
        let to = |message| answer::is_local_to(ip, &message).then_some(message);
        let ask = routes_of(TABLE);
        let all = self.dump("RTM_GETROUTE", &ip.to_string(), &ask, to)?;
        Ok(all.first().is_some_and(|first| !ours(first)))
    }
}
