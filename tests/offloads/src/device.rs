//! Offloads and limits of devices.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::cells::{Underlay, Veth};
use flannel_tests::netns::Netns;

/// Features of ethtool that cut packets on the way out.
const CUT: [&str; 5] = [
    "tso",
    "gso",
    "tx-udp-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
];

/// Largest aggregate of IPv4 with BIG TCP, in bytes.
pub const BIG: u32 = 180_000;
/// Largest aggregate otherwise, in bytes: the kernel's default.
pub const PLAIN: u32 = 65_536;

/// `netdevice` attributes of RTM_SETLINK (linux/if_link.h, since Linux 6.3).
const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;
const IFLA_GRO_IPV4_MAX_SIZE: u16 = 64;

/// Sets the offloads of one end of a pod's veth.
///
/// # Panics
/// ethtool fails.
pub fn set_veth(netns: &Netns, device: &str, state: Veth) {
    let on = state == Veth::On;
    set(netns, device, on, on, on);
}

/// Sets the offloads of an underlay device.
///
/// # Panics
/// ethtool fails.
pub fn set_underlay(netns: &Netns, device: &str, state: Underlay) {
    let (whole, merge, checksum) = match state {
        Underlay::On => (true, true, true),
        Underlay::Card => (false, true, true),
        Underlay::Off => (false, false, false),
    };
    set(netns, device, whole, merge, checksum);
}

/// Sets the offloads of the switch's end of an underlay device. A veth merges
/// only what comes from an end without segmentation.
///
/// # Panics
/// ethtool fails.
pub fn set_port(netns: &Netns, device: &str, state: Underlay) {
    set(netns, device, state != Underlay::Card, false, true);
}

/// Lets a device take no aggregates.
///
/// # Panics
/// ethtool fails.
pub fn cut(netns: &Netns, device: &str) {
    set(netns, device, false, false, true);
}

fn set(netns: &Netns, device: &str, whole: bool, merge: bool, checksum: bool) {
    let word = |on| if on { "on" } else { "off" };
    // Without checksums there is no segmentation; so they come first and go last.
    let mut features = vec![("tx", checksum), ("gro", merge)];
    features.extend(CUT.map(|name| (name, whole)));
    let text: Vec<_> = features.iter().map(|(name, on)| format!("{name} {}", word(*on))).collect();
    netns.sh(&format!("ethtool -K {device} {}", text.join(" ")));
}

/// Sets how large aggregates of IPv4 may be that a device is given and that it
/// merges; whether the kernel knows such limits.
///
/// iproute2 of Debian 12 cannot.
///
/// # Panics
/// There is no such device.
pub fn limit(netns: &Netns, device: &str, bytes: u32) -> bool {
    netns.inside(|| {
        let index = if_nametoindex(device).unwrap_or_else(|error| panic!("{device}: {error}"));
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .expect("a netlink socket");
        let fd = socket.as_raw_fd();
        send(fd, &set_link(index, bytes), MsgFlags::empty()).expect("send to rtnetlink");
        let mut answer = [0; 256];
        let length = recv(fd, &mut answer, MsgFlags::empty()).expect("an answer of rtnetlink");
        assert!(length >= 20, "an answer of {length} bytes");
        // NLMSG_ERROR: what follows the header is 0 or a negative errno.
        let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
        if error != 0 {
            println!("limits of {device}: {}", Errno::from_raw(-error));
        }
        error == 0
    })
}

/// RTM_SETLINK with both limits, and an acknowledgement asked for.
fn set_link(index: u32, bytes: u32) -> Vec<u8> {
    const RTM_SETLINK: u16 = 19;
    const REQUEST_AND_ACK: u16 = 5;
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend([0; 8]);
    for attribute in [IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE] {
        body.extend(8_u16.to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(bytes.to_ne_bytes());
    }
    let length = u32::try_from(16 + body.len()).unwrap_or(0);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(RTM_SETLINK.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    // Sequence number and port.
    message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend(body);
    message
}

/// Packets that devices of a namespace could not send, but for `flannel.1`,
/// which counts what it has not yet resolved.
///
/// # Panics
/// ip fails.
pub fn transmit_drops(netns: &Netns) -> u64 {
    let counted = netns.links().into_iter().filter(|link| link.name != "flannel.1");
    counted.map(|link| link.traffic.tx.dropped).sum()
}
