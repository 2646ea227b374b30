//! The connections of a mode. Pure.

use super::demands;
use super::kind::{ALL, Kind};
use super::mode::Mode;

/// Connections of one kind that are repeated, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// What the rules do with them.
    pub kind: Kind,
    /// TCP, else UDP.
    pub tcp: bool,
    /// Opened by the left pod, else by the right one.
    pub from_left: bool,
}

impl Mode {
    /// The connections that live side by side.
    pub fn slots(self) -> Vec<Slot> {
        // Eager's pairs are plain; translated ones beside them may not disturb.
        let plain = if self == Self::Eager { 14 } else { 0 };
        let kinds = ALL.iter().copied().chain(std::iter::repeat_n(Kind::Plain, plain));
        let both = [true, false];
        let slots = kinds.flat_map(|kind| {
            both.into_iter().flat_map(move |tcp| {
                both.into_iter().map(move |from_left| Slot { kind, tcp, from_left })
            })
        });
        // Its ports come again soon. And rules that treat single connections of a
        // client and a service differently are not for eager ones.
        let fits = |slot: &Slot| {
            let single = matches!(
                slot.kind,
                Kind::Dscp | Kind::ServiceDscp | Kind::Ttl | Kind::Mark | Kind::Priority
            );
            self != Self::Eager
                || !slot.tcp
                || ((demands::REUSED || slot.kind != Kind::SourceNat) && !single)
        };
        if self == Self::Confirmed { Vec::new() } else { slots.filter(fits).collect() }
    }
}
