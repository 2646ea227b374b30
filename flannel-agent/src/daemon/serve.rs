//! The loop: it owns the reconciler, and wakes it when something changed.

mod leases;
mod own;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::config::Backend;
use flannel_core::health::Subject;
use flannel_core::lease::Lease;
use flannel_core::lease::table::LeaseTable;
use flannel_core::lease::update::LeaseUpdate;
use flannel_core::peer::Peer;
use ipnetwork::Ipv4Network;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::StartError;
use super::keeper::Keeper;
use crate::cli::{DatapathMode, Options};
use crate::datapath::Demanded;
use crate::files::{state, subnet_env};
use crate::firewall::Firewall;
use crate::kernel::{Kernel, KernelEvent};
use crate::notify;
use crate::reconcile::{Guarded, Reconciler, Told, Wake};
use crate::source::{LeaseSource, is_here};
use crate::status::Shared;
use crate::watch;

/// Events that come together are answered together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Confirmations are ended at most this often, if there is nothing else to do.
const GENERATION: Duration = Duration::from_millis(50);
/// Our own changes cause events, too: a row of new peers costs one look at
/// everything in this time, not one for each.
const LOOK: Duration = Duration::from_millis(300);
/// A row of leases is taken in for at most this part of the time, but none waits for
/// longer than [`DEBOUNCE`].
const SHARE: u32 = 3;
/// Updates that are taken in before anything else gets its turn.
const UPDATES: usize = 256;
/// What is odd about the leases is told at most this often.
const ODDITIES: Duration = Duration::from_secs(1);
/// Hooks are looked after this often: no event tells of a detached program.
const HOOKS: Duration = Duration::from_millis(400);
/// Other people's rule sets may change all the time: ours are compared at most
/// this often.
const FIREWALL: Duration = Duration::from_millis(500);

/// Without these there is no device that pods can use, and no start.
const DEVICE: [Subject; 7] = [
    Subject::Device,
    Subject::DeviceAddress,
    Subject::DeviceMac,
    Subject::DeviceMtu,
    Subject::DeviceRoute,
    Subject::Mtu,
    Subject::UdpProxy,
];

/// SIGTERM and SIGINT.
pub(super) struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    pub(super) fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

pub(super) struct Loop<'a, S, K, F> {
    options: &'a Options,
    source: Arc<S>,
    keeper: Keeper<S>,
    /// Told that our lease is contested.
    contested: bool,
    /// Who asked for a sign of life, and when that was told.
    asked: Option<(String, Instant)>,
    /// PublicIP of our lease, as last written.
    public_ip: Ipv4Addr,
    table: LeaseTable,
    /// Peers by age of their lease, as the last pass got them.
    peers: Vec<Peer>,
    /// They are others now.
    peers_changed: bool,
    /// Those of them that are to be taken in, and when.
    changed: BTreeSet<Ipv4Network>,
    changed_due: Option<Instant>,
    /// When leases were taken in last, and how long that took.
    revised: Option<(Instant, Duration)>,
    oddities_due: Option<Instant>,
    oddities_told: Option<Instant>,
    /// Why the store's next list does not go on from what it told.
    other_history: Option<String>,
    /// Until when peers stay that the store lost.
    held_until: Option<Instant>,
    /// Why the agent is to end.
    ended: Option<StartError>,
    reconciler: Reconciler<K, F>,
    shared: Shared,
    /// Sysctls that an earlier run had changed, with the values before.
    remembered: BTreeMap<String, String>,
    /// What the next pass looks at, and when it is due.
    wake: Wake,
    due: Option<Instant>,
    firewall_checked: Option<Instant>,
    looked: Option<Instant>,
    retry_at: Option<Instant>,
    /// When all confirmations have to be ended.
    raise_at: Option<Instant>,
    /// When to look after the hooks.
    hooks_at: Instant,
    /// The firewall has been looked at.
    guarded: bool,
    /// Others were told that we are ready.
    announced: bool,
    last_state: Option<state::NodeState>,
    subnet_env: subnet_env::Kept,
    last_status: String,
}

impl<'a, S: LeaseSource, K: Kernel, F: Firewall> Loop<'a, S, K, F> {
    pub(super) fn new(
        options: &'a Options,
        source: Arc<S>,
        lease: Lease,
        reconciler: Reconciler<K, F>,
        shared: Shared,
        remembered: BTreeMap<String, String>,
    ) -> Self {
        let identity = reconciler.identity();
        let mut table = LeaseTable::new(identity.network, identity.backend.clone());
        let public_ip = lease.attrs.public_ip;
        table.set_own(Some(lease.subnet), public_ip);
        let keeper = Keeper::new(Arc::clone(&source), lease, options.renew_margin());
        Self {
            options,
            source,
            keeper,
            contested: false,
            asked: None,
            public_ip,
            table,
            peers: Vec::new(),
            peers_changed: false,
            changed: BTreeSet::new(),
            changed_due: None,
            revised: None,
            oddities_due: None,
            oddities_told: None,
            other_history: None,
            held_until: None,
            ended: None,
            reconciler,
            shared,
            remembered,
            wake: Wake::ALL,
            due: None,
            firewall_checked: None,
            looked: None,
            retry_at: None,
            raise_at: None,
            hooks_at: Instant::now() + HOOKS,
            guarded: false,
            announced: false,
            last_state: None,
            subnet_env: subnet_env::Kept::default(),
            last_status: String::new(),
        }
    }

    pub(super) async fn run(
        mut self,
        events: mpsc::Receiver<KernelEvent>,
    ) -> Result<(), StartError> {
        let watch = self.reconciler.watch().clone();
        let mut events = watch::start(watch, events, self.options.resync_interval);
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let mut updates = self.source.watch(stop);
        // Files before the first pass: a lease that is in the store is ours
        // after a crash, too.
        self.write_files();
        self.first_snapshot(&mut updates).await;
        self.pass().await;
        self.check_start()?;
        self.serve(&mut updates, &mut events).await
    }

    /// Tells that we are ready, once the rules and all hooks are there.
    fn announce(&mut self) -> Result<(), StartError> {
        let guarded = self.guarded || !self.reconciler.keeps_rules();
        if self.announced || !guarded || self.reconciler.has_hooks_left() {
            return Ok(());
        }
        self.check_start()?;
        self.announced = true;
        self.shared.lock().ready = true;
        notify::ready();
        let lease = self.keeper.lease();
        tracing::info!(subnet = %lease.subnet, peers = self.peers.len(), "ready");
        Ok(())
    }

    fn check_start(&self) -> Result<(), StartError> {
        let state = self.shared.lock();
        if let Some(reason) = state.health.first_of(&DEVICE) {
            return Err(StartError::Device(reason));
        }
        if self.options.datapath == DatapathMode::Ebpf
            && let Some(reason) = &state.datapath.reason
        {
            return Err(Demanded(reason.clone()).into());
        }
        Ok(())
    }

    async fn serve(
        &mut self,
        updates: &mut mpsc::Receiver<LeaseUpdate>,
        events: &mut mpsc::Receiver<KernelEvent>,
    ) -> Result<(), StartError> {
        let slow_every = self.options.resync_interval;
        let mut slow = interval(slow_every.mul_f64(0.9 + rand::random::<f64>() / 5.0));
        let watchdog_every = notify::watchdog_interval();
        let mut watchdog = interval(watchdog_every.unwrap_or(Duration::from_secs(3600)));
        let mut batch = Vec::with_capacity(UPDATES);
        loop {
            if let Some(why) = self.ended.take() {
                return Err(why);
            }
            self.announce()?;
            let due = earliest(self.due, self.retry_at);
            let hooks_at =
                if self.reconciler.has_hooks_left() { Instant::now() } else { self.hooks_at };
            let (changed_due, raise_at, odd) = (self.changed_due, self.raise_at, self.oddities_due);
            let held_until = self.held_until;
            tokio::select! {
                // Leases first; hooks, which take long, only if there is nothing else.
                biased;
                _ = watchdog.tick(), if watchdog_every.is_some() => notify::watchdog(),
                () = sleep_until(changed_due) => self.revise().await,
                () = sleep_until(due) => self.pass().await,
                kept = self.keeper.next() => self.take_kept(&kept),
                1.. = updates.recv_many(&mut batch, UPDATES) => {
                    batch.drain(..).for_each(|update| self.take_update(update));
                }
                Some(event) = events.recv() => self.take_event(event),
                told = self.reconciler.told() => match told {
                    Told::Firewall(rules) => self.take_guarded(rules)?,
                    Told::PacketRules => self.check_hooks(),
                },
                () = sleep_until(raise_at) => self.raise(),
                () = sleep_until(odd) => self.tell_oddities(),
                () = sleep_until(held_until) => self.release_held(),
                _ = slow.tick() => self.wake(Wake::ALL),
                () = tokio::time::sleep_until(hooks_at) => self.check_hooks(),
            }
        }
    }

    fn take_event(&mut self, event: KernelEvent) {
        // What goes on from an address that has gone is never answered.
        if matches!(event, KernelEvent::Address { .. } | KernelEvent::Overrun) {
            self.source.addresses_changed(&is_here);
        }
        self.wake(self.reconciler.wake_for(event));
    }

    /// What nobody tells of: hooks, map entries, files, and room for them on a disk
    /// that was full.
    fn check_hooks(&mut self) {
        let wake = self.reconciler.check_hooks();
        self.wake(wake);
        self.write_files();
        self.hooks_at = Instant::now() + HOOKS;
    }

    fn raise(&mut self) {
        self.raise_at = self.reconciler.raise_soon();
    }

    /// Without any rules there is no start; those that fail are tried again.
    fn take_guarded(&mut self, rules: Guarded) -> Result<(), StartError> {
        match rules {
            Guarded::Unusable(error) if !self.announced => return Err(error.into()),
            rules => {
                let again = self.reconciler.take_guarded(rules);
                self.retry_at = earliest(self.retry_at, again);
            }
        }
        self.guarded = true;
        Ok(())
    }

    fn wake(&mut self, wake: Wake) {
        if wake.is_nothing() {
            return;
        }
        let only_generation = Wake { generation: true, ..Wake::default() };
        let pause = if wake == only_generation { GENERATION } else { DEBOUNCE };
        self.wake.merge(wake);
        self.due = earliest(self.due, Some(Instant::now() + pause));
    }

    async fn pass(&mut self) {
        self.watch_contest();
        let mut wake = std::mem::take(&mut self.wake);
        self.due = None;
        let now = Instant::now();
        let later = (wake.look || wake.paths) && postpone(&mut self.looked, LOOK, now);
        let postponed = Wake {
            look: wake.look && later,
            paths: wake.paths && later,
            firewall: wake.firewall && postpone(&mut self.firewall_checked, FIREWALL, now),
            ..Wake::default()
        };
        wake.look &= !later;
        wake.paths &= !later;
        wake.firewall &= !postponed.firewall;
        self.wake = postponed;
        let look_at = self.looked.filter(|_| later).map(|looked| looked + LOOK);
        let check_at =
            self.firewall_checked.filter(|_| postponed.firewall).map(|checked| checked + FIREWALL);
        self.due = earliest(look_at, check_at);
        if std::mem::take(&mut self.peers_changed) {
            self.peers = self.table.peers().collect();
            wake.generation |= !self.changed.is_empty();
            self.changed.clear();
            self.changed_due = None;
        }
        let began = std::time::Instant::now();
        let outcome = self.reconciler.pass(&self.peers, wake).await;
        self.shared.lock().record.passed(began.elapsed());
        self.retry_at = outcome.retry_at;
        if outcome.underlay_changed {
            self.follow_underlay();
        }
        self.write_files();
        self.tell_systemd();
    }

    /// Our lease follows the underlay's address.
    fn follow_underlay(&mut self) {
        let public_ip = self.reconciler.identity().underlay.public_ip;
        let mut attrs = self.keeper.lease().attrs.clone();
        if attrs.public_ip != public_ip {
            attrs.public_ip = public_ip;
            self.keeper.publish(attrs);
        }
        self.wake(Wake { look: true, ..Wake::default() });
    }

    fn write_files(&mut self) {
        let lease = self.keeper.lease();
        let identity = self.reconciler.identity();
        let mut sysctls = self.remembered.clone();
        for (name, before) in self.reconciler.sysctls_before() {
            sysctls.entry(name.clone()).or_insert_with(|| before.clone());
        }
        let node = state::NodeState {
            version: state::VERSION,
            public_ip: lease.attrs.public_ip,
            underlay: Some(self.reconciler.wish().text()),
            subnet: lease.subnet,
            vtep_mac: identity.vtep_mac,
            device: self.reconciler.device().map(str::to_owned),
            vni: match &identity.backend {
                Backend::Vxlan(vxlan) => Some(vxlan.vni),
                _ => None,
            },
            network: Some(identity.network),
            attach: self.shared.lock().datapath.attach.clone(),
            subnet_file: std::path::absolute(&self.options.subnet_file).ok(),
            pin_dir: std::path::absolute(&self.options.pin_dir).ok(),
            sysctls,
        };
        let there = state::path(&self.options.state_dir).exists();
        if !there || self.last_state.as_ref() != Some(&node) {
            let stored = state::store(&self.options.state_dir, &node);
            self.shared.report(Subject::StateFile, stored.as_ref());
            if stored.is_ok() {
                self.last_state = Some(node);
            }
        }
        // The pods' MTU is known once the device is.
        let Some(mtu) = self.reconciler.mtu() else { return };
        let env = subnet_env::SubnetEnv {
            network: identity.network,
            subnet: lease.subnet,
            mtu,
            ip_masq: self.options.ip_masq,
        };
        let written = self.subnet_env.ensure(&self.options.subnet_file, &env);
        self.shared.report(Subject::SubnetFile, written);
    }

    fn tell_systemd(&mut self) {
        let state = self.shared.lock();
        let mut text = format!(
            "{}, {} data path, {} peers",
            self.keeper.lease().subnet,
            state.datapath.mode,
            state.peers.len()
        );
        if let Some(complaint) = state.complaints().first() {
            text.push_str(&format!("; {}: {}", complaint.what, complaint.reason));
        }
        drop(state);
        if text != self.last_status {
            notify::status(&text);
            self.last_status = text;
        }
    }
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Whether it is too early for doing again what was done at `last`; notes it
/// as done now if not.
fn postpone(last: &mut Option<Instant>, period: Duration, now: Instant) -> bool {
    if last.is_some_and(|last| now < last + period) {
        return true;
    }
    *last = Some(now);
    false
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
