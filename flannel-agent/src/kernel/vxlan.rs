//! Creates and deletes the VXLAN device, and names who is in its way.

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use flannel_core::desired::Device;
use flannel_core::op::Op;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};

use super::netlink::{RealKernel, all_links, new_link};
use super::socket::{Request, explain};
use super::{KernelError, device, message};

impl RealKernel {
    pub(super) fn create(&self, want: &Device) -> Result<(), KernelError> {
        let op = Op::CreateDevice(want.clone());
        let request = Request {
            message: RouteNetlinkMessage::NewLink(device::creation(want)),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        };
        let mut made = self.one(&request);
        if made.as_ref().is_err_and(|refused| refused.errno() == libc::EEXIST)
            && (self.delete_renamed(want)? || self.delete_moved(want)?)
        {
            made = self.one(&request);
        }
        made.map_err(|refused| {
            let errno = refused.errno();
            let mut error = explain(message::call(&op), message::object(&want.name, &op), refused);
            match errno {
                libc::EEXIST | libc::EADDRINUSE => {
                    error.hint = self.conflict(&want.name, want.vni, want.port, errno);
                }
                libc::EOPNOTSUPP => {
                    error.hint = Some("the kernel has no vxlan module: modprobe vxlan".into());
                }
                libc::ENODEV => {
                    error.hint =
                        Some(format!("the underlay device {} is gone", want.underlay).into());
                }
                _ => {}
            }
            error
        })?;
        // Router advertisements from inside the overlay must not configure the
        // node. A kernel without IPv6 has no such file.
        match self.sysctl.set_accept_ra(&want.name, 0) {
            Err(error) if error.source.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "sysctl accept_ra not set");
            }
            _ => {}
        }
        // Where it cannot be, status says so.
        if let Err(error) = self.sysctl.forward_from(&want.name) {
            tracing::warn!(%error, "sysctl forwarding not set");
        }
        Ok(())
    }

    /// Deletes our device if somebody gave it another name: two of one VNI and port
    /// cannot be.
    fn delete_renamed(&self, want: &Device) -> Result<bool, KernelError> {
        let all = self.dump("RTM_GETLINK", "all", &all_links(), new_link)?;
        let Some((name, _)) = device::in_the_way(&all, &want.name, want.vni, want.port) else {
            return Ok(false);
        };
        let known = self.device.load(Ordering::Relaxed);
        let ours = all.iter().find(|link| link.header.index == known);
        if ours.and_then(device::name) != Some(name) {
            return Ok(false);
        }
        tracing::warn!(device = want.name, name, "device renamed by somebody; it is made again");
        self.delete(name).map(|()| true)
    }

    /// Deletes our device if somebody moved it to another network namespace: its VNI and
    /// port stay taken where it was made.
    fn delete_moved(&self, want: &Device) -> Result<bool, KernelError> {
        let ask = RouteNetlinkMessage::GetNsId(NsidMessage::default());
        for namespace in self.dump("RTM_GETNSID", "all", &ask, namespace)? {
            let there = LinkAttribute::IfNetnsId(namespace);
            let ask = RouteNetlinkMessage::GetLink(message::link(0, vec![there.clone()]));
            // It may be one that we may not look into.
            let links = self.dump("RTM_GETLINK", "all", &ask, new_link).unwrap_or_default();
            let Some(link) = links.iter().find(|link| device::is_moved(link, want)) else {
                continue;
            };
            tracing::warn!(
                device = want.name,
                "device moved to another network namespace by somebody; it is made again"
            );
            let message = message::link(link.header.index, vec![there]);
            let request = Request { message: RouteNetlinkMessage::DelLink(message), flags: 0 };
            let gone = self.one(&request);
            return gone
                .map(|()| true)
                .map_err(|refused| explain("RTM_DELLINK", want.name.clone(), refused));
        }
        Ok(false)
    }

    pub(super) fn delete(&self, name: &str) -> Result<(), KernelError> {
        let message = message::link(0, vec![LinkAttribute::IfName(name.to_owned())]);
        let request = Request { message: RouteNetlinkMessage::DelLink(message), flags: 0 };
        match self.one(&request) {
            Err(refused) if refused.errno() != libc::ENODEV => {
                Err(explain("RTM_DELLINK", name.to_owned(), refused))
            }
            _ => Ok(()),
        }
    }

    /// Names who is in our way.
    pub(super) fn conflict(
        &self,
        own: &str,
        vni: u32,
        port: u16,
        errno: i32,
    ) -> Option<Cow<'static, str>> {
        let all = self.dump("RTM_GETLINK", "all", &all_links(), new_link).ok()?;
        let text = match device::in_the_way(&all, own, vni, port) {
            Some((name, other)) => format!(
                "VXLAN device {name} has VNI {} on UDP port {port} already; delete it \
                 (ip link del {name}), or give Backend another VNI or Port",
                other.vni
            ),
            None if errno == libc::EADDRINUSE => {
                format!("another program has UDP port {port}; see `ss -ulnp`")
            }
            None if all.iter().any(|link| device::name(link) == Some(own)) => {
                format!("a link named {own} is there")
            }
            None => format!(
                "a VXLAN device with VNI {vni} on UDP port {port}, made here, is in another \
                 network namespace"
            ),
        };
        Some(text.into())
    }
}

/// The number that a network namespace has in ours.
fn namespace(message: RouteNetlinkMessage) -> Option<i32> {
    let RouteNetlinkMessage::NewNsId(told) = message else { return None };
    told.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) => Some(*id),
        _ => None,
    })
}
