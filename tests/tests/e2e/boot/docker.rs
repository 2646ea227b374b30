//! dockerd on a booted node, with the package's drop-in.

use flannel_tests::lab::Lab;

use super::{boot, present, start_peer};

const EXAMPLE: &str = "/usr/share/doc/flannel-ebpf/examples/docker.service.d/flannel.conf";
const DROP_IN: &str = "/etc/systemd/system/docker.service.d/flannel.conf";

/// An image of busybox alone.
const IMAGE: &str = "mkdir -p /tmp/image/bin && cp /bin/busybox /tmp/image/bin && \
    tar -C /tmp/image -c . | docker import - busybox";

#[test]
fn containers_reach_another_nodes_pods() {
    let lab = Lab::new();
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    let machine = boot(&mut left);
    machine.sh(&format!("dpkg -i {}", present()));
    machine.write(
        "/etc/sysconfig/flanneld",
        "FLANNEL_ETCD_ENDPOINTS=http://127.0.0.1:2379\n\
         FLANNEL_ETCD_PREFIX=/coreos.com/network\n\
         FLANNEL_OPTIONS=\"-ip-masq\"\n",
    );
    // Debian's docker.service has no $DOCKER_NETWORK_OPTIONS: the commented lines too.
    let drop_in = machine.read(EXAMPLE).expect("the drop-in's example");
    machine.write(DROP_IN, &drop_in.replace("#ExecStart", "ExecStart"));
    machine.sh("systemctl daemon-reload");
    machine.sh("systemctl enable --now flanneld");
    machine.sh("systemctl restart docker");
    start_peer(&lab, &mut right, &left);
    let mut pod = right.pod(2);
    let target = pod.serve();

    machine.sh(IMAGE);
    machine.sh("docker run --detach --name sleeper busybox /bin/busybox sleep 600");
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = machine.sh(&format!("docker inspect --format '{format}' sleeper"));
    let address = address.trim().parse().expect("a container's address");
    assert!(left.subnet().contains(address), "{address}");
    let ping =
        machine.sh(&format!("docker exec sleeper /bin/busybox ping -c 3 -W 2 {}", pod.address));
    assert!(ping.contains(" 0% packet loss") && ping.contains("ttl=62"), "{ping}");
    let port = target.port();
    let line =
        format!("docker exec sleeper /bin/busybox nc -w 2 {} {port} </dev/null", pod.address);
    assert!(machine.try_sh(&line), "a TCP connection from the container");
    pod.ping(address, "-c 3 -i 0.2 -W 2");

    // docker and flannel start again by themselves, in this order, with the same subnet.
    // What sleeps as the first process does not hear SIGTERM.
    machine.sh("docker kill sleeper");
    machine.sh("systemctl restart flanneld docker && docker start sleeper");
    pod.ping(address, "-c 3 -i 0.2 -W 2");
}
