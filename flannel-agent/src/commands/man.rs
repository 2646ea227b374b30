//! `flannel-agent man`.

use std::io::{self, Write as _};
use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use super::complain;
use crate::cli::Cli;

/// Prints the manual page of the daemon, or writes those of all commands.
pub fn run(dir: Option<&Path>) -> u8 {
    let done = match dir {
        Some(dir) => write_all(dir),
        None => page(&man(command())).map(|page| {
            // A reader that has gone away is no error of ours.
            let _ = io::stdout().write_all(&page);
        }),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            complain(&format!("man: {error}"));
            1
        }
    }
}

/// Without the date: the same agent gives the same pages.
fn command() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

fn man(command: Command) -> Man {
    Man::new(command).section("8").date("").manual("flannel-ebpf")
}

fn page(man: &Man) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render(&mut page)?;
    let text = String::from_utf8(page).map_err(io::Error::other)?;
    // clap's word for what follows the flags says nothing.
    let title = if text.contains("Exit code:") { "\"EXIT STATUS\"" } else { "NOTES" };
    Ok(text.replace(".SH EXTRA\n", &format!(".SH {title}\n")).into_bytes())
}

fn write_all(dir: &Path) -> io::Result<()> {
    let main = command();
    let failed = |path: &Path, error| io::Error::other(format!("{}: {error}", path.display()));
    std::fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    let shown = main.get_subcommands().filter(|command| !command.is_hide_set());
    let commands: Vec<Command> = shown.cloned().collect();
    for man in commands.into_iter().chain([main]).map(man) {
        let path = dir.join(man.get_filename());
        std::fs::write(&path, page(&man)?).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("man8");
        assert_eq!(run(Some(&dir)), 0);
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        let main = read("flannel-agent.8");
        for word in ["etcd\\-endpoints", "FLANNELD_ETCD_ENDPOINTS", "fast\\-path\\-window"] {
            assert!(main.contains(word), "{word} is not in {main}");
        }
        assert!(main.starts_with(".ie"), "{}", &main[..60]);
        assert!(main.contains("\n.SH NOTES\n"), "{main}");
        assert!(read("flannel-agent-check.8").contains("\n.SH \"EXIT STATUS\"\nExit code: 0"));
        assert!(read("flannel-agent-cleanup.8").contains("keep\\-device"));
        for sub in command().get_subcommands() {
            let name = format!("flannel-agent-{}.8", sub.get_name());
            if sub.is_hide_set() {
                assert!(!dir.join(&name).exists(), "{name}: an agent runs it, and nobody else");
                continue;
            }
            let text = read(&name);
            assert!(text.contains(".TH flannel\\-agent\\-") || text.contains(".TH flannel-agent-"));
        }
        assert_eq!(run(Some(Path::new("/proc/no/such"))), 1);
    }
}
