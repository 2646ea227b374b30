//! What can be seen of the pods' own network namespaces from here.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;

use flannel_core::envelope::{PodEnd, Stacked};
use ipnetwork::Ipv4Network;

use super::{Inspector, behind};
use crate::kernel::KernelError;
use crate::kernel::links::{
    IFINFO_LEN, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_LINKINFO, RTM_GETLINK, kind_of, question,
};
use crate::kernel::raw::{self, Raw};

const RTM_GETADDR: u16 = 22;
const RTM_GETNSID: u16 = 90;
/// Length of `struct ifaddrmsg`.
const IFADDR_LEN: usize = 8;
/// Length of `struct rtgenmsg`, aligned.
const GENERIC_LEN: usize = 4;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const IFA_LOCAL: u16 = 2;
const IFA_TARGET_NETNSID: u16 = 10;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_TARGET_NETNSID: u16 = 46;

impl Inspector {
    pub(super) fn read_xdp(&mut self, end: PodEnd) -> Result<Option<bool>, KernelError> {
        let mut ask = question(end.ifindex);
        raw::put(&mut ask, IFLA_TARGET_NETNSID, &end.netns.to_ne_bytes());
        let object = format!("interface {} of network namespace {}", end.ifindex, end.netns);
        let link = match self.socket()?.get_raw(RTM_GETLINK, &ask) {
            Ok(answers) => answers.into_iter().next(),
            // EINVAL: the namespace has gone, and its id with it.
            Err(refused) if matches!(refused.errno(), libc::ENODEV | libc::EINVAL) => None,
            Err(refused) => {
                return Err(crate::kernel::socket::explain("RTM_GETLINK", object, refused));
            }
        };
        Ok(link.map(|link| has_xdp(&link)))
    }

    pub(super) fn read_namespaces(&mut self) -> Result<BTreeSet<i32>, KernelError> {
        let ids = self.dump(RTM_GETNSID, "RTM_GETNSID", "all", &[0; GENERIC_LEN])?;
        let own = self.own_id()?;
        Ok(ids.iter().filter_map(id).filter(|id| Some(*id) != own).collect())
    }

    /// The id that our namespace has in itself, if somebody asked for it.
    fn own_id(&mut self) -> Result<Option<i32>, KernelError> {
        let path = "/proc/thread-self/ns/net";
        let file = File::open(path).map_err(|error| KernelError::new("open", path, error))?;
        let mut ask = vec![0; GENERIC_LEN];
        raw::put(&mut ask, NETNSA_FD, &file.as_raw_fd().to_ne_bytes());
        let answer = self.get(RTM_GETNSID, "RTM_GETNSID", "our own", &ask)?;
        Ok(answer.as_ref().and_then(id).filter(|id| *id >= 0))
    }

    pub(super) fn read_stacked(
        &mut self,
        netns: i32,
        network: Ipv4Network,
    ) -> Result<Vec<Stacked>, KernelError> {
        let object = format!("network namespace {netns}");
        let mut ask = question(0);
        raw::put(&mut ask, IFLA_TARGET_NETNSID, &netns.to_ne_bytes());
        let links = self.dump(RTM_GETLINK, "RTM_GETLINK", &object, &ask)?;
        let mut candidates: Vec<(u32, Option<i32>, Stacked)> =
            links.iter().filter_map(stacked).collect();
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        // The kernel has just made an id for our own namespace, if it had none.
        let own = self.own_id()?;
        candidates.retain(|(_, lower_netns, _)| own.is_some() && *lower_netns == own);
        let mut ask = vec![0; IFADDR_LEN];
        ask[0] = libc::AF_INET as u8;
        raw::put(&mut ask, IFA_TARGET_NETNSID, &netns.to_ne_bytes());
        let addresses = self.dump(RTM_GETADDR, "RTM_GETADDR", &object, &ask)?;
        let in_overlay: BTreeSet<u32> = addresses
            .iter()
            .filter_map(address)
            .filter(|(_, address)| network.contains(*address))
            .map(|(ifindex, _)| ifindex)
            .collect();
        candidates.retain(|(ifindex, ..)| in_overlay.contains(ifindex));
        Ok(candidates.into_iter().map(|(.., stacked)| stacked).collect())
    }
}

pub(super) fn has_xdp(link: &Raw) -> bool {
    let attached = behind(link, IFINFO_LEN)
        .and_then(|attributes| raw::attribute(attributes, IFLA_XDP))
        .and_then(|xdp| raw::attribute(xdp, IFLA_XDP_ATTACHED));
    attached.and_then(|value| value.first()).is_some_and(|mode| *mode != 0)
}

fn id(message: &Raw) -> Option<i32> {
    let value = raw::attribute(behind(message, GENERIC_LEN)?, NETNSA_NSID)?;
    raw::number(value, 0).map(|id| id as i32)
}

/// Interface index, namespace of the lower device, and what it is: of devices
/// that have one in another namespace and take packets from it by themselves.
fn stacked(link: &Raw) -> Option<(u32, Option<i32>, Stacked)> {
    let attributes = behind(link, IFINFO_LEN)?;
    let info = raw::attribute(attributes, IFLA_LINKINFO)?;
    let kind = kind_of(info)?;
    if !matches!(kind.as_str(), "ipvlan" | "macvlan" | "ipvtap" | "macvtap" | "vlan") {
        return None;
    }
    let lower = raw::number(raw::attribute(attributes, IFLA_LINK)?, 0)?;
    let netns = raw::attribute(attributes, IFLA_LINK_NETNSID)
        .and_then(|value| raw::number(value, 0))
        .map(|id| id as i32);
    Some((raw::number(&link.body, 4)?, netns, Stacked { kind, lower }))
}

fn address(message: &Raw) -> Option<(u32, Ipv4Addr)> {
    let local = raw::attribute(behind(message, IFADDR_LEN)?, IFA_LOCAL)?;
    let octets: [u8; 4] = local.try_into().ok()?;
    Some((raw::number(&message.body, 4)?, octets.into()))
}
