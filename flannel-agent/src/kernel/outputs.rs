//! By which interfaces the routes of the main table lead where. From the bytes:
//! the library loses routes with next hops of another family. Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::raw;

pub(super) const RTM_GETROUTE: u16 = 26;
/// Length of `struct rtmsg`.
const RTMSG_LEN: usize = 12;
/// Length of `struct rtnexthop`.
const HOP_LEN: usize = 8;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
/// RT_TABLE_MAIN.
const MAIN: u8 = 254;
/// RTN_UNICAST.
const UNICAST: u8 = 1;

/// Asks for all routes of the main table, or for those of a single candidate.
pub(super) fn question(candidates: &BTreeSet<u32>) -> Vec<u8> {
    let mut ask = vec![0; RTMSG_LEN];
    ask[0] = libc::AF_INET as u8;
    ask[4] = MAIN;
    if let (Some(only), 1) = (candidates.first(), candidates.len()) {
        raw::put(&mut ask, RTA_OIF, &only.to_ne_bytes());
    }
    ask
}

/// Where a unicast route of the main table leads, and by which interfaces.
pub(super) fn of(route: &[u8]) -> Option<(Ipv4Network, Vec<u32>)> {
    if *route.get(4)? != MAIN || *route.get(7)? != UNICAST {
        return None;
    }
    let attributes = route.get(RTMSG_LEN..)?;
    let destination: Option<[u8; 4]> =
        raw::attribute(attributes, RTA_DST).and_then(|octets| octets.try_into().ok());
    let address = destination.map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from);
    let destination = Ipv4Network::new(address, *route.get(1)?).ok()?;
    Some((destination, all(attributes)))
}

/// The interfaces by which a route leads, by its attributes.
pub(super) fn all(attributes: &[u8]) -> Vec<u32> {
    let single = raw::attribute(attributes, RTA_OIF).and_then(|value| raw::number(value, 0));
    let mut outputs: Vec<u32> = single.into_iter().collect();
    let mut hops = raw::attribute(attributes, RTA_MULTIPATH).unwrap_or_default();
    while let (Some(length), Some(output)) = (raw::short(hops, 0), raw::number(hops, 4)) {
        outputs.push(output);
        let length = usize::from(length).max(HOP_LEN).next_multiple_of(4);
        hops = hops.get(length..).unwrap_or_default();
    }
    outputs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(prefix: u8, table: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; RTMSG_LEN];
        (bytes[1], bytes[4], bytes[7]) = (prefix, table, UNICAST);
        attributes.iter().for_each(|(kind, value)| raw::put(&mut bytes, *kind, value));
        bytes
    }

    #[test]
    fn all_next_hops_are_outputs() {
        let hop = |length: u16, output: u32, more: &[u8]| {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend([0, 0]);
            bytes.extend(output.to_ne_bytes());
            bytes.extend(more);
            bytes
        };
        let hops = [hop(16, 7, &[9; 8]), hop(8, 8, &[])].concat();
        let (destination, outputs) = of(&route(0, MAIN, &[(RTA_MULTIPATH, &hops)])).unwrap();
        assert_eq!((destination.to_string().as_str(), outputs), ("0.0.0.0/0", vec![7, 8]));
        let output = 5_u32.to_ne_bytes();
        let single: [(u16, &[u8]); 2] = [(RTA_DST, &[192, 0, 2, 0]), (RTA_OIF, &output)];
        let (destination, outputs) = of(&route(24, MAIN, &single)).unwrap();
        assert_eq!((destination.to_string().as_str(), outputs), ("192.0.2.0/24", vec![5]));
        assert_eq!(of(&route(24, 100, &single)), None);
        // A next hop that says it has no length.
        let (_, outputs) = of(&route(0, MAIN, &[(RTA_MULTIPATH, &hop(0, 7, &[]))])).unwrap();
        assert_eq!(outputs, [7]);
    }
}
