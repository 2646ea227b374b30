//! Conntrack under pressure: short timeouts, entries flushed, no room for more. What the
//! kernel path carries then, ours carries.

use std::fmt::Write as _;
use std::fs;
use std::thread;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::beside::pairs;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::streams::Streams;

/// Longer than a confirmation lives: each flow is proven anew.
const WINDOW: Duration = Duration::from_millis(6500);

/// Connections begin with a SYN, or are known.
const CAREFUL: &str = "table ip careful {
    chain forward {
        type filter hook forward priority 0;
        ct state established accept
        tcp flags & (fin|syn|rst|ack) != syn counter drop
    }
}";

/// What became of streams that were there before.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Datagrams that did not come back.
    lost: u32,
    /// The connection went on to the end.
    talks: bool,
}

/// Lets something happen to streams that the fast path carries by then.
fn streams_while(pair: &Pair, act: impl FnOnce(&Pair)) -> Seen {
    let streams = Streams::start(&pair.client.netns, pair.server.target());
    thread::sleep(Duration::from_secs(1));
    let first = streams.now();
    act(pair);
    let words = streams.words();
    thread::sleep(Duration::from_secs(1));
    let talks = words.zip(streams.words()).is_some_and(|(before, now)| now > before + 5);
    Seen { lost: streams.lost(first..streams.now()), talks }
}

/// Nothing is lost on the kernel path, and so on ours.
fn nothing_lost(prepare: impl Fn(&Pair), act: impl Fn(&Pair)) {
    let whole = Seen { lost: 0, talks: true };
    pairs(&Options::default(), |pair, way| {
        prepare(pair);
        assert_eq!(streams_while(pair, &act), whole, "{way}");
    });
}

#[test]
fn flows_live_on_with_timeouts_of_a_second() {
    let careful = |pair: &Pair| {
        for node in [&pair.left, &pair.right] {
            node.netns.nft(CAREFUL);
        }
    };
    nothing_lost(careful, |pair| {
        for node in [&pair.left, &pair.right] {
            for name in ["tcp_timeout_established", "udp_timeout", "udp_timeout_stream"] {
                node.netns.sysctl(&format!("net.netfilter.nf_conntrack_{name}=1"));
            }
        }
        thread::sleep(WINDOW);
    });
}

#[test]
fn flows_live_on_while_entries_are_flushed() {
    nothing_lost(
        |_| {},
        |pair| {
            for _ in 0..20 {
                for node in [&pair.left, &pair.right] {
                    node.netns.sh("conntrack -F");
                }
                thread::sleep(Duration::from_millis(150));
            }
        },
    );
}

/// Entries that nothing pushes out, until there is no room for another.
fn fill(node: &Node) {
    let most = number(node, "sysctl -n net.netfilter.nf_conntrack_max");
    let mut lines = String::new();
    for number in 0..most {
        let [_, high, middle, low] = number.to_be_bytes();
        let _ = writeln!(
            lines,
            "-I -s 198.18.{middle}.{low} -d 198.19.{high}.1 -p udp --sport 5 --dport 6 -t 600 \
             -u ASSURED,SEEN_REPLY"
        );
    }
    let file = node.state_dir().with_file_name("entries");
    fs::write(&file, lines).expect("a file");
    // The last ones find no room.
    node.netns.try_sh(&format!("conntrack -R {}", file.display()));
    fs::remove_file(file).expect("the file");
    assert_full(node);
}

fn number(node: &Node, line: &str) -> u32 {
    node.netns.sh(line).trim().parse().expect("a number")
}

/// What is short of the limit are entries without an answer, as the tunnel has them. They
/// make room for each other.
fn assert_full(node: &Node) {
    let most = number(node, "sysctl -n net.netfilter.nf_conntrack_max");
    let count = number(node, "conntrack -C");
    assert!(count + 100 > most, "{count} of {most}");
}

#[test]
fn known_flows_live_on_while_there_is_no_room_for_others() {
    nothing_lost(
        |_| {},
        |pair| {
            fill(&pair.left);
            thread::sleep(WINDOW);
            assert_full(&pair.left);
        },
    );
}
