//! What a kernel has to do with the programs: load them, attach them in the
//! form that it knows, carry packets with them; and without them, if it must.
//! `cargo xtask test` runs these under other kernels too.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use flannel_core::status::{Attachment, DatapathKind};
use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::complexity::release;
use flannel_tests::endpoint::Answers;
use flannel_tests::hooks;
use flannel_tests::load::SPACED;
use flannel_tests::pair::Pair;
use flannel_tests::told::words;
use flannel_tests::wait::patience;

/// Whether the running kernel has tcx (since Linux 6.6).
fn has_tcx() -> bool {
    let release = release().expect("the running kernel's release");
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().expect("a number"));
    (numbers.next(), numbers.next()) >= (Some(6), Some(6))
}

#[track_caller]
fn answers(pair: &Pair) {
    for (from, to) in [(&pair.client, &pair.server), (&pair.server, &pair.client)] {
        let text = from.ping(to.address, "-c 5 -i 0.2 -W 5");
        assert_eq!(text.matches("ttl=62").count(), 5, "{text}");
    }
}

#[test]
fn default_options_attach_in_the_kernels_best_form() {
    let pair = Pair::agents(&Options::default());
    let form = if has_tcx() { Attachment::Tcx } else { Attachment::Clsact };
    for node in [&pair.left, &pair.right] {
        let status = node.status();
        assert_eq!(status.datapath.mode, Some(DatapathKind::Ebpf), "{status:?}");
        assert_eq!(status.datapath.attach, Some(form), "{status:?}");
        assert!(!hooks::on(&node.netns, "eth0").is_empty(), "{status:?}");
        let filters = node.netns.sh("tc filter show dev eth0 ingress");
        assert_eq!(filters.contains("from_underlay"), !has_tcx(), "{filters}");
    }
    answers(&pair);
    pair.fast_both_ways();
    pair.check_integrity(2);
}

#[test]
fn tcx_is_refused_where_the_kernel_has_none() {
    if has_tcx() {
        return;
    }
    // Asked for by name, it is an error; the kernel path is what remains.
    let pair = Pair::agents(&Options { attach: Some("tcx"), ..Options::default() });
    let status = pair.left.status();
    answers(&pair);
    assert_eq!(pair.traffic(SPACED, "--seconds 1").lost, 0, "{status:?}");
    assert!(hooks::on(&pair.left.netns, "eth0").is_empty(), "{status:?}");
    assert!(words(&status).contains("tcx"), "{status:?}");
}

/// Datagrams of as many flows, each answered.
const FLOWS: u16 = 500;

/// The number in `skb->tc_index` survives the kernel's whole way in every packet: of
/// each flow the first packet proves it, on both nodes.
#[test]
fn every_packets_ticket_is_there_at_its_exit() {
    let pair = Pair::agents(&Options::default());
    let answers = Answers::open(&pair.server.netns, 7002);
    answers_to(&pair, 1999);
    let before = [&pair.left, &pair.right].map(|node| node.outcomes());
    let came = (0..FLOWS).filter(|number| answers_to(&pair, 20_000 + number)).count() as u64;
    assert!(came >= u64::from(FLOWS) - 5, "{came} answers, {} requests", answers.count());
    for (node, before) in [&pair.left, &pair.right].into_iter().zip(&before) {
        let since = node.outcomes().since(before);
        for direction in [Outcome::ConfirmedOut, Outcome::ConfirmedIn] {
            // What another packet of the flow may overtake waits for the next one.
            let proven = since.get(direction) + since.get(Outcome::RefusedOrder);
            assert!(proven >= came, "{direction:?}: {proven} of {came} flows, {since:?}");
        }
    }
}

/// Whether a datagram from this port is answered.
fn answers_to(pair: &Pair, port: u16) -> bool {
    let to = SocketAddrV4::new(pair.server.address, 7002);
    pair.client.netns.inside(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("a free port");
        socket.connect(to).expect("an address");
        socket.set_read_timeout(Some(Duration::from_millis(500) * patience())).expect("a timeout");
        socket.send(&[1]).is_ok() && socket.recv(&mut [0; 16]).is_ok()
    })
}

#[test]
fn cleanup_leaves_nothing_of_the_programs() {
    let mut pair = Pair::agents(&Options::default());
    pair.fast_both_ways();
    pair.left.stop_agent();
    answers(&pair);
    let output = pair.left.cleanup();
    assert!(output.status.success(), "{output:?}");
    for interface in ["eth0", "veth2"] {
        assert_eq!(hooks::on(&pair.left.netns, interface), Vec::<String>::new(), "{interface}");
    }
    assert!(!pair.left.netns.sh("tc qdisc show").contains("clsact"));
    assert!(!pair.left.netns.try_sh("ip link show flannel.1"));
    assert!(hooks::pins(pair.left.pin_dir()).is_empty());
}
