//! What a node puts on the underlay, checked without the kernel (pure).

use std::collections::HashMap;

use etherparse::{Ipv4HeaderSlice, TcpHeaderSlice, UdpHeaderSlice};

const ETH: usize = 14;
const UDP: usize = 8;
const VXLAN: usize = 8;
/// UDP port of the tunnel.
const PORT: u16 = 8472;
/// IP protocol numbers.
const TCP_PROTOCOL: u8 = 6;
const UDP_PROTOCOL: u8 = 17;

/// What frames have to be like.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Largest outer IP packet in bytes.
    pub mtu: usize,
    /// Largest inner IP packet in bytes.
    pub overlay_mtu: usize,
    /// Whether TCP and UDP checksums are there: with offloading they are added
    /// behind the place where frames are captured.
    pub checksums: bool,
}

/// Frames of a run, counted and judged one by one.
#[derive(Debug)]
pub struct Judge {
    rules: Rules,
    /// Tunnel packets seen.
    pub packets: usize,
    /// Of these, inner TCP and UDP packets whose checksum was right.
    pub verified: usize,
    /// What was wrong, the first few.
    pub wrong: Vec<String>,
    /// Tunnel packets with the identification of the one before in their flow.
    pub repeated_ids: usize,
    last_ids: HashMap<(u32, u16), u16>,
}

impl Judge {
    /// One that has seen nothing.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            packets: 0,
            verified: 0,
            wrong: Vec::new(),
            repeated_ids: 0,
            last_ids: HashMap::new(),
        }
    }

    /// Looks at one frame; what is no tunnel packet is passed over.
    pub fn see(&mut self, frame: &[u8]) {
        let Some(packet) = tunnel(frame) else { return };
        self.packets += 1;
        let id = packet.ip.identification();
        let flow = (u32::from(packet.ip.source_addr()), packet.udp.source_port());
        if self.last_ids.insert(flow, id) == Some(id) {
            self.repeated_ids += 1;
        }
        match packet.check(&self.rules) {
            Ok(verified) => self.verified += usize::from(verified),
            Err(error) if self.wrong.len() < 5 => self.wrong.push(error),
            Err(_) => {}
        }
    }

    /// The complaint, if there is one.
    pub fn complaint(&self) -> Option<String> {
        if !self.wrong.is_empty() {
            return Some(format!("on the wire: {}", self.wrong.join("; ")));
        }
        // Packets that belong together are numbered on; two others have the same
        // random number once in 65,536 times.
        (self.repeated_ids > 2 + self.packets / 1000)
            .then(|| format!("{} of {} outer IDs repeated", self.repeated_ids, self.packets))
    }
}

/// A tunnel packet, outer headers apart.
struct Tunnel<'a> {
    ip: Ipv4HeaderSlice<'a>,
    udp: UdpHeaderSlice<'a>,
    /// Outer IP packet.
    outer: &'a [u8],
    /// From the VXLAN header on.
    inside: &'a [u8],
}

fn tunnel(frame: &[u8]) -> Option<Tunnel<'_>> {
    if frame.get(12..ETH)? != [8, 0] {
        return None;
    }
    let outer = &frame[ETH..];
    let ip = Ipv4HeaderSlice::from_slice(outer).ok()?;
    if ip.protocol().0 != UDP_PROTOCOL || ip.is_fragmenting_payload() {
        return None;
    }
    let behind = &outer[ip.slice().len()..];
    let udp = UdpHeaderSlice::from_slice(behind).ok()?;
    (udp.destination_port() == PORT).then_some(Tunnel { ip, udp, outer, inside: &behind[UDP..] })
}

impl Tunnel<'_> {
    /// Whether an inner checksum was there, and right.
    fn check(&self, rules: &Rules) -> Result<bool, String> {
        lengths("outer", &self.ip, self.outer.len(), rules.mtu)?;
        let behind = self.outer.len() - self.ip.slice().len();
        if usize::from(self.udp.length()) != behind {
            return Err(format!("outer UDP length {} of {behind}", self.udp.length()));
        }
        let sum = self.udp.checksum();
        if rules.checksums && sum != 0 {
            let right = self.udp.to_header().calc_checksum_ipv4(&self.ip.to_header(), self.inside);
            if right != Ok(sum) {
                return Err(format!("outer UDP checksum {sum:#06x}, not {right:?}"));
            }
        }
        let frame = self.inside.get(VXLAN..).ok_or("no inner frame")?;
        if self.inside[0] != 8 {
            return Err(format!("VXLAN flags {:#04x}", self.inside[0]));
        }
        if frame.get(12..ETH) != Some(&[8, 0]) {
            return Ok(false);
        }
        let inner = &frame[ETH..];
        let ip = Ipv4HeaderSlice::from_slice(inner).map_err(|error| format!("inner: {error}"))?;
        lengths("inner", &ip, inner.len(), rules.overlay_mtu)?;
        if !rules.checksums || ip.is_fragmenting_payload() {
            return Ok(false);
        }
        transport(&ip, &inner[ip.slice().len()..])
    }
}

fn lengths(which: &str, ip: &Ipv4HeaderSlice<'_>, len: usize, mtu: usize) -> Result<(), String> {
    if usize::from(ip.total_len()) != len {
        return Err(format!("{which} length {} of {len}", ip.total_len()));
    }
    if len > mtu {
        return Err(format!("{which} packet of {len} bytes, MTU {mtu}"));
    }
    let right = ip.to_header().calc_header_checksum();
    if ip.header_checksum() != right {
        return Err(format!("{which} header checksum {:#06x}", ip.header_checksum()));
    }
    Ok(())
}

fn transport(ip: &Ipv4HeaderSlice<'_>, behind: &[u8]) -> Result<bool, String> {
    let header = ip.to_header();
    let (found, right) = match ip.protocol().0 {
        TCP_PROTOCOL => {
            let tcp = TcpHeaderSlice::from_slice(behind).map_err(|error| error.to_string())?;
            let payload = &behind[tcp.slice().len()..];
            (tcp.checksum(), tcp.to_header().calc_checksum_ipv4(&header, payload))
        }
        UDP_PROTOCOL => {
            let udp = UdpHeaderSlice::from_slice(behind).map_err(|error| error.to_string())?;
            if usize::from(udp.length()) != behind.len() {
                return Err(format!("inner UDP length {} of {}", udp.length(), behind.len()));
            }
            (udp.checksum(), udp.to_header().calc_checksum_ipv4(&header, &behind[UDP..]))
        }
        _ => return Ok(false),
    };
    // Of the two forms of zero the kernel writes the one that UDP needs in TCP, too.
    let equal = right.as_ref().is_ok_and(|right| *right % u16::MAX == found % u16::MAX);
    if !equal {
        return Err(format!("inner checksum {found:#06x}, not {right:04x?}"));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use flannel_tests::forge::{OUTER, Tunnelled};

    const RULES: Rules = Rules { mtu: 1500, overlay_mtu: 1450, checksums: true };

    fn frame(payload: usize) -> Vec<u8> {
        let mac = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        Tunnelled {
            outer_mac: mac,
            outer: (Ipv4Addr::new(192, 0, 2, 11), Ipv4Addr::new(192, 0, 2, 12)),
            port: PORT,
            flags: 8,
            vni: 1,
            inner_mac: mac,
            inner: (Ipv4Addr::new(10, 244, 1, 2), Ipv4Addr::new(10, 244, 2, 2)),
            ports: (4000, 5000),
            payload: vec![7; payload],
        }
        .frame()
    }

    fn judged(rules: Rules, frames: &[Vec<u8>]) -> Judge {
        let mut judge = Judge::new(rules);
        frames.iter().for_each(|frame| judge.see(frame));
        judge
    }

    #[test]
    fn a_right_packet_is_right() {
        let judge = judged(RULES, &[frame(100)]);
        assert_eq!((judge.packets, judge.verified, judge.complaint()), (1, 1, None));
    }

    #[test]
    fn every_part_of_a_packet_is_looked_at() {
        // Length, TTL (header checksum), UDP length, UDP checksum, VXLAN flags;
        // inner length, TTL, UDP length, payload.
        let places = [ETH + 3, ETH + 8, 39, 41, 42];
        let inner = [3, 8, 25, 40].map(|place| OUTER + ETH + place);
        for place in places.into_iter().chain(inner) {
            let mut wrong = frame(100);
            wrong[place] ^= 1;
            assert!(judged(RULES, &[wrong]).complaint().is_some(), "byte {place}");
        }
        let mut inner_only = frame(100);
        // No outer checksum: the inner one has to be looked at.
        inner_only[40..42].fill(0);
        inner_only[OUTER + ETH + 40] ^= 1;
        let offloaded = Rules { checksums: false, ..RULES };
        assert!(judged(RULES, std::slice::from_ref(&inner_only)).complaint().is_some());
        assert_eq!(judged(offloaded, &[inner_only]).complaint(), None);
    }

    #[test]
    fn what_is_longer_than_the_mtu_is_wrong() {
        assert_eq!(judged(RULES, &[frame(1450 - 28)]).complaint(), None);
        assert!(judged(RULES, &[frame(1450 - 27)]).complaint().is_some());
    }

    #[test]
    fn segments_need_numbers_of_their_own() {
        let same = vec![frame(100); 10];
        assert!(judged(RULES, &same).complaint().is_some());
    }
}
