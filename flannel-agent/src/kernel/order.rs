//! Which of several routes to one destination the kernel takes: the first in its table. From
//! the bytes: others' routes may have attributes that the library does not know.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use flannel_core::subnet::within;
use ipnetwork::Ipv4Network;

use super::netlink::RealKernel;
use super::socket::explain;
use super::{KernelError, PROTOCOL, outputs, raw};

/// Length of `struct rtmsg`.
const RTMSG_LEN: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
/// RT_TABLE_MAIN.
const MAIN: u8 = 254;
/// RTN_UNICAST.
const UNICAST: u8 = 1;

impl RealKernel {
    /// Destinations within the overlay network where somebody else's route comes first.
    pub(super) fn routes_behind(
        &self,
        network: Ipv4Network,
        overlay: Option<u32>,
    ) -> Result<BTreeSet<Ipv4Network>, KernelError> {
        let ask = outputs::question(&BTreeSet::new());
        let pick = |route: raw::Raw| rival(&route.body, network, overlay);
        let found = self.socket().pick_raw(outputs::RTM_GETROUTE, &ask, pick);
        match found {
            Ok(found) => Ok(behind(found)),
            // The kernel makes the table with its first route.
            Err(refused) if refused.source.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(refused) => Err(explain("RTM_GETROUTE", network.to_string(), refused)),
        }
    }
}

/// A route to all packets for a destination within the overlay network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rival {
    destination: Ipv4Network,
    ours: bool,
}

/// A route that may come before one of ours, or that is one. Ours have metric 0.
fn rival(route: &[u8], network: Ipv4Network, overlay: Option<u32>) -> Option<Rival> {
    let [_, prefix, _, tos, table, protocol, _, kind] = *route.first_chunk()?;
    if table != MAIN || tos != 0 {
        return None;
    }
    let attributes = route.get(RTMSG_LEN..)?;
    let address: [u8; 4] = raw::attribute(attributes, RTA_DST)?.try_into().ok()?;
    let destination = Ipv4Network::new(Ipv4Addr::from(address), prefix).ok()?;
    let number = |kind| raw::attribute(attributes, kind).and_then(|value| raw::number(value, 0));
    if !within(network, destination) || number(RTA_PRIORITY).is_some_and(|metric| metric != 0) {
        return None;
    }
    let through = overlay.is_some() && number(RTA_OIF) == overlay;
    let ours = kind == UNICAST && (through || protocol == PROTOCOL);
    Some(Rival { destination, ours })
}

/// Of a table in its order: where the first is not ours.
fn behind(table: Vec<Rival>) -> BTreeSet<Ipv4Network> {
    let mut seen = BTreeSet::new();
    let first = table.into_iter().filter(|rival| seen.insert(rival.destination));
    first.filter(|rival| !rival.ours).map(|rival| rival.destination).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVERLAY: u32 = 9;

    fn route(to: [u8; 4], header: [u8; 5], output: u32, metric: u32) -> Option<Rival> {
        let [prefix, tos, table, protocol, kind] = header;
        let mut bytes = vec![2, prefix, 0, tos, table, protocol, 0, kind, 0, 0, 0, 0];
        raw::put(&mut bytes, RTA_DST, &to);
        if output != 0 {
            raw::put(&mut bytes, RTA_OIF, &output.to_ne_bytes());
        }
        if metric != 0 {
            raw::put(&mut bytes, RTA_PRIORITY, &metric.to_ne_bytes());
        }
        rival(&bytes, "10.5.0.0/16".parse().unwrap(), Some(OVERLAY))
    }

    #[test]
    fn the_first_to_a_destination_counts() {
        let to = |third: u8| [10, 5, third, 0];
        let table = [
            route(to(1), [24, 0, MAIN, 3, UNICAST], OVERLAY, 0),
            route(to(1), [24, 0, MAIN, 3, UNICAST], 2, 0),
            route(to(2), [24, 0, MAIN, 3, 6], 0, 0),
            route(to(2), [24, 0, MAIN, 3, UNICAST], OVERLAY, 0),
            route(to(3), [24, 0, MAIN, PROTOCOL, UNICAST], 2, 0),
            route(to(4), [24, 0, MAIN, PROTOCOL, 6], 0, 0),
        ];
        let expected = ["10.5.2.0/24", "10.5.4.0/24"].map(|text| text.parse().unwrap());
        assert_eq!(behind(table.into_iter().flatten().collect()), expected.into());
    }

    #[test]
    fn what_others_want_elsewhere_is_no_rival() {
        let to = [10, 5, 7, 0];
        assert!(route(to, [24, 0, MAIN, 3, UNICAST], 2, 0).is_some());
        for other in [
            route(to, [24, 0, 100, 3, UNICAST], 2, 0),
            route(to, [24, 0x10, MAIN, 3, UNICAST], 2, 0),
            route(to, [24, 0, MAIN, 3, UNICAST], 2, 7),
            route([10, 6, 7, 0], [24, 0, MAIN, 3, UNICAST], 2, 0),
            route([10, 0, 0, 0], [8, 0, MAIN, 3, UNICAST], 2, 0),
            rival(&[2; 9], "10.5.0.0/16".parse().unwrap(), None),
        ] {
            assert_eq!(other, None);
        }
    }
}
