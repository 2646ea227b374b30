//! Endpoints while name servers, addresses and members are away.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flannel_tests::agent::Options;
use flannel_tests::lab::{GATEWAY, Lab};
use flannel_tests::members::{MEMBERS, Members};
use flannel_tests::netns::Netns;
use flannel_tests::node::Node;
use flannel_tests::wait;

const SECOND: Duration = Duration::from_secs(1);

/// On the underlay, and nobody's.
const NOBODY: &str = "192.0.2.99";

/// An agent of these endpoints that asks these name servers, as the C library does.
fn asking(lab: &Lab, endpoints: &str, servers: &[Ipv4Addr]) -> Options {
    let file = lab.dir().join("resolv.conf");
    let lines = servers.iter().map(|server| format!("nameserver {server}\n"));
    fs::write(&file, lines.collect::<String>()).expect("write resolv.conf");
    let script = r#"mount --bind "$0" /etc/resolv.conf; exec "$@""#;
    let file = file.display().to_string();
    let wrapper = ["unshare", "--mount", "sh", "-ec", script, &file].map(str::to_owned).to_vec();
    Options { endpoints: Some(endpoints.to_owned()), wrapper, ..Options::kernel() }
}

/// A name server's socket.
fn server(netns: &Netns) -> UdpSocket {
    netns.inside(|| UdpSocket::bind("0.0.0.0:53").expect("the port of name servers"))
}

/// Answers one question: all names are of these hosts (RFC 1035, 4.1).
fn answer(socket: &UdpSocket, hosts: &[Ipv4Addr]) {
    let mut message = [0; 512];
    let Ok((length, from)) = socket.recv_from(&mut message) else { return };
    // Behind the header stands the name, and behind its end the type: 1 for IPv4.
    let name = message[12..length].iter().position(|byte| *byte == 0).expect("a name's end");
    let end = 12 + name + 5;
    let hosts = if message[end - 3] == 1 { hosts } else { &[] };
    message[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, hosts.len() as u8, 0, 0, 0, 0]);
    let mut reply = message[..end].to_vec();
    for host in hosts {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(host.octets());
    }
    socket.send_to(&reply, from).expect("answer");
}

/// Does something while a name server says that all names are of these hosts.
fn while_answered(socket: &UdpSocket, hosts: &[Ipv4Addr], work: impl FnOnce()) {
    socket.set_read_timeout(Some(SECOND / 20)).expect("a timeout");
    let goes_on = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            while goes_on.load(Ordering::Relaxed) {
                answer(socket, hosts);
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        goes_on.store(false, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_first_endpoint_that_is_not_there_costs_a_second() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let _silent = server(lab.underlay());
    let good = etcd.endpoint();
    // A name that nobody resolves, and an address that nobody has.
    for (number, first) in [(1, "http://etcd.example:2379"), (2, &format!("http://{NOBODY}:2379"))]
    {
        let mut node = lab.node(number);
        node.launch(&etcd, &asking(&lab, &format!("{first},{good}"), &[GATEWAY]));
        let took = node.wait_ready(20 * SECOND);
        assert!(took < 4 * SECOND * wait::patience(), "{first}: {took:?}");
    }
}

#[test]
fn a_stop_does_not_wait_for_a_name() {
    let lab = Lab::new();
    let etcd = lab.stopped_etcd();
    let _silent = server(lab.underlay());
    let mut node = lab.node(1);
    node.launch(&etcd, &asking(&lab, "http://etcd.example:2379", &[GATEWAY]));
    wait::holds("a word", 10 * SECOND, || {
        node.agent_log().contains("etcd.example cannot be resolved: no answer within 2 s")
    });
    let began = Instant::now();
    node.stop_agent();
    assert!(began.elapsed() < 3 * SECOND * wait::patience(), "{:?}", began.elapsed());
}

/// The C library asks the second name server after five seconds, and all that each time.
#[test]
fn a_dead_first_name_server_and_a_dead_first_address_are_lived_with() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let quiet = lab.stranger(Ipv4Addr::new(192, 0, 2, 98));
    let (_silent, talking) = (server(&quiet), server(lab.underlay()));
    let mut node = lab.node(1);
    let servers = [Ipv4Addr::new(192, 0, 2, 98), GATEWAY];
    let hosts = [NOBODY.parse().expect("an address"), GATEWAY];
    while_answered(&talking, &hosts, || {
        node.start(&etcd, &asking(&lab, "http://etcd.example:2379", &servers));
    });
}

/// Of a name's addresses the first takes connections, and never says a word.
#[test]
fn a_first_address_that_never_answers_is_left_to_the_next() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    // The C library puts the address first that has more bits in common with the node's.
    let mute = Ipv4Addr::new(192, 0, 2, 10);
    let stranger = lab.stranger(mute);
    let _listens = stranger.inside(|| TcpListener::bind("0.0.0.0:2379").expect("a port"));
    let talking = server(lab.underlay());
    for (number, api) in [(1, "v3"), (2, "v2")] {
        if api == "v2" {
            etcd.put_v2("/coreos.com/network/config", r#"{"Network":"10.244.0.0/16"}"#, None);
        }
        let mut node = lab.node(number);
        let mut options = asking(&lab, "http://etcd.example:2379", &[GATEWAY]);
        options.extra.push(format!("--etcd-api={api}"));
        while_answered(&talking, &[mute, GATEWAY], || {
            node.launch(&etcd, &options);
            let took = node.wait_ready(40 * SECOND);
            assert!(took < 20 * SECOND * wait::patience(), "{api}: {took:?}");
        });
    }
}

/// Members with a network config, and an agent that knows them by `endpoints`.
fn with_members(lab: &Lab, options: &Options) -> (Members, Node) {
    let members = Members::start(lab);
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
    assert!(members.writes(0, "config", config));
    let mut node = lab.node(1);
    node.start(&lab.stopped_etcd(), options);
    (members, node)
}

/// The node hears of a lease that this member takes in.
fn hears(node: &Node, members: &Members, by: usize, subnet: u8) {
    let lease = format!(
        r#"{{"PublicIP":"192.0.2.{subnet}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:5e:00:53:{subnet}"}}}}"#
    );
    let key = format!("subnets/10.244.{subnet}.0-24");
    // The others elect a leader first.
    wait::holds("a leader", 20 * SECOND, || members.writes(by, &key, &lease));
    let route = format!("10.244.{subnet}.0/24");
    let heard = || node.netns.ip("route show dev flannel.1").contains(&route);
    wait::holds("the lease", 20 * SECOND, heard);
    wait::holds("a word of it", 5 * SECOND, || node.status().store.connected);
}

#[test]
fn a_member_that_hangs_or_has_lost_the_others_is_left() {
    let lab = Lab::new();
    let options = Options { endpoints: Some(Members::endpoints()), ..Options::kernel() };
    let (mut members, node) = with_members(&lab, &options);
    members.freeze(0);
    hears(&node, &members, 2, 71);
    members.thaw(0);
    members.cut(1);
    hears(&node, &members, 2, 72);
    members.heal(1);
    // Nobody decides anything. The node says so, and keeps its peers.
    members.kill(0);
    members.kill(1);
    wait::holds("a word", 20 * SECOND, || {
        node.status().store.detail.is_some_and(|why| why.contains("no leader"))
    });
    assert_eq!(node.status().peers, 2);
    members.restart(0);
    hears(&node, &members, 2, 73);
}

#[test]
fn a_name_s_member_that_has_lost_the_others_is_left() {
    let lab = Lab::new();
    let talking = server(lab.underlay());
    let options = asking(&lab, "http://etcd.example:2379", &[GATEWAY]);
    while_answered(&talking, &MEMBERS, || {
        let (members, node) = with_members(&lab, &options);
        for (member, other) in [(0, 1), (1, 2), (2, 0)] {
            members.cut(member);
            hears(&node, &members, other, 81 + member as u8);
            members.heal(member);
        }
    });
}
