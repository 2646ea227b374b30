//! `flannel-agent sysdump`: one archive for a report.

mod collect;
mod secrets;
mod store;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use flannel_core::redact::redact;
use flannel_core::status::{SysdumpPart, SysdumpReport};
use flannel_core::text::counted;
use flate2::Compression;
use flate2::write::GzEncoder;

use self::collect::Part;
use super::{complain, print, print_json};
use crate::cli::SysdumpArgs;

/// Collects what a report needs, without secrets, into one archive.
pub async fn run(args: &SysdumpArgs) -> u8 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = format!("flannel-sysdump-{}-{seconds}", hostname());
    let file = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let secrets = secrets::known(args);
    let mut parts = collect::all(args).await;
    for part in &mut parts {
        part.text = redact(&part.text, &secrets);
        part.error = part.error.as_ref().map(|error| redact(error, &secrets));
    }
    if let Err(error) = write(&file, &name, &parts, seconds) {
        complain(&format!("{}: {error}", file.display()));
        return 1;
    }
    let report = report(&file, &parts);
    if args.reader.json {
        print_json(&report);
    } else {
        print(&text(&report));
    }
    0
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let good = |letter: &char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '.');
    name.chars().filter(good).collect()
}

/// For root alone: addresses and rules of a node are nobody else's business.
fn write(file: &Path, name: &str, parts: &[Part], seconds: u64) -> io::Result<()> {
    let out = File::options().write(true).create_new(true).mode(0o600).open(file)?;
    let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::default()));
    let mut put = |name: String, text: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(seconds);
        archive.append_data(&mut header, name, text.as_bytes())
    };
    let mut missing = String::new();
    for part in parts {
        if let Some(error) = &part.error {
            missing.push_str(&format!("{}: {error}\n", part.name));
        }
        if !part.text.is_empty() {
            put(format!("{name}/{}", part.name), &part.text)?;
        }
    }
    put(format!("{name}/missing.txt"), &missing)?;
    archive.into_inner()?.finish()?.sync_all()
}

fn report(file: &Path, parts: &[Part]) -> SysdumpReport {
    let part = |part: &Part| SysdumpPart {
        name: part.name.to_owned(),
        bytes: part.text.len(),
        error: part.error.clone(),
    };
    SysdumpReport { file: file.display().to_string(), parts: parts.iter().map(part).collect() }
}

fn text(report: &SysdumpReport) -> String {
    let there = report.parts.iter().filter(|part| part.bytes > 0).count();
    let mut text = format!(
        "{}: {}. Passwords, tokens and keys are taken out; look it through before you \
         give it away",
        report.file,
        counted(there, "file")
    );
    for part in &report.parts {
        if let Some(error) = &part.error {
            text.push_str(&format!("\n  {}: {error}", part.name));
        }
    }
    text
}
