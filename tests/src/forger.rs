//! A host that is no node, and what it makes of tunnel packets.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use etherparse::{IpFragOffset, Ipv4Header};

use crate::beside::TUNNEL;
use crate::forge::{OUTER, Tunnelled, mac};
use crate::netns::Netns;
use crate::packet::Wire;
use crate::pair::Pair;

/// Payload by which a delivered packet is known; its number follows.
pub const MARK: &[u8] = b"made by hand";
/// Packets of one attempt.
const TEN: u8 = 10;

/// MAC of an interface.
///
/// # Panics
/// There is no such interface.
pub fn link_mac(netns: &Netns, link: &str) -> [u8; 6] {
    mac(&netns.link(link).address.expect("a MAC"))
}

/// What `right` sends to the pod `client` for the pod `server`.
///
/// # Panics
/// A node has no tunnel.
pub fn honest(pair: &Pair) -> Tunnelled {
    Tunnelled {
        outer_mac: (link_mac(&pair.right.netns, "eth0"), link_mac(&pair.left.netns, "eth0")),
        outer: (pair.right.address, pair.left.address),
        port: TUNNEL,
        flags: 8,
        vni: 1,
        inner_mac: (mac(&pair.right.vtep_mac()), mac(&pair.left.vtep_mac())),
        inner: (pair.server.address, pair.client.address),
        ports: (4000, 4001),
        payload: MARK.to_vec(),
    }
}

/// A stranger on the underlay of a pair, who sends to the pod `client` what only
/// `right` may send for the pod `server`.
pub struct Forger {
    /// Its namespace; `eth0` is on the underlay.
    pub stranger: Netns,
    /// Its address.
    pub address: Ipv4Addr,
    /// What it sends: inside as `right` would, outside from its own address.
    pub packet: Tunnelled,
    victim: Wire,
}

impl Forger {
    /// Joins the underlay.
    ///
    /// # Panics
    /// It cannot.
    pub fn new(pair: &Pair) -> Self {
        let address = Ipv4Addr::new(192, 0, 2, 250);
        let stranger = pair.lab.stranger(address);
        let honest = honest(pair);
        let packet = Tunnelled {
            outer_mac: (link_mac(&stranger, "eth0"), honest.outer_mac.1),
            outer: (address, honest.outer.1),
            ..honest
        };
        let victim = Wire::open(&pair.client.netns, "eth0");
        Self { stranger, address, packet, victim }
    }

    /// Watches another pod than `client`, to which packets have to be sent.
    pub fn watch(&mut self, netns: &Netns, address: Ipv4Addr) {
        self.victim = Wire::open(netns, "eth0");
        self.packet.inner.1 = address;
    }

    /// Sends ten packets by an interface: how many came to the pod.
    pub fn ten(&self, from: &Netns, link: &str) -> usize {
        self.ten_frames(from, link, |frame| vec![frame])
    }

    /// As [`Forger::ten`], with frames that `make` makes of each packet's.
    pub fn ten_frames(
        &self,
        from: &Netns,
        link: &str,
        make: impl Fn(Vec<u8>) -> Vec<Vec<u8>>,
    ) -> usize {
        let wire = Wire::open(from, link);
        for number in 0..TEN {
            for frame in make(self.numbered(number).frame()) {
                wire.send(&frame);
            }
        }
        self.delivered()
    }

    /// Sends the packets' UDP payloads from a namespace's plain socket to an
    /// address: how many came to the pod.
    ///
    /// # Panics
    /// There is no way to it.
    pub fn ten_datagrams(&self, from: &Netns, to: Ipv4Addr) -> usize {
        from.inside(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
            for number in 0..TEN {
                let frame = self.numbered(number).frame();
                let sent = socket.send_to(&frame[OUTER - 8..], SocketAddrV4::new(to, TUNNEL));
                sent.expect("a datagram");
            }
        });
        self.delivered()
    }

    fn numbered(&self, number: u8) -> Tunnelled {
        let mut packet = self.packet.clone();
        packet.payload.push(number);
        packet
    }

    fn delivered(&self) -> usize {
        let mut numbers = BTreeSet::new();
        self.victim.frames(Duration::from_millis(500), usize::from(TEN), |frame| {
            let at = frame.windows(MARK.len()).position(|bytes| bytes == MARK);
            at.is_some_and(|at| numbers.insert(frame.get(at + MARK.len()).copied()))
        });
        numbers.len()
    }
}

/// The frame with a VLAN tag of this control information.
pub fn with_tag(frame: &[u8], control: u16) -> Vec<u8> {
    let [high, low] = control.to_be_bytes();
    [&frame[..12], &[0x81, 0, high, low], &frame[12..]].concat()
}

/// The frame with options (three times "no operation", then their end) in its
/// outer IPv4 header.
///
/// # Panics
/// It has an outer header of another form.
pub fn with_options(frame: &[u8]) -> Vec<u8> {
    let (mut header, payload) = outer(frame);
    header.options = [1, 1, 1, 0].into();
    rebuilt(frame, header, payload)
}

/// The frame's outer packet in two fragments.
///
/// # Panics
/// It has an outer header of another form.
pub fn fragments(frame: &[u8]) -> Vec<Vec<u8>> {
    let (header, payload) = outer(frame);
    let cut = 48;
    let part = |offset: u16, more: bool, payload: &[u8]| {
        let mut header = header.clone();
        (header.dont_fragment, header.more_fragments) = (false, more);
        header.identification = u16::from(*frame.last().expect("a byte")) + 100;
        header.fragment_offset = IpFragOffset::try_new(offset / 8).expect("an offset");
        rebuilt(frame, header, payload)
    };
    vec![part(0, true, &payload[..cut]), part(cut as u16, false, &payload[cut..])]
}

fn outer(frame: &[u8]) -> (Ipv4Header, &[u8]) {
    Ipv4Header::from_slice(&frame[14..]).expect("an IPv4 header")
}

fn rebuilt(frame: &[u8], mut header: Ipv4Header, payload: &[u8]) -> Vec<u8> {
    header.set_payload_len(payload.len()).expect("a short payload");
    header.header_checksum = header.calc_header_checksum();
    [&frame[..14], &header.to_bytes()[..], payload].concat()
}
