//! The agent's image: built by docker from what `cargo xtask dist --container` lays out,
//! and started as the guide has it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use flannel_core::status::DatapathKind;
use flannel_tests::agent;
use flannel_tests::lab::Lab;
use flannel_tests::load::BULK;
use flannel_tests::process::output;
use flannel_tests::root::packaged;
use flannel_tests::wait;

use super::{boot, start_peer};

/// How the guide's command begins.
const RUN: &str = "docker run --detach --name flannel-ebpf ";

/// The guide's command that starts the agent.
#[track_caller]
fn guided() -> String {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/docker.md");
    let guide = fs::read_to_string(guide).expect("the guide").replace("\\\n", " ");
    let line = guide.lines().find(|line| line.starts_with(RUN)).expect("docker run");
    line.to_owned()
}

#[test]
fn the_image_carries_pods_as_the_guide_starts_it() {
    let lab = Lab::new();
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    let machine = boot(&mut left);
    super::present();
    // docker's own bridge takes no part: containers of CNI plugins have another.
    machine.write("/etc/docker/daemon.json", r#"{"bridge":"none","iptables":false}"#);
    machine.sh("systemctl start docker");
    machine.sh("docker build --quiet --tag flannel-ebpf /mnt/package/container");
    machine.sh(&format!("touch /run/xtables.lock; {}", guided()));
    wait::holds("subnet.env of the container", Duration::from_secs(30), || {
        machine.read("/run/flannel/subnet.env").is_some()
    });
    start_peer(&lab, &mut right, &left);
    let (near, mut far) = (left.pod(2), right.pod(2));
    let target = far.serve();
    wait::holds("ping between the pods", Duration::from_secs(15), || {
        near.netns.ping(far.address, "-c 3 -i 0.2 -W 2").0
    });
    let status = left.status();
    assert_eq!(status.datapath.mode, Some(DatapathKind::Ebpf), "{status:?}");
    let before = left.outcomes();
    let bulk = near.traffic(BULK, target, "--megabytes 4");
    assert_eq!(bulk.corrupt, 0, "{bulk:?}");
    assert!(left.outcomes().since(&before).fast() > 50, "TCP takes the fast path");

    // Stopping leaves the traffic, as without a container.
    machine.sh("docker rm --force flannel-ebpf");
    near.ping(far.address, "-c 3 -i 0.2 -W 2");
    let options = guided();
    let options = options.strip_prefix(RUN).expect("the guide's options");
    let options = options.replace("--restart=always", "--rm").replace("--ip-masq", "cleanup");
    machine.sh(&format!("docker run {options}"));
    assert!(!machine.try_sh("ip link show flannel.1"), "cleanup by the image");
}

/// The manifest gives the agent what the guide's command gives it.
#[test]
fn the_manifest_and_the_guide_agree() {
    let manifest: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(&packaged("kubernetes/flannel-ebpf.yml")).expect("YAML");
    let of_kind = |kind: &str| {
        let found = manifest.iter().find(|object| object["kind"] == kind);
        found.unwrap_or_else(|| panic!("no {kind}"))
    };
    let set = of_kind("DaemonSet");
    assert_eq!(set["apiVersion"], "apps/v1");
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&set["spec"]["selector"]["matchLabels"], labels, "it finds its pods");
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"], true);
    let container = &pod["containers"][0];
    assert_eq!(container["image"], format!("flannel-ebpf:{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(container["securityContext"]["privileged"], true);

    let guided = guided();
    let dockerfile = packaged("container/Dockerfile");
    let volumes = pod["volumes"].as_array().expect("volumes");
    for mount in container["volumeMounts"].as_array().expect("mounts") {
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
        let volume = volume.unwrap_or_else(|| panic!("no volume for {mount}"));
        let path = mount["mountPath"].as_str().expect("a path");
        assert_eq!(
            volume["hostPath"]["path"], path,
            "the agent finds things where the node has them"
        );
        assert!(guided.contains(&format!("={path}:{path} ")), "{path} is not in {guided}");
    }
    assert_eq!(container["volumeMounts"].as_array().map(Vec::len), Some(volumes.len()));
    for kept in ["/run/flannel", "/var/lib/flannel-ebpf"] {
        assert!(dockerfile.contains(&format!("\"{kept}\"")), "{kept} is no volume of the image");
    }

    let config = of_kind("ConfigMap");
    let name = &config["metadata"]["name"];
    assert_eq!(&container["envFrom"][0]["configMapRef"]["name"], name);
    let settings = config["data"].as_object().expect("settings");
    let help = output(Command::new(agent::program()).arg("--help")).stdout;
    let help = String::from_utf8_lossy(&help).into_owned();
    for setting in settings.keys() {
        let flag = setting.strip_prefix("FLANNELD_").expect("a flag's variable");
        let flag = flag.to_lowercase().replace('_', "-");
        assert!(help.contains(&format!("--{flag}")), "{setting} sets no flag");
    }
    for probe in ["livenessProbe", "readinessProbe"] {
        let port = container[probe]["httpGet"]["port"].to_string();
        assert_eq!(settings["FLANNELD_HEALTHZ_PORT"], port, "{probe}");
    }
}
