//! Routes with an MTU or a hop limit of their own: what the programs are told of them.

use std::net::Ipv4Addr;

use flannel_core::health::Subject;
use flannel_core::limits::{Asked, Destination, LimitedRoutes, TunnelEnd};

use super::{State, Watch};
use crate::bpf::{BpfError, Which};

impl Watch {
    /// Whether the node has such routes, as far as is known.
    pub(super) fn has_limited_routes(&self) -> bool {
        self.state().limited.as_ref().is_none_or(|routes| !routes.is_empty())
    }

    /// Reads the routes anew, and asks for the way to all peers of them.
    pub(super) fn look_at_routes(&self) {
        let mut state = self.state();
        if state.teller.is_some() {
            self.read_routes(&mut state);
        }
    }

    /// Asks for the way to peers that are new.
    pub fn look_at_new_peers(&self) {
        self.bound_new_peers(&mut self.state());
    }

    /// Reads the routes if that was not done yet, or asks for the way to new peers.
    pub(super) fn settle_routes(&self, state: &mut State) {
        if state.limited.is_none() {
            self.read_routes(state);
        } else {
            self.bound_new_peers(state);
        }
    }

    fn bound_new_peers(&self, state: &mut State) {
        if state.limited.as_ref().is_some_and(|routes| !routes.is_empty()) {
            let told = bound_peers(state, Which::New);
            if told.is_err() {
                self.shared.report(Subject::RouteLimits, told);
            }
        }
    }

    fn read_routes(&self, state: &mut State) {
        let found = state.inspector.limited_routes();
        let unread = found.as_ref().err().map(ToString::to_string);
        // What was known holds, if it cannot be read.
        if let Ok(found) = found {
            let found = LimitedRoutes::of(found);
            if found.is_empty() && state.limited.as_ref().is_some_and(LimitedRoutes::is_empty) {
                return;
            }
            state.limited = Some(found);
        }
        let told = bound_peers(state, Which::All);
        let failed = unread.or_else(|| told.err().map(|error| error.to_string()));
        self.shared.report(Subject::RouteLimits, failed);
    }
}

/// Tells the programs how large packets to peers may be. What could not be written is
/// tried again with the next look.
fn bound_peers(state: &mut State, which: Which) -> Result<(), BpfError> {
    let Some(teller) = &mut state.teller else { return Ok(()) };
    let (inspector, limited) = (&mut state.inspector, state.limited.as_ref());
    let mut bound = |to: Destination, end: TunnelEnd| {
        // Nothing is known: the kernel sends all.
        let Some(routes) = limited else { return Some(0) };
        let tunnel = (!to.direct).then_some(end);
        let ask = |destination: Ipv4Addr| inspector.limits_of(&Asked { destination, tunnel });
        let largest = routes.largest(to, ask)?;
        Some(u16::try_from(largest).unwrap_or(u16::MAX))
    };
    let none = limited.is_some_and(LimitedRoutes::is_empty);
    let told = teller.bound_peers(which, (!none).then_some(&mut bound));
    if let Ok(Some(now)) = &told {
        tracing::info!(
            narrow = now.narrow,
            kernel = now.left,
            "MTUs and hop limits of routes to peers"
        );
    }
    if told.is_err() {
        state.limited = None;
    }
    told.map(drop)
}
