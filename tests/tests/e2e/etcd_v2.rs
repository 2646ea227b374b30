//! Leases in etcd's v2 API, and the way from there to v3.

use std::time::Duration;

use flannel_tests::agent::{self, Options};
use flannel_tests::etcd::{Etcd, PREFIX};
use flannel_tests::lab::{Lab, NETWORK};
use flannel_tests::pair::Pair;
use flannel_tests::process::run;
use flannel_tests::wait;

const SECOND: Duration = Duration::from_secs(1);

/// An etcd whose config is in v2 alone.
fn v2(lab: &Lab) -> Etcd {
    let etcd = lab.empty_etcd();
    let config =
        format!(r#"{{"Network":"{NETWORK}","SubnetLen":24,"Backend":{{"Type":"vxlan","VNI":1}}}}"#);
    etcd.put_v2(&format!("{PREFIX}/config"), &config, None);
    etcd
}

fn by(api: &str) -> Options {
    Options { extra: vec![format!("--etcd-api={api}")], ..Options::ebpf() }
}

#[test]
fn agents_find_each_other_by_v2_alone() {
    let lab = Lab::new();
    let etcd = v2(&lab);
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    // Nothing says v2: it is where the config is.
    left.start(&etcd, &Options::ebpf());
    right.start(&etcd, &by("v2"));
    left.wait_routes(&[&right]);
    right.wait_routes(&[&left]);
    assert_eq!(etcd.subnets(), [], "nothing is in v3");
    assert_eq!(etcd.subnets_v2().len(), 2);
    assert_eq!(left.status().store.api.as_deref(), Some("v2 (v3 has no network config)"));
    let pair = Pair::with_pods(lab, etcd, left, right);
    for (from, to) in [(&pair.client, &pair.server), (&pair.server, &pair.client)] {
        let text = from.ping(to.address, "-c 5 -i 0.1 -W 2");
        assert_eq!(text.matches("ttl=62").count(), 5, "{text}");
    }
    pair.check_integrity(5);
    // A lease deleted by hand is claimed again, and the subnet stays.
    let subnet = pair.left.subnet();
    let key = format!("{PREFIX}/subnets/{}", flannel_tests::plain::key(subnet));
    pair.etcd.curl(&key, &["-XDELETE"]);
    wait::holds("the lease to be claimed again", 10 * SECOND, || pair.etcd.subnets_v2().len() == 2);
    pair.right.wait_routes(&[&pair.left]);
    assert_eq!(pair.left.subnet(), subnet);
}

/// A stream of a packet each millisecond while `act` runs; none may be lost.
#[track_caller]
#[test]
fn a_cluster_moves_from_v2_to_v3_node_by_node() {
    let lab = Lab::new();
    let etcd = v2(&lab);
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    // Both nodes run flannels of the v2 days.
    left.make_old(&etcd, "10.244.31.0/24");
    right.make_old(&etcd, "10.244.32.0/24");
    left.sync_old(&etcd);
    right.sync_old(&etcd);
    let mut pair = Pair::with_pods(lab, etcd, left, right);
    let before = pair.etcd.subnets_v2();

    let migrate = |pair: &Pair| {
        let endpoint = format!("--etcd-endpoints={}", pair.etcd.endpoint());
        let mut command = pair.lab.underlay().command(agent::program());
        run(command.args(["migrate", "--from=v2", "--to=v3", &endpoint]))
    };
    assert!(migrate(&pair).contains("copied      config"));
    assert_eq!(pair.etcd.subnets(), before);
    assert!(migrate(&pair).contains("nothing to do"));

    let both = by("both");
    pair.nothing_lost(5 * SECOND, |pair| pair.left.start(&pair.etcd, &both));
    assert_eq!(pair.left.subnet().to_string(), "10.244.31.0/24");
    // The old flannel reads what the agent wrote to v2.
    pair.right.sync_old(&pair.etcd);
    pair.left.wait_routes(&[&pair.right]);
    pair.client.ping(pair.server.address, "-c 3 -i 0.2 -W 2");
    pair.nothing_lost(5 * SECOND, |pair| pair.right.start(&pair.etcd, &both));
    assert_eq!(pair.right.subnet().to_string(), "10.244.32.0/24");
    assert_eq!(pair.left.status().store.api.as_deref(), Some("v3, mirrored in v2"));
    let subnets = |leases: Vec<(String, String)>| leases.into_iter().map(|(key, _)| key);
    assert!(subnets(pair.etcd.subnets()).eq(subnets(before)));

    let v3 = Options::ebpf();
    pair.nothing_lost(5 * SECOND, |pair| {
        pair.left.kill_agent();
        pair.left.start(&pair.etcd, &v3);
    });
    pair.nothing_lost(5 * SECOND, |pair| {
        pair.right.kill_agent();
        pair.right.start(&pair.etcd, &v3);
    });
    pair.nothing_lost(5 * SECOND, |pair| {
        let answer = pair.etcd.curl(&format!("{PREFIX}?recursive=true"), &["-XDELETE"]);
        assert_eq!(answer["action"], "delete", "{answer}");
    });
    assert_eq!(pair.etcd.subnets().len(), 2);
    let text = pair.client.ping(pair.server.address, "-c 5 -i 0.1 -W 2");
    assert_eq!(text.matches("ttl=62").count(), 5, "{text}");
}
