//! Certificates for an etcd that wants to know its clients.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa};
use rcgen::{KeyPair, SanType};

use crate::addresses::GATEWAY;

/// Files of an authority, and of a certificate that serves etcd as well as its
/// clients.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// `-etcd-cafile`.
    pub ca: PathBuf,
    /// `-etcd-certfile`.
    pub certificate: PathBuf,
    /// `-etcd-keyfile`.
    pub key: PathBuf,
}

impl Certificates {
    /// Makes them in a directory.
    ///
    /// # Panics
    /// A file cannot be written.
    pub(crate) fn new(dir: &Path) -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"));
        let ca = ca.expect("an authority");
        let mut params = CertificateParams::new(["kubernetes".to_owned()]).expect("a name");
        params.subject_alt_names.push(SanType::IpAddress(GATEWAY.into()));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &ca).expect("a certificate");
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            path
        };
        Self {
            ca: write("ca.pem", ca.pem()),
            certificate: write("kubernetes.pem", certificate.pem()),
            key: write("kubernetes-key.pem", key.serialize_pem()),
        }
    }
}
