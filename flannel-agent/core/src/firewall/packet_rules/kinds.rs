//! Matches and targets of iptables, by name. nftables shows them by their names
//! only where they have no form of its own. Pure.

use super::ruleset::Judges;

/// What a match looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// What its options say, which are read.
    Read,
    /// Something that stays the same for all packets of a flow, or for a window.
    Constant,
    /// Something that differs from packet to packet.
    Differs(Judges),
}

/// What `-m NAME` looks at. What nobody knows may differ.
pub(super) fn condition(name: &str) -> Condition {
    match name {
        "addrtype" | "tcp" | "udp" | "conntrack" | "state" | "multiport" | "iprange"
        | "comment" => Condition::Read,
        // Connections are counted when they begin.
        "connlimit" => Condition::Constant,
        // The window bounds what depends on the hour.
        "time" => Condition::Constant,
        // MSS, window scale and the like stand in a SYN only.
        "tcpmss" | "osf" => Condition::Constant,
        "ah" | "cgroup" | "cluster" | "connlabel" | "connmark" | "cpu" | "dccp" | "devgroup"
        | "dscp" | "esp" | "geoip" | "helper" | "hl" | "icmp" | "icmp6" | "ipcomp" | "ipvs"
        | "l2tp" | "mac" | "mark" | "nfacct" | "owner" | "physdev" | "pkttype" | "policy"
        | "realm" | "rpfilter" | "sctp" | "set" | "socket" | "tos" | "ttl" | "udplite" => {
            Condition::Constant
        }
        // Of ebtables.
        "among" | "ip" | "mark_m" | "vlan" => Condition::Constant,
        "connbytes" => Condition::Differs(Judges::Counters),
        _ => Condition::Differs(Judges::Packet),
    }
}

/// What a target does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The packet is done with.
    End,
    /// It is done with, and goes nowhere.
    Drops,
    /// Back to the chain before.
    Return,
    /// Something that belongs to the flow, and leaves the packet as it is.
    Treats,
    /// Something that belongs to the packet as it is sent on.
    Alters,
    /// Something that cannot be repeated; the packet goes on.
    Acts(Judges),
    /// The same, and the packet is done with.
    ActsAndEnds(Judges),
    /// It tells of the packet.
    Logs,
    /// It hands the flow to the kernel's own fast path.
    Offloads,
    /// `CT`: its options decide.
    Conntrack,
    /// The packet is kept from conntrack.
    Untracks,
}

/// What `-j NAME` does; `None` for a name that nobody knows.
pub(super) fn action(name: &str) -> Option<Action> {
    Some(match name {
        "ACCEPT" => Action::End,
        "DROP" | "REJECT" | "STOLEN" => Action::Drops,
        // They are found in chains that translate, which nobody asks about.
        "DNAT" | "MASQUERADE" | "NETMAP" | "REDIRECT" | "SNAT" | "TPROXY" => Action::End,
        // Of ebtables.
        "dnat" | "redirect" | "snat" => Action::End,
        "mark" => Action::Alters,
        "log" | "nflog" => Action::Logs,
        "RETURN" => Action::Return,
        "CHECKSUM" | "CONNMARK" | "CONNSECMARK" | "LED" | "SECMARK" | "SET" => Action::Treats,
        "CLASSIFY" | "DSCP" | "HL" | "HMARK" | "MARK" | "TOS" | "TTL" => Action::Alters,
        "AUDIT" | "LOG" | "NFLOG" | "TRACE" | "ULOG" => Action::Logs,
        "FLOWOFFLOAD" => Action::Offloads,
        "CT" => Action::Conntrack,
        "NOTRACK" => Action::Untracks,
        "NFQUEUE" | "QUEUE" => Action::ActsAndEnds(Judges::Packet),
        "SYNPROXY" => Action::ActsAndEnds(Judges::Connection),
        "ECN" | "IDLETIMER" | "RATEEST" | "TCPMSS" | "TCPOPTSTRIP" | "TEE" => {
            Action::Acts(Judges::Packet)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_knows_counts() {
        assert_eq!(condition("brandnew"), Condition::Differs(Judges::Packet));
        assert_eq!(action("BRANDNEW"), None);
    }

    #[test]
    fn rates_contents_and_chance_differ() {
        for name in [
            "bpf",
            "ecn",
            "hashlimit",
            "length",
            "limit",
            "quota",
            "rateest",
            "recent",
            "statistic",
            "string",
            "u32",
        ] {
            assert_eq!(condition(name), Condition::Differs(Judges::Packet), "{name}");
        }
    }
}
