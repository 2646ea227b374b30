//! A real etcd, and `etcdctl`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::addresses::GATEWAY;
use crate::netns::Netns;
use crate::process::{Process, output, run};
use crate::tls::Certificates;
use crate::wait;

/// Prefix of the keys, as flannel's default.
pub const PREFIX: &str = "/coreos.com/network";

/// One etcd member.
pub struct Etcd {
    /// Prefix of the keys: [`PREFIX`] unless a case sets another.
    pub prefix: String,
    // The namespace belongs to the lab, which outlives us; by path, so that an
    // etcd can be kept beside it in one structure.
    netns: PathBuf,
    dir: PathBuf,
    /// `--initial-cluster-token`: the id of a new cluster comes from it.
    token: &'static str,
    process: Option<Process>,
    certificates: Option<Certificates>,
}

impl Etcd {
    pub(crate) fn new(netns: &Netns, dir: &Path) -> Self {
        Self {
            prefix: PREFIX.to_owned(),
            netns: netns.path(),
            dir: dir.join("etcd"),
            token: "lab",
            process: None,
            certificates: None,
        }
    }

    /// With TLS, for clients with a certificate of the same authority.
    pub(crate) fn start_tls(netns: &Netns, dir: &Path, certificates: Certificates) -> Self {
        let mut etcd = Self::new(netns, dir);
        etcd.certificates = Some(certificates);
        etcd.restart();
        etcd
    }

    pub(crate) fn start(netns: &Netns, dir: &Path) -> Self {
        let mut etcd = Self::new(netns, dir);
        etcd.restart();
        etcd
    }

    /// Its address, for `--etcd-endpoints`.
    pub fn endpoint(&self) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://{GATEWAY}:2379")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display()));
        command.args(["setpriv", "--pdeathsig", "KILL", program]);
        command
    }

    /// Starts it (again, with the data it had) and waits until it answers.
    ///
    /// # Panics
    /// It does not answer within 20 s.
    pub fn restart(&mut self) {
        self.kill();
        let client = self.endpoint();
        let mut command = self.command("etcd");
        command.arg("--data-dir").arg(&self.dir);
        command.arg("--enable-v2");
        command.args(["--name", "lab", "--listen-client-urls", &client]);
        command.args(["--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        command.args(["--initial-advertise-peer-urls", "http://127.0.0.1:2380"]);
        command.args(["--initial-cluster", "lab=http://127.0.0.1:2380"]);
        command.args(["--initial-cluster-token", self.token]);
        if let Some(files) = &self.certificates {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&files.ca);
            command.arg("--cert-file").arg(&files.certificate).arg("--key-file").arg(&files.key);
        }
        let log = self.dir.with_extension("log");
        self.process = Some(Process::start("etcd", &mut command, &log));
        wait::holds("etcd to answer", Duration::from_secs(20), || {
            output(self.etcdctl().args(["--command-timeout=1s", "endpoint", "health"]))
                .status
                .success()
        });
    }

    /// Starts it anew with the data of this name beside those that it has;
    /// there may be none yet. Those with another `token` are another cluster.
    ///
    /// # Panics
    /// It does not answer within 20 s.
    pub fn restart_with(&mut self, name: &str, token: &'static str) {
        self.dir = self.dir.with_file_name(name);
        self.token = token;
        self.restart();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Stops it from answering, connections stay (SIGSTOP).
    pub fn freeze(&self) {
        self.running().signal(Signal::SIGSTOP);
    }

    /// Lets it go on after [`Etcd::freeze`].
    pub fn thaw(&self) {
        self.running().signal(Signal::SIGCONT);
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("etcd is running")
    }

    /// `etcdctl` (v3) for this member.
    pub fn etcdctl(&self) -> Command {
        let mut command = self.command("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.endpoint()));
        if let Some(files) = &self.certificates {
            command.arg("--cacert").arg(&files.ca);
            command.arg("--cert").arg(&files.certificate).arg("--key").arg(&files.key);
        }
        command
    }

    /// Runs `etcdctl` with these arguments.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> String {
        run(self.etcdctl().args(arguments))
    }

    /// Writes `<prefix>/config`.
    pub fn put_config(&self, json: &str) {
        self.ctl(&["put", &format!("{}/config", self.prefix), json]);
    }

    /// Writes a key below `<prefix>/subnets/`, without an etcd lease.
    pub fn put_subnet(&self, key: &str, value: &str) {
        self.ctl(&["put", &format!("{}/subnets/{key}", self.prefix), value]);
    }

    /// Deletes a key below `<prefix>/subnets/`.
    pub fn delete_subnet(&self, key: &str) {
        self.ctl(&["del", &format!("{}/subnets/{key}", self.prefix)]);
    }

    /// Calls the v2 API with `curl`; `key` is whole, and may have a query.
    ///
    /// # Panics
    /// The answer is no JSON.
    #[track_caller]
    pub fn curl(&self, key: &str, arguments: &[&str]) -> serde_json::Value {
        let url = format!("{}/v2/keys{key}", self.endpoint());
        let text = run(self.command("curl").args(["-sS", &url]).args(arguments));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Writes a key by the v2 API; flannel's leases have a TTL.
    ///
    /// # Panics
    /// etcd refuses.
    #[track_caller]
    pub fn put_v2(&self, key: &str, value: &str, ttl: Option<u32>) {
        let value = format!("value={value}");
        let ttl = ttl.map_or("ttl=".to_owned(), |ttl| format!("ttl={ttl}"));
        let answer = self.curl(key, &["-XPUT", "--data-urlencode", &value, "-d", &ttl]);
        assert!(answer["node"].is_object(), "{answer}");
    }

    /// As [`Etcd::subnets`], by the v2 API.
    pub fn subnets_v2(&self) -> Vec<(String, String)> {
        let answer = self.curl(&format!("{}/subnets", self.prefix), &[]);
        let nodes = answer["node"]["nodes"].as_array().cloned().unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let last = |key: String| key.rsplit('/').next().unwrap_or_default().to_owned();
        let lease = |node: &serde_json::Value| (last(text(&node["key"])), text(&node["value"]));
        let mut leases: Vec<_> = nodes.iter().map(lease).collect();
        // etcd gives them in no order.
        leases.sort();
        leases
    }

    /// Keys (without prefix) and values below `<prefix>/subnets/`.
    pub fn subnets(&self) -> Vec<(String, String)> {
        let prefix = format!("{}/subnets/", self.prefix);
        let text = self.ctl(&["get", "--prefix", &prefix]);
        let mut lines = text.lines();
        let mut found = Vec::new();
        while let (Some(key), Some(value)) = (lines.next(), lines.next()) {
            found.push((key[prefix.len()..].to_owned(), value.to_owned()));
        }
        found
    }

    /// Lets it refuse all writes, as it does when its quota is used up.
    ///
    /// # Panics
    /// It refuses to.
    #[track_caller]
    pub fn fill(&self) {
        let url = format!("{}/v3/maintenance/alarm", self.endpoint());
        let alarm = r#"{"action":"ACTIVATE","memberID":"0","alarm":"NOSPACE"}"#;
        let answer = run(self.command("curl").args(["-sS", &url, "-d", alarm]));
        assert!(answer.contains(r#""alarm":"NOSPACE""#), "{answer}");
    }

    /// Ends what [`Etcd::fill`] began.
    pub fn disarm(&self) {
        self.ctl(&["alarm", "disarm"]);
    }

    /// Deletes the history up to now, so that a watch cannot go on from before.
    pub fn compact(&self) {
        let text = self.ctl(&["endpoint", "status", "--write-out=json"]);
        let status: serde_json::Value = serde_json::from_str(&text).expect("JSON of etcdctl");
        let revision = &status[0]["Status"]["header"]["revision"];
        self.ctl(&["compaction", "--physical", &revision.to_string()]);
    }
}
