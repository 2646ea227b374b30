//! The node's devices.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use flannel_core::check::facts::{Known, TunnelDevice, Underlay, Unknown};
use flannel_core::forwarding::{self, Inbound, Unforwarded};
use flannel_core::link::Link;
use flannel_core::observed::ObservedVxlan;
use flannel_core::pods::Choice;
use ipnetwork::Ipv4Network;

use crate::commands::known::Daemon;
use crate::kernel::Kernel as _;
use crate::kernel::netlink::RealKernel;

/// The node's devices by their roles.
pub(in crate::commands) struct DeviceRoles {
    pub(in crate::commands) links: Vec<Link>,
    pub(super) vxlans: Vec<(String, ObservedVxlan)>,
    pub(in crate::commands) underlay: Option<Link>,
    pub(in crate::commands) overlay: Option<Link>,
    /// The bridge of our pods, if there is one.
    pub(super) bridge: Option<Link>,
}

impl DeviceRoles {
    /// Looks at them.
    pub(in crate::commands) async fn look(kernel: &RealKernel, daemon: &Daemon) -> Known<Self> {
        let links = kernel.links().await.map_err(Unknown::because)?;
        let vxlans = kernel.vxlans().map_err(Unknown::because)?;
        let find = |fits: &dyn Fn(&Link) -> bool| links.iter().find(|link| fits(link)).cloned();
        let name = daemon.network.as_ref().and_then(|network| network.device.clone());
        let overlay = name.and_then(|name| find(&|link| link.name == name));
        let below = overlay.as_ref().and_then(|overlay| {
            let (_, vxlan) = vxlans.iter().find(|(name, _)| *name == overlay.name)?;
            Some(vxlan.underlay)
        });
        let underlay = below
            .and_then(|ifindex| find(&|link| link.ifindex == ifindex))
            .or_else(|| find(&|link| daemon.public_ip.is_some_and(|ip| link.has(ip))));
        let subnet = daemon.network.as_ref().map(|network| network.subnet);
        let bridge = find(&|link| {
            let ours = |ip| subnet.is_some_and(|subnet| subnet.contains(ip));
            link.kind == "bridge" && link.addresses.iter().any(|own| ours(own.network.ip()))
        });
        Ok(Self { links, vxlans, underlay, overlay, bridge })
    }

    /// The switches of forwarding that are off and may have to be on.
    pub(in crate::commands) async fn unforwarded(
        &self,
        kernel: &RealKernel,
        daemon: &Daemon,
    ) -> Known<Vec<Unforwarded>> {
        let off = kernel.switched_off().await.map_err(Unknown::because)?;
        // Nobody's, where none is known.
        let nobodys = Ipv4Network::from(Ipv4Addr::UNSPECIFIED);
        let known = daemon.network.as_ref();
        let subnet = known.map_or(nobodys, |known| known.subnet);
        let index = |link: &Option<Link>| link.as_ref().map(|link| link.ifindex);
        let choice = Choice {
            underlay: index(&self.underlay).unwrap_or(0),
            overlay: index(&self.overlay),
            network: known.and_then(|known| known.network).unwrap_or(subnet),
            subnet,
            uplinks: &BTreeSet::new(),
            names: None,
        };
        let masquerade = daemon.flags.as_ref().is_some_and(|flags| flags.rules.masquerade);
        // Where nobody tells of peers, a node without a tunnel has none but these.
        let direct = daemon.peers.iter().any(|peer| peer.direct)
            || (daemon.pid.is_none() && known.is_some_and(|known| known.device.is_none()));
        let inbound = Inbound::of(direct, masquerade);
        Ok(forwarding::unforwarded(&self.links, choice, inbound, &off))
    }

    /// UDP port of our tunnel, if there is one.
    pub(in crate::commands) fn port(&self) -> Option<u16> {
        let name = &self.overlay.as_ref()?.name;
        self.vxlans.iter().find(|(of, _)| of == name).map(|(_, vxlan)| vxlan.port)
    }

    /// How the device is by which peers are reached.
    pub(super) fn underlay(&self) -> Underlay {
        match &self.underlay {
            Some(link) => {
                Underlay::There { device: link.name.clone(), up: link.up, carrier: link.carrier }
            }
            None => Underlay::Unfound,
        }
    }

    /// Tunnel devices, and what may be one.
    pub(super) fn tunnels(&self) -> Vec<TunnelDevice> {
        let device = |link: &Link| {
            let vxlan = self.vxlans.iter().find(|(name, _)| *name == link.name);
            let tunnel = vxlan.is_some() || link.kind == "tun" || link.name.starts_with("flannel");
            tunnel.then(|| TunnelDevice {
                name: link.name.clone(),
                kind: link.kind.clone(),
                vni: vxlan.map(|(_, vxlan)| vxlan.vni),
                port: vxlan.map(|(_, vxlan)| vxlan.port),
                mtu: link.mtu,
                up: link.up,
            })
        };
        self.links.iter().filter_map(device).collect()
    }
}
