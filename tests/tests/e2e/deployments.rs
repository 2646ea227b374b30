//! Nodes as people have set them up for flanneld: their unit, their files,
//! their flags, with the agent in flanneld's place.

use flannel_tests::etcd::Etcd;
use flannel_tests::lab::Lab;
use flannel_tests::load::REQUESTS;
use flannel_tests::node::Node;
use flannel_tests::root::packaged;

/// A unit as guides have it, for one environment file with FLANNEL_ETCD and
/// FLANNEL_OPTIONS.
const HAND_MADE: &str = "[Unit]
Description=Flanneld overlay address etcd agent
After=network.target
Before=docker.service

[Service]
Type=notify
EnvironmentFile=/etc/sysconfig/flanneld
ExecStart=/usr/bin/flanneld -etcd-endpoints=${FLANNEL_ETCD} $FLANNEL_OPTIONS
ExecStartPost=mk-docker-opts.sh -k DOCKER_NETWORK_OPTIONS -d /run/flannel/docker

[Install]
RequiredBy=docker.service
";

const WITH_VNI: &str =
    r#"{"Network":"18.16.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1}}"#;
const WIDE: &str = r#"{"Network":"172.30.0.0/16","SubnetLen":21,"Backend":{"Type":"vxlan"}}"#;

/// Starts two nodes with `unit` and what `sysconfig` gives for each, checks
/// their files and leases and lets pods of both talk.
#[track_caller]
fn deploy(lab: &Lab, etcd: &Etcd, case: &Case<'_>) -> (Node, Node) {
    etcd.ctl(&["put", &format!("{}/config", case.prefix), case.config]);
    let mut nodes = [lab.node(1), lab.node(2)];
    for node in &mut nodes {
        (case.prepare)(node);
        let root = node.install();
        root.write("/etc/sysconfig/flanneld", &(case.sysconfig)(node));
        node.start_service(case.unit);

        let (subnet, masq) = (node.subnet(), case.ip_masq);
        let gateway = subnet.nth(1).expect("an address");
        assert_eq!(
            root.read("/run/flannel/subnet.env").expect("subnet.env"),
            format!(
                "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={gateway}/{}\nFLANNEL_MTU=1450\n\
                 FLANNEL_IPMASQ={masq}\n",
                case.network, case.subnet_len
            )
        );
        let docker = root.read("/run/flannel/docker").expect("docker's options");
        let options = format!(
            "DOCKER_NETWORK_OPTIONS=\" --bip={gateway}/{} --ip-masq={} --mtu=1450\"",
            case.subnet_len, !masq
        );
        assert_eq!(docker.lines().last(), Some(options.as_str()), "{docker}");
        let key = format!("{}/subnets/{}-{}", case.prefix, subnet.network(), subnet.prefix());
        let lease = etcd.ctl(&["get", "--print-value-only", &key]);
        assert!(lease.contains(&format!(r#""PublicIP":"{}""#, node.address)), "{key}: {lease}");
        assert!(lease.contains(r#""BackendType":"vxlan","BackendData":{"VNI":1,"#), "{lease}");
    }
    let [left, right] = nodes;
    left.wait_routes(&[&right]);
    right.wait_routes(&[&left]);
    let (client, mut server) = (left.pod(2), right.pod(2));
    server.serve();
    let ping = client.ping(server.address, "-c 3 -i 0.1 -W 2");
    assert_eq!(ping.matches("ttl=62").count(), 3, "{ping}");
    let requests = client.traffic(REQUESTS, server.target(), "--seconds 1");
    assert_eq!(requests.error, None, "{requests:?}");
    assert!(left.outcomes().fast() > 100, "{:?}", left.outcomes());
    drop((client, server));
    (left, right)
}

struct Case<'a> {
    prefix: &'a str,
    config: &'a str,
    network: &'a str,
    subnet_len: u8,
    ip_masq: bool,
    unit: &'a str,
    prepare: &'a dyn Fn(&Node),
    sysconfig: &'a dyn Fn(&Node) -> String,
}

#[test]
fn fedora_with_the_old_names() {
    let lab = Lab::new();
    let etcd = lab.empty_etcd();
    let sysconfig = format!(
        "# Flanneld configuration options\n\nFLANNEL_ETCD=\"{}\"\n\
         FLANNEL_ETCD_KEY=\"/coreos.com/network\"\n#FLANNEL_OPTIONS=\"\"\n",
        etcd.endpoint()
    );
    let case = Case {
        prefix: "/coreos.com/network",
        config: WITH_VNI,
        network: "18.16.0.0/16",
        subnet_len: 24,
        ip_masq: false,
        unit: &packaged("flanneld.service"),
        prepare: &|_| {},
        sysconfig: &|_| sysconfig.clone(),
    };
    deploy(&lab, &etcd, &case);
}

#[test]
fn fedora_with_the_new_names_first() {
    let lab = Lab::new();
    let etcd = lab.empty_etcd();
    let sysconfig = packaged("sysconfig/flanneld")
        .replace("http://127.0.0.1:2379", &etcd.endpoint())
        .replace("#FLANNEL_OPTIONS=\"-iface=eth0", "FLANNEL_OPTIONS=\"-iface=eth0")
        + "FLANNEL_ETCD=\"http://192.0.2.1:1\"\nFLANNEL_ETCD_KEY=\"/nowhere\"\n";
    let case = Case {
        prefix: "/atomic.io/network",
        config: WIDE,
        network: "172.30.0.0/16",
        subnet_len: 21,
        ip_masq: true,
        unit: &packaged("flanneld.service"),
        prepare: &|_| {},
        sysconfig: &|_| sysconfig.clone(),
    };
    deploy(&lab, &etcd, &case);
}

#[test]
fn a_hand_made_unit() {
    let lab = Lab::new();
    let etcd = lab.empty_etcd();
    let sysconfig = format!("FLANNEL_ETCD={}\nFLANNEL_OPTIONS=\"\"\n", etcd.endpoint());
    let case = Case {
        prefix: "/coreos.com/network",
        config: WIDE,
        network: "172.30.0.0/16",
        subnet_len: 21,
        ip_masq: false,
        unit: HAND_MADE,
        prepare: &|_| {},
        sysconfig: &|_| sysconfig.clone(),
    };
    let (mut left, _right) = deploy(&lab, &etcd, &case);
    // A restart of the service changes nothing.
    let (subnet, mac) = (left.subnet(), left.vtep_mac());
    assert!(left.stop_agent().success());
    left.start_service(HAND_MADE);
    assert_eq!((left.subnet(), left.vtep_mac()), (subnet, mac));
}

#[test]
fn tls_and_a_second_interface() {
    let lab = Lab::new();
    let (etcd, files) = lab.tls_etcd();
    let endpoint = etcd.endpoint();
    let case = Case {
        prefix: "/kube-centos/network",
        config: WITH_VNI,
        network: "18.16.0.0/16",
        subnet_len: 24,
        ip_masq: true,
        unit: HAND_MADE,
        // As virtual machines have it: the first interface has the default
        // route and the same address on every node.
        prepare: &|node| {
            node.netns.ip_batch(&[
                "link set eth0 down".into(),
                "link set eth0 name eth2".into(),
                "link set eth2 up".into(),
                "link add eth0 type veth peer name hypervisor".into(),
                "link set hypervisor up".into(),
                "address add 10.0.2.15/24 dev eth0".into(),
                "link set eth0 up".into(),
                "route add default via 10.0.2.2".into(),
            ]);
        },
        sysconfig: &|node| {
            format!(
                "FLANNEL_ETCD=\"{endpoint}\"\nFLANNEL_OPTIONS=\"-etcd-cafile={} \
                 -etcd-certfile={} -etcd-keyfile={} -etcd-prefix=/kube-centos/network \
                 -iface=eth2 -public-ip={} -ip-masq\"\n",
                files.ca.display(),
                files.certificate.display(),
                files.key.display(),
                node.address
            )
        },
    };
    let (left, _right) = deploy(&lab, &etcd, &case);
    let device = left.netns.ip("-d link show flannel.1");
    assert!(device.contains("local 192.0.2.11 dev eth2"), "{device}");
}

#[test]
fn switched_in_place_and_back() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let (mut node, mut other) = (lab.node(1), lab.node(2));
    // As flanneld leaves them: device, lease, routes, neighbours, FDB entries.
    node.make_plain(&etcd, "10.244.101.0/24");
    other.make_plain(&etcd, "10.244.102.0/24");
    node.sync_plain(&etcd);
    other.sync_plain(&etcd);
    let (pod, far) = (node.pod(2), other.pod(2));
    pod.ping(far.address, "-c 2 -i 0.1 -W 2");
    let (subnet, mac) = (node.subnet(), node.vtep_mac());

    let root = node.install();
    let endpoint = etcd.endpoint();
    root.write(
        "/etc/sysconfig/flanneld",
        &format!("FLANNEL_ETCD={endpoint}\nFLANNEL_ETCD_KEY=/coreos.com/network\n"),
    );
    root.write(
        "/run/flannel/subnet.env",
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.101.1/24\nFLANNEL_MTU=1450\n\
         FLANNEL_IPMASQ=false\n",
    );
    let (answered, text) = std::thread::scope(|scope| {
        let stream = scope.spawn(|| pod.netns.ping(far.address, "-c 300 -i 0.01 -W 2"));
        node.start_service(&packaged("flanneld.service"));
        stream.join().expect("ping")
    });
    assert!(answered, "lost while it was switched:\n{text}");
    assert_eq!(node.lease().subnet, subnet);
    assert_eq!(node.vtep_mac(), mac);

    // And back: what the agent made goes, what flanneld needs stays.
    assert!(node.stop_agent().success());
    let cleanup = node.cleanup();
    assert!(cleanup.status.success(), "{cleanup:?}");
    assert!(!node.netns.try_sh("ip link show flannel.1"));
    let kept = etcd.subnets().into_iter().any(|(key, value)| {
        key == "10.244.101.0-24" && value.contains(r#""PublicIP":"192.0.2.11""#)
    });
    assert!(kept, "the lease stays: {:?}", etcd.subnets());
    assert!(flannel_tests::hooks::pins(node.pin_dir()).is_empty());
}
