//! TLS of a connection, as Go and curl see certificates.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::SourceError;
use super::der::{date, outline, weak_rsa_bits};
use super::options::{ClientCertificate, TlsFiles, bad};
use super::pem::certificates;
use super::private_key;

/// TLS for one connection.
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    refused: Arc<Refused>,
    /// Why the server may refuse our certificate, as far as it can be seen here.
    pub(super) own_trouble: Option<String>,
}

/// Why the server's certificate was refused, in our words.
#[derive(Debug, Default)]
struct Refused(Mutex<Option<String>>);

impl Tls {
    /// What `files` say, for the protocol `alpn` (none: HTTP/1.1).
    ///
    /// # Errors
    /// [`SourceError::Options`] names the unusable file.
    pub(super) fn new(files: &TlsFiles, alpn: Option<&[u8]>) -> Result<Self, SourceError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let refused = Arc::new(Refused::default());
        let verifier = Verifier::new(files, &provider, Arc::clone(&refused))?;
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| bad("--etcd-endpoints", error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut own_trouble = None;
        let mut config = match &files.identity {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let shown = certified(own, &provider)?;
                own_trouble = self::own_trouble(&shown);
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)))
            }
        };
        config.alpn_protocols = alpn.map(<[u8]>::to_vec).into_iter().collect();
        Ok(Self { config: Arc::new(config), refused, own_trouble })
    }

    /// Why the server's certificate was refused, if it was.
    pub(super) fn refusal(&self) -> Option<String> {
        self.refused.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Our certificate with its key. One of X.509 v1, as `openssl x509 -req` makes
/// it without extensions, is shown as it is: it is the server that judges it.
fn certified(
    own: &ClientCertificate,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, SourceError> {
    let chain = certificates(&own.cert).map_err(|cause| bad("--etcd-certfile", cause))?;
    let outline = chain.first().and_then(|first| outline(first));
    let is_v1 = outline.is_some_and(|outline| outline.version == 1);
    if is_encrypted(&own.key) {
        return Err(bad("--etcd-keyfile", "it is encrypted; give it without a passphrase"));
    }
    let key = PrivateKeyDer::from_pem_slice(&own.key)
        .map_err(|error| bad("--etcd-keyfile holds no private key", error))?;
    let told = private_key::unusable(&key);
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| bad("--etcd-keyfile", told.unwrap_or_else(|| error.to_string())))?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Err(Error::InvalidCertificate(_)) if is_v1 => {}
        Err(Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) | Ok(()) => {}
        Err(Error::InconsistentKeys(_)) => {
            let cause = "the key is not that of the first certificate";
            return Err(bad("--etcd-certfile and --etcd-keyfile", cause));
        }
        Err(error) => return Err(bad("--etcd-certfile and --etcd-keyfile", error)),
    }
    Ok(certified)
}

/// Whether a key wants a passphrase: by PKCS#8's label, or by a header of PEM.
fn is_encrypted(key: &[u8]) -> bool {
    let marks = [&b"-----BEGIN ENCRYPTED PRIVATE KEY-----"[..], b"Proc-Type: 4,ENCRYPTED"];
    key.split(|byte| matches!(byte, b'\n' | b'\r'))
        .any(|line| marks.contains(&line.trim_ascii_end()))
}

/// What is wrong with our own certificate, as far as it can be seen here.
fn own_trouble(shown: &CertifiedKey) -> Option<String> {
    let outline = outline(shown.end_entity_cert().ok()?)?;
    let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
    if now > outline.not_after {
        Some(format!("the certificate of --etcd-certfile expired on {}", date(outline.not_after)))
    } else if now < outline.not_before {
        let from = date(outline.not_before);
        Some(format!("the certificate of --etcd-certfile is valid from {from} on only"))
    } else {
        None
    }
}

/// Checks the server's certificate.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    /// Certificates that are trusted as they are.
    given: Vec<CertificateDer<'static>>,
    refused: Arc<Refused>,
}

impl Verifier {
    fn new(
        files: &TlsFiles,
        provider: &Arc<CryptoProvider>,
        refused: Arc<Refused>,
    ) -> Result<Self, SourceError> {
        let mut roots = RootCertStore::empty();
        let mut given = Vec::new();
        let mut unusable = None;
        for ca in certificates(&files.ca).map_err(|cause| bad("--etcd-cafile", cause))? {
            // A system's bundle may have some that rustls does not take.
            match roots.add(ca.clone()) {
                Ok(()) => given.push(ca),
                Err(error) => unusable = Some(error),
            }
        }
        if given.is_empty() {
            let cause = unusable.map_or_else(
                || "has no certificate in it".to_owned(),
                |error| format!("has no certificate that can be used: {error}"),
            );
            return Err(bad("--etcd-cafile", cause));
        }
        let inner =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
                .build()
                .map_err(|error| bad("--etcd-cafile", error))?;
        Ok(Self { inner, given, refused })
    }

    /// A certificate that was given as a CA is trusted as the server's own, too,
    /// though it says that it is an authority: `openssl req -x509` makes such.
    fn given_itself(
        &self,
        shown: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
        let encoding = || Error::InvalidCertificate(CertificateError::BadEncoding);
        let outline = outline(shown).ok_or_else(encoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        match now {
            _ if now < outline.not_before => {
                Err(Error::InvalidCertificate(CertificateError::NotValidYet))
            }
            _ if now > outline.not_after => {
                Err(Error::InvalidCertificate(CertificateError::Expired))
            }
            _ => Ok(()),
        }
    }

    fn refuse(&self, error: Error, shown: &CertificateDer<'_>) -> Error {
        let text = explain(&error, shown, &self.given);
        *self.refused.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        error
    }
}

/// A refusal in words that stay the same at each try.
fn explain(error: &Error, shown: &CertificateDer<'_>, given: &[CertificateDer<'_>]) -> String {
    let outline = outline(shown);
    let weak = || std::iter::once(shown).chain(given).find_map(|der| weak_rsa_bits(der));
    let Error::InvalidCertificate(reason) = error else { return error.to_string() };
    let why = match (reason, outline) {
        (CertificateError::BadSignature, _) if weak().is_some() => {
            let bits = weak().unwrap_or_default();
            format!("it or its CA has an RSA key of {bits} bits; at least 2048 are needed")
        }
        (CertificateError::Expired | CertificateError::ExpiredContext { .. }, Some(outline)) => {
            format!("it expired on {}", date(outline.not_after))
        }
        (
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            Some(outline),
        ) => format!("it is valid from {} on only; is the clock right?", date(outline.not_before)),
        (CertificateError::Other(_) | CertificateError::BadEncoding, Some(outline))
            if outline.version < 3 =>
        {
            format!(
                "it is of X.509 version {}, which has no names of servers; make one with the \
                 extension subjectAltName",
                outline.version
            )
        }
        (CertificateError::Other(other), _) if other.to_string().contains("CaUsedAsEndEntity") => {
            "it is a CA's (CA:TRUE) and not the server's own; give that very certificate as \
             --etcd-cafile, or make one with CA:FALSE"
                .to_owned()
        }
        (CertificateError::Other(other), _) => format!("rustls says {other}"),
        (
            CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext {
                public_key_algorithm_id,
                ..
            },
            _,
        ) => {
            let named = public_key_algorithm_id.ends_with(&private_key::P521);
            let kind = if named { "of P-521" } else { "of a kind" };
            format!("it or its CA has a key {kind}, which is not supported; {KEYS} are")
        }
        (
            CertificateError::UnsupportedSignatureAlgorithmContext {
                signature_algorithm_id, ..
            },
            _,
        ) => format!("it or its CA is signed by {}", algorithm(signature_algorithm_id)),
        _ => return error.to_string(),
    };
    format!("invalid peer certificate: {why}")
}

/// Keys that can be used.
const KEYS: &str = "RSA of 2048 bits and more, ECDSA of P-256 and P-384, and Ed25519";

/// Algorithms of signatures that are not supported (RFC 8017, A.2.4; RFC 5758, 3.2).
const UNSUPPORTED: [(&[u8], &str); 4] = [
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4], "MD5 with RSA"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5], "SHA-1 with RSA"),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1], "SHA-1 with ECDSA"),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4], "SHA-512 with ECDSA"),
];

/// In words: an algorithm of signatures that is not supported.
fn algorithm(id: &[u8]) -> String {
    let named = |(oid, _): &&(&[u8], &str)| id.windows(oid.len()).any(|part| part == *oid);
    let name = UNSUPPORTED.iter().find(named).map_or("an algorithm", |(_, name)| name);
    format!("{name}, which is not supported; SHA-256 and SHA-384 are")
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        let given = self.given.iter().any(|given| given.as_ref() == end_entity.as_ref());
        let verified = match verified {
            Err(_) if given => self
                .given_itself(end_entity, server_name, now)
                .map(|()| ServerCertVerified::assertion()),
            other => other,
        };
        verified.map_err(|error| self.refuse(error, end_entity))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self.inner.verify_tls12_signature(message, cert, signature);
        verified.map_err(|error| self.refuse(error, cert))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self.inner.verify_tls13_signature(message, cert, signature);
        verified.map_err(|error| self.refuse(error, cert))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
