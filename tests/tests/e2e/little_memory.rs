//! A node that gives the agent little memory.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use flannel_core::status::DatapathKind;
use flannel_tests::agent::Options;
use flannel_tests::cgroup::MemoryGroup;
use flannel_tests::etcd::Etcd;
use flannel_tests::lab::Lab;
use flannel_tests::wait;

const PEERS: usize = 1_000;
/// 32 MB.
const LIMIT: u64 = 32 << 20;

fn put_peers(etcd: &Etcd) {
    let line = |number: usize| {
        let (high, low) = (number / 250, number % 250 + 1);
        format!(
            r#"put {}/subnets/10.{}.{low}.0-24 "{{\"PublicIP\":\"198.18.{high}.{low}\",\"BackendType\":\"vxlan\",\"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:{high:02x}:{low:02x}\"}}}}"
"#,
            etcd.prefix,
            100 + high
        )
    };
    let numbers: Vec<usize> = (0..PEERS).collect();
    for chunk in numbers.chunks(100) {
        let mut child =
            etcd.etcdctl().arg("txn").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let child = child.as_mut().expect("etcdctl");
        let lines: String = chunk.iter().map(|number| line(*number)).collect();
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(format!("\n{lines}\n\n").as_bytes()).expect("a transaction");
        drop(stdin);
        assert!(child.wait().expect("etcdctl").success());
    }
}

#[test]
fn a_thousand_peers_fit_into_32_megabytes() {
    let Some(group) = MemoryGroup::new() else {
        flannel_tests::skip::skip("little_memory", "no control groups for memory here");
        return;
    };
    group.allow(LIMIT);
    let lab = Lab::new();
    let etcd = lab.empty_etcd();
    etcd.put_config(
        r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.9.0",
            "Backend":{"Type":"vxlan","VNI":1}}"#,
    );
    put_peers(&etcd);
    let mut node = lab.node(1);
    let enter = format!("echo $$ > {}; exec \"$@\"", group.door().display());
    let wrapper = ["sh", "-c", &enter, "sh"].map(str::to_owned).to_vec();
    node.launch(&etcd, &Options { wrapper, ..Options::default() });
    node.wait_ready(Duration::from_secs(60));
    wait::holds("all routes", Duration::from_secs(30), || {
        node.netns.ip("route show dev flannel.1").lines().count() == PEERS
    });
    // The programs do not fit, which is said.
    let status = node.status();
    assert_eq!(status.datapath.mode, Some(DatapathKind::Kernel));
    let reason = status.datapath.reason.expect("a reason");
    assert!(reason.contains("allows 32 MB of memory") && reason.contains("need about"), "{reason}");
    std::thread::sleep(Duration::from_secs(2));
    assert!(node.agent_ended().is_none(), "{}", node.agent_log());
    node.stop_agent();
}
