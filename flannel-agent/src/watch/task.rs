//! Answers the kernel's events at once, whatever the loop is doing.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use flannel_core::health::Subject;
use flannel_core::schedule::GENERATION;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Watch;
use crate::backoff::Backoff;
use crate::kernel::{EventSource, KernelEvent};

/// The same holds for looks at devices: a script adds many filters, and many pods start
/// together.
const DEVICES: Duration = Duration::from_millis(20);
/// Of the time at most a part of this many is taken by looks at routes.
const ROUTES_SHARE: u32 = 10;
/// Devices that are looked at before events get their turn.
const AT_ONCE: usize = 32;
/// A pod that was just made has no address yet.
const NEW_PODS: Duration = Duration::from_secs(2);
/// How often everything is looked at while no events come.
const DEAF: Duration = Duration::from_secs(1);
/// Confirmations that cannot be ended are tried to be at least this often.
const RAISE_LIMIT: Duration = Duration::from_secs(10);
/// Events for the loop that wait in the channel.
const QUEUE: usize = 64;

/// Starts answering events; gives those that are for the loop. Everything is
/// looked at again after each `every`. Ends with `events` or its receiver. Must
/// be called within a tokio runtime.
pub fn start(
    watch: Watch,
    events: mpsc::Receiver<KernelEvent>,
    every: Duration,
) -> mpsc::Receiver<KernelEvent> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let now = Instant::now();
    let task = Task {
        watch,
        every,
        pending: Pending::default(),
        raise: Throttle::new(GENERATION),
        raise_again: Backoff::new(GENERATION, RAISE_LIMIT),
        routes: Throttle::new(GENERATION),
        detours: Throttle::new(GENERATION),
        traffic: Throttle::new(DEVICES),
        changed: BTreeSet::new(),
        pods: Throttle::new(DEVICES),
        in_pods: BTreeSet::new(),
        devices: BTreeSet::new(),
        namespaces: BTreeSet::new(),
        new_pods: None,
        everything: now + every.min(DEAF),
        deaf: BTreeSet::new(),
    };
    tokio::spawn(task.run(events, sender));
    receiver
}

struct Task {
    watch: Watch,
    every: Duration,
    /// For the loop, which may be busy.
    pending: Pending,
    raise: Throttle,
    /// It failed.
    raise_again: Backoff,
    /// For routes with limits of their own.
    routes: Throttle,
    /// For rules and routes that lead elsewhere.
    detours: Throttle,
    traffic: Throttle,
    /// Devices whose traffic control has changed.
    changed: BTreeSet<u32>,
    pods: Throttle,
    /// Pods' veths of whose other side something may have changed.
    in_pods: BTreeSet<u32>,
    /// Devices that are looked at when there is nothing else to do.
    devices: BTreeSet<u32>,
    /// Network namespaces likewise.
    namespaces: BTreeSet<i32>,
    /// When to look into new network namespaces.
    new_pods: Option<Instant>,
    /// When to look at everything.
    everything: Instant,
    deaf: BTreeSet<EventSource>,
}

impl Task {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<KernelEvent>,
        sender: mpsc::Sender<KernelEvent>,
    ) {
        loop {
            self.do_what_is_due(Instant::now());
            let idle = !self.devices.is_empty() || !self.namespaces.is_empty();
            let due = self.next_due();
            tokio::select! {
                biased;
                event = events.recv() => match event {
                    Some(event) => self.take(event, Instant::now()),
                    None => break,
                },
                permit = sender.reserve(), if !self.pending.is_empty() => match permit {
                    Ok(permit) => {
                        if let Some(event) = self.pending.pop() {
                            permit.send(event);
                        }
                    }
                    Err(_) => return,
                },
                () = sender.closed() => return,
                () = self.watch.detours_asked() => self.detours.ask(Instant::now()),
                () = tokio::time::sleep_until(due) => {}
                () = std::future::ready(()), if idle => {
                    self.look_at_some();
                    tokio::task::yield_now().await;
                }
            }
        }
        while let Some(event) = self.pending.pop() {
            if sender.send(event).await.is_err() {
                return;
            }
        }
    }

    fn take(&mut self, event: KernelEvent, now: Instant) {
        match event {
            KernelEvent::Decision | KernelEvent::OverlayRoute | KernelEvent::LimitedRoute => {
                self.raise.ask(now);
                if event != KernelEvent::Decision {
                    self.detours.ask(now);
                }
                if event == KernelEvent::LimitedRoute || self.watch.has_limited_routes() {
                    self.routes.ask(now);
                }
            }
            KernelEvent::Ruleset => {
                self.raise.ask(now);
                self.pending.push(event);
            }
            KernelEvent::IpsecPolicy => {
                self.raise.ask(now);
                self.watch.look_at_rules();
            }
            KernelEvent::Rule => {
                self.raise.ask(now);
                self.watch.look_at_rules();
                self.detours.ask(now);
                self.pending.push(event);
            }
            KernelEvent::Tc { ifindex } => {
                if ifindex == 0 {
                    self.changed.append(&mut self.watch.devices());
                } else {
                    self.changed.insert(ifindex);
                }
                self.traffic.ask(now);
            }
            KernelEvent::Link { ifindex } => {
                if self.watch.is_pods_veth(ifindex) {
                    self.in_pods.insert(ifindex);
                    self.pods.ask(now);
                } else {
                    self.new_pods.get_or_insert(now + NEW_PODS);
                }
                // Its routes go with it, and nobody says so.
                if self.watch.has_detours() {
                    self.detours.ask(now);
                }
                self.pending.push(event);
            }
            KernelEvent::Overrun => {
                tracing::warn!("kernel events lost; everything is looked at");
                self.lost(now);
            }
            KernelEvent::Deaf(source) => {
                self.deaf.insert(source);
                self.complain();
                self.everything = now;
            }
            KernelEvent::Hears(source) => {
                self.deaf.remove(&source);
                self.complain();
                self.lost(now);
            }
            KernelEvent::Address { .. }
            | KernelEvent::Route { .. }
            | KernelEvent::RouteBefore
            | KernelEvent::RouteLost { .. }
            | KernelEvent::Neighbour { .. }
            | KernelEvent::Switch => self.pending.push(event),
        }
    }

    /// Anything may have changed.
    fn lost(&mut self, now: Instant) {
        self.raise.ask(now);
        self.detours.ask(now);
        self.everything = now;
        self.pending.push(KernelEvent::Overrun);
    }

    fn complain(&self) {
        let reason = (!self.deaf.is_empty()).then(|| {
            format!(
                "the kernel does not tell of changes at present ({:?}); everything is looked at \
                 each second",
                self.deaf
            )
        });
        self.watch.shared.report(Subject::KernelEvents, reason);
    }

    fn do_what_is_due(&mut self, now: Instant) {
        if self.raise.is_due(now) {
            match self.watch.raise() {
                true => self.raise_again.reset(),
                false => self.raise.ask(now + self.raise_again.fail()),
            }
        }
        if self.routes.is_due(now) {
            self.watch.look_at_routes();
            // All peers may be asked for: a storm of changes must not take all time.
            self.routes.rest(now, now.elapsed() * ROUTES_SHARE);
        }
        if self.detours.is_due(now) {
            self.watch.look_for_detours();
            self.detours.rest(now, now.elapsed() * ROUTES_SHARE);
        }
        if self.traffic.is_due(now) {
            self.watch.look(&std::mem::take(&mut self.changed));
        }
        if self.pods.is_due(now) {
            self.watch.look_into_pods(&std::mem::take(&mut self.in_pods));
        }
        if self.new_pods.is_some_and(|due| due <= now) {
            self.new_pods = None;
            self.namespaces.append(&mut self.watch.namespaces(false));
        }
        if self.everything <= now {
            let deaf = !self.deaf.is_empty();
            if deaf {
                self.raise.ask(now);
            }
            if deaf || self.watch.has_detours() {
                self.detours.ask(now);
            }
            self.everything = now + if deaf { DEAF } else { self.every };
            self.devices = self.watch.devices();
            self.namespaces = self.watch.namespaces(true);
            self.watch.look_at_rules();
            self.watch.look_at_routes();
        }
    }

    fn look_at_some(&mut self) {
        let some: BTreeSet<u32> = self.devices.iter().take(AT_ONCE).copied().collect();
        self.devices.retain(|device| !some.contains(device));
        self.watch.look(&some);
        if let Some(netns) = self.namespaces.pop_first() {
            self.watch.look_into_namespace(netns);
        }
    }

    fn next_due(&self) -> Instant {
        let dues = [
            self.raise.due,
            self.routes.due,
            self.detours.due,
            self.traffic.due,
            self.pods.due,
            self.new_pods,
        ];
        dues.into_iter().flatten().chain([self.everything]).min().unwrap_or(self.everything)
    }
}

/// Something that is done at once, and then not again for a while.
struct Throttle {
    pause: Duration,
    last: Option<Instant>,
    due: Option<Instant>,
}

impl Throttle {
    fn new(pause: Duration) -> Self {
        Self { pause, last: None, due: None }
    }

    fn ask(&mut self, now: Instant) {
        let free = self.last.map_or(now, |last| now.max(last + self.pause));
        self.due.get_or_insert(free);
    }

    /// Keeps it from being done again for a while.
    fn rest(&mut self, began: Instant, pause: Duration) {
        self.last = Some(began + pause.saturating_sub(self.pause));
    }

    /// Whether it is to be done now; the caller does it then.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.due.is_some_and(|due| due <= now);
        if due {
            self.due = None;
            self.last = Some(now);
        }
        due
    }
}

/// Events in the order of their first occurrence, each once.
#[derive(Default)]
struct Pending {
    queue: VecDeque<KernelEvent>,
    seen: HashSet<KernelEvent>,
}

impl Pending {
    fn push(&mut self, event: KernelEvent) {
        if self.seen.insert(event) {
            self.queue.push_back(event);
        }
    }

    fn pop(&mut self) -> Option<KernelEvent> {
        let event = self.queue.pop_front()?;
        self.seen.remove(&event);
        Some(event)
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
