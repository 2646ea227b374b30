//! `flannel-agent`: the daemon and its subcommands.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use flannel_agent::bpf;
use flannel_agent::cli::{self, Cli, Command, Klog, StateDir};
use flannel_agent::commands::{
    self, check, cleanup, completions, connectivity, events, flows, keep_rules, man, migrate,
    monitor, peers, status, sysdump, trace,
};
use flannel_agent::{daemon, logging};
use flannel_core::text;

/// How long the end waits for threads that still do something.
const END: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let (cli, klog) = match cli::parse(std::env::args_os(), cli::process_env) {
        Ok(parsed) => parsed,
        Err(exit) => return leave(&exit),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(cli, klog));
    // A file that is being written gets this time; the system's resolver may take a minute.
    runtime.shutdown_timeout(END);
    code
}

/// Prints what the command line asked for; a reader that has gone away does not
/// matter.
fn leave(exit: &cli::Exit) -> ExitCode {
    let _ = match exit.stream {
        cli::Stream::Out => std::io::stdout().write_all(exit.text.as_bytes()),
        cli::Stream::Err => std::io::stderr().write_all(exit.text.as_bytes()),
    };
    ExitCode::from(exit.code)
}

async fn run(cli: Cli, klog: Klog) -> ExitCode {
    if let Some(reason) = cli.command.as_ref().and_then(commands::refusal) {
        let _ = writeln!(std::io::stderr(), "flannel-agent: {reason}");
        return ExitCode::FAILURE;
    }
    match cli.command {
        Some(Command::Status(args)) => status::run(&args).into(),
        Some(Command::Peers(args)) => peers::run(&args).into(),
        Some(Command::Events(args)) => events::run(&args).into(),
        Some(Command::Flows(args)) => flows::run(&args).into(),
        Some(Command::Monitor(args)) => monitor::run(&args).await.into(),
        Some(Command::Sysdump(args)) => sysdump::run(&args).await.into(),
        Some(Command::Check(args)) => check::run(&args).await.into(),
        Some(Command::Connectivity(args)) => connectivity::run(&args).await.into(),
        Some(Command::Trace(args)) => trace::run(&args).await.into(),
        Some(Command::Cleanup(args)) => cleanup::run(&args).await.into(),
        Some(Command::KeepRules(StateDir { dir: state_dir })) => {
            logging::start(cli.daemon.log_format, klog.filter().as_deref());
            keep_rules::run(&state_dir).await.into()
        }
        Some(Command::Migrate(args)) => migrate::run(args).await.into(),
        Some(Command::LoadPrograms { pin_dir, flow_table_size, how }) => {
            // The agent that asked is told what is wrong.
            match bpf::load_aside(&pin_dir, flow_table_size, how) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Some(Command::Completions { shell }) => completions::run(shell).into(),
        Some(Command::Man { dir }) => man::run(dir.as_deref()).into(),
        None => {
            logging::start(cli.daemon.log_format, klog.filter().as_deref());
            let unknown = cli::without_a_flag(std::env::vars_os().map(|(name, _)| name));
            for warning in cli.warnings.iter().chain(&unknown) {
                tracing::warn!(reason = %warning, "setting ignored");
            }
            if !klog.without_effect.is_empty() {
                tracing::info!(
                    flags = klog.without_effect.join(" "),
                    "flags of flanneld's logger have no effect"
                );
            }
            let without_effect = cli.daemon.without_effect.given();
            if !without_effect.is_empty() {
                tracing::info!(flags = without_effect.join("; "), "flags have no effect");
            }
            match daemon::run(cli.daemon).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    let reason = text::shown(&error.to_string(), 2 * text::REASON);
                    tracing::error!(%reason, "agent ends");
                    ExitCode::from(error.exit_code())
                }
            }
        }
    }
}
