//! Tunnel packets made by hand, right and wrong ones.

use std::net::Ipv4Addr;

use etherparse::PacketBuilder;

/// Length of the outer Ethernet, IPv4, UDP and VXLAN headers together.
pub const OUTER: usize = 14 + 20 + 8 + 8;

/// A VXLAN packet; the fields are what a forger can choose.
#[derive(Clone, Debug)]
pub struct Tunnelled {
    /// Outer source and destination MAC.
    pub outer_mac: ([u8; 6], [u8; 6]),
    /// Outer source and destination address.
    pub outer: (Ipv4Addr, Ipv4Addr),
    /// Outer UDP destination port.
    pub port: u16,
    /// VXLAN flags; 0x08: the VNI is valid.
    pub flags: u8,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Inner source and destination MAC.
    pub inner_mac: ([u8; 6], [u8; 6]),
    /// Inner source and destination address.
    pub inner: (Ipv4Addr, Ipv4Addr),
    /// Inner UDP source and destination port.
    pub ports: (u16, u16),
    /// Inner payload.
    pub payload: Vec<u8>,
}

impl Tunnelled {
    /// The inner frame: Ethernet, IPv4, UDP.
    pub fn inner_frame(&self) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.inner_mac.0, self.inner_mac.1)
            .ipv4(self.inner.0.octets(), self.inner.1.octets(), 63)
            .udp(self.ports.0, self.ports.1);
        build(builder, &self.payload)
    }

    /// The whole frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut payload = vec![self.flags, 0, 0, 0];
        payload.extend((self.vni << 8).to_be_bytes());
        payload.extend(self.inner_frame());
        let builder = PacketBuilder::ethernet2(self.outer_mac.0, self.outer_mac.1)
            .ipv4(self.outer.0.octets(), self.outer.1.octets(), 64)
            .udp(54_321, self.port);
        build(builder, &payload)
    }
}

fn build(builder: etherparse::PacketBuilderStep<etherparse::UdpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut bytes, payload).expect("a packet in memory");
    bytes
}

/// `aa:bb:cc:dd:ee:ff` as bytes.
///
/// # Panics
/// It is no MAC address.
pub fn mac(text: &str) -> [u8; 6] {
    text.trim().parse::<flannel_core::mac::MacAddr>().expect("a MAC address").0
}
