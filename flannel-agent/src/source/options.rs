//! How etcd is reached, by either API: endpoints, TLS files, user.

use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Id};
use serde::Serialize;

use super::SourceError;
use crate::flag::Secret;

/// `--etcd-api`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EtcdApi {
    /// The one that has the network config; v3 if both have it
    #[default]
    Auto,
    /// v2, as flannel up to 0.17 uses it
    V2,
    /// v3, as flannel since 0.18 uses it
    V3,
    /// Leases in v3, mirrored in v2, and peers of both: for the time in which a
    /// cluster is moved from v2 to v3
    Both,
}

/// Where systems keep the CAs that they trust, as Go's crypto/x509 has them.
const SYSTEM_CAS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where etcd is unless a flag tells.
const ENDPOINTS: &str = "http://127.0.0.1:4001,http://127.0.0.1:2379";

/// How etcd is reached.
#[derive(Args, Clone, Debug, Default)]
pub struct EtcdOptions {
    /// etcd endpoints, separated by commas
    #[arg(
        long = "etcd-endpoints",
        value_name = "URL,...",
        value_delimiter = ',',
        num_args = 1,
        action = ArgAction::Set,
        default_value = ENDPOINTS
    )]
    pub endpoints: Vec<String>,
    /// Prefix of flannel's keys in etcd
    #[arg(long = "etcd-prefix", value_name = "KEY", default_value = "/coreos.com/network")]
    pub prefix: String,
    /// Certificate authority that etcd's certificate is checked with
    #[arg(long = "etcd-cafile", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Client certificate for etcd
    #[arg(long = "etcd-certfile", value_name = "FILE")]
    pub cert_file: Option<PathBuf>,
    /// Key of the client certificate
    #[arg(long = "etcd-keyfile", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// User name for etcd
    #[arg(long = "etcd-username", value_name = "NAME")]
    pub username: Option<String>,
    /// Password for etcd; better given in the environment
    #[arg(long = "etcd-password", value_name = "PASSWORD")]
    pub password: Option<Secret>,
    /// File whose first line is the password for etcd; it is read again for each login
    #[arg(long = "etcd-password-file", value_name = "FILE", conflicts_with = "password")]
    pub password_file: Option<PathBuf>,
    /// Ids of those that were given, not left at the default.
    #[arg(skip)]
    pub given: Vec<String>,
}

impl EtcdOptions {
    /// Notes which of them were given on a command line, or in its environment.
    pub fn note_given(&mut self, matches: &ArgMatches) {
        let given = |id: &&Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        let own = Self::augment_args(Command::new("etcd"));
        let ids = own.get_arguments().map(Arg::get_id);
        self.given = ids.filter(given).map(ToString::to_string).collect();
    }

    /// These flags where they were given, else those of `base`.
    pub fn over(&self, base: &Self) -> Self {
        let given = |id: &str| self.given.iter().any(|given| given == id);
        let mut all = base.clone();
        if given("endpoints") {
            all.endpoints.clone_from(&self.endpoints);
        }
        if given("prefix") {
            all.prefix.clone_from(&self.prefix);
        }
        for (id, file, own) in [
            ("ca_file", &mut all.ca_file, &self.ca_file),
            ("cert_file", &mut all.cert_file, &self.cert_file),
            ("key_file", &mut all.key_file, &self.key_file),
        ] {
            if given(id) {
                file.clone_from(own);
            }
        }
        if given("username") {
            all.username.clone_from(&self.username);
        }
        // Two ways to say the same.
        if given("password") || given("password_file") {
            all.password.clone_from(&self.password);
            all.password_file.clone_from(&self.password_file);
        }
        all
    }

    /// Whether a flag tells where etcd is.
    pub fn is_named(&self) -> bool {
        !self.endpoints.iter().map(String::as_str).eq(ENDPOINTS.split(','))
    }

    /// What has no effect, for the log.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let shown = self.endpoints.iter().map(|endpoint| (endpoint, without_user(endpoint)));
        shown.filter(|(endpoint, shown)| *endpoint != shown).map(|(_, shown)| {
            format!(
                "user and password in --etcd-endpoints {shown} have no effect: see \
                 --etcd-username and --etcd-password-file"
            )
        })
    }

    /// The endpoints as URLs: those without a scheme get that of `tls`.
    pub(super) fn urls(&self, tls: Option<&TlsFiles>) -> Result<Vec<String>, SourceError> {
        let mut urls = Vec::new();
        for endpoint in &self.endpoints {
            let endpoint = without_user(endpoint.trim().trim_end_matches('/'));
            if endpoint.is_empty() {
                continue;
            }
            let url = match (endpoint.split_once("://"), tls) {
                // A scheme may be in any case.
                (Some((scheme, rest)), _) => format!("{}://{rest}", scheme.to_ascii_lowercase()),
                // `http://` without a host, or `http:/` before one.
                (None, _) if endpoint.ends_with(':') || endpoint.contains(":/") => endpoint,
                (None, Some(_)) => format!("https://{endpoint}"),
                (None, None) => format!("http://{endpoint}"),
            };
            if url.starts_with("https://") {
                if tls.is_none() {
                    let cause = "no --etcd-cafile, and no CA bundle in the system's usual places";
                    return Err(bad_endpoint(&url, cause));
                }
            } else if !url.starts_with("http://") {
                return Err(bad_endpoint(&url, "is no http:// or https:// URL"));
            }
            urls.push(url);
        }
        if urls.is_empty() {
            return Err(bad("--etcd-endpoints", "names no endpoint"));
        }
        Ok(urls)
    }
}

/// The PEM files of TLS, as read.
pub(super) struct TlsFiles {
    pub(super) ca: Vec<u8>,
    pub(super) identity: Option<ClientCertificate>,
}

/// Our certificate and its key (PEM).
pub(super) struct ClientCertificate {
    pub(super) cert: Vec<u8>,
    pub(super) key: Vec<u8>,
}

impl TlsFiles {
    /// `None` without files, unless an endpoint is https.
    pub(super) async fn read(options: &EtcdOptions) -> Result<Option<Self>, SourceError> {
        let wanted = options.endpoints.iter().any(|endpoint| is_https(endpoint.trim()));
        let files = [&options.ca_file, &options.cert_file, &options.key_file];
        if !wanted && files.iter().all(|file| file.is_none()) {
            return Ok(None);
        }
        let ca = match &options.ca_file {
            Some(file) => read("--etcd-cafile", file).await?,
            None => match system_cas().await {
                Some(pem) => pem,
                None => return Ok(None),
            },
        };
        let identity = match (&options.cert_file, &options.key_file) {
            (Some(cert), Some(key)) => {
                let cert = read("--etcd-certfile", cert).await?;
                let key = read("--etcd-keyfile", key).await?;
                Some(ClientCertificate { cert, key })
            }
            (None, None) => None,
            (Some(_), None) => return Err(bad("--etcd-certfile", "needs --etcd-keyfile too")),
            (None, Some(_)) => return Err(bad("--etcd-keyfile", "needs --etcd-certfile too")),
        };
        Ok(Some(Self { ca, identity }))
    }
}

/// An endpoint without user and password. They have no effect, and are not to be seen
/// in messages.
fn without_user(endpoint: &str) -> String {
    let (scheme, rest) = match endpoint.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), endpoint),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}{host}{path}")
}

fn is_https(endpoint: &str) -> bool {
    endpoint.split_once("://").is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("https"))
}

/// The setting `option` is unusable.
pub(super) fn bad(option: &str, cause: impl ToString) -> SourceError {
    SourceError::Options { option: option.to_owned(), cause: cause.to_string() }
}

/// One of the endpoints is unusable.
pub(super) fn bad_endpoint(url: &str, cause: impl ToString) -> SourceError {
    bad(&format!("--etcd-endpoints {url}"), cause)
}

async fn system_cas() -> Option<Vec<u8>> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    for file in named.into_iter().chain(SYSTEM_CAS.map(PathBuf::from)) {
        if let Ok(pem) = super::file::read(&file).await {
            return Some(pem);
        }
    }
    None
}

/// Reads a PEM file.
async fn read(option: &str, file: &Path) -> Result<Vec<u8>, SourceError> {
    let option = format!("{option} {}", file.display());
    let pem = super::file::read(file).await.map_err(|error| bad(&option, error))?;
    // Without this, an empty CA file would show as an untrusted server later.
    if pem.windows(11).any(|window| window == b"-----BEGIN ") {
        Ok(pem)
    } else {
        Err(bad(&option, "has no PEM block in it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(endpoints: &[&str]) -> Result<Vec<String>, String> {
        let endpoints = endpoints.iter().map(|text| (*text).to_owned()).collect();
        let options = EtcdOptions { endpoints, ..EtcdOptions::default() };
        options.urls(None).map_err(|error| error.to_string())
    }

    #[test]
    fn users_and_passwords_are_not_in_urls() {
        let read = urls(&["HTTP://u:p@a:1/", "u:p@b:2", "http://c:3/x@y"]).unwrap();
        assert_eq!(read, ["http://a:1", "http://b:2", "http://c:3/x@y"]);
        let refused = urls(&["ftp://u:p@a"]).unwrap_err();
        assert!(refused.contains("--etcd-endpoints ftp://a:"), "{refused}");
    }

    #[test]
    fn half_a_scheme_is_no_host() {
        for endpoint in ["http://", "http:/192.0.2.1:2379", "https:"] {
            let refused = urls(&[endpoint]).unwrap_err();
            assert!(refused.contains("is no http:// or https:// URL"), "{refused}");
        }
        assert_eq!(urls(&["http:2379"]).unwrap(), ["http://http:2379"]);
    }
}
