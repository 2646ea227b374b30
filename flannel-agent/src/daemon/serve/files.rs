//! The files that the loop keeps: state, rules and `subnet.env`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::health::Subject;
use flannel_core::repair::Repair;
use tokio::sync::Notify;

use super::Loop;
use crate::files::kept::{KeptFile, Manner, PATIENCE};
use crate::files::watched::WatchedDirectories;
use crate::files::{WriteError, rules, state, subnet_env};
use crate::firewall::{Firewall, Mode};
use crate::kernel::Kernel;
use crate::source::LeaseSource;

/// What was written. A disk may not answer for long, and the loop does not wait for it.
#[derive(Debug, Default)]
pub(super) struct Files {
    state: KeptFile<state::NodeState>,
    subnet_env: KeptFile<subnet_env::SubnetEnv>,
    rules: KeptFile<rules::Wanted>,
    directories: WatchedDirectories,
    /// The lock and the control socket were there at the last look.
    sound: bool,
    ended: Arc<Notify>,
}

impl Files {
    /// Waits until a file has been written. Cancel safe.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let ended = Arc::clone(&self.ended);
        async move { ended.notified().await }
    }
}

impl<S: LeaseSource, K: Kernel, F: Firewall> Loop<'_, S, K, F> {
    /// Puts the files right. The start waits for them: who is told that we are ready reads
    /// them.
    pub(super) fn write_files(&mut self) {
        let patience = if self.announced { Duration::ZERO } else { PATIENCE };
        let untouched = self.are_untouched();
        let ended = Arc::clone(&self.files.ended);
        let manner = Manner { ended: &ended, patience, untouched };
        let rules = self.write_rules(manner);
        let stored = self.write_state(manner);
        if stored.is_some() {
            self.reconciler.remembered();
        }
        let locked = if untouched { Ok(()) } else { self.state_lock.renew() };
        self.files.sound = locked.is_ok() && (untouched || self.is_served());
        if let Some(written) = stored.zip(rules).map(|(stored, rules)| stored.and(rules)) {
            let locked = locked.map_err(|error| error.to_string());
            let written = written.map_err(|error| error.to_string());
            self.shared.report(Subject::StateFile, written.and(locked));
        }
        self.write_subnet_env(manner);
        self.tell_repaired();
    }

    /// Whether nothing has happened to the files since the last look.
    fn are_untouched(&mut self) -> bool {
        let parent = self.options.subnet_file.parent().unwrap_or(Path::new("."));
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let directories = [self.options.state_dir.as_path(), parent];
        self.files.directories.are_untouched(&directories) && self.files.sound
    }

    /// Whether the control socket is there; one that has gone is made again.
    fn is_served(&self) -> bool {
        self.socket.as_ref().is_none_or(|socket| socket.look())
    }

    /// What was put right is told as soon as it is known.
    fn tell_repaired(&mut self) {
        let Files { state, subnet_env, rules, .. } = &mut self.files;
        let (left, env) =
            (state.take_repaired() + rules.take_repaired(), subnet_env.take_repaired());
        if left + env > 0 {
            let mut state = self.shared.lock();
            state.record.repaired(Repair::StateFile, left);
            state.record.repaired(Repair::SubnetFile, env);
            state.tell_repairs();
        }
    }

    fn write_state(&mut self, manner: Manner<'_>) -> Option<Result<(), WriteError>> {
        let lease = self.keeper.lease();
        let identity = self.reconciler.identity();
        let node = state::NodeState {
            version: state::VERSION,
            public_ip: lease.attrs.public_ip,
            underlay: Some(self.reconciler.wish().text()),
            subnet: lease.subnet,
            vtep_mac: identity.vtep_mac,
            device: self.reconciler.device(),
            vni: identity.backend.facts().vxlan().map(|vxlan| vxlan.vni),
            network: Some(identity.network),
            attach: self.shared.lock().datapath.attach,
            subnet_file: std::path::absolute(&self.options.subnet_file).ok(),
            pin_dir: std::path::absolute(&self.options.programs.pin_dir).ok(),
            traces: self.reconciler.traces(),
        };
        let folder = self.options.state_dir.clone();
        let path = state::path(&folder);
        self.files.state.ensure(&path, &node, manner, move |node| state::store(&folder, &node))
    }

    /// For `keep-rules`, when we do not run.
    fn write_rules(&mut self, manner: Manner<'_>) -> Option<Result<(), WriteError>> {
        let folder = self.options.state_dir.clone();
        let firewall = self.options.firewall;
        let Some(rules) = self.reconciler.rules().filter(|_| firewall != Mode::None) else {
            return Some(rules::remove(&folder));
        };
        let wanted = rules::Wanted { firewall, rules };
        let path = rules::path(&folder);
        let store = move |wanted| rules::store(&folder, &wanted);
        self.files.rules.ensure(&path, &wanted, manner, store)
    }

    fn write_subnet_env(&mut self, manner: Manner<'_>) {
        // The pods' MTU is known once the device is.
        let Some(mtu) = self.reconciler.mtu() else { return };
        let env = subnet_env::SubnetEnv {
            network: self.reconciler.identity().network,
            subnet: self.keeper.lease().subnet,
            mtu,
            ip_masq: self.options.rules.masquerade,
        };
        let path = self.options.subnet_file.clone();
        let to = path.clone();
        let write = move |env| subnet_env::write(&to, &env);
        if let Some(written) = self.files.subnet_env.ensure(&path, &env, manner, write) {
            self.shared.report(Subject::SubnetFile, written);
        }
    }
}
