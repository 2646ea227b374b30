//! What is wrong with a private key that cannot be used. Pure.

use rustls::pki_types::PrivateKeyDer;

use super::der::{INTEGER, RSA, SEQUENCE, bits, expect};

const OCTETS: u8 = 0x04;
/// Parameters and public key of an ECDSA key (RFC 5915, section 3).
const PARAMETERS: u8 = 0xa0;
const PUBLIC: u8 = 0xa1;
/// The object identifier of ECDSA keys, 1.2.840.10045.2.1.
const EC: [u8; 9] = [0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
/// P-256, P-384, and what is not supported: P-521 (1.3.132.0.35).
const P256: [u8; 10] = [0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: [u8; 7] = [0x06, 5, 0x2b, 0x81, 4, 0, 0x22];
pub(super) const P521: [u8; 7] = [0x06, 5, 0x2b, 0x81, 4, 0, 0x23];

/// The object identifier of Ed25519, 1.3.101.112.
const ED25519: [u8; 5] = [0x06, 3, 0x2b, 0x65, 0x70];

/// Why this key cannot be used, if it can be told.
pub(super) fn unusable(key: &PrivateKeyDer<'_>) -> Option<String> {
    match key {
        PrivateKeyDer::Pkcs1(key) => rsa(key.secret_pkcs1_der()),
        PrivateKeyDer::Sec1(key) => ecdsa(key.secret_sec1_der(), &[]),
        PrivateKeyDer::Pkcs8(key) => {
            let (key, _) = expect(SEQUENCE, key.secret_pkcs8_der())?;
            let (_, key) = expect(INTEGER, key)?;
            let (algorithm, key) = expect(SEQUENCE, key)?;
            let (key, _) = expect(OCTETS, key)?;
            match algorithm.strip_prefix(&EC) {
                Some(curve) => ecdsa(key, curve),
                None if algorithm.starts_with(&RSA) => rsa(key),
                None if algorithm == ED25519 => None,
                None => Some(
                    "it is of a kind that is not supported: RSA, ECDSA and Ed25519 are".to_owned(),
                ),
            }
        }
        _ => None,
    }
}

/// RFC 8017, appendix A.1.2.
fn rsa(key: &[u8]) -> Option<String> {
    let (numbers, _) = expect(SEQUENCE, key)?;
    let (_, numbers) = expect(INTEGER, numbers)?;
    let (modulus, numbers) = expect(INTEGER, numbers)?;
    let (exponent, _) = expect(INTEGER, numbers)?;
    let bits = bits(modulus);
    if !(2048..=4096).contains(&bits) {
        return Some(format!("it is an RSA key of {bits} bits; 2048 to 4096 are supported"));
    }
    let exponent = exponent
        .iter()
        .try_fold(0_u64, |sum, byte| sum.checked_mul(256).map(|sum| sum | u64::from(*byte)))?;
    (exponent < 65_537).then(|| {
        format!(
            "it is an RSA key with the public exponent {exponent}; 65537 and more are supported"
        )
    })
}

/// RFC 5915, section 3. `curve` is known, or stands in it.
fn ecdsa(key: &[u8], curve: &[u8]) -> Option<String> {
    let (parts, _) = expect(SEQUENCE, key)?;
    let (_, parts) = expect(INTEGER, parts)?;
    let (_, parts) = expect(OCTETS, parts)?;
    let (own, parts) = expect(PARAMETERS, parts).unwrap_or((&[], parts));
    let curve = if curve.is_empty() { own } else { curve };
    if ![&P256[..], &P384].contains(&curve) {
        let name = if curve == P521 { "P-521" } else { "another curve" };
        return Some(format!(
            "it is an ECDSA key of {name}; those of P-256 and P-384 are supported"
        ));
    }
    expect(PUBLIC, parts)
        .is_none()
        .then(|| "it has no public key in it; `openssl ec -in FILE` prints it with that".to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    /// What is told of a key that openssl makes.
    fn told(script: &str) -> Option<String> {
        let made = Command::new("sh").args(["-ec", script]).output().unwrap();
        assert!(made.status.success(), "{script}: {made:?}");
        let key = PrivateKeyDer::from_pem_slice(&made.stdout).unwrap();
        let usable = rustls::crypto::ring::sign::any_supported_type(&key).is_ok();
        let told = unusable(&key);
        assert_eq!(told.is_none(), usable, "{script}: {told:?}");
        for length in 0..64 {
            let whole = key.secret_der();
            let cut = whole[..length.min(whole.len())].to_vec();
            let _ = unusable(&PrivateKeyDer::Pkcs8(cut.into()));
        }
        told
    }

    #[test]
    fn a_key_that_cannot_be_used_is_told_and_no_other() {
        let curve = |name: &str| format!("openssl ecparam -genkey -name {name}");
        let pkcs8 = |script: &str| format!("{script} | openssl pkcs8 -topk8 -nocrypt");
        let without = "openssl ec -no_public 2>/dev/null";
        for (script, words) in [
            ("openssl genrsa -traditional 1024".to_owned(), "an RSA key of 1024 bits"),
            ("openssl genrsa 1024".to_owned(), "an RSA key of 1024 bits"),
            ("openssl genrsa -3 2048".to_owned(), "the public exponent 3;"),
            (curve("secp521r1"), "an ECDSA key of P-521"),
            (pkcs8(&curve("secp521r1")), "an ECDSA key of P-521"),
            (curve("secp256k1"), "an ECDSA key of another curve"),
            (format!("{} | {without}", curve("prime256v1")), "no public key in it"),
            (pkcs8(&format!("{} | {without}", curve("secp384r1"))), "no public key in it"),
            ("openssl genpkey -algorithm ed448".to_owned(), "a kind that is not supported"),
        ] {
            let told = told(&script).unwrap();
            assert!(told.contains(words), "{script}: {told}");
        }
        for script in [
            "openssl genrsa 2048".to_owned(),
            "openssl genpkey -algorithm ed25519".to_owned(),
            curve("prime256v1"),
            pkcs8(&curve("secp384r1")),
        ] {
            assert_eq!(told(&script), None);
        }
    }
}
