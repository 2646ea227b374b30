//! Takes secrets out of text that goes to others.

use std::sync::LazyLock;

use regex::Regex;

/// What stands where a secret was.
pub const REMOVED: &str = "<removed>";

/// Shorter ones are not looked for as they are: they would be found everywhere.
const SHORTEST: usize = 4;

/// A name that says what its value is, and what stands between them. The value may be
/// quoted.
static NAMED: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r#"(?i)((?:password|passwd|passphrase|secret|token|api[-_]?key|credential|\bpsk)s?["']?(?:\s*[=:]\s*|\s+is\s+))("[^"]*"|'[^']*'|[^\s,;"'&\\]+)"#,
    )
});

/// A flag whose value is the next word.
static FLAG: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r#"(?i)((?:^|[\s"'])--?[a-z-]*(?:password|passwd|passphrase|secret|token)["']?[\s,]+)("[^"]*"|'[^']*'|[^\s"']+)"#,
    )
});

/// The value of a header, or a kind of credentials.
static BEARER: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"(?i)((?:authorization:\s*)?\b(?:bearer|basic)\s+)([A-Za-z0-9+/=._~-]{6,})")
});

/// User and password in a URL.
static USER_INFO: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?i)(\b[a-z][a-z0-9+.-]*://)([^/\s@]+)@"));

/// Keys as TLS has them.
static PRIVATE_KEY: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)")
});

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern that the tests have compiled")
}

/// The text without what looks like a secret, and without these secrets.
pub fn redact(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| secret.len() >= SHORTEST) {
        text = text.replace(secret.as_str(), REMOVED);
    }
    let text = PRIVATE_KEY.replace_all(&text, REMOVED);
    let text = USER_INFO.replace_all(&text, format!("${{1}}{REMOVED}@"));
    let text = FLAG.replace_all(&text, format!("${{1}}{REMOVED}"));
    let text = BEARER.replace_all(&text, format!("${{1}}{REMOVED}"));
    NAMED.replace_all(&text, format!("${{1}}{REMOVED}")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go() {
        for (text, left) in [
            ("FLANNELD_ETCD_PASSWORD=hunter22", "FLANNELD_ETCD_PASSWORD=<removed>"),
            ("--etcd-password=hunter22 --ip-masq", "--etcd-password=<removed> --ip-masq"),
            ("-etcd-password hunter22 --ip-masq", "-etcd-password <removed> --ip-masq"),
            ("\t--etcd-password 'hunter 22'", "\t--etcd-password <removed>"),
            (r#"["--etcd-password", "hunter 22"]"#, r#"["--etcd-password", <removed>]"#),
            (r#"{"password": "hunter 22","a":1}"#, r#"{"password": <removed>,"a":1}"#),
            (r#"{"Type":"wireguard","PSK":"hunter22"}"#, r#"{"Type":"wireguard","PSK":<removed>}"#),
            ("http://root:hunter22@192.0.2.1:2379/v3", "http://<removed>@192.0.2.1:2379/v3"),
            ("https://a/b?token=hunter22&x=1", "https://a/b?token=<removed>&x=1"),
            ("Authorization: Bearer hunter22", "Authorization: Bearer <removed>"),
            ("the token is hunter22", "the token is <removed>"),
            (
                "a\n-----BEGIN EC PRIVATE KEY-----\nhunter22\n-----END EC PRIVATE KEY-----\nb",
                "a\n<removed>\nb",
            ),
            ("-----BEGIN PRIVATE KEY-----\nhunter22", "<removed>"),
        ] {
            assert_eq!(redact(text, &[]), left);
        }
        assert_eq!(redact("a hunter22 b", &["hunter22".to_owned()]), "a <removed> b");
        assert_eq!(redact("on a link", &["a".to_owned()]), "on a link", "too short to look for");
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "--etcd-keyfile=/etc/etcd/key.pem",
            "--etcd-password-file=/etc/flannel/password --ip-masq",
            "--etcd-password-file /etc/flannel/password --ip-masq",
            "FLANNELD_ETCD_PASSWORD_FILE=/etc/flannel/password",
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
            "http://192.0.2.1:2379,http://192.0.2.2:2379",
            "10.5.1.0/24 dev flannel.1 proto 241 onlink",
            "[10:00:00] user@host: secrets.target reached",
        ] {
            assert_eq!(redact(text, &[]), text);
        }
    }
}
