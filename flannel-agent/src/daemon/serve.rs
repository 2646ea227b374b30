//! The loop: it owns the reconciler, and wakes it when something changed.

mod files;
mod leases;
mod own;
mod store;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::health::Subject;
use flannel_core::lease::Lease;
use flannel_core::lease::table::LeaseTable;
use flannel_core::lease::update::LeaseUpdate;
use flannel_core::peer::Peer;
use flannel_core::schedule::{Schedule, Wake};
use flannel_core::status::{DatapathKind, What};
use ipnetwork::Ipv4Network;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::files::Files;
use super::StartError;
use super::keeper::Keeper;
use super::opening::Opening;
use crate::cli::{DatapathMode, Options};
use crate::control::ControlSocket;
use crate::datapath::Demanded;
use crate::files::lock::StateLock;
use crate::firewall::Firewall;
use crate::firewall::packet_rules::follow::RulesFollower;
use crate::kernel::{Kernel, KernelEvent};
use crate::memory;
use crate::notify;
use crate::reconcile::{Guarded, News, Reconciler};
use crate::source::{LeaseSource, is_here};
use crate::status::Shared;
use crate::task::TaskEnded;
use crate::timer::Timer;
use crate::watch;

/// Updates that are taken in before anything else gets its turn.
const UPDATES: usize = 256;
/// So long a pass that is due gives way to leases and events: they may never end.
const OVERDUE: Duration = Duration::from_millis(50);
/// What the task does that tells of the store.
const FOLLOWS_LEASES: &str = "follows the leases";
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

pub(super) struct Loop<'a, S, K, F> {
    options: &'a Options,
    source: Arc<S>,
    keeper: Keeper<S>,
    /// Others claim our lease, and status says so.
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
    /// Those of them that are to be taken in.
    changed: BTreeSet<Ipv4Network>,
    /// Why the store's next list does not go on from what it told.
    other_history: Option<String>,
    /// Until when peers stay that the store lost.
    held_until: Option<Instant>,
    /// Why the agent is to end.
    ended: Option<StartError>,
    reconciler: Reconciler<K, F>,
    shared: Shared,
    schedule: Schedule<Instant>,
    /// The data path, until it is open.
    opening: Option<Opening>,
    /// The firewall has been looked at.
    guarded: bool,
    /// Others were told that we are ready.
    announced: bool,
    state_lock: &'a mut StateLock,
    files: Files,
    /// For looks after the hooks.
    timer: Timer,
    /// Made again when somebody takes it away.
    socket: Option<Arc<ControlSocket>>,
    last_status: String,
}

impl<'a, S: LeaseSource, K: Kernel, F: Firewall> Loop<'a, S, K, F> {
    pub(super) fn new(
        options: &'a Options,
        state_lock: &'a mut StateLock,
        source: Arc<S>,
        lease: Lease,
        reconciler: Reconciler<K, F>,
        shared: Shared,
    ) -> Self {
        let identity = reconciler.identity();
        let mut table = LeaseTable::new(identity.network, identity.backend.clone());
        let public_ip = lease.attrs.public_ip;
        table.set_own(Some(lease.subnet), public_ip);
        let keeper = Keeper::new(Arc::clone(&source), lease, options.lease.renew_margin());
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
            other_history: None,
            held_until: None,
            ended: None,
            reconciler,
            shared,
            schedule: Schedule::new(Instant::now()),
            opening: None,
            guarded: false,
            announced: false,
            state_lock,
            files: Files::default(),
            timer: Timer::default(),
            socket: None,
            last_status: String::new(),
        }
    }

    /// Looks after the control socket, too, and by the kernel's timer: one wake does for
    /// all that nobody tells of.
    pub(super) fn looking_after(mut self, socket: Arc<ControlSocket>) -> Self {
        self.socket = Some(socket);
        self.timer = Timer::open();
        self
    }

    pub(super) async fn run(
        mut self,
        events: mpsc::Receiver<KernelEvent>,
        opening: Option<Opening>,
    ) -> Result<(), StartError> {
        let watch = self.reconciler.watch().clone();
        let mut events = watch::start(watch, events, self.options.resync_interval);
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let mut updates = self.source.watch(stop);
        // Files before the first pass: a lease that is in the store is ours
        // after a crash, too.
        self.write_files();
        self.first_snapshot(&mut updates).await?;
        self.opening = opening;
        self.open_soon().await?;
        self.pass().await;
        self.check_start()?;
        self.serve(&mut updates, &mut events).await
    }

    /// Tells that we are ready, once the rules and all hooks are there.
    fn announce(&mut self) -> Result<(), StartError> {
        let guarded = self.guarded || self.reconciler.rules().is_none();
        let opened = self.opening.is_none() && !self.reconciler.has_hooks_left();
        if self.announced || !guarded || !opened {
            return Ok(());
        }
        self.check_start()?;
        self.announced = true;
        notify::ready();
        let lease = self.keeper.lease();
        {
            let mut state = self.shared.lock();
            state.ready = true;
            state.note(What::Ready { subnet: lease.subnet, peers: self.peers.len() });
        }
        tracing::info!(subnet = %lease.subnet, peers = self.peers.len(), "ready");
        memory::give_back();
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
            let schedule = &self.schedule;
            let (leases_at, pass_at) = (schedule.leases_at(), schedule.pass_at());
            let (confirmations_at, oddities_at) =
                (schedule.confirmations_at(), schedule.oddities_at());
            let hooks_at =
                if self.reconciler.has_more_to_do() { Instant::now() } else { schedule.hooks_at() };
            let (maps_at, held_until) = (schedule.maps_at(), self.held_until);
            let overdue_at = pass_at.map(|due| due + OVERDUE);
            tokio::select! {
                // Leases and repairs first, which a pass would delay; hooks, which take
                // long, only if there is nothing else.
                biased;
                _ = watchdog.tick(), if watchdog_every.is_some() => notify::watchdog(),
                kept = self.keeper.next() => self.take_kept(&kept),
                () = sleep_until(overdue_at) => self.pass().await,
                () = due(leases_at) => self.revise().await,
                count = updates.recv_many(&mut batch, UPDATES) => match count {
                    0 => return Err(TaskEnded::of(FOLLOWS_LEASES).into()),
                    _ => batch.drain(..).for_each(|update| self.take_update(update)),
                },
                event = events.recv() => match event {
                    None => return Err(TaskEnded::of("follows the kernel's events").into()),
                    Some(event) => self.take_event(event).await,
                },
                () = sleep_until(pass_at) => self.pass().await,
                opened = opened(&mut self.opening) => {
                    self.take_opened(opened)?;
                    self.pass().await;
                }
                told = self.reconciler.told() => match told? {
                    News::Firewall(rules) => self.take_guarded(rules)?,
                    News::PacketRules => self.check_hooks(),
                    News::UdpProxy => self.wake(Wake { look: true, ..Wake::default() }),
                },
                () = self.files.ended() => self.write_files(),
                () = sleep_until(confirmations_at) => self.raise(),
                () = sleep_until(oddities_at) => self.tell_oddities(),
                () = sleep_until(held_until) => self.release_held(),
                _ = slow.tick() => self.wake(Wake::ALL),
                () = sleep_until(maps_at) => self.mend_maps(),
                () = self.timer.until(hooks_at) => self.check_hooks(),
            }
        }
    }

    /// Programs of the run before are there for the first pass: it is the only one then.
    async fn open_soon(&mut self) -> Result<(), StartError> {
        match &mut self.opening {
            Some(opening) => match opening.soon().await {
                Some(opened) => self.take_opened(opened),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// From now on the data path is served, too.
    fn take_opened(
        &mut self,
        opened: Result<Option<RulesFollower>, Demanded>,
    ) -> Result<(), StartError> {
        self.opening = None;
        if let Some(follower) = opened? {
            self.reconciler.follow_packet_rules(follower);
        }
        self.reconciler.datapath_opened();
        Ok(())
    }

    async fn take_event(&mut self, event: KernelEvent) {
        // What goes on from an address that has gone is never answered.
        if matches!(event, KernelEvent::Address { .. } | KernelEvent::Overrun) {
            self.source.addresses_changed(&is_here);
        }
        let began = Instant::now();
        if let KernelEvent::RouteLost { ifindex, route } = &event
            && self.schedule.may_repair(began)
            && self.reconciler.put_back(*ifindex, route).await
        {
            let mut state = self.shared.lock();
            state.record.passed(began.elapsed());
            return state.tell_repairs();
        }
        self.wake(self.reconciler.wake_for(event));
    }

    /// What nobody tells of: hooks, map entries, the control socket, files, and room for
    /// them on a disk that was full.
    fn check_hooks(&mut self) {
        let wake = self.reconciler.check_hooks();
        self.shared.lock().tell_repairs();
        self.wake(wake);
        self.write_files();
        self.schedule.hooks_checked(self.peers.len(), Instant::now());
    }

    /// Looks after some of the maps' entries, between two looks after the hooks.
    fn mend_maps(&mut self) {
        let wake = self.reconciler.mend_maps();
        self.shared.lock().tell_repairs();
        self.wake(wake);
        self.schedule.maps_checked(self.peers.len(), Instant::now());
    }

    fn raise(&mut self) {
        self.schedule.begin_confirmations();
        let later = self.reconciler.raise_soon();
        self.schedule.end_confirmations(later);
    }

    /// Without any rules there is no start; those that fail are tried again.
    fn take_guarded(&mut self, rules: Guarded) -> Result<(), StartError> {
        match rules {
            Guarded::Unusable(error) if !self.announced => return Err(error.into()),
            rules => {
                let again = self.reconciler.take_guarded(rules);
                self.schedule.retry(again);
            }
        }
        self.guarded = true;
        Ok(())
    }

    fn wake(&mut self, wake: Wake) {
        self.schedule.wake(wake, Instant::now());
    }

    async fn pass(&mut self) {
        self.watch_contest();
        let mut wake = self.schedule.begin_pass(Instant::now());
        if std::mem::take(&mut self.peers_changed) {
            self.peers = self.table.peers().collect();
            wake.generation |= !self.changed.is_empty();
            self.changed.clear();
            self.schedule.begin_leases();
        }
        let began = std::time::Instant::now();
        let outcome = self.reconciler.pass(&self.peers, wake).await;
        let took = began.elapsed();
        {
            let mut state = self.shared.lock();
            state.record.passed(took);
            state.tell_repairs();
        }
        self.schedule.end_pass(wake, took, Instant::now());
        self.schedule.retry(outcome.retry_at);
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

    fn tell_systemd(&mut self) {
        let state = self.shared.lock();
        let mut text = format!(
            "{}, {} data path, peers: {}",
            self.keeper.lease().subnet,
            state.datapath.mode.map_or("no", DatapathKind::text),
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

async fn opened(opening: &mut Option<Opening>) -> Result<Option<RulesFollower>, Demanded> {
    match opening {
        Some(opening) => opening.opened().await,
        None => std::future::pending().await,
    }
}

/// What is due already does not wait for a timer, which comes up to 2 ms late.
async fn due(at: Option<Instant>) {
    if at.is_none_or(|at| at > Instant::now()) {
        sleep_until(at).await;
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
