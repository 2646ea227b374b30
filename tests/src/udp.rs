//! A node of flannel's udp backend that is not ours: a proxy of one thread
//! that carries one packet at a time, as flanneld's does. What ours speaks with
//! and is measured against.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use ipnetwork::Ipv4Network;
use rustix::event::{PollFd, PollFlags, poll};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::etcd::Etcd;
use crate::node::Node;
use crate::plain::key;
use crate::process::{Process, own_program};
use crate::wait;

/// UDP port of the backend.
pub const PORT: u16 = 8285;
/// MTU of the device: the underlay's less 28.
pub const MTU: u32 = 1472;

/// What the proxy is started with.
#[derive(Clone, Debug)]
pub struct Simple {
    /// Underlay address.
    pub local: Ipv4Addr,
    /// Subnets and the underlay addresses that they are behind.
    pub routes: Vec<(Ipv4Network, Ipv4Addr)>,
}

impl Simple {
    /// Makes `flannel0` and carries packets, for ever.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn run(mut self) -> io::Result<()> {
        let tun = DeviceBuilder::new().name("flannel0").layer(Layer::L3).build_sync()?;
        rustix::io::ioctl_fionbio(&tun, true)?;
        let socket = UdpSocket::bind(SocketAddrV4::new(self.local, PORT))?;
        socket.set_nonblocking(true)?;
        let mut buffer = [0; 1 << 16];
        loop {
            while self.outward(&tun, &socket, &mut buffer) | inward(&tun, &socket, &mut buffer) {}
            let mut wanted =
                [PollFd::new(&tun, PollFlags::IN), PollFd::new(&socket, PollFlags::IN)];
            poll(&mut wanted, None)?;
        }
    }

    fn outward(&mut self, tun: &SyncDevice, socket: &UdpSocket, buffer: &mut [u8]) -> bool {
        let Ok(len) = rustix::io::read(tun, &mut *buffer) else { return false };
        let packet = &mut buffer[..len];
        if len < 20 || packet[0] >> 4 != 4 {
            return true;
        }
        let to = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
        let Some(at) = self.routes.iter().position(|(subnet, _)| subnet.contains(to)) else {
            return true;
        };
        self.routes.swap(0, at);
        if hop(packet) {
            let _ = socket.send_to(packet, SocketAddrV4::new(self.routes[0].1, PORT));
        }
        true
    }
}

fn inward(tun: &SyncDevice, socket: &UdpSocket, buffer: &mut [u8]) -> bool {
    let Ok((len, _)) = socket.recv_from(buffer) else { return false };
    let packet = &mut buffer[..len];
    if len >= 20 && hop(packet) {
        let _ = rustix::io::write(tun, packet);
    }
    true
}

fn hop(packet: &mut [u8]) -> bool {
    packet[8] = packet[8].saturating_sub(1);
    let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x100;
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(sum as u16).to_be_bytes());
    packet[8] > 0
}

impl Node {
    /// Publishes a lease of the udp backend for `subnet`, as flannel writes it.
    ///
    /// # Panics
    /// etcd refuses it.
    pub fn publish_udp(&mut self, etcd: &Etcd, subnet: &str) -> String {
        let subnet: Ipv4Network = subnet.parse().expect("a subnet");
        self.plain = Some(subnet);
        let key = format!("{}/subnets/{}", etcd.prefix, key(subnet));
        etcd.ctl(&[
            "put",
            &key,
            &format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, self.address),
        ]);
        key
    }

    /// Starts the simple proxy on this node, which has published its subnet.
    ///
    /// # Panics
    /// It does not come up.
    pub fn start_simple(&self, network: &str, routes: &[(Ipv4Network, Ipv4Addr)]) -> Process {
        let mut command = self.netns.command(own_program("flannel-udp-proxy"));
        command.args(["--local", &self.address.to_string()]);
        command.args(routes.iter().map(|(subnet, node)| format!("{subnet}={node}")));
        let process = Process::start("simple proxy", &mut command, &self.dir.join("simple.log"));
        wait::holds("flannel0", Duration::from_secs(5), || {
            self.netns.try_sh("ip link show flannel0")
        });
        self.netns.ip_batch(&[
            format!("address add {}/32 dev flannel0", self.subnet().network()),
            format!("link set flannel0 mtu {MTU} up"),
            format!("route replace {network} dev flannel0"),
        ]);
        process
    }
}
