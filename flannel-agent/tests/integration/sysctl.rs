//! Values of the real kernel, whose files stay open.

use flannel_agent::kernel::sysctl::Sysctl;

use crate::netns::{in_netns, run};

#[test]
fn a_value_is_what_the_kernel_has_now() {
    in_netns(async {
        let sysctl = Sysctl::default();
        let set = |key: &str, value: &str| {
            std::fs::write(format!("/proc/sys/net/ipv4/{key}"), value).unwrap();
        };
        set("ip_forward", "0");
        assert_eq!(sysctl.read("net/ipv4/ip_forward").unwrap(), "0");
        set("ip_forward", "1");
        assert_eq!(sysctl.read("net/ipv4/ip_forward").unwrap(), "1");
        sysctl.write("net/ipv4/ip_forward", "0").unwrap();
        assert_eq!(sysctl.read("net/ipv4/ip_forward").unwrap(), "0");
        for (low, high) in [(1024, 60999), (2000, 2010), (32768, 65535)] {
            set("ip_local_port_range", &format!("{low} {high}"));
            assert_eq!(sysctl.local_port_range().unwrap(), (low, high));
        }
        // A device goes, and another has its name.
        for forwards in ["0", "1", "0"] {
            run("ip link add a0 type veth peer name a1");
            set("conf/a0/forwarding", forwards);
            assert_eq!(sysctl.read("net/ipv4/conf/a0/forwarding").unwrap(), forwards);
            run("ip link delete a0");
            let error = sysctl.read("net/ipv4/conf/a0/forwarding").unwrap_err();
            assert_eq!(error.source.kind(), std::io::ErrorKind::NotFound);
        }
        // So many devices that not all files stay open.
        for number in 0..40 {
            run(&format!("ip link add p{number} type veth peer name q{number}"));
            let key = format!("net/ipv4/conf/p{number}/forwarding");
            assert_eq!(sysctl.read(&key).unwrap(), "0");
        }
        assert_eq!(sysctl.read("net/ipv4/ip_forward").unwrap(), "0");
    });
}
