//! The few fields of a certificate that rustls does not give. Pure.

/// What a certificate says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outline {
    /// Of X.509: 1 or 3, most often.
    pub(super) version: u8,
    /// First second (UNIX) of its validity.
    pub(super) not_before: i64,
    /// Last second of its validity.
    pub(super) not_after: i64,
}

pub(super) const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;
/// The object identifier of RSA keys, 1.2.840.113549.1.1.1.
pub(super) const RSA: [u8; 11] = [0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
/// The version of a TBSCertificate.
const VERSION: u8 = 0xa0;

/// Reads a certificate (RFC 5280, section 4.1); `None` if it is none.
pub(super) fn outline(certificate: &[u8]) -> Option<Outline> {
    let (version, validity, _) = parts(certificate)?;
    let (not_before, validity) = time(validity)?;
    let (not_after, _) = time(validity)?;
    Some(Outline { version, not_before, not_after })
}

/// Bits of a certificate's RSA key (RFC 8017, appendix A.1.1) that is too short for
/// signatures to be checked.
pub(super) fn weak_rsa_bits(certificate: &[u8]) -> Option<usize> {
    let (_, _, fields) = parts(certificate)?;
    let (_, fields) = expect(SEQUENCE, fields)?;
    let (key, _) = expect(SEQUENCE, fields)?;
    let (algorithm, key) = expect(SEQUENCE, key)?;
    let (key, _) = expect(BIT_STRING, key)?;
    if !algorithm.starts_with(&RSA) {
        return None;
    }
    let (numbers, _) = expect(SEQUENCE, key.get(1..)?)?;
    let (modulus, _) = expect(INTEGER, numbers)?;
    let bits = bits(modulus);
    (bits < 2048).then_some(bits)
}

/// Bits of a number, in whole bytes.
pub(super) fn bits(number: &[u8]) -> usize {
    number.iter().skip_while(|byte| **byte == 0).count() * 8
}

/// A certificate's version, its validity, and the fields behind that.
fn parts(certificate: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (certificate, _) = expect(SEQUENCE, certificate)?;
    let (fields, _) = expect(SEQUENCE, certificate)?;
    let (version, fields) = match expect(VERSION, fields) {
        Some((version, rest)) => (expect(INTEGER, version)?.0.last()?.checked_add(1)?, rest),
        None => (1, fields),
    };
    let (_, fields) = expect(INTEGER, fields)?;
    let (_, fields) = expect(SEQUENCE, fields)?;
    let (_, fields) = expect(SEQUENCE, fields)?;
    let (validity, fields) = expect(SEQUENCE, fields)?;
    Some((version, validity, fields))
}

/// Content of the element with this tag, and what follows it.
pub(super) fn expect(tag: u8, from: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(from)?;
    (found == tag).then_some((content, rest))
}

fn element(from: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, length, rest @ ..] = from else { return None };
    let (length, rest) = if *length < 0x80 {
        (usize::from(*length), rest)
    } else {
        let digits = usize::from(*length & 0x7f);
        if !(1..=4).contains(&digits) {
            return None;
        }
        let (digits, rest) = rest.split_at_checked(digits)?;
        (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

fn time(from: &[u8]) -> Option<(i64, &[u8])> {
    let (tag, content, rest) = element(from)?;
    let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, text) = match tag {
        UTC_TIME => {
            let (year, text) = text.split_at_checked(2)?;
            let year: i64 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, text)
        }
        GENERALIZED_TIME => {
            let (year, text) = text.split_at_checked(4)?;
            (year.parse().ok()?, text)
        }
        _ => return None,
    };
    let part = |at: usize| text.get(at..at + 2)?.parse::<i64>().ok();
    let days = days(year, part(0)?, part(2)?);
    Some((((days * 24 + part(4)?) * 60 + part(6)?) * 60 + part(8)?, rest))
}

/// Days from 1970-01-01 to a date.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // March begins the year, so that the leap day ends it.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    year * 365 + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 1
        - 719_468
}

/// A UNIX time as a date.
pub(super) fn date(second: i64) -> String {
    let day = second.div_euclid(86_400);
    // Days are counted by `days` itself; a year never lasts longer than this.
    let mut year = 1970 + day / 366;
    while days(year + 1, 1, 1) <= day {
        year += 1;
    }
    let month = (1..=12).rev().find(|month| days(year, *month, 1) <= day).unwrap_or(1);
    format!("{year:04}-{month:02}-{:02}", day - days(year, month, 1) + 1)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    #[test]
    fn dates_are_counted_as_the_calendar_does() {
        for (second, text) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_767_225_599, "2025-12-31"),
            (1_767_225_600, "2026-01-01"),
            (4_102_444_800, "2100-01-01"),
        ] {
            assert_eq!(date(second), text);
        }
        assert_eq!(days(2000, 3, 1), 11_017);
    }

    #[test]
    fn both_forms_of_time_are_read() {
        let utc = [&[UTC_TIME, 13], &b"000229000001Z"[..]].concat();
        assert_eq!(time(&utc), Some((951_782_401, &[][..])));
        let late = [&[GENERALIZED_TIME, 15], &b"21000101000000Z"[..]].concat();
        assert_eq!(time(&late), Some((4_102_444_800, &[][..])));
        for broken in [&b""[..], &[UTC_TIME, 200], &[UTC_TIME, 2, b'0', b'Z'], &[SEQUENCE, 0]] {
            assert_eq!(time(broken), None);
        }
    }

    #[test]
    fn a_certificate_tells_its_version_and_validity() {
        let mut params = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2024, 2, 29);
        params.not_after = rcgen::date_time_ymd(2061, 1, 2);
        let key = rcgen::KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap();
        let found = outline(der.der()).unwrap();
        assert_eq!((found.version, date(found.not_before)), (3, "2024-02-29".to_owned()));
        assert_eq!(date(found.not_after), "2061-01-02");
        for length in 0..60 {
            assert_eq!(outline(&der.der()[..length]), None);
        }
    }

    /// Of an RSA key with 1024 bits (`openssl req -x509 -newkey rsa:1024`).
    const WEAK: &str = "\
        MIIBnDCCAQUCFGyFionyby1Z5RhsJLH1DKq8Be3IMA0GCSqGSIb3DQEBCwUAMAwx\
        CjAIBgNVBAMMAWEwIBcNMjYxMTI3MTQwNTQxWhgPMjEyNjExMDMxNDA1NDFaMAwx\
        CjAIBgNVBAMMAWEwgZ8wDQYJKoZIhvcNAQEBBQADgY0AMIGJAoGBAKMD7JzNLB75\
        gjpir7/vMe8/Oc/RinukawAzBOh3MNiPtqq/i24gfJrxFmCmrOYB0udxcmFmmgjM\
        eAoPiu6dgTJ74nzGGuL0c9IPDmjNqJIUCPkLlEA/wDSfZO5lDbe/BxqAQIorSj1+\
        Qw7nqT9vlgXiCjdU6UwEkRK+O0DW70DBAgMBAAEwDQYJKoZIhvcNAQELBQADgYEA\
        PRlzCzqGMxOx8SBDqURQjWX8oYm4MBbkZP+qg2WZ1dsJP2iQrZ6Uj1SvvdD8uwP8\
        dTYu9DRI3G0CX3iAt2sHyDQGPUloHcxErqUR11V+Pn5zHoXdOQc4RIZOEHkrjOju\
        LQGLX/e4zvz23Y1IkWtJJZDiNFGVKaq3PAakrSOQ4eM=";

    #[test]
    fn a_short_rsa_key_is_told() {
        let weak = base64::engine::general_purpose::STANDARD.decode(WEAK).unwrap();
        assert_eq!(weak_rsa_bits(&weak), Some(1024));
        assert_eq!((0..weak.len()).find_map(|length| weak_rsa_bits(&weak[..length])), None);
        let key = rcgen::KeyPair::generate().unwrap();
        let ecdsa = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
        assert_eq!(weak_rsa_bits(ecdsa.der()), None);
    }
}
