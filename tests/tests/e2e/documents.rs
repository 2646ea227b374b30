//! The commands in the documents: each is run on nodes under systemd, or the document
//! says why not.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flannel_core::status::Status;
use flannel_tests::document::{Block, Marker, Place, Run, blocks};
use flannel_tests::etcd::Etcd;
use flannel_tests::lab::Lab;
use flannel_tests::machine::{Machine, SOURCES};
use flannel_tests::node::Node;
use flannel_tests::process::{Process, output, run};
use flannel_tests::told::told;
use flannel_tests::wait;

use crate::package::dist;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../");

/// The documents with commands that a case runs.
const RUN: &[&str] = &[
    "README.md",
    "docs/cni.md",
    "docs/configuration.md",
    "docs/docker.md",
    "docs/etcd-v2.md",
    "docs/etcd-tls.md",
    "docs/fedora.md",
    "docs/operations.md",
    "docs/troubleshooting.md",
];

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every document of this folder that users and engineers read.
fn documents() -> Vec<String> {
    let mut found = Vec::new();
    for dir in ["", "docs", "docs/design", "docs/benchmarks"] {
        for entry in fs::read_dir(Path::new(ROOT).join(dir)).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().expect("a name");
            if name.ends_with(".md") {
                found.push(format!("{dir}/{name}").trim_start_matches('/').to_owned());
            }
        }
    }
    assert!(found.len() > 15, "{found:?}");
    found
}

/// Whether a reason names a case that there is, for each word like `module::case`.
fn named_cases_exist(reason: &str) -> bool {
    reason.split('`').filter(|word| word.contains("::")).all(|word| {
        let (module, case) = word.split_once("::").expect("a case");
        let path = format!("{ROOT}tests/tests/e2e/{module}.rs");
        fs::read_to_string(path).is_ok_and(|text| text.contains(&format!("fn {case}(")))
    })
}

#[test]
fn every_command_is_run_or_says_why_not() {
    let mut complaints = Vec::new();
    for name in documents() {
        for block in blocks(&read(&name)) {
            let mut complain =
                |what: &str| complaints.push(format!("{name}:{}: {what}", block.line));
            match block.how() {
                Err(what) => complain(&what),
                Ok(Some(_)) if !RUN.contains(&name.as_str()) => {
                    complain("no case runs the commands of this document");
                }
                Ok(_) => {}
            }
            if let Some(Marker::NotRun(reason)) = &block.marker
                && !named_cases_exist(reason)
            {
                complain("names a case that is not there");
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// Two nodes under systemd, and what runs in the background on them.
struct Bench {
    // First, so that it ends before the nodes do.
    background: Vec<Process>,
    machines: Vec<Machine>,
    nodes: Vec<Node>,
    etcd: Etcd,
    lab: Lab,
}

impl Bench {
    /// Two nodes that have nothing of flannel yet, and an etcd without a config.
    fn bare() -> Self {
        let lab = Lab::new();
        let etcd = lab.empty_etcd();
        let nodes = vec![lab.node(1), lab.node(2)];
        let machines = nodes.iter().map(Node::boot).collect::<Vec<_>>();
        for machine in &machines {
            for file in fs::read_dir(dist()).expect("the packages").flatten() {
                let name = file.file_name().to_string_lossy().into_owned();
                if name.ends_with(".deb") || name.ends_with(".tar.gz") {
                    machine.put(&file.path(), &format!("{SOURCES}/target/dist/{name}"));
                }
            }
        }
        Self { background: Vec::new(), machines, nodes, etcd, lab }
    }

    /// A shell on a node that finds etcd.
    fn shell(&self, machine: &Machine, script: &str) -> Command {
        let mut command = machine.command();
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", self.etcd.endpoint());
        command.args(["timeout", "120", "bash", "-e", "-o", "pipefail", "-c", script]);
        command
    }

    #[track_caller]
    fn script(&self, machine: &Machine, name: &str, script: &str) {
        let done = output(&mut self.shell(machine, script));
        let text = [done.stdout, done.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(done.status.success(), "{name}: {}\n{script}\n{text}", done.status);
    }

    /// Runs the blocks of a document, in its order.
    #[track_caller]
    fn document(&mut self, name: &str) {
        assert!(RUN.contains(&name), "{name}");
        let mut count = 0;
        for block in blocks(&read(name)) {
            if let Some(how) = block.how().unwrap_or_else(|what| panic!("{name}: {what}")) {
                self.block(name, &block, &how);
                count += 1;
            }
        }
        assert!(count > 0, "{name} has no commands that are run");
    }

    #[track_caller]
    fn block(&mut self, document: &str, block: &Block, how: &Run) {
        let chosen = match how.place {
            Place::First => 0..1,
            Place::Second => 1..2,
            Place::Each => 0..2,
        };
        let name = format!("{document}:{}", block.line);
        for index in chosen {
            let machine = &self.machines[index];
            let Some(condition) = &how.until else {
                self.script(machine, &name, &block.text);
                continue;
            };
            let log = self.lab.dir().join(format!("background-{}", self.background.len()));
            let mut process = Process::start(&name, &mut self.shell(machine, &block.text), &log);
            wait::holds(&format!("{name}: {condition}"), Duration::from_secs(30), || {
                assert!(process.ended().is_none(), "{name}: {}", process.log());
                output(&mut self.shell(machine, condition)).status.success()
            });
            self.background.push(process);
        }
    }

    /// Whether the second node's bridge or device answers the first one's.
    #[track_caller]
    fn nodes_reach_each_other(&self) {
        let subnet = |machine: &Machine| {
            run(machine.command().args([
                "sh",
                "-c",
                ". /run/flannel/subnet.env; echo $FLANNEL_SUBNET",
            ]))
        };
        let address = subnet(&self.machines[1]);
        let network = address.trim().rsplit_once('.').expect("a subnet").0.to_owned();
        wait::holds("an answer through the tunnel", Duration::from_secs(20), || {
            self.nodes[0].netns.try_sh(&format!("ping -c 1 -W 1 {network}.0"))
        });
    }
}

/// Two nodes by the README, and then the pages for those who have such nodes.
#[test]
fn readme_and_the_pages_for_running_nodes() {
    let mut bench = Bench::bare();
    bench.document("README.md");
    bench.nodes_reach_each_other();
    for page in ["configuration", "cni", "troubleshooting", "operations"] {
        bench.document(&format!("docs/{page}.md"));
    }
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    bench.etcd.put_v2("/coreos.com/network/config", config, None);
    bench.document("docs/etcd-v2.md");
    bench.nodes_reach_each_other();
}

#[test]
fn tls_by_hand() {
    let mut bench = Bench::bare();
    let machine = &bench.machines[0];
    bench.script(machine, "installation", "apt-get install -qq ./target/dist/*.deb");
    bench.document("docs/etcd-tls.md");
    let (_, status) = told::<Status>(bench.machines[0].command().args(["flannel-agent", "status"]));
    assert!(status.lease.is_some(), "{status:?}");
}

#[test]
fn fedora_with_sysconfig() {
    let mut bench = Bench::bare();
    bench.document("docs/fedora.md");
    bench.nodes_reach_each_other();
    let options = run(bench.machines[0].command().args(["cat", "/run/flannel/docker"]));
    assert!(options.contains("--bip=172.30."), "{options}");
}

/// An image of busybox alone, as no registry can be reached. Control groups of version 1
/// are read-only for a node, and dockerd's would be every node's.
const IMAGE: &str = "if test -e /sys/fs/cgroup/memory; then
    for hierarchy in /sys/fs/cgroup/*/; do mount -o remount,bind,rw \"$hierarchy\"; done
    mkdir -p /etc/docker
    echo '{\"cgroup-parent\": \"/GROUP\"}' > /etc/docker/daemon.json
fi
mkdir -p /tmp/image/bin
cp /bin/busybox /tmp/image/bin/
systemctl start docker
tar -C /tmp/image -c . | docker import - busybox
systemctl stop docker";

#[test]
fn docker_on_two_nodes() {
    let mut bench = Bench::bare();
    for (machine, node) in bench.machines.iter().zip(&bench.nodes) {
        bench.script(machine, "an image", &IMAGE.replace("GROUP", node.netns.name()));
    }
    bench.document("README.md");
    bench.document("docs/docker.md");
    let inspect = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let mut command = bench.machines[1].command();
    let web = run(command.args(["docker", "inspect", "--format", inspect, "web"]));
    assert!(web.starts_with("10.5."), "{web}");
    let script = format!("docker run --rm busybox busybox ping -c 3 -W 2 {}", web.trim());
    let answer = run(&mut bench.shell(&bench.machines[0], &script));
    assert!(answer.contains("ttl=62") && answer.contains(" 0% packet loss"), "{answer}");
}
