//! Conditions on TCP's flags: the fast path carries packets with ACK and without
//! SYN, FIN and RST only. Pure.

use super::matches::stage;

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const PSH: u8 = 8;
pub(super) const ACK: u8 = 16;
pub(super) const URG: u8 = 32;

/// What a condition on flags means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    /// Bits of [`stage`] with packets that fulfil it.
    pub(super) stages: u8,
    /// Of the packets that the fast path carries some do and some do not.
    pub(super) depends: bool,
    /// Within each stage all do or none.
    pub(super) exact: bool,
}

/// Tries all flags.
pub(super) fn judge(test: impl Fn(u8) -> bool) -> Judged {
    let is_data = |flags: u8| flags & (FIN | SYN | RST | ACK) == ACK;
    let share = |data: bool| {
        let of_stage = (0..=u8::MAX).filter(|flags| is_data(*flags) == data);
        let (mut some, mut all) = (false, true);
        for flags in of_stage {
            let fulfilled = test(flags);
            some |= fulfilled;
            all &= fulfilled;
        }
        (some, all)
    };
    let ((data, all_data), (opening, all_opening)) = (share(true), share(false));
    let bit = |wanted: bool, bit: u8| if wanted { bit } else { 0 };
    Judged {
        stages: bit(data, stage::DATA) | bit(opening, stage::HANDSHAKE),
        depends: data && !all_data,
        exact: data == all_data && opening == all_opening,
    }
}

/// A flag by nft's or iptables' name.
pub(super) fn named(name: &str) -> Option<u8> {
    Some(match name.to_ascii_lowercase().as_str() {
        "fin" => FIN,
        "syn" => SYN,
        "rst" => RST,
        "psh" => PSH,
        "ack" => ACK,
        "urg" => URG,
        "ecn" | "ece" => 64,
        "cwr" => 128,
        "all" => FIN | SYN | RST | PSH | ACK | URG,
        "none" => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_the_handshake_is_told_from_the_rest() {
        let syn = judge(|flags| flags & (SYN | RST) == SYN);
        assert_eq!((syn.stages, syn.depends), (stage::HANDSHAKE, false));
        let not_syn = judge(|flags| flags & (FIN | SYN | RST | ACK) != SYN);
        assert_eq!((not_syn.stages, not_syn.depends), (stage::ALL, false));
        let null = judge(|flags| flags & 63 == 0);
        assert_eq!((null.stages, null.depends), (stage::HANDSHAKE, false));
        let pushed = judge(|flags| flags & PSH != 0);
        assert_eq!((pushed.stages, pushed.depends), (stage::ALL, true));
        let all = judge(|_| true);
        assert_eq!((all.stages, all.depends, all.exact), (stage::ALL, false, true));
        assert_eq!(judge(|_| false).stages, 0);
    }
}
