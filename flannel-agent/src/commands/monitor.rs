//! `flannel-agent monitor`: packets at the programs' hooks, as they pass.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use flannel_core::monitor::{describe, net};
use flannel_core::status::PacketEvent;
use flannel_core::text::counted;
use flannel_ebpf::abi::Config;
use flannel_ebpf::monitor::{Filter, Rate, Settings, flag};
use nix::net::if_::if_indextoname;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{ask, complain, print, print_json};
use crate::bpf::monitor::{self, Monitor};
use crate::bpf::{BpfError, lookup, monotonic_ns};
use crate::cli::MonitorArgs;
use crate::control::Request;

/// How often what was told is fetched.
const PAUSE: Duration = Duration::from_millis(50);
/// Packets that are told between two looks at time and signals.
const BATCH: usize = 256;
/// How often new programs are looked for: an agent of another version brings some.
const LOOK: Duration = Duration::from_secs(1);

/// Prints packets until it is interrupted, or the time is over.
pub async fn run(args: &MonitorArgs) -> u8 {
    if matches!(ask(&args.reader.state.dir, Request::Status), Ok(None)) {
        complain("the agent is not running");
    }
    match follow(args).await {
        Ok(()) => 0,
        Err(error) => {
            complain(&format!("monitor: {error}"));
            if let Some(log) = &error.verifier_log {
                complain(log);
            }
            1
        }
    }
}

async fn follow(args: &MonitorArgs) -> Result<(), BpfError> {
    let mut monitor = Monitor::open(&args.pins.dir, settings(args)?)?;
    if monitor.attach()? == 0 {
        let reason = "no program of the packet path is loaded";
        return Err(BpfError::plain("watch", args.pins.dir.display().to_string(), reason));
    }
    let mut teller = Teller { json: args.reader.json, devices: HashMap::new(), not_told: 0 };
    let mut fetch = interval(PAUSE);
    let mut look = interval(LOOK);
    fetch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let refused = |error: std::io::Error| BpfError::new("wait for", "signals", &error);
    let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(refused)?;
    let end = async {
        match args.time {
            Some(time) => sleep(time).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    loop {
        tokio::select! {
            _ = fetch.tick() => if teller.tell(&mut monitor)? {
                fetch.reset_immediately();
            },
            _ = look.tick() => drop(monitor.attach()?),
            () = &mut end => break,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    monitor.stop()?;
    while teller.tell(&mut monitor)? {}
    if teller.not_told > 0 {
        complain(&format!(
            "not told: {} (--rate {} on each CPU)",
            counted(teller.not_told, "more packet"),
            args.rate
        ));
    }
    Ok(())
}

/// What the programs are asked for.
fn settings(args: &MonitorArgs) -> Result<Settings, BpfError> {
    let Config { port, .. } = monitor::config(&args.pins.dir)?;
    let peer = args.ends.peer.map(net).unwrap_or_default();
    let behind =
        args.ends.peer.and_then(|peer| lookup::subnet_behind(&args.pins.dir, peer).ok()?);
    Ok(Settings {
        filter: Filter {
            pod: args.ends.pod.map(net).unwrap_or_default(),
            peer: [peer, behind.map_or(peer, net)],
            port: args.ends.port.unwrap_or(0).to_be_bytes(),
            proto: args.proto.map_or(0, |proto| proto.number()),
            reserved: 0,
        },
        rate: Rate::per_second(args.rate),
        outcomes: args.outcomes.iter().fold(0, |all, some| all | some),
        flags: flag::TELL | if args.all { flag::ALL } else { 0 },
        port,
        ..Settings::default()
    })
}

/// Prints events.
struct Teller {
    json: bool,
    /// Names of interfaces.
    devices: HashMap<u32, Option<String>>,
    /// Packets that were not told so far.
    not_told: u64,
}

impl Teller {
    /// Whether there may be more.
    fn tell(&mut self, monitor: &mut Monitor) -> Result<bool, BpfError> {
        let events = monitor.events(BATCH);
        let more = events.len() == BATCH;
        self.not_told = monitor.missed()?;
        let (wall, monotonic) = (SystemTime::now(), monotonic_ns()?);
        for event in events {
            let age = Duration::from_nanos(monotonic.saturating_sub(event.time_ns));
            let at = wall.checked_sub(age).unwrap_or(wall);
            let name = |ifindex| if_indextoname(ifindex).ok()?.into_string().ok();
            let name =
                |ifindex| self.devices.entry(ifindex).or_insert_with(|| name(ifindex)).clone();
            let event = describe(&event, at, self.not_told, name);
            show(&event, self.json);
        }
        Ok(more)
    }
}

fn show(event: &PacketEvent, json: bool) {
    if json {
        print_json(event);
    } else {
        print(&format!("{} {event}", humantime::format_rfc3339_micros(event.at)));
    }
}
