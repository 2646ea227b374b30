//! Conntrack forgets connections when it would on the kernel path, no sooner.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use flannel_tests::agent::Options;
use flannel_tests::beside::{Way, beside, prepared, wait_ping};
use flannel_tests::load::{REQUESTS, SPACED, assert_whole};
use flannel_tests::pair::Pair;
use flannel_tests::pod::Pod;
use rustix::net::sockopt::set_tcp_quickack;

/// A pair whose nodes have these settings of conntrack before the agents come.
fn with_settings(way: Way, options: &Options, settings: &[&str]) -> Pair {
    let options = way.options(options);
    let pair = prepared([&options, &options], |_, _, nodes| {
        for node in nodes {
            for setting in settings {
                node.netns.sysctl(&format!("net.netfilter.nf_conntrack_{setting}"));
            }
        }
    });
    wait_ping(&pair);
    pair
}

/// Connections begin with a SYN, or are known.
const CAREFUL: &str = "table ip careful {
    chain forward {
        type filter hook forward priority 0;
        ct state established accept
        tcp flags syn ct state new accept
        tcp flags & (fin|syn|rst|ack) != syn counter drop
    }
}";

fn window() -> Options {
    Options { window: Some("500ms"), ..Options::default() }
}

/// A connection between the pods, on which single bytes are sent and answered.
struct Idle(TcpStream);

impl Idle {
    /// Connects; the server takes `delay` for each answer.
    fn new(pair: &Pair, delay: Duration) -> Self {
        let at = SocketAddrV4::new(pair.server.address, 7001);
        let listener = pair.server.netns.inside(|| TcpListener::bind(at)).expect("a port");
        // It ends with the connection.
        pair.server.netns.spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut byte = [0];
            while patient(&stream) && stream.read_exact(&mut byte).is_ok() {
                thread::sleep(delay);
                // The client sees it if this fails.
                let _ = stream.write_all(&byte);
            }
        });
        let connect = || TcpStream::connect_timeout(&at.into(), Duration::from_secs(2));
        let stream = pair.client.netns.inside(connect).expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        Self(stream)
    }

    /// Whether a byte comes back after so long a silence.
    fn answers_after(&mut self, silence: Duration) -> bool {
        thread::sleep(silence);
        patient(&self.0) && self.0.write_all(b"x").is_ok() && self.0.read_exact(&mut [0]).is_ok()
    }
}

/// Lets an end acknowledge what it gets 40 ms later, as those do that have spoken
/// for a while.
fn patient(stream: &TcpStream) -> bool {
    set_tcp_quickack(stream, false).is_ok()
}

/// Timeouts of connections that look as if the other end did not answer, in
/// place of 300 s.
const SHORT: [&str; 2] = ["tcp_timeout_unacknowledged=1", "tcp_timeout_max_retrans=1"];

fn idle_connections_answered_after(delay: Duration) {
    beside(|way| {
        let pair = with_settings(way, &window(), &SHORT);
        for node in [&pair.left, &pair.right] {
            node.netns.nft(CAREFUL);
        }
        thread::sleep(Duration::from_millis(600));
        let mut idle = Idle::new(&pair, delay);
        // The first byte finds a confirmation whose time is over: of what it
        // starts, conntrack sees the data both ways and may miss what acknowledges
        // the answer.
        for (number, silence) in [700, 1800, 700, 100, 1800].into_iter().enumerate() {
            let answered = idle.answers_after(Duration::from_millis(silence));
            assert!(answered, "byte {number}, after {silence} ms");
        }
    });
}

#[test]
fn idle_connections_are_not_forgotten() {
    idle_connections_answered_after(Duration::ZERO);
}

/// Data and what acknowledges it lie apart, but not so far that a request is
/// acknowledged before its answer.
#[test]
fn idle_connections_to_slow_servers_are_not_forgotten() {
    idle_connections_answered_after(Duration::from_millis(20));
}

#[test]
fn connections_that_were_busy_are_not_forgotten() {
    beside(|way| {
        let pair = with_settings(way, &window(), &SHORT);
        for node in [&pair.left, &pair.right] {
            node.netns.nft(CAREFUL);
        }
        thread::sleep(Duration::from_millis(600));
        let mut idle = Idle::new(&pair, Duration::ZERO);
        // Over several windows, so that its last sight of conntrack is any.
        for number in 0..150 {
            assert!(idle.answers_after(Duration::from_millis(10)), "byte {number}");
        }
        for number in 0..2 {
            assert!(idle.answers_after(Duration::from_millis(1800)), "silence {number}");
        }
    });
}

/// What conntrack would do with what it does not know: its settings are the
/// administrator's again when the agent has gone.
#[test]
fn settings_of_conntrack_come_back() {
    beside(|way| {
        let mut pair = with_settings(way, &window(), &SHORT);
        assert_whole(&pair.traffic(REQUESTS, "--seconds 0.5 --patience 1"));
        for node in [&mut pair.left, &mut pair.right] {
            node.stop_agent();
            assert!(node.cleanup().status.success());
            let text = node.netns.sh("sysctl -a -r nf_conntrack_tcp_(timeout|be_lib|loose)");
            for expected in [
                "timeout_unacknowledged = 1",
                "timeout_max_retrans = 1",
                "timeout_established = 432000",
                "be_liberal = 0",
                "loose = 1",
            ] {
                assert!(text.contains(expected), "{expected} in {text}");
            }
        }
    });
}

/// Answers pass only as answers.
const STATEFUL: &str = "table ip stateful {
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state invalid drop
        ct state established,related accept
        udp dport 7000-7001 ct state new accept
        icmp type echo-request accept
    }
}";

#[test]
fn udp_that_conntrack_forgets_sooner_than_the_window_has_no_gap() {
    beside(|way| {
        let options = Options { window: Some("2s"), ip_masq: true, ..Options::default() };
        let settings = ["udp_timeout=1", "udp_timeout_stream=1"];
        let pair = with_settings(way, &options, &settings);
        for node in [&pair.left, &pair.right] {
            node.netns.nft(STATEFUL);
        }
        thread::sleep(Duration::from_millis(600));
        let spaced = pair.traffic(SPACED, "--seconds 7");
        assert_whole(&spaced);
        assert!(spaced.gap_ms < 500, "{spaced:?}");
    });
}

#[test]
fn udp_that_conntrack_has_forgotten_is_decided_anew_without_a_gap() {
    beside(|way| {
        let options = Options { window: Some("5s"), ..Options::default() };
        let settings = ["udp_timeout=1", "udp_timeout_stream=1"];
        let pair = with_settings(way, &options, &settings);
        for node in [&pair.left, &pair.right] {
            node.netns.nft(STATEFUL);
        }
        thread::sleep(Duration::from_millis(600));
        let options = "--seconds 9 --interval-us 300";
        let running = pair.client.start_traffic(SPACED, pair.server.target(), options);
        // Time enough for conntrack to forget what it does not see.
        for node in [&pair.left, &pair.right, &pair.left, &pair.right] {
            thread::sleep(Duration::from_secs(2));
            node.netns.ip("route add 203.0.113.0/24 dev eth0");
            node.netns.ip("route del 203.0.113.0/24 dev eth0");
        }
        let spaced = running.finish();
        assert_whole(&spaced);
        assert!(spaced.gap_ms < 500, "{spaced:?}");
    });
}

#[test]
fn udp_of_which_the_server_speaks_first_in_a_window_has_no_gap() {
    beside(|way| {
        let options = Options { window: Some("2s"), ..Options::default() };
        let settings = ["udp_timeout=1", "udp_timeout_stream=1"];
        let pair = with_settings(way, &options, &settings);
        for node in [&pair.left, &pair.right] {
            node.netns.nft(STATEFUL);
        }
        thread::sleep(Duration::from_millis(600));
        let (sent, received) = monologue(&pair, Duration::from_secs(5));
        assert!(sent > 400 && received == sent, "{received} of {sent} datagrams came");
    });
}

/// The pod `client` says a word each 400 ms, the other end a hundred words each
/// second: how many of these it said, and how many came.
fn monologue(pair: &Pair, time: Duration) -> (u32, u32) {
    let socket = |pod: &Pod, port: u16| {
        let bound = pod.netns.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)));
        let socket = bound.expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
        socket
    };
    let (asking, speaking) = (socket(&pair.client, 0), socket(&pair.server, 7001));
    asking.connect((pair.server.address, 7001)).expect("an address");
    asking.send(b"go on").expect("a first word");
    let (_, to) = speaking.recv_from(&mut [0; 16]).expect("a first word that comes");
    thread::scope(|scope| {
        let speaker = scope.spawn(|| {
            let (start, mut sent) = (Instant::now(), 0);
            while start.elapsed() < time {
                sent += u32::from(speaking.send_to(b"a word", to).is_ok());
                thread::sleep(Duration::from_millis(10));
            }
            sent
        });
        let listener = scope.spawn(|| {
            let mut received = 0;
            while asking.recv(&mut [0; 16]).is_ok() {
                received += 1;
            }
            received
        });
        while !speaker.is_finished() {
            thread::sleep(Duration::from_millis(400));
            // Lost ones cost no answer.
            let _ = asking.send(b"go on");
        }
        (speaker.join().expect("the speaker"), listener.join().expect("the listener"))
    })
}
