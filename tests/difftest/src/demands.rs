//! What a build has to do. The constants that are off name what this build
//! leaves to the kernel, or does not repeat yet: turn one on with the change that
//! makes it true.

use super::kind::{By, Kind};
use super::mode::Mode;

/// Share (0..=1) of the packets that has to take the fast path where any has to:
/// otherwise nothing was compared.
pub const FAST_SHARE: f64 = 0.3;

/// Whether translated flows take the fast path.
pub const TRANSLATED: bool = true;

/// Whether flows whose DSCP a rule rewrites take the fast path.
pub const REWRITTEN: bool = true;

/// Whether packets leave the node with the mark and the priority that the kernel
/// path gives them, where netfilter's egress hook looks. Off: packets that programs
/// redirect skip that hook, and nothing leaves by them while a chain is there. So the
/// kernel path alone is asked; the cases of shaping compare both by qdiscs.
pub const SIGNS: bool = false;

/// Whether a flow that a rule rewrites to one DSCP may have packets that carry that
/// value already, and so leave as they came. Off: none is made.
pub const MIXED_DSCP: bool = true;

/// The same for a rule that writes one TTL.
pub const MIXED_TTL: bool = false;

/// Whether a packet that conntrack calls invalid, and so does not translate, leaves
/// the rest of its flow alone. Off: translated flows that pass as they are for a
/// window after one are counted, and no fault.
pub const INVALID: bool = false;

/// Whether all packets of a translated flow have one outer source port. Off: a
/// packet that no program parses (a fragment, a wrong length) gets its hash behind
/// the translation, the others before it.
pub const SOURCE_PORTS: bool = false;

/// Whether a connection that began on the fast path (eager) may be followed by one
/// from the same port. Off: none is. Conntrack may have picked up the first one
/// by a packet of the server, and has not seen its end: then a SYN of the client
/// that comes to the kernel is invalid to it.
pub const REUSED: bool = false;

/// Share of a kind's packets that has to take the fast path on the node that
/// changes them, each direction on its own.
pub fn changed_share(mode: Mode, kind: Kind) -> Option<f64> {
    // The answers are addressed to the node.
    let by_address = kind == Kind::MasqueradeByPeer
        || (kind.masquerades() && kind.by() == By::Client && mode == Mode::HostGw);
    let demanded = match kind {
        Kind::Plain | Kind::Mark | Kind::Priority => true,
        // The path counts one hop down and knows no other change.
        Kind::Ttl => false,
        Kind::Dscp => REWRITTEN,
        Kind::ServiceDscp => TRANSLATED && REWRITTEN,
        Kind::Everything => TRANSLATED && REWRITTEN && !by_address,
        _ => TRANSLATED && !by_address,
    };
    (demanded && demanded_in(mode, kind)).then_some(FAST_SHARE)
}

/// Share of a kind's packets that has to take the fast path on the other node,
/// which sees an ordinary flow between pods, each direction on its own.
pub fn unchanged_share(mode: Mode, kind: Kind) -> Option<f64> {
    let ordinary = match kind {
        Kind::Masquerade | Kind::ServiceMasquerade | Kind::Everything => mode != Mode::HostGw,
        _ => true,
    };
    (ordinary && demanded_in(mode, kind)).then_some(FAST_SHARE)
}

/// Short connections are not all confirmed.
fn demanded_in(mode: Mode, kind: Kind) -> bool {
    mode != Mode::Eager || kind == Kind::Plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::ALL;

    #[test]
    fn plain_flows_have_to_be_fast_on_both_nodes_in_every_mode() {
        for mode in Mode::ALL {
            assert_eq!(changed_share(mode, Kind::Plain), Some(FAST_SHARE));
            assert_eq!(unchanged_share(mode, Kind::Plain), Some(FAST_SHARE));
        }
    }

    #[test]
    fn translated_flows_have_to_be_fast_where_that_is_on() {
        let translated = ALL.into_iter().filter(|kind| kind.translates() && !kind.marks_dscp());
        for kind in translated {
            let by_address = kind == Kind::MasqueradeByPeer;
            let demanded = (TRANSLATED && !by_address).then_some(FAST_SHARE);
            assert_eq!(changed_share(Mode::Services, kind), demanded, "{kind:?}");
            assert_eq!(unchanged_share(Mode::Services, kind), Some(FAST_SHARE), "{kind:?}");
        }
        assert_eq!(changed_share(Mode::Services, Kind::Ttl), None);
    }
}
