//! Which subnets may be given out, and which of them are free. Pure.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::config::NetworkConfig;
use crate::subnet::within;

/// Whether `subnet` could have been given out under `config`.
pub fn fits(config: &NetworkConfig, subnet: Ipv4Network) -> bool {
    let first = subnet.network();
    subnet.prefix() == config.subnet_len
        && first >= config.subnet_min
        && first <= config.subnet_max
        && within(config.network, subnet)
}

/// Whether `subnet` has no address in common with any of `taken`.
pub fn is_free(subnet: Ipv4Network, taken: impl IntoIterator<Item = Ipv4Network>) -> bool {
    taken.into_iter().all(|taken| !within(taken, subnet) && !within(subnet, taken))
}

/// Picks one of the free subnets; `choose` gets their number (at least 1) and
/// returns an index below it. `None` when there is no free one.
///
/// The work grows with the number of leases, not with that of subnets.
pub fn pick(
    config: &NetworkConfig,
    taken: impl IntoIterator<Item = Ipv4Network>,
    choose: impl FnOnce(u64) -> u64,
) -> Option<Ipv4Network> {
    let gaps = gaps(config, taken);
    let free = gaps.iter().map(|(from, to)| to - from).sum();
    if free == 0 {
        return None;
    }
    let mut nth = choose(free).min(free - 1);
    for (from, to) in gaps {
        if nth < to - from {
            let slot = from + nth;
            let first = u64::from(u32::from(config.subnet_min)) + slot * size(config);
            let first = Ipv4Addr::from(u32::try_from(first).ok()?);
            return Ipv4Network::new(first, config.subnet_len).ok();
        }
        nth -= to - from;
    }
    None
}

/// Addresses per subnet.
fn size(config: &NetworkConfig) -> u64 {
    1 << (32 - u32::from(config.subnet_len.min(32)))
}

/// The free slots as half-open ranges; slot 0 begins at `subnet_min`.
fn gaps(config: &NetworkConfig, taken: impl IntoIterator<Item = Ipv4Network>) -> Vec<(u64, u64)> {
    let min = u64::from(u32::from(config.subnet_min));
    let max = u64::from(u32::from(config.subnet_max));
    if min > max {
        return Vec::new();
    }
    let slots = (max - min) / size(config) + 1;
    let mut used: Vec<_> = taken
        .into_iter()
        .filter_map(|taken| {
            let first = u64::from(u32::from(taken.network()));
            let last = u64::from(u32::from(taken.broadcast()));
            let from = first.saturating_sub(min) / size(config);
            let to = (last.checked_sub(min)? / size(config) + 1).min(slots);
            (from < to).then_some((from, to))
        })
        .collect();
    used.sort_unstable();
    let mut gaps = Vec::new();
    let mut next = 0;
    for (from, to) in used {
        if from > next {
            gaps.push((next, from));
        }
        next = next.max(to);
    }
    if next < slots {
        gaps.push((next, slots));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Backend, VxlanConfig};

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn config(network: &str, subnet_len: u8, min: &str, max: &str) -> NetworkConfig {
        NetworkConfig {
            network: net(network),
            subnet_len,
            subnet_min: min.parse().unwrap(),
            subnet_max: max.parse().unwrap(),
            backend: Backend::Vxlan(VxlanConfig {
                vni: 1,
                port: 8472,
                gbp: false,
                learning: false,
                mtu: None,
                direct_routing: false,
            }),
        }
    }

    #[test]
    fn a_subnet_fits_by_length_and_bounds() {
        let config = config("10.5.0.0/16", 24, "10.5.1.0", "10.5.20.0");
        for (subnet, expected) in [
            ("10.5.1.0/24", true),
            ("10.5.20.0/24", true),
            ("10.5.0.0/24", false),
            ("10.5.21.0/24", false),
            ("10.5.2.0/25", false),
            ("10.6.2.0/24", false),
        ] {
            assert_eq!(fits(&config, net(subnet)), expected, "{subnet}");
        }
    }

    #[test]
    fn every_free_subnet_can_be_picked_and_no_other() {
        let config = config("10.5.0.0/16", 24, "10.5.1.0", "10.5.8.0");
        // One of another length, one that reaches over the first, one outside.
        let taken = ["10.5.2.0/24", "10.5.4.128/25", "10.5.0.0/23", "10.5.9.0/24", "10.4.0.0/16"];
        let taken: Vec<_> = taken.into_iter().map(net).collect();
        let mut picked = BTreeSet::new();
        for n in 0..5 {
            let subnet = pick(&config, taken.clone(), |free| {
                assert_eq!(free, 5);
                n
            });
            picked.insert(subnet.unwrap().to_string());
        }
        let expected = ["10.5.3.0/24", "10.5.5.0/24", "10.5.6.0/24", "10.5.7.0/24", "10.5.8.0/24"];
        assert_eq!(picked, expected.map(str::to_owned).into());
    }

    #[test]
    fn nothing_is_free_in_a_full_or_empty_range() {
        let full = config("10.5.0.0/16", 24, "10.5.1.0", "10.5.1.0");
        assert_eq!(pick(&full, [], |_| 0), Some(net("10.5.1.0/24")));
        assert_eq!(pick(&full, [net("10.5.1.0/24")], |_| 0), None);
        assert_eq!(pick(&full, [net("0.0.0.0/0")], |_| 0), None);
        let reversed = config("10.5.0.0/16", 24, "10.5.9.0", "10.5.1.0");
        assert_eq!(pick(&reversed, [], |_| 0), None);
    }

    #[test]
    fn the_end_of_the_address_space_is_no_trap() {
        let last = config("255.255.255.0/24", 26, "255.255.255.64", "255.255.255.192");
        assert_eq!(pick(&last, [], |free| free - 1), Some(net("255.255.255.192/26")));
    }

    proptest! {
        #[test]
        fn what_is_picked_fits_and_is_free(
            taken in prop::collection::vec((0u32..0x1_0000, 20u8..=32), 0..60),
            nth in 0u64..300,
        ) {
            let config = config("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0");
            let taken: Vec<_> = taken
                .into_iter()
                .map(|(host, prefix)| {
                    let subnet = Ipv4Network::new((0x0a05_0000 + host).into(), prefix).unwrap();
                    Ipv4Network::new(subnet.network(), prefix).unwrap()
                })
                .collect();
            let free = (1..=255u8)
                .map(|third| net(&format!("10.5.{third}.0/24")))
                .filter(|subnet| is_free(*subnet, taken.iter().copied()))
                .collect::<Vec<_>>();
            let picked = pick(&config, taken.iter().copied(), |count| {
                assert_eq!(count, free.len() as u64);
                nth % count
            });
            match picked {
                Some(subnet) => {
                    prop_assert!(fits(&config, subnet));
                    prop_assert_eq!(subnet, free[(nth % free.len() as u64) as usize]);
                }
                None => prop_assert!(free.is_empty()),
            }
        }
    }
}
