//! When the certificates that etcd is reached with end.

use std::path::{Path, PathBuf};

use super::der::outline;
use super::options::EtcdOptions;
use super::pem::certificates;

/// The named files with certificates, and the last second (UNIX) at which all of each
/// are valid, or why that cannot be told.
pub async fn ends(options: &EtcdOptions) -> Vec<(PathBuf, Result<i64, String>)> {
    let mut ends = Vec::new();
    for file in [&options.ca_file, &options.cert_file].into_iter().flatten() {
        ends.push((file.clone(), end(file).await));
    }
    ends
}

async fn end(file: &Path) -> Result<i64, String> {
    let pem = super::file::read(file).await.map_err(|error| error.to_string())?;
    let all = certificates(&pem)?;
    let ends: Option<Vec<i64>> =
        all.iter().map(|der| outline(der).map(|outline| outline.not_after)).collect();
    let first = ends.and_then(|ends| ends.into_iter().min());
    first.ok_or_else(|| "there is no certificate in it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_to_end_counts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let with_end = |year| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            params.self_signed(&key).unwrap().pem()
        };
        std::fs::write(&file, with_end(2040) + &with_end(2030)).unwrap();
        let options = EtcdOptions {
            ca_file: Some(file.clone()),
            cert_file: Some(folder.path().join("none")),
            ..EtcdOptions::default()
        };
        let found = ends(&options).await;
        assert_eq!(found[0], (file, Ok(1_893_456_000)), "the first second of 2030");
        assert!(found[1].1.is_err(), "{found:?}");
    }
}
