use flannel_ebpf::abi::Outcome;
use serde_json::json;

use super::*;
use crate::envelope::KeptWay;
use crate::health::Subject;
use crate::repair::Repair;

fn status() -> Status {
    Status { version: "0.1.0".to_owned(), pid: 7, ..Status::default() }
}

/// What readers of the JSON rely on: names, nulls, and empty texts before anything
/// is known.
#[test]
fn the_json_stays_as_its_readers_know_it() {
    let value = serde_json::to_value(status()).unwrap();
    assert_eq!(
        value,
        json!({
            "version": "0.1.0", "pid": 7, "backend": "", "firewall": null,
            "datapath": {
                "mode": "", "reason": null, "attach": null, "tcp": false, "flows": null,
                "xdp": {"mode": "off", "reason": null},
                "kept": [], "veths": [], "not_served": [], "hooks": [],
            },
            "packet_rules": null, "lease": null, "device": null,
            "store": {"connected": false, "detail": null, "api": null},
            "peers": 0, "narrow_peers": [], "outcomes": {}, "health": [], "ignored": [],
        })
    );
    assert_eq!(serde_json::from_value::<Status>(value).unwrap(), status());
}

#[test]
fn a_full_status_is_read_back() {
    let mut full = status();
    full.backend = Some(BackendKind::HostGw);
    full.datapath.mode = Some(DatapathKind::UdpProxy);
    full.datapath.attach = Some(Attachment::Clsact);
    full.packet_rules = Some(PacketRulesStatus::default());
    full.health = vec![Line {
        subject: Subject::Peer,
        what: "peer 10.5.1.0/24".to_owned(),
        reason: "no route".to_owned(),
        since_seconds: 3,
    }];
    let value = serde_json::to_value(&full).unwrap();
    assert_eq!(value["backend"], "host-gw");
    assert_eq!(value["datapath"]["mode"], "udp proxy");
    assert_eq!(value["datapath"]["attach"], "clsact");
    assert_eq!(value["packet_rules"]["mode"], "respect");
    assert_eq!(value["health"][0]["what"], "peer 10.5.1.0/24");
    assert_eq!(value["health"][0]["subject"], "peer");
    assert_eq!(serde_json::from_value::<Status>(value).unwrap(), full);
    for mode in DatapathKind::ALL {
        assert_eq!(serde_json::to_value(mode).unwrap(), mode.text());
    }
}

#[test]
fn peers_are_told_by_path_and_by_what_counts_them() {
    let peer = |path, state, counters| PeerStatus {
        subnet: "10.5.1.0/24".parse().unwrap(),
        public_ip: "192.0.2.1".parse().unwrap(),
        vtep_mac: None,
        path,
        state,
        counters,
    };
    let udp = UdpCounters { tx_udp_packets: 5, ..UdpCounters::default() };
    let peers = [
        peer(PeerPath::Direct, PeerState::Ok, Counters::Programs(PeerCounters::default())),
        peer(PeerPath::Backend(BackendKind::Udp), PeerState::Unmapped, Counters::Udp(udp)),
        peer(
            PeerPath::Backend(BackendKind::Vxlan),
            PeerState::Pending("no route".to_owned()),
            Counters::Programs(PeerCounters { rx_fast_bytes: 9, ..PeerCounters::default() }),
        ),
        peer(PeerPath::Direct, PeerState::Ok, Counters::Shared {}),
    ];
    let value = serde_json::to_value(&peers).unwrap();
    assert_eq!(
        value[1],
        json!({
            "subnet": "10.5.1.0/24", "public_ip": "192.0.2.1", "vtep_mac": null, "path": "udp",
            "state": "ok, by the kernel's path only: the programs' tables are full",
            "tx_udp_packets": 5, "tx_udp_bytes": 0, "rx_udp_packets": 0, "rx_udp_bytes": 0,
        })
    );
    assert_eq!(value[0]["path"], "direct");
    assert_eq!((&value[2]["path"], &value[2]["state"]), (&json!("vxlan"), &json!("no route")));
    assert_eq!(value[2]["rx_fast_bytes"], 9);
    assert_eq!(value[3].as_object().map(|told| told.len()), Some(5), "no counters");
    assert_eq!(serde_json::from_value::<Vec<PeerStatus>>(value).unwrap(), peers);
}

#[test]
fn a_packet_is_told_with_names_and_read_back() {
    let event = PacketEvent {
        at: std::time::SystemTime::UNIX_EPOCH,
        hook: "from_pod".into(),
        device: "veth2".to_owned(),
        len: 98,
        proto: Some("udp".to_owned()),
        ends: None,
        tcp_flags: String::new(),
        tunnel: None,
        verdict: PacketVerdict::Sent,
        outcomes: vec![Outcome::SeenFromPod, Outcome::FastEncap],
        not_told: 0,
    };
    let mut value = serde_json::to_value(&event).unwrap();
    assert_eq!(value["outcomes"], json!(["seen_from_pod", "fast_encap"]));
    assert_eq!(serde_json::from_value::<PacketEvent>(value.clone()).unwrap(), event);
    value["outcomes"] = json!(["fast_magic"]);
    let error = serde_json::from_value::<PacketEvent>(value).unwrap_err();
    assert!(error.to_string().contains("no outcome is called \"fast_magic\""), "{error}");
}

#[test]
fn one_repair_is_no_plural() {
    let told = |times| What::Repaired { what: Repair::Firewall, times }.to_string();
    assert_eq!(told(1), "firewall rules put right: somebody else changed it");
    assert_eq!(told(2), "firewall rules put right 2 times: somebody else changed it");
    let file = What::Repaired { what: Repair::StateFile, times: 1 }.to_string();
    assert!(file.starts_with("state file put right"), "{file}");
}

#[test]
fn events_have_no_words_of_the_programs() {
    let ways = [
        KeptWay::KeepOut,
        KeptWay::KeepIn,
        KeptWay::KeepTunnel,
        KeptWay::MarkedRoutes,
        KeptWay::MorePeers,
    ];
    let whats = ways.into_iter().flat_map(|way| {
        [What::FastPathOff { way, why: "a rule".to_owned() }, What::FastPathOn { way }]
    });
    let repairs = Repair::ALL.map(|what| What::Repaired { what, times: 1 });
    for what in whats.chain(repairs) {
        assert!(!what.to_string().contains('_'), "{what}");
    }
}
