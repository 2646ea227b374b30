//! Each finding appears on a fake node that has its fault, and on no well one.

use std::path::PathBuf;

use super::facts::*;
use super::*;
use crate::firewall::packet_rules::fate::{Culprit, Fate};
use crate::firewall::packet_rules::ruleset::Family;
use crate::forwarding::{Inbound, Origin, Unforwarded};
use crate::mac::MacAddr;
use crate::probe::Answer;

mod probes;

use self::probes::probe;

/// A node without a fault.
fn well() -> NodeFacts {
    use Feature::*;
    let features =
        [Classifier, Xdp, Hash, LruHash, Array, PerCpuArray, LpmTrie, RingBuffer, Tcx, Btf];
    let passes = |what| Ruled { what, fate: Fate::Passes };
    let subnet = "10.244.1.0/24".parse().unwrap();
    NodeFacts {
        agent: Ok(Agent::Running {
            leased: true,
            datapath: "ebpf".into(),
            reason: None,
            complaints: vec![],
        }),
        features: features.map(|feature| (feature, Ok(true))).into(),
        capabilities: Ok(Capabilities {
            whose: Whose::Daemons,
            net_admin: true,
            net_raw: true,
            bpf: true,
        }),
        bpffs: Bpffs { path: "/sys/fs/bpf/flannel".into(), mounted: Ok(true) },
        foreign: Ok(vec![]),
        forwarding: Ok(vec![]),
        rp_filters: vec![RpFilter { device: "eth0".into(), value: Ok(1), otherwise: vec![] }],
        rules: Ok([Packets::ToPeers, Packets::FromPeers, Packets::TunnelIn, Packets::TunnelOut]
            .map(passes)
            .into()),
        firewall_services: vec![],
        network: Some(Network {
            network: Some("10.244.0.0/16".parse().unwrap()),
            subnet,
            device: Some("flannel.1".into()),
            mtu: Some(1450),
        }),
        underlay: Ok(card(true, true)),
        devices: Ok(vec![vxlan("flannel.1", 1, 8472)]),
        port_holders: Ok(vec![]),
        subnet_file: SubnetEnvFacts { path: "subnet.env".into(), says: Some((subnet, 1450)) },
        ipsec: Ok(vec![]),
        probes: Ok(vec![probe(7, CAME, CAME)]),
        store: Ok(StoreAnswer { millis: 2, leases: vec![held(1), held(2)] }),
        store_settings: None,
        clock: Ok(0),
        certificates: vec![],
    }
}

fn card(up: bool, carrier: bool) -> Underlay {
    Underlay::There { device: "eth0".into(), up, carrier }
}

const OFF: Unforwarded = Unforwarded { device: None };
const CAME: Answer = Answer::Came { micros: 300 };

fn held(number: u8) -> Held {
    Held {
        subnet: format!("10.244.{number}.0/24").parse().unwrap(),
        public_ip: [192, 0, 2, number].into(),
        vtep_mac: Some(MacAddr([2, 0, 0, 0, 0, number])),
    }
}

fn vxlan(name: &str, vni: u32, port: u16) -> TunnelDevice {
    TunnelDevice {
        name: name.into(),
        kind: "vxlan".into(),
        vni: Some(vni),
        port: Some(port),
        mtu: 1450,
        up: true,
    }
}

fn culprit(handle: Option<u64>) -> Culprit {
    Culprit {
        family: Family::Ip,
        table: "filter".into(),
        chain: "FORWARD".into(),
        handle,
        text: "drop".into(),
    }
}

/// The findings about `id` of the well node with this fault.
fn with(id: Id, fault: impl FnOnce(&mut NodeFacts)) -> Vec<Finding> {
    let mut facts = well();
    fault(&mut facts);
    report(&facts).findings.into_iter().filter(|finding| finding.id == id).collect()
}

/// The fault is found, in these words, and something helps.
#[track_caller]
fn found(id: Id, state: Condition, words: &str, fault: impl FnOnce(&mut NodeFacts)) {
    let findings = with(id, fault);
    let fits = |finding: &Finding| finding.state == state && finding.found.contains(words);
    assert!(findings.iter().any(fits), "{words} in {findings:?}");
    for finding in findings.iter().filter(|finding| finding.state >= Condition::Degraded) {
        assert!(finding.remedy.as_ref().is_some_and(|remedy| !remedy.is_empty()), "{finding:?}");
    }
}

#[test]
fn a_well_node_is_well_and_everything_was_looked_at() {
    let report = report(&well());
    let ill: Vec<&Finding> =
        report.findings.iter().filter(|finding| finding.state != Condition::Well).collect();
    assert!(ill.is_empty(), "{ill:?}");
    assert_eq!((report.verdict, report.daemon), (Condition::Well, true));
    let ids: Vec<Id> = report.findings.iter().map(|finding| finding.id).collect();
    assert_eq!(ids, Id::ALL, "one of each, in order");
}

#[test]
fn a_report_is_read_back() {
    let findings = Id::ALL.iter().map(|id| Finding::well(*id, "as it should be")).collect();
    let report = CheckReport::new(true, findings);
    let mut value = serde_json::to_value(&report).unwrap();
    assert_eq!(serde_json::from_value::<CheckReport>(value.clone()).unwrap(), report);
    value["findings"][0]["id"] = "weather".into();
    let error = serde_json::from_value::<CheckReport>(value).unwrap_err();
    assert!(error.to_string().contains("nothing is looked at as \"weather\""), "{error}");
}

#[test]
fn the_worst_finding_is_the_verdict_and_unknown_is_not_well() {
    let verdict = |fault: fn(&mut NodeFacts)| {
        let mut facts = well();
        fault(&mut facts);
        report(&facts).verdict
    };
    assert_eq!(verdict(|facts| facts.forwarding = Ok(vec![OFF])), Condition::Broken);
    assert_eq!(verdict(|facts| facts.bpffs.mounted = Ok(false)), Condition::Degraded);
    let unknown = |facts: &mut NodeFacts| facts.forwarding = Err(Unknown::because("EPERM"));
    assert_eq!(verdict(unknown), Condition::Degraded);
}

#[test]
fn the_daemon() {
    let agent = |agent| move |facts: &mut NodeFacts| facts.agent = Ok(agent);
    let dead = |remembered| agent(Agent::Dead { remembered });
    found(Id::Agent, Condition::Broken, "none has run", dead(false));
    found(Id::Agent, Condition::Degraded, "goes on forwarding", dead(true));
    found(Id::Agent, Condition::Broken, "runs, and flannel.1 is not there", |facts| {
        dead(true)(facts);
        facts.devices = Ok(vec![]);
    });
    found(Id::Agent, Condition::Broken, "the udp backend forwards nothing", |facts| {
        dead(true)(facts);
        facts.devices.as_mut().unwrap()[0].kind = "tun".into();
    });
    let running = |reason: Option<&str>, complaints: &[&str]| {
        agent(Agent::Running {
            leased: true,
            datapath: "kernel".into(),
            reason: reason.map(Into::into),
            complaints: complaints.iter().map(ToString::to_string).collect(),
        })
    };
    found(Id::Agent, Condition::Degraded, "EPERM", running(Some("EPERM"), &[]));
    found(Id::Agent, Condition::Degraded, "store: away", running(None, &["store: away"]));
    for running in [running(Some("EPERM"), &[]), running(None, &["store: away"])] {
        let why = &with(Id::Agent, running)[0].why;
        assert_ne!(why, Id::Agent.why(), "the daemon does follow the cluster");
    }
    found(Id::Agent, Condition::Broken, "no lease", |facts| {
        running(None, &[])(facts);
        facts.network = None;
    });
    let waits = agent(Agent::Running {
        leased: false,
        datapath: "not chosen yet".into(),
        reason: None,
        complaints: vec![],
    });
    found(Id::Agent, Condition::Degraded, "no lease yet; what was set up goes on", waits.clone());
    found(Id::Agent, Condition::Broken, "no lease yet, and flannel.1 is not there", |facts| {
        waits(facts);
        facts.devices = Ok(vec![]);
    });
    found(Id::Agent, Condition::Unknown, "refused", |facts| {
        facts.agent = Err(Unknown::because("refused"));
    });
}

#[test]
fn the_platform() {
    found(Id::KernelFeatures, Condition::Degraded, "LPM_TRIE", |facts| {
        facts.features[6].1 = Ok(false);
    });
    found(Id::KernelFeatures, Condition::Well, "clsact filters", |facts| {
        facts.features[8].1 = Ok(false);
    });
    found(Id::KernelFeatures, Condition::Unknown, "EPERM", |facts| {
        facts.features[0].1 = Err(Unknown::because("EPERM"));
    });
    let capabilities = |net_admin, bpf| {
        move |facts: &mut NodeFacts| {
            let whose = Whose::Ours;
            facts.capabilities = Ok(Capabilities { whose, net_admin, net_raw: true, bpf });
        }
    };
    found(Id::Capabilities, Condition::Broken, "CAP_NET_ADMIN", capabilities(false, true));
    found(Id::Capabilities, Condition::Degraded, "CAP_BPF", capabilities(true, false));
    found(Id::Bpffs, Condition::Degraded, "on no bpffs", |facts| facts.bpffs.mounted = Ok(false));
    found(Id::ForeignPrograms, Condition::Degraded, "eth0 ingress has cil_from_netdev", |facts| {
        let what = "cil_from_netdev, id 7".into();
        facts.foreign = Ok(vec![Foreign { device: "eth0".into(), side: "ingress", what }]);
    });
}

#[test]
fn forwarding_and_filters() {
    found(Id::Forwarding, Condition::Broken, "ip_forward is 0", |facts| {
        facts.forwarding = Ok(vec![OFF])
    });
    let bridge = with(Id::Forwarding, |facts| {
        let device = Some(("br.7".to_owned(), Origin::Pods));
        facts.forwarding = Ok(vec![Unforwarded { device }]);
    });
    let remedy = bridge[0].remedy.as_deref().unwrap_or_default();
    assert!(remedy.starts_with("sysctl -w net.ipv4.conf.br/7.forwarding=1"), "{bridge:?}");
    let card = |inbound| {
        move |facts: &mut NodeFacts| {
            let device = Some(("eth0".to_owned(), Origin::Underlay(inbound)));
            facts.forwarding = Ok(vec![Unforwarded { device }]);
        }
    };
    found(Id::Forwarding, Condition::Broken, "answers from outside", card(Inbound::Answers));
    let spared = with(Id::Forwarding, card(Inbound::Others));
    assert_eq!(spared[0].state, Condition::Well, "{spared:?}");
    assert!(spared[0].found.contains("published ports"), "{spared:?}");
    found(Id::RpFilter, Condition::Broken, "eth0 filters strictly", |facts| {
        facts.rp_filters[0].otherwise = vec!["192.0.2.7".parse().unwrap()];
    });
    let loose = with(Id::RpFilter, |facts| {
        facts.rp_filters[0].value = Ok(2);
        facts.rp_filters[0].otherwise = vec!["192.0.2.7".parse().unwrap()];
    });
    assert_eq!(loose[0].state, Condition::Well, "{loose:?}");
}

#[test]
fn rules_that_drop_are_named() {
    let fate = |at: usize, fate| {
        move |facts: &mut NodeFacts| facts.rules.as_mut().unwrap()[at].fate = fate
    };
    let words = "ip filter FORWARD handle 7 (drop) drops what pods send";
    found(Id::ForwardRules, Condition::Broken, words, fate(0, Fate::Dropped(culprit(Some(7)))));
    let perhaps = fate(1, Fate::Perhaps(culprit(None)));
    found(Id::ForwardRules, Condition::Degraded, "may drop what peers send", perhaps);
    let tunnel = fate(2, Fate::Dropped(culprit(None)));
    found(Id::TunnelRules, Condition::Broken, "tunnel packets that come in", tunnel);
    let out = fate(3, Fate::Dropped(culprit(None)));
    found(Id::TunnelRules, Condition::Broken, "tunnel packets that go out", out);
    for id in [Id::ForwardRules, Id::TunnelRules] {
        found(id, Condition::Unknown, "no nft", |facts| {
            facts.rules = Err(Unknown::because("no nft"))
        });
    }
}

#[test]
fn services_that_write_rules() {
    use FirewallService::{Firewalld, Ufw};
    found(Id::FirewallService, Condition::Well, "lets packets pass", |facts| {
        facts.firewall_services = vec![Ufw];
    });
    let drop = |service, culprit: Culprit| {
        move |facts: &mut NodeFacts| {
            facts.firewall_services = vec![service];
            facts.rules.as_mut().unwrap()[2].fate = Fate::Dropped(culprit);
        }
    };
    for (service, name, remedy) in [
        (
            Firewalld,
            "firewalld is active, and",
            "firewall-cmd --permanent --add-port=8472/udp; firewall-cmd --permanent \
             --zone=trusted --add-source=10.244.0.0/16; firewall-cmd --reload",
        ),
        (
            Ufw,
            "ufw is active, and",
            "ufw allow 8472/udp; ufw route allow from 10.244.0.0/16 to 10.244.0.0/16",
        ),
    ] {
        found(Id::FirewallService, Condition::Degraded, name, drop(service, culprit(None)));
        let told = with(Id::FirewallService, drop(service, culprit(None)));
        assert_eq!(told[0].remedy.as_deref(), Some(remedy));
    }
    // Their own rules come again: no use in deleting them.
    let theirs = Culprit { table: "firewalld".into(), ..culprit(Some(7)) };
    let ufws = Culprit { chain: "ufw-not-local".into(), ..culprit(None) };
    for (service, culprit) in [(Firewalld, theirs), (Ufw, ufws)] {
        let told = with(Id::TunnelRules, drop(service, culprit));
        let remedy = told[0].remedy.as_deref();
        assert_eq!(remedy, Some("let its service accept them: see firewall-service"));
    }
}

#[test]
fn devices_and_the_port() {
    let more = |name: &'static str, vni, port| {
        move |facts: &mut NodeFacts| facts.devices.as_mut().unwrap().push(vxlan(name, vni, port))
    };
    found(Id::Devices, Condition::Degraded, "flannel.7 is of another", more("flannel.7", 7, 4789));
    found(Id::VxlanPort, Condition::Degraded, "vx0 uses UDP port 8472 too", more("vx0", 9, 8472));
    let other = with(Id::Devices, more("vx0", 9, 4789));
    assert_eq!(other[0].state, Condition::Well, "no device of flannel's: {other:?}");
    found(Id::VxlanPort, Condition::Broken, "socat (pid 7)", |facts| {
        facts.port_holders = Ok(vec!["socat (pid 7)".into()]);
    });
    let own = |change: fn(&mut TunnelDevice)| {
        move |facts: &mut NodeFacts| change(&mut facts.devices.as_mut().unwrap()[0])
    };
    found(Id::Devices, Condition::Broken, "flannel.1 is down", own(|own| own.up = false));
    found(Id::Devices, Condition::Degraded, "an MTU of 1400", own(|own| own.mtu = 1400));
    found(Id::Devices, Condition::Broken, "is not there", |facts| facts.devices = Ok(vec![]));
    found(Id::Devices, Condition::Unknown, "not known", |facts| facts.network = None);
}

#[test]
fn the_underlay() {
    let id = Id::Underlay;
    let is = |underlay| move |facts: &mut NodeFacts| facts.underlay = Ok(underlay);
    found(id, Condition::Broken, "eth0 is down", is(card(false, false)));
    found(id, Condition::Broken, "eth0 has no carrier", is(card(true, false)));
    found(id, Condition::Well, "on none of its devices", is(Underlay::Unfound));
    found(id, Condition::Unknown, "no device has", |facts| {
        is(Underlay::Unfound)(facts);
        facts.devices = Ok(vec![]);
    });
    found(id, Condition::Unknown, "EPERM", |facts| facts.underlay = Err(Unknown::because("EPERM")));
}

#[test]
fn the_subnet_file() {
    let says = |says| move |facts: &mut NodeFacts| facts.subnet_file.says = says;
    found(Id::SubnetFile, Condition::Broken, "is not there", says(None));
    let other = says(Some(("10.244.9.0/24".parse().unwrap(), 1450)));
    found(Id::SubnetFile, Condition::Broken, "10.244.9.0/24, the lease 10.244.1.0/24", other);
    let mtu = says(Some(("10.244.1.0/24".parse().unwrap(), 1500)));
    found(Id::SubnetFile, Condition::Degraded, "an MTU of 1500", mtu);
    found(Id::SubnetFile, Condition::Unknown, "not known", |facts| facts.network = None);
    let path = with(Id::SubnetFile, |facts| facts.subnet_file.path = PathBuf::from("/x/env"));
    assert!(path[0].found.contains("/x/env"));
}

#[test]
fn ipsec_policies() {
    found(Id::Ipsec, Condition::Degraded, "dst 192.0.2.7", |facts| {
        facts.ipsec = Ok(vec!["src 192.0.2.1 dst 192.0.2.7".into()]);
    });
}

#[test]
fn store_and_clock() {
    found(Id::Store, Condition::Degraded, "refused", |facts| {
        facts.store = Err(StoreFault::Unavailable(Unknown::because("refused")));
    });
    found(Id::Store, Condition::Unknown, "give the --etcd flags (refused)", |facts| {
        facts.store = Err(StoreFault::NotNamed(Unknown::because("refused")));
    });
    found(Id::Store, Condition::Well, "2 leases; asked with the settings of x.service", |facts| {
        facts.store_settings = Some("x.service".into());
    });
    let absent = || StoreFault::Config(Unknown::because("no key /net/config"));
    found(Id::Store, Condition::Degraded, "no key", |facts| facts.store = Err(absent()));
    let told = super::store::findings(&NodeFacts { store: Err(absent()), ..well() });
    assert!(told[0].remedy.as_deref().is_some_and(|remedy| remedy.contains("config")), "{told:?}");
    found(Id::DuplicateLeases, Condition::Unknown, "cannot be listed", |facts| {
        facts.store = Err(StoreFault::Unavailable(Unknown::because("refused")));
    });
    let slow = |facts: &mut NodeFacts| facts.store.as_mut().unwrap().millis = 4000;
    found(Id::Store, Condition::Degraded, "after 4000 ms", slow);
    found(Id::Clock, Condition::Degraded, "1 min 30 s behind ours", |facts| facts.clock = Ok(-90));
    found(Id::Clock, Condition::Degraded, "1 min 30 s ahead of ours", |facts| facts.clock = Ok(90));
    found(Id::Clock, Condition::Unknown, "no date", |facts| {
        facts.clock = Err(Unknown::because("no date"));
    });
}

#[test]
fn leases_that_cannot_both_be_right() {
    let more =
        |lease| move |facts: &mut NodeFacts| facts.store.as_mut().unwrap().leases.push(lease);
    let id = Id::DuplicateLeases;
    let address = Held { public_ip: held(1).public_ip, ..held(3) };
    let words = "PublicIP 192.0.2.1 has 10.244.1.0/24 and 10.244.3.0/24";
    found(id, Condition::Broken, words, more(address));
    let mac = Held { vtep_mac: held(2).vtep_mac, ..held(3) };
    found(id, Condition::Broken, "VTEP MAC 02:00:00:00:00:02 has", more(mac));
    let wide = Held { subnet: "10.244.2.0/23".parse().unwrap(), ..held(3) };
    found(id, Condition::Broken, "10.244.2.0/23 of 192.0.2.3 and 10.244.2.0/24", more(wide));
}

#[test]
fn certificates_near_their_end() {
    let left = |seconds_left| {
        let path = "etcd.pem".into();
        move |facts: &mut NodeFacts| facts.certificates = vec![Certificate { path, seconds_left }]
    };
    let id = Id::Certificates;
    found(id, Condition::Broken, "etcd.pem has ended", left(Ok(-1)));
    found(id, Condition::Degraded, "etcd.pem ends in 3 days", left(Ok(3 * 86_400 + 7)));
    found(id, Condition::Degraded, "ends in 1 day", left(Ok(86_400)));
    found(id, Condition::Degraded, "ends in less than a day", left(Ok(86_399)));
    found(id, Condition::Well, "etcd.pem lasts 300 days", left(Ok(300 * 86_400)));
    found(id, Condition::Unknown, "none in it", left(Err(Unknown::because("none in it"))));
}
