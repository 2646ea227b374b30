//! Certificates in a file of PEM, found as Go's `encoding/pem` finds them.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
const END: &[u8] = b"-----END CERTIFICATE-----";
/// UTF-8's mark, which editors put at the beginning.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// The certificates of a file. Whatever stands between them is passed over, and so is a
/// block that cannot be read.
///
/// # Errors
/// There is none; why not.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    let mut unusable = None;
    for block in blocks(pem.strip_prefix(MARK).unwrap_or(pem)) {
        match CertificateDer::from_pem_slice(&block) {
            Ok(certificate) => found.push(certificate),
            Err(error) => unusable = Some(error),
        }
    }
    match unusable {
        _ if !found.is_empty() => Ok(found),
        Some(error) => Err(format!("has no certificate that can be read: {error}")),
        None => Err("has no certificate in it".to_owned()),
    }
}

/// The text of each block, without the white space at the ends of lines. One that another
/// begins in, or that does not end, is left out.
fn blocks(pem: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut open: Option<Vec<u8>> = None;
    for line in pem.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii_end) {
        if line == BEGIN {
            open = Some(Vec::new());
        }
        let Some(block) = &mut open else { continue };
        block.extend_from_slice(line);
        block.push(b'\n');
        if line == END {
            found.extend(open.take());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> (String, CertificateDer<'static>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let made = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
        (made.pem().replace("\r\n", "\n"), made.der().clone())
    }

    #[test]
    fn what_stands_between_certificates_is_passed_over() {
        let ((a, first), (b, second)) = (one(), one());
        let begun = "-----BEGIN CERTIFICATE-----\n";
        let wrong = format!("{begun}!!!\n-----END CERTIFICATE-----\n");
        let other = wrong.replace("CERTIFICATE-----", "CERTIFICATE REQUEST-----");
        let header = a.replacen(begun, &format!("{begun}Comment: x\n\n"), 1);
        for text in [
            format!("{a}{b}"),
            format!("{wrong}{a}garbage\n{other}{header}{b}{wrong}"),
            format!("{a}{b}{begun}MIIB"),
            format!("{begun}MIIB\n{a}{b}"),
            format!("{a}{b}").replace('\n', "\r\n"),
            format!("\u{feff}{a}\n-----END CERTIFICATE-----\n{b}").replace('\n', "  \n"),
        ] {
            let found = certificates(text.trim_end().as_bytes());
            assert_eq!(found, Ok(vec![first.clone(), second.clone()]), "{text}");
        }
    }

    #[test]
    fn a_file_without_a_certificate_is_told() {
        let told = |text: &str| certificates(text.as_bytes()).unwrap_err();
        assert_eq!(told("-----BEGIN PUBLIC KEY-----\n"), "has no certificate in it");
        let (pem, _) = one();
        assert_eq!(told(&pem[..pem.len() - 20]), "has no certificate in it");
        let wrong = pem.replacen("\nM", "\n!", 1);
        assert!(told(&wrong).starts_with("has no certificate that can be read: "));
    }
}
