//! [`FakeFirewall`]: remembers what it was told, for tests.

use std::sync::{Mutex, MutexGuard, PoisonError};

use flannel_core::firewall::Rules;

use super::{Description, Firewall, FirewallError};

/// State of a [`FakeFirewall`], open to tests.
#[derive(Debug, Default)]
pub struct State {
    /// The rules in force.
    pub rules: Option<Rules>,
    /// How often rules were written (not: found equal).
    pub written: usize,
    /// Why every call fails, if it does.
    pub failing: Option<String>,
    /// The next call panics.
    pub panics: bool,
}

/// A firewall in memory.
#[derive(Debug, Default)]
pub struct FakeFirewall {
    state: Mutex<State>,
}

impl FakeFirewall {
    /// Its state, to prepare or to look at.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, rules: &Rules) -> Result<bool, FirewallError> {
        let mut state = self.state();
        assert!(!std::mem::take(&mut state.panics), "told to panic");
        if let Some(reason) = &state.failing {
            return Err(FirewallError { call: "fake".to_owned(), reason: reason.clone() });
        }
        let written = state.rules.as_ref() != Some(rules);
        if written {
            state.rules = Some(rules.clone());
            state.written += 1;
        }
        Ok(written)
    }
}

impl Firewall for FakeFirewall {
    async fn choose(&self) -> Result<Description, FirewallError> {
        Ok(Description::default())
    }

    async fn ensure(&self, rules: &Rules) -> Result<bool, FirewallError> {
        self.set(rules)
    }
}
