//! Sets of addresses and ports, as ranges. Pure.

/// Numbers up to `MAX`, as ascending ranges that neither overlap nor touch.
/// `None` stands for all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ranges<const MAX: u32>(Option<Vec<(u32, u32)>>);

/// Ports.
pub type Ports = Ranges<{ u16::MAX as u32 }>;
/// IPv4 addresses, as numbers.
pub type Addresses = Ranges<{ u32::MAX }>;

impl<const MAX: u32> Ranges<MAX> {
    /// All numbers.
    pub const ALL: Self = Self(None);

    /// The numbers of all these ranges, both ends included.
    pub fn of(ranges: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut sorted: Vec<(u32, u32)> = ranges
            .into_iter()
            .filter(|(low, high)| low <= high && *low <= MAX)
            .map(|(low, high)| (low, high.min(MAX)))
            .collect();
        sorted.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::with_capacity(sorted.len());
        for (low, high) in sorted {
            match joined.last_mut() {
                Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
                _ => joined.push((low, high)),
            }
        }
        Self(Some(joined).filter(|joined| *joined != [(0, MAX)]))
    }

    /// Whether these are all numbers.
    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_some_and(Vec::is_empty)
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> &[(u32, u32)] {
        self.0.as_deref().unwrap_or(const { &[(0, MAX)] })
    }

    /// What is in both.
    pub fn and(&self, other: &Self) -> Self {
        let (Some(ours), Some(theirs)) = (&self.0, &other.0) else {
            return if self.is_all() { other.clone() } else { self.clone() };
        };
        let (mut left, mut right) = (ours.iter().peekable(), theirs.iter().peekable());
        let mut both = Vec::new();
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            if a.0.max(b.0) <= a.1.min(b.1) {
                both.push((a.0.max(b.0), a.1.min(b.1)));
            }
            if a.1 < b.1 {
                left.next()
            } else {
                right.next()
            };
        }
        Self::of(both)
    }

    /// All others.
    pub fn not(&self) -> Self {
        let mut gaps = Vec::new();
        let mut next = Some(0);
        for (low, high) in self.ranges() {
            if let Some(start) = next.filter(|start| start < low) {
                gaps.push((start, low - 1));
            }
            next = high.checked_add(1).filter(|next| *next <= MAX);
        }
        gaps.extend(next.map(|start| (start, MAX)));
        Self::of(gaps)
    }

    /// Whether every number of `other` is one of these.
    pub fn covers(&self, other: &Self) -> bool {
        self.is_all() || self.and(other) == *other
    }

    /// At most `limit` ranges that hold all of these: the narrowest gaps go.
    pub fn coarse(&self, limit: usize) -> Self {
        let mut ranges = self.ranges().to_vec();
        while ranges.len() > limit.max(1) {
            let gaps = ranges.windows(2).map(|pair| pair[1].0 - pair[0].1);
            let narrowest = gaps.enumerate().min_by_key(|(_, gap)| *gap).map_or(0, |(at, _)| at);
            ranges[narrowest].1 = ranges[narrowest + 1].1;
            ranges.remove(narrowest + 1);
        }
        Self::of(ranges)
    }
}

/// A network: its first address and the length of its prefix.
pub type Prefix = (u32, u8);

impl Addresses {
    /// The addresses of a network.
    pub fn prefix(address: u32, length: u8) -> Self {
        let rest = u32::MAX.checked_shr(length.into()).unwrap_or(0);
        Self::of([(address & !rest, address | rest)])
    }

    /// At most `limit` networks that hold all of these.
    pub fn prefixes(&self, limit: usize) -> Vec<Prefix> {
        let exact: Vec<Prefix> = self.ranges().iter().flat_map(|range| split(*range)).collect();
        if exact.len() <= limit {
            return exact;
        }
        let coarse = self.coarse(limit);
        let networks = coarse.ranges().iter().map(|(low, high)| around(*low, *high));
        let joined =
            Self::of(networks.flat_map(|(address, length)| {
                Self::prefix(address, length).ranges().first().copied()
            }));
        let networks: Vec<Prefix> =
            joined.ranges().iter().flat_map(|range| split(*range)).collect();
        if networks.len() <= limit {
            return networks;
        }
        match (joined.ranges().first(), joined.ranges().last()) {
            (Some(first), Some(last)) => vec![around(first.0, last.1)],
            _ => Vec::new(),
        }
    }
}

/// The smallest network with both addresses in it.
fn around(low: u32, high: u32) -> Prefix {
    let length = (low ^ high).leading_zeros() as u8;
    let rest = u32::MAX.checked_shr(length.into()).unwrap_or(0);
    (low & !rest, length)
}

/// The networks that a range consists of.
fn split((low, high): (u32, u32)) -> Vec<Prefix> {
    let mut networks = Vec::new();
    let mut next = Some(low);
    while let Some(start) = next.filter(|start| *start <= high) {
        let mut host_bits = start.trailing_zeros().min(32);
        let last = loop {
            let rest = u32::MAX.checked_shr(32 - host_bits).unwrap_or(0);
            if start | rest <= high {
                break start | rest;
            }
            host_bits -= 1;
        };
        networks.push((start, (32 - host_bits) as u8));
        next = last.checked_add(1);
    }
    networks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn has<const MAX: u32>(ranges: &Ranges<MAX>, number: u32) -> bool {
        ranges.ranges().iter().any(|(low, high)| (low..=high).contains(&&number))
    }

    fn some_ports() -> impl Strategy<Value = Ports> {
        let end = prop_oneof![0..12u32, 65_530..=65_535u32, any::<u16>().prop_map(u32::from)];
        proptest::collection::vec((end.clone(), end), 0..5).prop_map(Ports::of)
    }

    fn some_addresses() -> impl Strategy<Value = Addresses> {
        let end = prop_oneof![0..20u32, any::<u32>(), (u32::MAX - 20)..=u32::MAX];
        proptest::collection::vec((end.clone(), end), 0..6).prop_map(Addresses::of)
    }

    fn port() -> impl Strategy<Value = u32> {
        prop_oneof![0..14u32, 65_528..=65_535u32, any::<u16>().prop_map(u32::from)]
    }

    proptest! {
        #[test]
        fn and_not_and_covers_are_those_of_sets(a in some_ports(), b in some_ports(), x in port()) {
            prop_assert_eq!(has(&a.and(&b), x), has(&a, x) && has(&b, x));
            prop_assert_eq!(has(&a.not(), x), !has(&a, x));
            prop_assert_eq!(a.not().not(), a.clone());
            prop_assert!(a.covers(&a.and(&b)));
            prop_assert!(!a.covers(&b) || !has(&b, x) || has(&a, x));
            prop_assert_eq!(a.covers(&b), a.not().and(&b).is_empty());
        }

        #[test]
        fn coarse_ranges_hold_all(a in some_ports(), limit in 1..4usize, x in port()) {
            let coarse = a.coarse(limit);
            prop_assert!(coarse.ranges().len() <= limit.max(1));
            prop_assert!(coarse.covers(&a));
            prop_assert!(!has(&a, x) || has(&coarse, x));
        }

        #[test]
        fn networks_hold_all_and_few_are_exact(a in some_addresses(), limit in 1..9usize) {
            let networks = a.prefixes(limit);
            prop_assert!(networks.len() <= limit);
            let all = |networks: &[Prefix]| Addresses::of(networks.iter().flat_map(|(base, length)| {
                Addresses::prefix(*base, *length).ranges().to_vec()
            }));
            prop_assert!(all(&networks).covers(&a));
            prop_assert_eq!(all(&a.prefixes(usize::MAX)), a);
        }
    }

    #[test]
    fn all_numbers_are_known_as_all() {
        assert!(Ports::of([(0, 100), (101, 70_000)]).is_all());
        assert!(Addresses::prefix(7, 0).is_all());
        assert!(Ports::ALL.not().is_empty());
        assert!(Ports::of([]).not().is_all());
        assert_eq!(Addresses::prefix(0x0a05_0102, 32).ranges(), [(0x0a05_0102, 0x0a05_0102)]);
    }

    #[test]
    fn a_complement_of_a_network_is_networks() {
        let outside = Addresses::prefix(0x0a00_0000, 8).not();
        assert_eq!(outside.prefixes(8).len(), 8);
        assert_eq!(outside.prefixes(4).len(), 1, "too many: one around all");
        let two = Addresses::of([(1, 1), (3, 3)]);
        assert_eq!(two.prefixes(2), [(1, 32), (3, 32)]);
        assert_eq!(two.prefixes(1), [(0, 30)]);
    }
}
