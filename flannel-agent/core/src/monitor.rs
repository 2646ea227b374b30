//! What the monitor's programs tell of packets, in words; and what they are asked for.

use std::net::SocketAddrV4;
use std::time::SystemTime;

use flannel_ebpf::abi::{Outcome, program};
use flannel_ebpf::monitor::{Event, HOOKS, Net, Packet};
use ipnetwork::Ipv4Network;

use crate::status::{Ends, PacketEvent, PacketVerdict, Tunnel};

/// `TC_ACT_SHOT` and `TC_ACT_REDIRECT` (`linux/pkt_cls.h`).
const TC_DROPPED: i32 = 2;
const TC_REDIRECTED: i32 = 7;
/// `XDP_DROP` (`linux/bpf.h`).
const XDP_DROPPED: i32 = 1;
/// TCP flags by their bit, as tcpdump writes them.
const TCP_FLAGS: [char; 8] = ['F', 'S', 'R', 'P', 'A', 'U', 'E', 'C'];

/// A network as the programs compare it.
pub fn net(network: Ipv4Network) -> Net {
    Net { address: network.network().octets(), mask: network.mask().octets() }
}

/// The outcomes that a word names: one by its name, or all that begin with it
/// (`kernel`, `forged`). `None` if there is none.
pub fn outcomes(word: &str) -> Option<u64> {
    let named = |outcome: &&Outcome| {
        let rest = outcome.name().strip_prefix(word);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    let bits = Outcome::ALL.iter().filter(named).fold(0, |bits, one| bits | 1 << *one as u32);
    (bits != 0).then_some(bits)
}

/// An event in words. `device` names an interface, `at` is when it happened.
pub fn describe(
    event: &Event,
    at: SystemTime,
    not_told: u64,
    device: impl FnOnce(u32) -> Option<String>,
) -> PacketEvent {
    let Packet { ifindex, len, proto, .. } = event.packet;
    let ipv4 = event.packet.ipv4 != 0;
    let hook = HOOKS.get(event.hook as usize).copied().unwrap_or("unknown");
    let outcome = |outcome: &&Outcome| event.outcomes & 1 << **outcome as u32 != 0;
    PacketEvent {
        at,
        hook: hook.into(),
        device: device(ifindex).unwrap_or_else(|| ifindex.to_string()),
        len,
        proto: ipv4.then(|| protocol(proto)),
        ends: ipv4.then(|| ends(&event.packet)),
        tcp_flags: tcp_flags(event.packet.tcp_flags),
        tunnel: (event.packet.tunnel != 0).then(|| Tunnel {
            source: event.packet.outer_source.into(),
            destination: event.packet.outer_destination.into(),
        }),
        verdict: verdict(hook, event.verdict),
        outcomes: Outcome::ALL.iter().filter(outcome).copied().collect(),
        not_told,
    }
}

fn ends(packet: &Packet) -> Ends {
    let end = |address: [u8; 4], port| SocketAddrV4::new(address.into(), u16::from_be_bytes(port));
    Ends {
        source: end(packet.source, packet.sport),
        destination: end(packet.destination, packet.dport),
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => other.to_string(),
    }
}

fn tcp_flags(bits: u8) -> String {
    let set = TCP_FLAGS.iter().enumerate().filter(|(bit, _)| bits & 1 << bit != 0);
    set.map(|(_, name)| name).collect()
}

fn verdict(hook: &str, returned: i32) -> PacketVerdict {
    let dropped = if hook == program::FROM_WIRE { XDP_DROPPED } else { TC_DROPPED };
    match returned {
        TC_REDIRECTED => PacketVerdict::Sent,
        _ if returned == dropped => PacketVerdict::Dropped,
        _ => PacketVerdict::Passed,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn event(hook: &str, verdict: i32, outcomes: &[Outcome]) -> Event {
        Event {
            time_ns: 0,
            outcomes: outcomes.iter().fold(0, |bits, one| bits | 1 << *one as u32),
            hook: HOOKS.iter().position(|known| *known == hook).unwrap() as u32,
            verdict,
            packet: Packet {
                ifindex: 7,
                len: 124,
                ipv4: 1,
                source: [10, 5, 1, 2],
                destination: [10, 5, 2, 2],
                sport: 4000_u16.to_be_bytes(),
                dport: 80_u16.to_be_bytes(),
                proto: 6,
                tcp_flags: 0x12,
                ..Packet::default()
            },
            reserved: 0,
        }
    }

    fn line(event: &Event) -> String {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        let names = |ifindex| (ifindex == 7).then(|| "veth1".to_owned());
        describe(event, at, 0, names).to_string()
    }

    #[test]
    fn a_line_says_where_what_and_why() {
        let kernel = [Outcome::SeenFromPod, Outcome::KernelTcpState];
        assert_eq!(
            line(&event(program::FROM_POD, -1, &kernel)),
            "from_pod veth1 tcp 10.5.1.2:4000 > 10.5.2.2:80 [SA] 124 bytes: passed \
             (seen_from_pod, kernel_tcp_state)"
        );
        let mut tunnel = event(program::FROM_UNDERLAY, TC_REDIRECTED, &[Outcome::FastDecap]);
        tunnel.packet.tunnel = 1;
        tunnel.packet.outer_source = [192, 0, 2, 1];
        tunnel.packet.outer_destination = [192, 0, 2, 2];
        tunnel.packet.ifindex = 3;
        assert_eq!(
            line(&tunnel),
            "from_underlay 3 tcp 10.5.1.2:4000 > 10.5.2.2:80 [SA] in 192.0.2.1 > 192.0.2.2 \
             124 bytes: sent (fast_decap)"
        );
        let other = Event { packet: Packet { len: 60, ..Packet::default() }, ..tunnel };
        assert_eq!(line(&other), "from_underlay 0 not IPv4 60 bytes: sent (fast_decap)");
    }

    #[test]
    fn each_kind_of_program_has_its_own_words_for_a_drop() {
        assert_eq!(verdict(program::FROM_POD, 2), PacketVerdict::Dropped);
        assert_eq!(verdict(program::FROM_WIRE, 2), PacketVerdict::Passed);
        assert_eq!(verdict(program::FROM_WIRE, 1), PacketVerdict::Dropped);
        assert_eq!(verdict(program::TO_POD, -1), PacketVerdict::Passed);
    }

    #[test]
    fn a_word_names_one_outcome_or_a_family() {
        assert_eq!(outcomes("fast_encap"), Some(1 << Outcome::FastEncap as u32));
        let drops = 1 << Outcome::DropBroken as u32 | 1 << Outcome::DropTagged as u32;
        assert_eq!(outcomes("drop"), Some(drops));
        assert_eq!((outcomes("dro"), outcomes("nothing"), outcomes("")), (None, None, None));
    }
}
