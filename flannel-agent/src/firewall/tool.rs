//! Running the firewall's command line tools.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::FirewallError;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes that a program may print; 700 bytes are one rule in JSON.
const MOST: u64 = 256 << 20;
/// So much of what it says about a failure is kept.
const WORDS: u64 = 64 << 10;

/// Runs a program with this standard input and gives what it printed.
/// `Ok(None)` means that there is no such program.
pub(super) async fn run(
    program: &str,
    arguments: &[&str],
    input: &str,
) -> Result<Option<Output>, FirewallError> {
    run_within(TIMEOUT, program, arguments, input).await
}

/// [`run`] with another limit of time.
pub(super) async fn run_within(
    limit: Duration,
    program: &str,
    arguments: &[&str],
    input: &str,
) -> Result<Option<Output>, FirewallError> {
    let failed = |reason: String| FirewallError { call: call(program, arguments), reason };
    let spawned = Command::new(place(program))
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let finish = async {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A program that does not read to the end says why on stderr.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            Ok(())
        };
        let ((), stdout, stderr) = tokio::try_join!(feed, whole(stdout, MOST), begin(stderr))?;
        Ok::<_, io::Error>(Output { status: child.wait().await?, stdout, stderr })
    };
    match tokio::time::timeout(limit, finish).await {
        Ok(Ok(output)) => Ok(Some(output)),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer within {} s", limit.as_secs()))),
    }
}

/// All that a program prints.
async fn whole(pipe: Option<impl AsyncRead + Unpin>, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe
        && pipe.take(most + 1).read_to_end(&mut bytes).await? as u64 > most
    {
        return Err(io::Error::other(format!("it prints more than {} MB", most >> 20)));
    }
    Ok(bytes)
}

/// How that begins which a program says. It may say the rest to nobody.
async fn begin(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(WORDS).read_to_end(&mut bytes).await?;
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}

/// The error of a program that ended well, and did not do what it was told.
pub(super) fn in_vain(call: String) -> FirewallError {
    FirewallError { call, reason: "it ended well, but the rules are not there".to_owned() }
}

/// PATH where there is none.
const USUAL: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether there is such a program.
pub(super) fn is_there(program: &str) -> bool {
    place(program).exists()
}

/// Where a program is, by PATH. A user's has `/usr/bin`, and not `/usr/sbin`, where such
/// programs are: that is looked through, too.
fn place(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").filter(|path| !path.is_empty());
    found(program, &path.unwrap_or_else(|| USUAL.into()))
}

fn found(program: &str, path: &OsStr) -> PathBuf {
    if program.contains('/') {
        return PathBuf::from(program);
    }
    let folders: Vec<PathBuf> = std::env::split_paths(path).collect();
    let bins = folders.iter().filter(|folder| folder.ends_with("bin"));
    let beside: Vec<PathBuf> = bins.map(|folder| folder.with_file_name("sbin")).collect();
    let files = folders.into_iter().chain(beside).map(|folder| folder.join(program));
    files.into_iter().find(|file| file.is_file()).unwrap_or_else(|| PathBuf::from(program))
}

/// The command line, for errors.
pub(super) fn call(program: &str, arguments: &[&str]) -> String {
    std::iter::once(program).chain(arguments.iter().copied()).collect::<Vec<_>>().join(" ")
}

/// What a program said about its failure: the lines of its standard error that
/// are no warnings, with a hint where the cause is known.
pub(super) fn complaint(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> =
        stderr.lines().map(str::trim_end).filter(|line| !line.starts_with("# Warning")).collect();
    let text = lines.join("; ");
    if text.contains("Operation not permitted") || text.contains("Permission denied") {
        return format!("{text} (needs CAP_NET_ADMIN, handed on to child processes)");
    }
    if text.is_empty() { output.status.to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_beside_the_folders_of_a_user() {
        let root = tempfile::tempdir().unwrap();
        let at = |file: &str| root.path().join(file);
        for folder in ["bin", "sbin", "own"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        std::fs::write(at("sbin/nft"), "").unwrap();
        std::fs::write(at("own/both"), "").unwrap();
        std::fs::write(at("sbin/both"), "").unwrap();
        std::fs::create_dir(at("own/nft")).unwrap();
        let path = |folders: &[&str]| std::env::join_paths(folders.iter().map(|f| at(f))).unwrap();
        let user = path(&["own", "bin"]);
        assert_eq!(found("nft", &user), at("sbin/nft"));
        assert_eq!(found("both", &user), at("own/both"), "PATH goes first");
        assert_eq!(found("nft", &path(&["own"])), PathBuf::from("nft"));
        assert_eq!(found("own/nft", &user), PathBuf::from("own/nft"));
    }

    async fn sh(script: &str, input: &str) -> Result<Output, FirewallError> {
        Ok(run("sh", &["-c", script], input).await?.unwrap())
    }

    #[tokio::test]
    async fn what_a_program_prints_is_bounded() {
        let error = sh("exec yes", "").await.unwrap_err();
        assert_eq!(error.reason, "it prints more than 256 MB");
        let output = sh("yes | head -c 50000000 >&2; echo out; exit 3", "").await.unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"out\n"[..]));
        assert_eq!(output.stderr.len() as u64, WORDS);
    }

    #[tokio::test]
    async fn a_program_may_print_before_it_has_read_everything() {
        let input = "words\n".repeat(200_000);
        let output = sh("head -c 1000000 /dev/zero; cat", &input).await.unwrap();
        assert_eq!(output.stdout.len(), 1_000_000 + input.len());
    }
}
