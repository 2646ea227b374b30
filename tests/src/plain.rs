//! Plain Linux nodes: the tunnel made with iproute2, the lease with etcdctl.

use std::net::Ipv4Addr;

use flannel_core::backend::vxlan::VxlanData;
use flannel_core::lease::attrs::LeaseAttrs;
use ipnetwork::Ipv4Network;

use crate::etcd::Etcd;
use crate::node::Node;

impl Node {
    /// Makes `flannel.1` by hand and publishes a lease for `subnet` (a /24).
    ///
    /// # Panics
    /// A command fails.
    pub fn make_plain(&mut self, etcd: &Etcd, subnet: &str) {
        let (subnet, mac) = self.make_tunnel(subnet);
        let value = format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#,
            self.address
        );
        let granted = etcd.ctl(&["lease", "grant", "86400"]);
        let lease = granted.split_whitespace().nth(1).expect("`lease <id> granted`").to_owned();
        let key = format!("{}/subnets/{}", etcd.prefix, key(subnet));
        etcd.ctl(&["put", &format!("--lease={lease}"), &key, &value]);
    }

    /// As [`Node::make_plain`], with the lease in etcd v2 as flannel 0.11 has it.
    ///
    /// # Panics
    /// A command fails.
    pub fn make_old(&mut self, etcd: &Etcd, subnet: &str) {
        let (subnet, mac) = self.make_tunnel(subnet);
        let value = format!(
            r#"{{"PublicIP":"{}","BackendType":"vxlan","BackendData":{{"VtepMAC":"{mac}"}}}}"#,
            self.address
        );
        etcd.put_v2(&format!("{}/subnets/{}", etcd.prefix, key(subnet)), &value, Some(86400));
    }

    fn make_tunnel(&mut self, subnet: &str) -> (Ipv4Network, String) {
        let subnet: Ipv4Network = subnet.parse().expect("a subnet");
        let mac = format!("02:00:5e:00:53:{:02x}", self.number);
        self.netns.ip_batch(&[
            format!(
                "link add flannel.1 address {mac} mtu 1450 type vxlan id 1 local {} dev eth0 \
                 dstport 8472 nolearning udpcsum",
                self.address
            ),
            format!("address add {}/32 dev flannel.1", subnet.network()),
            "link set flannel.1 up".into(),
        ]);
        self.plain = Some(subnet);
        (subnet, mac)
    }

    /// Programs every other node's lease as it stands in etcd now.
    ///
    /// # Panics
    /// A command fails.
    pub fn sync_plain(&self, etcd: &Etcd) {
        self.program(etcd.subnets());
    }

    /// As [`Node::sync_plain`], by what stands in etcd v2.
    ///
    /// # Panics
    /// A command fails.
    pub fn sync_old(&self, etcd: &Etcd) {
        self.program(etcd.subnets_v2());
    }

    fn program(&self, leases: Vec<(String, String)>) {
        for (key, value) in leases {
            let subnet: Ipv4Network = key.replace('-', "/").parse().expect("a subnet key");
            let attrs: LeaseAttrs = serde_json::from_str(&value).expect("a lease");
            if attrs.public_ip == self.address {
                continue;
            }
            let data = attrs.backend_data.as_ref().expect("BackendData");
            let data: VxlanData = serde_json::from_str(data.get()).expect("BackendData");
            self.plain_peer(subnet, &data.vtep_mac.to_string(), attrs.public_ip);
        }
    }

    /// Programs one peer.
    ///
    /// # Panics
    /// A command fails.
    pub fn plain_peer(&self, subnet: Ipv4Network, mac: &str, public_ip: Ipv4Addr) {
        let network = subnet.network();
        self.netns.sh(&format!("bridge fdb replace {mac} dev flannel.1 dst {public_ip} self"));
        self.netns.ip_batch(&[
            format!("neighbour replace {network} lladdr {mac} dev flannel.1 nud permanent"),
            format!("route replace {subnet} via {network} dev flannel.1 onlink"),
        ]);
    }
}

/// The last part of a lease's key: `10.244.1.0-24`.
pub fn key(subnet: Ipv4Network) -> String {
    subnet.to_string().replace('/', "-")
}
