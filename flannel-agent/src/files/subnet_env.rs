//! `subnet.env`: what docker, the CNI plugin and scripts know of the node's
//! subnet.

use std::path::Path;

pub use flannel_core::subnet_env::SubnetEnv;

use super::{WriteError, write_atomically};

/// More than this is not a `subnet.env`, in bytes.
const MAX_SIZE: u64 = 64 * 1024;

/// Writes `subnet.env`, see [`write_atomically`]. Lines of others stay behind ours:
/// `mk-docker-opts.sh -d` may write into the same file.
pub fn write(path: &Path, env: &SubnetEnv) -> Result<(), WriteError> {
    let before = contents(path).unwrap_or_default();
    write_atomically(path, &with_others(env, &before))
}

/// Reads `subnet.env`; `None` if it is missing or of no use, which is the same
/// to its only reader: there is no previous subnet then.
pub fn read(path: &Path) -> Option<SubnetEnv> {
    SubnetEnv::from_text(&String::from_utf8_lossy(&contents(path)?))
}

fn contents(path: &Path) -> Option<Vec<u8>> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > MAX_SIZE {
        return None;
    }
    std::fs::read(path).ok()
}

/// Our lines, and those of `before` that are not flannel's.
fn with_others(env: &SubnetEnv, before: &[u8]) -> Vec<u8> {
    let flannels = |line: &[u8]| {
        let line = line.trim_ascii();
        line.strip_prefix(b"export ").unwrap_or(line).trim_ascii().starts_with(b"FLANNEL_")
    };
    let mut text = env.to_text().into_bytes();
    let lines = before.split(|byte| *byte == b'\n');
    for line in lines.filter(|line| !line.trim_ascii().is_empty() && !flannels(line)) {
        text.extend(line);
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use ipnetwork::Ipv4Network;
    use proptest::prelude::*;

    use std::os::unix::fs::MetadataExt as _;
    use std::sync::Arc;

    use super::*;
    use crate::files::kept::{KeptFile, Manner, PATIENCE};

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn env() -> SubnetEnv {
        SubnetEnv {
            network: net("10.5.0.0/16"),
            subnet: net("10.5.27.0/24"),
            mtu: 1350,
            ip_masq: true,
        }
    }

    const GOLDEN: &str = "FLANNEL_NETWORK=10.5.0.0/16\n\
                          FLANNEL_SUBNET=10.5.27.1/24\n\
                          FLANNEL_MTU=1350\n\
                          FLANNEL_IPMASQ=true\n";

    #[test]
    fn the_bytes_are_flannels() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flannel/subnet.env");
        write(&path, &env()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), GOLDEN.as_bytes());
        assert_eq!(read(&path), Some(env()));
    }

    #[test]
    fn lines_of_others_stay_and_flannels_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("subnet.env");
        let old = "FLANNEL_MTU=9\nexport FLANNEL_IPV6_SUBNET=fd00::/64\n\n# mine\n\
                   DOCKER_NETWORK_OPTIONS=\" --bip=10.5.27.1/24\"\n\tFLANNEL_X=1";
        std::fs::write(&path, old).unwrap();
        for _ in 0..2 {
            write(&path, &env()).unwrap();
            let kept = "# mine\nDOCKER_NETWORK_OPTIONS=\" --bip=10.5.27.1/24\"\n";
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{GOLDEN}{kept}"));
        }
        std::fs::write(&path, [b"A=\xff\n".as_slice(), GOLDEN.as_bytes()].concat()).unwrap();
        write(&path, &env()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [GOLDEN.as_bytes(), b"A=\xff\n"].concat());
    }

    #[tokio::test]
    async fn what_others_make_of_it_is_put_right_and_nothing_else_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("subnet.env");
        let mut kept = KeptFile::default();
        let ended = Arc::default();
        let manner = Manner { ended: &ended, patience: PATIENCE, untouched: false };
        let rewrite = || {
            let to = path.clone();
            move |env| write(&to, &env)
        };
        let mut ensure =
            |env: &SubnetEnv| kept.ensure(&path, env, manner, rewrite()).expect("an end");
        ensure(&env()).unwrap();
        let inode = || std::fs::metadata(&path).unwrap().ino();
        let before = inode();
        ensure(&env()).unwrap();
        assert_eq!(inode(), before, "it is not written anew");
        let damage: [&dyn Fn(); 4] = [
            &|| std::fs::remove_file(&path).unwrap(),
            &|| std::fs::write(&path, "").unwrap(),
            &|| std::fs::write(&path, GOLDEN.replace("1350", "1351")).unwrap(),
            &|| std::fs::rename(path.with_file_name("other"), &path).unwrap(),
        ];
        for harm in damage {
            std::fs::write(path.with_file_name("other"), "FLANNEL_MTU=1\n").unwrap();
            harm();
            ensure(&env()).unwrap();
            // Once more, to know how it looks now.
            ensure(&env()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), GOLDEN);
        }
        assert_eq!(kept.take_repaired(), damage.len() as u64);
        // Somebody writes in the moment in which we have written.
        std::fs::remove_file(&path).unwrap();
        let to = path.clone();
        let overtaken = kept.ensure(&path, &env(), manner, move |env| {
            write(&to, &env)?;
            std::fs::write(&to, "A=1\n").unwrap();
            Ok(())
        });
        overtaken.expect("an end").unwrap();
        let mut ensure =
            |env: &SubnetEnv| kept.ensure(&path, env, manner, rewrite()).expect("an end");
        ensure(&env()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{GOLDEN}A=1\n"));
        // Another MTU, with a line of somebody else.
        std::fs::write(&path, format!("{GOLDEN}A=1\n")).unwrap();
        ensure(&env()).unwrap();
        ensure(&SubnetEnv { mtu: 1300, ..env() }).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("FLANNEL_MTU=1300") && text.ends_with("A=1\n"), "{text}");
        // No room, and then there is. An empty directory, as docker makes it for a
        // volume whose file is not there, is none.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("file"), "").unwrap();
        ensure(&env()).unwrap_err();
        std::fs::remove_file(path.join("file")).unwrap();
        ensure(&env()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), GOLDEN);
    }

    #[test]
    fn every_backend_has_its_golden_file() {
        for (name, mtu, ip_masq) in [
            ("vxlan", 1450, false),
            ("vxlan-ip-masq", 1450, true),
            ("host-gw", 1500, false),
            ("udp", 1472, false),
        ] {
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden");
            let golden = std::fs::read_to_string(format!("{directory}/subnet.env.{name}")).unwrap();
            assert_eq!(SubnetEnv { mtu, ip_masq, ..env() }.to_text(), golden, "{name}");
        }
    }

    #[test]
    fn host_bits_do_not_reach_the_file() {
        let odd = SubnetEnv {
            network: net("10.5.3.4/16"),
            subnet: net("10.5.27.99/24"),
            ip_masq: false,
            ..env()
        };
        assert_eq!(odd.to_text(), GOLDEN.replace("true", "false"));
    }

    #[test]
    fn tolerant_of_what_people_make_of_it() {
        for text in [
            GOLDEN.replace('\n', "\r\n"),
            GOLDEN.trim_end().to_owned(),
            format!("# mine\n\n{GOLDEN}FLANNEL_IPV6_SUBNET=fd00::1/64\ngarbage\n=\n"),
            GOLDEN.replace("10.5.27.1/24", "\"10.5.27.1/24\"").replace("1350", "'1350'"),
            GOLDEN.replace("FLANNEL_", "export FLANNEL_"),
            format!("FLANNEL_SUBNET=10.5.1.1/24\n{GOLDEN}FLANNEL_SUBNET=nonsense\n"),
            GOLDEN.replace("27.1/24", "27.0/24"),
        ] {
            assert_eq!(SubnetEnv::from_text(&text), Some(env()), "{text}");
        }
    }

    #[test]
    fn without_network_or_subnet_there_is_nothing() {
        for text in [
            "",
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_MTU=1350\n",
            "FLANNEL_SUBNET=10.5.27.1/24\n",
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.27.1/33\n",
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.27.1\n",
        ] {
            assert_eq!(SubnetEnv::from_text(text), None, "{text}");
        }
        let bare = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.27.1/24\nFLANNEL_MTU=x\n";
        assert_eq!(SubnetEnv::from_text(bare), Some(SubnetEnv { mtu: 0, ip_masq: false, ..env() }));
    }

    #[test]
    fn a_missing_or_strange_file_is_none() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(&directory.path().join("none")), None);
        assert_eq!(read(directory.path()), None);
        let path = directory.path().join("binary");
        std::fs::write(&path, [0xff, 0, b'\n']).unwrap();
        assert_eq!(read(&path), None);
        let large = GOLDEN.repeat(4000);
        std::fs::write(&path, large).unwrap();
        assert_eq!(read(&path), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            address: u32,
            prefix in 0u8..=30,
            bits in 0u8..=30,
            mtu: u32,
            ip_masq: bool,
        ) {
            let masked = |prefix| {
                let network = Ipv4Network::new(address.into(), prefix).unwrap();
                Ipv4Network::new(network.network(), prefix).unwrap()
            };
            let env = SubnetEnv {
                network: masked(prefix),
                subnet: masked(prefix.max(bits)),
                mtu,
                ip_masq,
            };
            prop_assert_eq!(SubnetEnv::from_text(&env.to_text()), Some(env));
        }

        #[test]
        fn any_text_is_survived(text: String) {
            let _ = SubnetEnv::from_text(&text);
            let _ = SubnetEnv::from_text(&format!("FLANNEL_NETWORK={text}\nFLANNEL_SUBNET={text}"));
        }
    }
}
