//! Files that flags name: certificates, keys, a password.

use std::io;
use std::path::Path;

use tokio::io::AsyncReadExt as _;

/// Most bytes of a file. A system's bundle of CAs has some 200 kB.
const LIMIT: u64 = 4 << 20;

/// Reads a file, but none without an end, such as `/dev/zero`.
pub(super) async fn read(file: &Path) -> io::Result<Vec<u8>> {
    let (mut content, file) = (Vec::new(), tokio::fs::File::open(file).await?);
    file.take(LIMIT + 1).read_to_end(&mut content).await?;
    if content.len() as u64 > LIMIT {
        return Err(io::Error::other(format!("it has more than {} MiB", LIMIT >> 20)));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_without_an_end_is_refused() {
        let error = read(Path::new("/dev/zero")).await.unwrap_err().to_string();
        assert_eq!(error, "it has more than 4 MiB");
        assert_eq!(read(Path::new("/dev/null")).await.unwrap(), b"");
        let error = read(Path::new("/dev/null/x")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
        assert!(read(Path::new("/")).await.is_err());
    }
}
