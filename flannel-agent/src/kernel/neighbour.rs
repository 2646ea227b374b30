//! What the kernel knows of a neighbour.

use std::net::Ipv4Addr;

use flannel_core::mac::MacAddr;
use rtnetlink::packet_route::AddressFamily;

use super::netlink::{RealKernel, entries};
use super::{KernelError, answer};

impl RealKernel {
    /// MAC of a neighbour on this interface, if it is resolved.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn neighbour(&self, ifindex: u32, ip: Ipv4Addr) -> Result<Option<MacAddr>, KernelError> {
        let ask = entries(AddressFamily::Inet, ifindex);
        let found = self.dump("RTM_GETNEIGH", "neighbours", &ask, |message| {
            answer::resolved(ifindex, &message).filter(|(of, _)| *of == ip)
        })?;
        Ok(found.first().map(|(_, mac)| *mac))
    }

    /// Whether a neighbour on this interface has been asked for its MAC, and has not told it.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn is_unresolved(&self, ifindex: u32, ip: Ipv4Addr) -> Result<bool, KernelError> {
        let ask = entries(AddressFamily::Inet, ifindex);
        let found = self.dump("RTM_GETNEIGH", "neighbours", &ask, |message| {
            answer::unresolved(ifindex, &message).filter(|of| *of == ip)
        })?;
        Ok(!found.is_empty())
    }
}
