//! Rules that judge each packet, from a source in memory to the programs.

use flannel_core::firewall::packet_rules::exempt::everything;
use flannel_core::firewall::packet_rules::iptables;
use flannel_core::firewall::packet_rules::walk::{Findings, findings};
use flannel_core::health::Subject;
use flannel_core::status::DatapathKind;
use flannel_ebpf::abi::{Exemption, direction};

use super::*;
use crate::firewall::packet_rules::follow::{RulesFollower, Source};
use crate::kernel::KernelEvent;
use flannel_core::status::PacketRulesMode;
use flannel_core::status::PacketRulesStatus;

/// Rules that a test sets, or why they cannot be read.
#[derive(Clone)]
struct Given(Arc<std::sync::Mutex<Result<String, String>>>);

impl Given {
    fn set(&self, rules: Result<&str, &str>) {
        *self.0.lock().unwrap() = rules.map(str::to_owned).map_err(str::to_owned);
    }
}

impl Source for Given {
    fn hints(&mut self) -> bool {
        false
    }

    async fn look(&mut self, _: bool) -> Result<Option<Findings>, String> {
        let rules = self.0.lock().unwrap().clone()?;
        let text = format!("*filter\n:FORWARD ACCEPT [0:0]\n{rules}\nCOMMIT\n");
        let overlay =
            super::super::packet_rules::overlay("10.5.0.0/16".parse().unwrap(), &vxlan(false));
        Ok(Some(findings(&iptables::read(&text), overlay)))
    }
}

/// A bench whose rules are those of the source.
fn with_rules(rules: Result<&str, &str>) -> (Bench, Given) {
    let mut bench = bench(true);
    let given = Given(Arc::new(std::sync::Mutex::new(Ok(String::new()))));
    given.set(rules);
    bench.reconciler.follow_packet_rules(RulesFollower::of(given.clone(), Duration::from_secs(60)));
    (bench, given)
}

impl Bench {
    fn exemptions(&self) -> Vec<Exemption> {
        self.datapath.state().exemptions.clone()
    }

    fn rules(&self) -> PacketRulesStatus {
        self.shared.lock().packet_rules.clone().expect("a status of the rules")
    }

    /// Lets a reading come and be answered.
    async fn settle(&mut self) {
        self.reconciler.packet_rules.changed().await.unwrap();
        self.reconciler.check_hooks();
    }
}

const LIMIT: &str = "-A FORWARD -p udp --dport 53 -m limit --limit 9/sec -j ACCEPT";

fn udp_53() -> Exemption {
    Exemption { proto: 17, dport_min: 53, dport_max: 53, ..Exemption::default() }
}

#[tokio::test(start_paused = true)]
async fn nothing_takes_the_fast_path_before_the_rules_are_known() {
    let (mut bench, _) = with_rules(Ok(LIMIT));
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(bench.exemptions(), everything());
    assert!(!bench.rules().read);
    let generation = bench.datapath.state().generation;
    bench.settle().await;
    assert_eq!(bench.exemptions(), [udp_53()]);
    assert!(bench.datapath.state().generation > generation, "confirmations end");
    let status = bench.rules();
    assert!(status.read);
    assert_eq!(status.rules[0].rule, LIMIT);
    assert_eq!(status.exempt, ["UDP to port 53"]);
    assert_eq!(bench.complaints(), [""; 0]);
    let generation = bench.datapath.state().generation;
    bench.reconciler.check_hooks();
    assert_eq!(bench.datapath.state().generation, generation, "nothing has changed");
}

#[tokio::test(start_paused = true)]
async fn events_of_rule_sets_lead_to_a_reading() {
    let (mut bench, given) = with_rules(Ok(LIMIT));
    bench.pass(&[peer(2)], Wake::ALL).await;
    bench.settle().await;
    for (event, rules, expected) in
        [(KernelEvent::Ruleset, "", vec![]), (KernelEvent::Overrun, LIMIT, vec![udp_53()])]
    {
        given.set(Ok(rules));
        bench.reconciler.wake_for(event);
        let settled = tokio::time::timeout(Duration::from_secs(2), bench.settle()).await;
        assert!(settled.is_ok(), "{event:?}");
        assert_eq!(bench.exemptions(), expected, "{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_known_holds_while_the_rules_cannot_be_read() {
    let (mut bench, given) = with_rules(Err("no nft here"));
    bench.pass(&[peer(2)], Wake::ALL).await;
    bench.settle().await;
    assert_eq!(bench.exemptions(), everything());
    assert_eq!(bench.complaints(), ["packet rules"]);
    let reason = |bench: &Bench| {
        let state = bench.shared.lock();
        state.health.reason(Subject::PacketRules).unwrap_or_default().to_owned()
    };
    assert_eq!(reason(&bench), "no nft here; nothing takes the fast path until they are read");
    given.set(Ok(LIMIT));
    bench.settle().await;
    assert_eq!(bench.exemptions(), [udp_53()]);
    given.set(Err("no nft here"));
    bench.reconciler.wake_for(KernelEvent::Ruleset);
    bench.settle().await;
    assert_eq!(bench.exemptions(), [udp_53()]);
    assert_eq!(reason(&bench), "no nft here; the rules as last read hold");
    given.set(Ok(""));
    bench.settle().await;
    assert_eq!(bench.exemptions(), []);
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn rules_can_be_ignored() {
    let (mut bench, _) = with_rules(Ok(LIMIT));
    bench.reconciler.settings.fast_path.packet_rules = PacketRulesMode::Ignore;
    bench.pass(&[peer(2)], Wake::ALL).await;
    bench.settle().await;
    assert_eq!(bench.exemptions(), []);
    assert_eq!(
        bench.rules(),
        PacketRulesStatus { mode: PacketRulesMode::Ignore, ..Default::default() }
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_fast_path_rules_do_not_matter() {
    let (mut bench, _) = with_rules(Ok(LIMIT));
    bench.reconciler.settings.fast_path.mode = FastPath::Off;
    bench.pass(&[peer(2)], Wake::ALL).await;
    assert_eq!(bench.exemptions(), []);
    assert_eq!(bench.shared.lock().packet_rules, None);
}

#[tokio::test(start_paused = true)]
async fn devices_that_come_and_go_change_what_a_rule_means() {
    let rule = "-A FORWARD -i br7 -m limit --limit 9/sec -j ACCEPT";
    let (mut bench, _) = with_rules(Ok(rule));
    bench.pass(&[peer(2)], Wake::ALL).await;
    bench.settle().await;
    assert_eq!(bench.exemptions(), [], "no packet of a pod crosses br7");
    // The pod's veth becomes a port of it.
    {
        let mut state = bench.reconciler.kernel.state();
        state.links.push(link(9, "br7", "bridge", None));
        state.links[1].master = Some(9);
    }
    let wake = Wake { links: true, ..Wake::default() };
    bench.pass(&[peer(2)], wake).await;
    assert_eq!(
        bench.exemptions(),
        [Exemption { direction: direction::OUT, ..Exemption::default() }]
    );
}

#[tokio::test(start_paused = true)]
async fn helpers_that_the_kernel_gives_by_port_are_exempt() {
    let (mut bench, _) = with_rules(Ok(""));
    let helper = bench.sysctls.path().join("net/netfilter/nf_conntrack_helper");
    let ftp =
        Exemption { proto: 6, dport_min: 21, dport_max: 21, both_ways: 1, ..Exemption::default() };
    bench.pass(&[peer(2)], Wake::ALL).await;
    bench.settle().await;
    for (value, exempt) in [("0\n", false), ("1\n", true), ("0\n", false)] {
        std::fs::write(&helper, value).unwrap();
        bench.reconciler.check_hooks();
        let exemptions = bench.exemptions();
        assert_eq!(exemptions.contains(&ftp), exempt, "{value}: {exemptions:?}");
        assert!(exempt || exemptions.is_empty(), "{value}: {exemptions:?}");
        assert_eq!(!bench.rules().rules.is_empty(), exempt);
    }
}

#[tokio::test(start_paused = true)]
async fn exemptions_that_cannot_be_written_are_told() {
    let (mut bench, _) = with_rules(Ok(LIMIT));
    bench.pass(&[peer(2)], Wake::ALL).await;
    bench.datapath.state().maps_fail = true;
    bench.settle().await;
    assert_eq!(bench.complaints(), ["hook exemptions"]);
    assert_eq!(bench.shared.lock().datapath.mode, Some(DatapathKind::Kernel));
    let fast_path = |bench: &Bench| bench.datapath.state().config.as_ref().unwrap().fast_path;
    assert_eq!(fast_path(&bench), FastPath::Off);
    bench.datapath.state().maps_fail = false;
    bench.reconciler.check_hooks();
    assert_eq!(fast_path(&bench), FastPath::Confirmed);
    assert_eq!(bench.exemptions(), [udp_53()]);
    assert_eq!(bench.complaints(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn rules_about_one_peers_tunnel_packets_count_from_its_lease_on() {
    let rule = "-A OUTPUT -d 192.0.2.4/32 -p udp --dport 8472 -j DROP";
    let (mut bench, _) = with_rules(Ok(&format!(":OUTPUT ACCEPT [0:0]\n{rule}")));
    bench.pass(&[peer(2)], Wake::ALL).await;
    bench.settle().await;
    assert!(!bench.datapath.state().keep.out, "it is about another address");
    let lease = (peer(4).subnet, Some(peer(4)));
    assert_eq!(bench.reconciler.revise(&[lease]).await, None, "a pass has to look at rules");
    bench.pass(&[peer(2), peer(4)], RENEWED).await;
    assert!(bench.datapath.state().keep.out);
}
