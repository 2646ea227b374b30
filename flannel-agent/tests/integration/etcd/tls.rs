//! Certificates as Go and curl take them, by both APIs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flannel_agent::source::SourceError;
use flannel_core::lease::update::LeaseUpdate;
use tokio_util::sync::CancellationToken;

use super::certificates::{Files, ca, flag};
use super::*;

/// Waits for the listener that takes connections a bit before it serves.
async fn eventually(store: &Store) {
    let mut last = None;
    for _ in 0..100 {
        match store.list().await {
            Ok(_) => return,
            Err(error) => last = Some(error.to_string()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{last:?}");
}

fn openssl(arguments: &str) {
    let done = Command::new("openssl").args(arguments.split_whitespace()).output().unwrap();
    assert!(done.status.success(), "{arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A certificate that signs itself and says that it is an authority, as
/// `openssl req -x509` makes it; and its key.
fn self_signed(files: &Files, name: &str) -> (PathBuf, PathBuf) {
    let (cert, key) =
        (files.missing(&format!("{name}.crt")), files.missing(&format!("{name}.key")));
    openssl(&format!(
        "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN={name} -addext \
         subjectAltName=IP:127.0.0.1 -out {} -keyout {}",
        cert.display(),
        key.display()
    ));
    (cert, key)
}

async fn serving(cert: &Path, key: &Path, more: &[String]) -> Etcd {
    let mut flags = vec![flag("cert-file", cert), flag("key-file", key)];
    flags.extend(more.iter().cloned());
    Etcd::start_tls(&flags).await
}

#[tokio::test]
async fn a_self_signed_certificate_is_its_own_authority() {
    let files = Files::new();
    let (cert, key) = self_signed(&files, "etcd");
    let etcd = serving(&cert, &key, &[]).await;
    for api in APIS {
        let mut options = options(&etcd.url());
        options.ca_file = Some(cert.clone());
        eventually(&Store::connect(options.clone(), api).await.unwrap()).await;
        // That one alone, and for its names alone.
        let (other, _) = self_signed(&files, "another");
        options.ca_file = Some(other);
        let error = Store::connect(options.clone(), api).await.unwrap().list().await.unwrap_err();
        assert!(error.to_string().contains("invalid peer certificate"), "{error}");
        options.ca_file = Some(cert.clone());
        options.endpoints = vec![etcd.url().replace("127.0.0.1", "localhost")];
        let error = Store::connect(options, api).await.unwrap().list().await.unwrap_err();
        assert!(error.to_string().contains("not valid for name"), "{error}");
    }
}

#[tokio::test]
async fn an_expired_certificate_is_told_as_that() {
    let files = Files::new();
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2020, 3, 1);
    let pair = rcgen::KeyPair::generate().unwrap();
    let cert = files.write("etcd.crt", &params.self_signed(&pair).unwrap().pem());
    let key = files.write("etcd.key", &pair.serialize_pem());
    let etcd = serving(&cert, &key, &[]).await;
    for api in APIS {
        let mut options = options(&etcd.url());
        options.ca_file = Some(cert.clone());
        let store = Store::connect(options, api).await.unwrap();
        let error = store.list().await.unwrap_err();
        assert!(error.to_string().contains("it expired on 2020-03-01"), "{error}");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(store.list().await.unwrap_err().trouble(), error.trouble());
    }
}

/// A certificate for 127.0.0.1 that `authority` signs as `how` says, with this extension.
fn signed(files: &Files, name: &str, authority: &str, how: &str, extension: &str) {
    let path = |end: &str| files.missing(&format!("{name}.{end}")).display().to_string();
    let by = |end: &str| files.missing(&format!("{authority}.{end}")).display().to_string();
    let extensions =
        files.write(&format!("{name}.ext"), &format!("subjectAltName=IP:127.0.0.1\n{extension}\n"));
    openssl(&format!(
        "req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {} -out {}",
        path("key"),
        path("csr")
    ));
    openssl(&format!(
        "x509 -req -in {} -CA {} -CAkey {} -CAcreateserial {how} -extfile {} -out {}",
        path("csr"),
        by("crt"),
        by("key"),
        extensions.display(),
        path("crt")
    ));
}

#[tokio::test]
async fn what_is_not_supported_in_a_certificate_is_named_in_words() {
    let files = Files::new();
    self_signed(&files, "rsa");
    let p521 = files.missing("p521.key");
    openssl(&format!("ecparam -genkey -name secp521r1 -out {}", p521.display()));
    openssl(&format!(
        "req -x509 -new -key {} -days 30 -subj /CN=p521 -out {}",
        p521.display(),
        files.missing("p521.crt").display()
    ));
    for (name, authority, how, extension, words) in [
        ("a", "p521", "-days 30", "", "it or its CA has a key of P-521, which is not supported"),
        ("b", "p521", "-days 30 -sha512", "", "is signed by SHA-512 with ECDSA, which is not"),
        ("c", "rsa", "-days 30 -sha1", "", "is signed by SHA-1 with RSA, which is not supported"),
        ("d", "rsa", "-days 30", "1.2.3.4=critical,ASN1:NULL", "UnsupportedCriticalExtension"),
    ] {
        signed(&files, name, authority, how, extension);
        let file = |end: &str| files.missing(&format!("{name}.{end}"));
        let etcd = serving(&file("crt"), &file("key"), &[]).await;
        let mut options = options(&etcd.url());
        options.ca_file = Some(files.missing(&format!("{authority}.crt")));
        let store = Store::connect(options, EtcdApi::V3).await.unwrap();
        let error = store.list().await.unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert!(!error.contains("OtherError") && error.len() < 400, "{error}");
    }
}

#[tokio::test]
async fn an_expired_certificate_of_our_own_is_told() {
    let files = Files::new();
    let (ca_file, _) = self_signed(&files, "authority");
    signed(&files, "node", "authority", "-days -1", "");
    let (cert, key) = self_signed(&files, "etcd");
    let trusted = [flag("trusted-ca-file", &ca_file), "--client-cert-auth".to_owned()];
    let etcd = serving(&cert, &key, &trusted).await;
    for api in APIS {
        let mut options = options(&etcd.url());
        options.ca_file = Some(cert.clone());
        options.cert_file = Some(files.missing("node.crt"));
        options.key_file = Some(files.missing("node.key"));
        let error = Store::connect(options, api).await.unwrap().list().await.unwrap_err();
        let error = error.to_string();
        assert!(error.contains("the certificate of --etcd-certfile expired on 20"), "{error}");
    }
}

#[tokio::test]
async fn blocks_that_cannot_be_read_are_passed_over() {
    let files = Files::new();
    let (cert, key) = self_signed(&files, "etcd");
    let etcd = serving(&cert, &key, &[]).await;
    let pem = std::fs::read_to_string(&cert).unwrap();
    let broken = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    for text in [format!("{broken}{pem}"), format!("{pem}-----BEGIN CERTIFICATE-----\nMIIB")] {
        let mut options = options(&etcd.url());
        options.ca_file = Some(files.write("ca.pem", &text));
        eventually(&Store::connect(options, EtcdApi::V3).await.unwrap()).await;
    }
}

#[tokio::test]
async fn a_client_certificate_of_x509_v1_is_shown() {
    let files = Files::new();
    let (ca_file, ca_key) = self_signed(&files, "authority");
    let path = |name: &str| files.missing(name).display().to_string();
    openssl(&format!(
        "req -newkey rsa:2048 -nodes -subj /CN=node -keyout {} -out {}",
        path("node.key"),
        path("node.csr")
    ));
    openssl(&format!(
        "x509 -req -in {} -CA {} -CAkey {} -CAcreateserial -days 30 -out {}",
        path("node.csr"),
        ca_file.display(),
        ca_key.display(),
        path("node.crt")
    ));
    let (cert, key) = self_signed(&files, "etcd");
    let trusted = [flag("trusted-ca-file", &ca_file), "--client-cert-auth".to_owned()];
    let etcd = serving(&cert, &key, &trusted).await;
    for api in APIS {
        let mut options = options(&etcd.url());
        options.ca_file = Some(cert.clone());
        options.cert_file = Some(files.missing("node.crt"));
        options.key_file = Some(files.missing("node.key"));
        eventually(&Store::connect(options, api).await.unwrap()).await;
    }
}

#[tokio::test]
async fn files_are_read_again_without_a_restart() {
    let files = Files::new();
    let (old, new) = (ca("old"), ca("new"));
    let (cert, key) = files.issue("etcd", &old);
    let ca_file = files.write("ca.pem", &old.pem());
    let mut etcd =
        serving(&cert, &key, &[flag("trusted-ca-file", &ca_file), "--client-cert-auth".to_owned()])
            .await;
    for (authority, next) in [(&old, &new), (&new, &old)] {
        let mut stores = Vec::new();
        for api in APIS {
            files.issue("node", authority);
            let mut options = options(&etcd.url());
            options.ca_file = Some(ca_file.clone());
            options.cert_file = Some(files.missing("node.crt"));
            options.key_file = Some(files.missing("node.key"));
            let store = Store::connect(options, api).await.unwrap();
            eventually(&store).await;
            stores.push(store);
        }
        // All of the cluster gets new certificates.
        files.issue("etcd", next);
        etcd.kill();
        files.write("ca.pem", &next.pem());
        etcd.spawn().await;
        for store in &stores {
            assert!(store.list().await.is_err(), "our own certificate is the old one");
        }
        files.issue("node", next);
        for store in &stores {
            eventually(store).await;
        }
    }
}

#[tokio::test]
async fn the_reason_of_a_refusal_is_the_real_one() {
    let files = Files::new();
    let authority = ca("authority");
    let (cert, key) = files.issue("etcd", &authority);
    let ca_file = files.write("ca.pem", &authority.pem());
    let with_clients =
        serving(&cert, &key, &[flag("trusted-ca-file", &ca_file), "--client-cert-auth".to_owned()])
            .await;
    let plain = Etcd::start().await;
    let tls_to_plain = plain.url().replace("http:", "https:");
    let plain_to_tls = with_clients.url().replace("https:", "http:");
    let v3 = EtcdApi::V3;
    for (url, api, part) in [
        (with_clients.url(), v3, "received fatal alert"),
        (tls_to_plain.clone(), v3, "does it want http:// instead of https://"),
        (tls_to_plain, EtcdApi::V2, "does it want http:// instead of https://"),
        (plain_to_tls, v3, "does it want https:// instead of http://"),
        ("http://127.0.0.1:1".to_owned(), v3, "Connection refused"),
        ("http://127.0.0.1:1".to_owned(), EtcdApi::V2, "Connection refused"),
    ] {
        let mut options = options(&url);
        options.ca_file = Some(ca_file.clone());
        let store = Store::connect(options, api).await.unwrap();
        for _ in 0..5 {
            let error = store.list().await.unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(&url), "{part}: {error}");
            assert!(!error.contains("transport error"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_ca_alone_is_enough_and_the_wrong_one_is_told() {
    let files = Files::new();
    let (right, wrong) = (ca("right"), ca("wrong"));
    let (cert, key) = files.issue("etcd", &right);
    let etcd = serving(&cert, &key, &[]).await;
    for api in APIS {
        let mut options = options(&etcd.url());
        options.ca_file = Some(files.write("right.pem", &right.pem()));
        let store = Store::connect(options.clone(), api).await.unwrap();
        eventually(&store).await;
        let mut updates = store.watch(CancellationToken::new());
        assert!(matches!(updates.recv().await, Some(LeaseUpdate::Snapshot { .. })));

        options.ca_file = Some(files.write("wrong.pem", &wrong.pem()));
        let error = Store::connect(options.clone(), api).await.unwrap().list().await.unwrap_err();
        let error = error.to_string();
        for part in ["invalid peer certificate", &etcd.url(), "--etcd-cafile"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        // Without one it is the system's CAs, which do not know ours.
        options.ca_file = None;
        if let Ok(store) = Store::connect(options.clone(), api).await {
            let error = store.list().await.unwrap_err().to_string();
            assert!(error.contains("--etcd-cafile"), "{error}");
        }
        options.endpoints = vec![etcd.url().replace("https", "http")];
        let error = Store::connect(options, api).await.unwrap().list().await.unwrap_err();
        assert!(error.to_string().contains("https://"), "{error}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let files = Files::new();
    let (authority, other) = (ca("authority"), ca("other"));
    let (cert, key) = files.issue("etcd", &authority);
    let ca_file = files.write("ca.pem", &authority.pem());
    let trusted = [flag("trusted-ca-file", &ca_file), "--client-cert-auth".to_owned()];
    let etcd = serving(&cert, &key, &trusted).await;
    let (ours, our_key) = files.issue("node", &authority);
    let (foreign, foreign_key) = files.issue("foreign", &other);
    for api in APIS {
        let mut options = options(&etcd.url());
        options.ca_file = Some(ca_file.clone());
        let with = |cert: &PathBuf, key: &PathBuf| EtcdOptions {
            cert_file: Some(cert.clone()),
            key_file: Some(key.clone()),
            ..options.clone()
        };
        eventually(&Store::connect(with(&ours, &our_key), api).await.unwrap()).await;
        for refused in [options.clone(), with(&foreign, &foreign_key)] {
            let error = Store::connect(refused, api).await.unwrap().list().await.unwrap_err();
            assert!(error.to_string().contains("--etcd-certfile"), "{error}");
        }
    }
}

#[tokio::test]
async fn unusable_settings_are_named() {
    let files = Files::new();
    let empty = files.write("empty.pem", "");
    let good = files.write("ca.pem", &ca("any").pem());
    let missing = files.missing("missing.pem");
    let locked = files.write("locked.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\n");
    let (_, key) = self_signed(&files, "other");
    let key = std::fs::read_to_string(key).unwrap();
    let other = files.write("other.pem", &format!("This one is not ENCRYPTED\n{key}"));
    let with = |edit: &dyn Fn(&mut EtcdOptions)| {
        let mut options = options("https://127.0.0.1:1");
        options.ca_file = Some(good.clone());
        edit(&mut options);
        options
    };
    let cases = [
        (with(&|o| o.endpoints = vec![" ".to_owned()]), "--etcd-endpoints"),
        (with(&|o| o.endpoints = vec!["ftp://x".to_owned()]), "--etcd-endpoints ftp://x"),
        (with(&|o| o.endpoints = vec!["http://a:99999".to_owned()]), "99999 is no port"),
        (with(&|o| o.ca_file = Some("/dev/zero".into())), "/dev/zero: it has more than 4 MiB"),
        (with(&|o| o.endpoints = vec!["http://a b".to_owned()]), "--etcd-endpoints http://a b"),
        (with(&|o| o.ca_file = Some(missing.clone())), "missing.pem"),
        (with(&|o| o.ca_file = Some(empty.clone())), "empty.pem"),
        (with(&|o| o.cert_file = Some(good.clone())), "--etcd-certfile"),
        (with(&|o| o.key_file = Some(good.clone())), "--etcd-keyfile"),
        (with(&|o| (o.cert_file, o.key_file) = (Some(good.clone()), Some(good.clone()))), "key"),
        (
            with(&|o| (o.cert_file, o.key_file) = (Some(good.clone()), Some(locked.clone()))),
            "it is encrypted",
        ),
        (
            with(&|o| (o.cert_file, o.key_file) = (Some(good.clone()), Some(other.clone()))),
            "the key is not that of the first certificate",
        ),
    ];
    for (options, named) in cases {
        let error = match Store::connect(options, EtcdApi::Auto).await {
            Ok(_) => panic!("{named} is accepted"),
            Err(error) => error,
        };
        assert!(matches!(error, SourceError::Options { .. }), "{error}");
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
}
