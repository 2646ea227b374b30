//! The cluster that faults happen to: two nodes with a pod each, a real etcd, and
//! streams between the pods.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flannel_core::status::DatapathKind;
use flannel_tests::agent::Options;
use flannel_tests::lab::Lab;
use flannel_tests::pair::Pair;
use flannel_tests::process::{output, run};
use flannel_tests::streams::Streams;
use flannel_tests::wait;
use ipnetwork::Ipv4Network;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::tables::Tables;

/// Where the agents answer `/readyz`.
pub(super) const HEALTH: u16 = 10_440;
/// Peers without a node: subnet, PublicIP and MAC.
const SILENT: [(&str, &str, &str); 3] = [
    ("10.244.203.0-24", "192.0.2.73", "02:00:5e:00:53:73"),
    ("10.244.204.0-24", "192.0.2.74", "02:00:5e:00:53:74"),
    ("10.244.205.0-24", "192.0.2.75", "02:00:5e:00:53:75"),
];

/// Two nodes; faults happen to `left`, whose files are on a small disk of their own.
pub(super) struct Cluster {
    // The streams go before their pods, the mounts before the files below them.
    pub(super) streams: Streams,
    _mounts: [Mount; 2],
    pub(super) pair: Pair,
    pub(super) options: Options,
    pub(super) pins: PathBuf,
    /// The node's subnet. A fault may take its file away.
    pub(super) subnet: Ipv4Network,
    /// What the tables were before anything happened.
    pub(super) before: Tables,
    /// The data path is ours.
    pub(super) program: bool,
    /// How often somebody else wrote or removed our lease.
    pub(super) rewrites: usize,
    /// What scripts are told.
    words: Vec<(&'static str, String)>,
}

/// A file system that a case mounted; goes with it.
pub(super) struct Mount(PathBuf);

impl Mount {
    fn new(kind: &str, options: &str, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap_or_else(|error| panic!("{}: {error}", at.display()));
        run(Command::new("mount").args(["-t", kind, "-o", options, kind]).arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A fault may have taken it away.
        output(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

/// Programs that may be made to fail while the file is there: in the way that it names, or
/// else they hang.
const FAILS: &str = r#"#!/bin/sh
while test -e "$FAIL" && ! test -s "$FAIL"; do sleep 0.05; done
case "$(cat "$FAIL" 2> /dev/null) ${0##*/} $*" in
    "vain nft -f -"* | "vain iptables-restore"*) cat > /dev/null; exit 0 ;;
    killed*) kill -KILL $$ ;;
    garbage*) head -c 3000 /dev/urandom; exit 0 ;;
    flood*) exec yes ;;
    grumbling*) yes | head -c 30000000 >&2; exit 1 ;;
esac
for dir in /usr/local/sbin /usr/sbin /sbin /usr/bin /bin; do
    test -x "$dir/${0##*/}" && exec "$dir/${0##*/}" "$@"
done
exit 127
"#;

impl Cluster {
    /// Two agents with these options.
    pub(super) fn new(options: &Options) -> Self {
        let mut options = options.clone();
        options.ip_masq = true;
        options.extra.push(format!("--healthz-port={HEALTH}"));
        options.extra.push("--healthz-ip=127.0.0.1".to_owned());
        let lab = Lab::new();
        let etcd = lab.etcd();
        let nodes = (lab.node(1), lab.node(2));
        let mut left = options.clone();
        let dir = nodes.0.state_dir().parent().expect("the node's directory").to_owned();
        let bpf = lab.dir().join("bpf");
        let mounts = [Mount::new("tmpfs", "size=2m", &dir), Mount::new("bpf", "mode=700", &bpf)];
        left.pin_dir = Some(bpf.join("flannel"));
        left.environment.extend(failing(lab.dir()));
        for (key, ip, mac) in SILENT {
            etcd.put_subnet(key, &super::lease(ip, mac));
        }
        let pair = Pair::started(lab, etcd, nodes, [&left, &options]);
        let streams = Streams::start(&pair.client.netns, pair.server.target());
        let pins = left.pin_dir.clone().expect("a pin directory");
        let words = words(&pair, &pins);
        let program = left.datapath == Some("ebpf");
        let subnet = pair.left.subnet();
        let mut cluster = Self {
            streams,
            _mounts: mounts,
            pair,
            options: left,
            pins,
            subnet,
            before: Tables::default(),
            program,
            rewrites: 0,
            words,
        };
        wait::holds("a cluster at rest", Duration::from_secs(10), || cluster.is_well().is_empty());
        cluster.before = cluster.tables();
        let against = cluster.before.against(&cluster.pair.left, &cluster.pair.etcd, program);
        assert!(against.is_empty(), "before any fault:{against}");
        cluster
    }

    pub(super) fn tables(&self) -> Tables {
        Tables::of(&self.pair.left, &self.pins)
    }

    /// What status and `/readyz` do not call well; empty if all is well.
    pub(super) fn is_well(&self) -> String {
        let left = &self.pair.left;
        let Some(status) = left.try_status() else { return "status does not answer".to_owned() };
        let mut text = String::new();
        if !status.health.is_empty() {
            text += &format!("status says {:?}", status.health);
        }
        let mode = if self.program { DatapathKind::Ebpf } else { DatapathKind::Kernel };
        if status.datapath.mode != Some(mode) || !status.store.connected {
            text += &format!(" data path {:?}, store {:?}", status.datapath, status.store);
        }
        match left.get(HEALTH, "/readyz") {
            Some((200, _)) => {}
            other => text += &format!(" /readyz says {other:?}"),
        }
        text
    }

    /// A shell on the node, with words for what faults are about.
    pub(super) fn shell(&self, script: &str) -> Result<(), String> {
        let mut command = self.pair.left.netns.command("sh");
        command.args(["-ec", script]).envs(self.words.iter().cloned());
        let done = output(&mut command);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        if done.status.success() { Ok(()) } else { Err(format!("{script}: {said}")) }
    }

    /// What the agent would come between, by the same words.
    pub(super) fn unseen(&mut self, script: &str) -> Result<(), String> {
        if self.pair.left.try_status().is_none() {
            return Err("the agent does not run".to_owned());
        }
        self.signal(Signal::SIGSTOP);
        let done = self.shell(script);
        self.signal(Signal::SIGCONT);
        done
    }

    /// While this file is there, nft and iptables fail ([`FAILS`]).
    pub(super) fn fail(&self) -> PathBuf {
        self.pair.lab.dir().join("fail")
    }

    /// Sends the agent a signal.
    pub(super) fn signal(&mut self, signal: Signal) {
        let pid = i32::try_from(self.pair.left.agent_pid()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("the agent runs");
    }

    /// Starts the agent that has ended.
    pub(super) fn start(&mut self) {
        let options = self.options.clone();
        self.pair.left.start(&self.pair.etcd, &options);
    }
}

/// What scripts are told of a pair: peer, own addresses, files.
fn words(pair: &Pair, pins: &Path) -> Vec<(&'static str, String)> {
    let (left, right) = (&pair.left, &pair.right);
    let peer = right.subnet();
    let shown = |path: &Path| path.display().to_string();
    let folder = |path: &Path| shown(path.parent().unwrap_or(Path::new("/")));
    let bytes = |bytes: [u8; 4]| bytes.map(|byte| byte.to_string()).join(" ");
    vec![
        ("PEER", peer.to_string()),
        ("PEER_NET", peer.network().to_string()),
        ("PEER_KEY", bytes(peer.network().octets())),
        ("PEER_ADDRESS", bytes(right.address.octets())),
        ("POD_KEY", bytes(left.netns.ifindex("veth2").to_ne_bytes())),
        ("PEER_MAC", right.vtep_mac()),
        ("PEER_IP", right.address.to_string()),
        ("OWN_NET", left.subnet().network().to_string()),
        ("OWN_IP", left.address.to_string()),
        ("FILE", shown(&left.subnet_file())),
        ("STATE", shown(&left.state_dir())),
        ("DIR", folder(&left.state_dir())),
        ("PINS", shown(pins)),
        ("BPF", folder(pins)),
        ("FAIL", shown(&pair.lab.dir().join("fail"))),
        ("OTHER", right.netns.name().to_owned()),
    ]
}

/// The environment of an agent whose nft and iptables may be made to fail.
fn failing(dir: &Path) -> Vec<(String, String)> {
    use std::os::unix::fs::PermissionsExt as _;
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).expect("a directory");
    for name in ["nft", "iptables", "iptables-save", "iptables-restore"] {
        let path = bin.join(name);
        fs::write(&path, FAILS).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
    }
    let path = std::env::var("PATH").unwrap_or_default();
    vec![
        ("PATH".to_owned(), format!("{}:{path}", bin.display())),
        ("FAIL".to_owned(), dir.join("fail").display().to_string()),
    ]
}
