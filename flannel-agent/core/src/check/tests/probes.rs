//! Ways to the peers.

use super::*;

/// A peer whose full echoes became this on underlay and overlay.
pub(super) fn probe(host: u8, underlay: Answer, overlay: Answer) -> PeerProbe {
    let sizes = |length, full| Sizes { length, small: CAME, full };
    PeerProbe {
        peer: [192, 0, 2, host].into(),
        subnet: "10.244.7.0/24".parse().unwrap(),
        underlay: sizes(1500, underlay),
        overlay: Some(sizes(1450, overlay)),
        tcp: Some(Handshakes { offloaded: CAME, plain: CAME }),
        mute: None,
    }
}

#[test]
fn full_packets() {
    let probes = |probes| move |facts: &mut NodeFacts| facts.probes = Ok(probes);
    let told = probe(7, Answer::TooBig { mtu: Some(1400) }, Answer::Silent);
    found(
        Id::Mtu,
        Condition::Broken,
        "the underlay to 192.0.2.7 (an MTU of 1400",
        probes(vec![told]),
    );
    let lost = probe(8, Answer::Silent, CAME);
    found(Id::Mtu, Condition::Broken, "the underlay to 192.0.2.8", probes(vec![lost]));
    let inner = (1..=5).map(|host| probe(host, CAME, Answer::Silent)).collect();
    let words = "1450 bytes do not pass the overlay to 192.0.2.1, 192.0.2.2, 192.0.2.3 and 2 more";
    found(Id::Mtu, Condition::Broken, words, probes(inner));
    let silent = Sizes { length: 1450, small: Answer::Silent, full: Answer::Silent };
    let shut = PeerProbe { overlay: Some(silent.clone()), tcp: None, ..probe(7, CAME, CAME) };
    let why = &with(Id::Mtu, probes(vec![shut.clone()]))[0].why;
    assert!(why.contains("tunnel packets are lost"), "nothing is known of lengths: {why}");
    let away = PeerProbe { underlay: silent, ..shut };
    found(Id::Mtu, Condition::Unknown, "no answer from 192.0.2.7", probes(vec![away]));
    found(Id::Mtu, Condition::Well, "no peer", probes(vec![]));
    let came = |count: u8| (0..count).map(|host| probe(host, CAME, CAME)).collect();
    let reached = |all: &str| format!("full packets reach {all} tried");
    found(Id::Mtu, Condition::Well, &reached("the peer that was"), probes(came(1)));
    found(Id::Mtu, Condition::Well, &reached("all of the 2 peers that were"), probes(came(2)));
    let checksum = &with(Id::TunnelChecksum, probes(came(1)))[0].found;
    assert!(checksum.ends_with("reaches 1 peer"), "{checksum}");
    found(Id::Mtu, Condition::Unknown, "EPERM", |facts| {
        facts.probes = Err(Unknown::because("EPERM"))
    });
}

#[test]
fn checksums_in_the_tunnel() {
    let tcp = |offloaded, plain| {
        let tcp = Some(Handshakes { offloaded, plain });
        move |facts: &mut NodeFacts| {
            facts.probes = Ok(vec![PeerProbe { tcp, ..probe(7, CAME, CAME) }])
        }
    };
    let id = Id::TunnelChecksum;
    found(id, Condition::Broken, "TCP to 192.0.2.7 passes only if", tcp(Answer::Silent, CAME));
    found(id, Condition::Unknown, "no peer answers", tcp(Answer::Silent, Answer::Silent));
    found(id, Condition::Well, "no tunnel", |facts| {
        facts.probes = Ok(vec![PeerProbe { tcp: None, ..probe(7, CAME, CAME) }]);
    });
}

#[test]
fn what_is_lost_decides() {
    let probes = |probes| move |facts: &mut NodeFacts| facts.probes = Ok(probes);
    let no = || Sizes { length: 1450, small: Answer::Silent, full: Answer::Silent };
    let silent = Handshakes { offloaded: Answer::Silent, plain: Answer::Silent };
    let shut = |host| PeerProbe {
        overlay: Some(no()),
        tcp: Some(silent.clone()),
        ..probe(host, CAME, CAME)
    };
    let away = |host| PeerProbe { underlay: no(), ..shut(host) };
    let refused = Answer::NotSent { reason: "Network is unreachable".into() };
    let unsent = |host| {
        let small = refused.clone();
        PeerProbe { underlay: Sizes { small, ..no() }, ..shut(host) }
    };
    // Who does not even tell a MAC is no filter's doing.
    let mute = |host, hop: [u8; 4]| PeerProbe { mute: Some(hop.into()), ..away(host) };
    let cut =
        "no answer from 192.0.2.7, 192.0.2.8: no MAC is told for 192.0.2.7, 192.0.2.8: no peer";
    let both = probes(vec![mute(7, [192, 0, 2, 7]), mute(8, [192, 0, 2, 8])]);
    found(Id::Mtu, Condition::Broken, cut, both);
    let gateway = "192.0.2.8: no MAC is told for 192.0.2.254: no peer is reached";
    let both = probes(vec![mute(7, [192, 0, 2, 254]), mute(8, [192, 0, 2, 254])]);
    found(Id::Mtu, Condition::Broken, gateway, both);
    let one = probes(vec![mute(7, [192, 0, 2, 7]), probe(8, CAME, CAME)]);
    found(Id::Mtu, Condition::Degraded, "no MAC is told for 192.0.2.7", one);
    let both = probes(vec![mute(7, [192, 0, 2, 7]), away(8)]);
    found(Id::Mtu, Condition::Unknown, "no answer from 192.0.2.8: away, or ICMP", both);
    let open = PeerProbe {
        overlay: Some(Sizes { small: CAME, full: CAME, ..no() }),
        ..mute(7, [192, 0, 2, 7])
    };
    found(Id::Mtu, Condition::Well, "full packets", probes(vec![open]));
    let all = "not through the overlay: no peer is reached";
    found(Id::Mtu, Condition::Broken, all, probes(vec![shut(7)]));
    found(Id::Mtu, Condition::Broken, all, probes(vec![shut(7), away(8)]));
    let one = probes(vec![shut(7), probe(8, CAME, CAME)]);
    found(Id::Mtu, Condition::Degraded, "192.0.2.7 on the underlay, but not", one);
    let words = "sent to 192.0.2.7 (Network is unreachable): no peer";
    found(Id::Mtu, Condition::Broken, words, probes(vec![unsent(7)]));
    let words = "sent to 192.0.2.7 (Network is unreachable)";
    let one = probes(vec![unsent(7), probe(8, CAME, CAME)]);
    found(Id::Mtu, Condition::Degraded, words, one);
    // ICMP may be filtered where pods are reached.
    let tcp = Some(Handshakes { offloaded: CAME, plain: CAME });
    let filtered = PeerProbe { tcp, ..shut(7) };
    found(Id::Mtu, Condition::Well, "full packets", probes(vec![filtered]));
    let direct = PeerProbe { overlay: None, tcp: None, ..probe(8, CAME, CAME) };
    found(Id::Mtu, Condition::Degraded, "not through", probes(vec![shut(7), direct]));
}
