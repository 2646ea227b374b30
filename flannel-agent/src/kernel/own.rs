//! What we do ourselves: its echo among the kernel's events is no news.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::mac::MacAddr;
use flannel_core::op::Op;

/// Shared between who changes the kernel's tables and who hears of changes.
///
/// Events of routes and neighbours name the socket that asked for them. Those of a
/// VXLAN device's FDB, and of the end of a neighbour, do not: they are known by what
/// they say.
#[derive(Clone, Debug, Default)]
pub struct Own(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Port of the socket.
    port: Option<u32>,
    /// Entries that were asked for, and whose event has not come.
    put: HashSet<Entry>,
    /// The same of their removal.
    removed: HashSet<Entry>,
}

/// Device, and MAC and destination of an FDB entry; no MAC for a neighbour.
type Entry = (u32, Option<MacAddr>, Ipv4Addr);

impl Own {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests come by the socket with this port.
    pub(super) fn set_port(&self, port: u32) {
        self.lock().port = Some(port);
    }

    /// These operations will be asked for.
    pub(super) fn expect(&self, ifindex: u32, ops: &[&Op]) {
        let mut state = self.lock();
        for op in ops {
            match op {
                Op::PutFdb(mac, to) => state.put.insert((ifindex, Some(*mac), *to)),
                Op::RemoveFdb(mac, to) => state.removed.insert((ifindex, Some(*mac), *to)),
                Op::RemoveNeighbour(ip, _) => state.removed.insert((ifindex, None, *ip)),
                _ => false,
            };
        }
    }

    /// It was refused: what is told of it is somebody else's doing.
    pub(super) fn refused(&self, ifindex: u32, op: &Op) {
        let mut state = self.lock();
        match op {
            Op::PutFdb(mac, to) => state.put.remove(&(ifindex, Some(*mac), *to)),
            Op::RemoveFdb(mac, to) => state.removed.remove(&(ifindex, Some(*mac), *to)),
            Op::RemoveNeighbour(ip, _) => state.removed.remove(&(ifindex, None, *ip)),
            _ => false,
        };
    }

    /// Events were lost, perhaps of what was asked for: a later one is news.
    pub(super) fn forget(&self) {
        let mut state = self.lock();
        state.put.clear();
        state.removed.clear();
    }

    /// Whether an event is of a request of this socket.
    pub(super) fn asked(&self, port: u32) -> bool {
        port != 0 && self.lock().port == Some(port)
    }

    /// Whether an event of an entry tells what we asked for; `mac` is that of an FDB
    /// entry.
    pub(super) fn told(
        &self,
        gone: bool,
        ifindex: u32,
        mac: Option<MacAddr>,
        to: Ipv4Addr,
    ) -> bool {
        let mut state = self.lock();
        let entry = (ifindex, mac, to);
        if gone { state.removed.remove(&entry) } else { state.put.remove(&entry) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_known_once() {
        let own = Own::default();
        let (mac, to) = (MacAddr([2; 6]), Ipv4Addr::new(192, 0, 2, 7));
        own.expect(3, &[&Op::PutFdb(mac, to), &Op::RemoveFdb(mac, to)]);
        assert!(!own.told(false, 4, Some(mac), to), "another device's");
        assert!(own.told(false, 3, Some(mac), to));
        assert!(own.told(true, 3, Some(mac), to));
        assert!(!own.told(true, 3, Some(mac), to), "somebody removes it again");
        own.expect(3, &[&Op::RemoveNeighbour(to, mac)]);
        assert!(!own.told(true, 3, Some(mac), to), "an FDB entry");
        assert!(own.told(true, 3, None, to) && !own.told(true, 3, None, to));
        own.expect(3, &[&Op::RemoveFdb(mac, to)]);
        own.refused(3, &Op::RemoveFdb(mac, to));
        assert!(!own.told(true, 3, Some(mac), to), "it was not us");
    }

    #[test]
    fn the_kernel_itself_is_not_us() {
        let own = Own::default();
        assert!(!own.asked(0) && !own.asked(7));
        own.set_port(7);
        assert!(own.asked(7) && !own.asked(8) && !own.asked(0));
    }
}
