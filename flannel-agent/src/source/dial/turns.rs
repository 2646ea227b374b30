//! Which of a name's addresses is tried first. One that takes connections may be a store
//! that does not answer, or one that has lost the others: the next connection leads to the
//! next address.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Addresses that are remembered. A name may have others each day.
const KNOWN: usize = 64;

/// When each address was tried last.
#[derive(Default)]
pub(super) struct Turns(Mutex<BTreeMap<SocketAddr, Instant>>);

impl Turns {
    /// What was never tried comes first, as the name has it. Then comes what was tried
    /// longest ago.
    pub(super) fn order(&self, mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let tried = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.sort_by_key(|address| tried.get(address).copied());
        addresses
    }

    /// This address is tried now.
    pub(super) fn took(&self, address: SocketAddr) {
        let mut tried = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tried.insert(address, Instant::now());
        if tried.len() > KNOWN
            && let Some(oldest) = tried.iter().min_by_key(|(_, when)| **when)
        {
            let oldest = *oldest.0;
            tried.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn addresses_take_turns() {
        let turns = Turns::default();
        let all = vec![address(3), address(1), address(2)];
        assert_eq!(turns.order(all.clone()), all);
        turns.took(address(3));
        assert_eq!(turns.order(all.clone()), [address(1), address(2), address(3)]);
        turns.took(address(1));
        assert_eq!(turns.order(all), [address(2), address(3), address(1)]);
    }

    #[test]
    fn not_all_addresses_are_remembered() {
        let turns = Turns::default();
        (0..1000).for_each(|port| turns.took(address(port)));
        assert_eq!(turns.0.lock().unwrap().len(), KNOWN);
        assert_eq!(turns.order(vec![address(999), address(0)]), [address(0), address(999)]);
    }
}
