//! What the node decides about tunnel packets as they come in holds for the fast path
//! and the shortcut, too.

use std::thread;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::beside::{pairs, second_link, wait_ping};
use flannel_tests::forge::Tunnelled;
use flannel_tests::forger::{Forger, honest, link_mac};
use flannel_tests::load::{REQUESTS, SPACED, assert_whole};

/// Time in which the agent takes note of a device, or of rules.
const SETTLED: Duration = Duration::from_millis(500);

#[test]
fn a_card_that_is_closed_to_the_tunnel_stays_so() {
    pairs(&Options::default(), |pair, _| {
        second_link(&pair.left, &pair.right);
        pair.left.netns.nft(
            "table inet closed { chain input { type filter hook input priority 0;
                iifname eth1 udp dport 8472 drop; }; }",
        );
        thread::sleep(SETTLED);
        let mut forger = Forger::new(pair);
        let open = honest(pair);
        let by_eth1 = [&pair.right, &pair.left].map(|node| link_mac(&node.netns, "eth1"));
        let closed = Tunnelled { outer_mac: (by_eth1[0], by_eth1[1]), ..open.clone() };
        forger.packet = open;
        assert_eq!(forger.ten(&pair.right.netns, "eth0"), 10);
        forger.packet = closed.clone();
        assert_eq!(forger.ten(&pair.right.netns, "eth1"), 0, "of the same flow");
        forger.packet = Tunnelled { ports: (4002, 4003), ..closed };
        assert_eq!(forger.ten(&pair.right.netns, "eth1"), 0, "of another flow");
    });
}

#[test]
fn marks_of_the_tunnels_packets_are_there_behind_it() {
    pairs(&Options::default(), |pair, _| {
        pair.left.netns.nft(
            "table inet marks {
                chain pre { type filter hook prerouting priority mangle;
                    udp dport 8472 meta mark set 7; };
                chain forward { type filter hook forward priority 0;
                    iifname flannel.1 meta mark != 7 drop; }; }",
        );
        wait_ping(pair);
        assert_whole(&pair.traffic(REQUESTS, "--seconds 1 --patience 1"));
        assert_whole(&pair.traffic(SPACED, "--seconds 1"));
    });
}
