//! Programs that are loaded after the first ones, by a process of their own.

use std::time::{Duration, Instant};

use crate::bpf::BpfError;
use crate::bpf::aside::{Loading, Order, Told};

/// What could not be loaded is tried again after this time.
const AGAIN: Duration = Duration::from_secs(30);

/// Names another number of milliseconds for [`AGAIN`]: for tests.
const AGAIN_ENV: &str = "FLANNEL_EBPF_AGAIN_MS";

/// What has become of the programs that are not needed at once.
pub(super) struct Later {
    order: Order,
    state: State,
    again: Duration,
    /// Why they are not there, once they could not be loaded.
    failed: Option<BpfError>,
    /// The log has the verifier's words.
    told: bool,
}

enum State {
    /// The rest of the programs.
    Rest(Loading),
    /// All of them, anew.
    Anew(Loading),
    /// Nobody loads any since then.
    Waiting(Instant),
}

/// What has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// Nothing yet.
    Nothing,
    /// The rest, which belongs to those that are there.
    Rest,
    /// All programs of another load.
    Anew,
}

impl Later {
    /// What this process loads when it has told of the first programs.
    pub(super) fn after(loading: Loading, order: Order) -> Self {
        Self::new(order, State::Rest(loading))
    }

    /// All, where there are only the first ones of an earlier load.
    pub(super) fn anew(order: Order) -> Self {
        let mut later = Self::new(order, State::Waiting(Instant::now()));
        // Where that fails, the first look tells why.
        let _ = later.begin_anew();
        later
    }

    fn new(order: Order, state: State) -> Self {
        let again = std::env::var(AGAIN_ENV).ok().and_then(|text| text.parse().ok());
        let again = again.map_or(AGAIN, Duration::from_millis);
        Self { order, state, again, failed: None, told: false }
    }

    /// What has come by now, or comes `within` this time. Nothing is waited for that could
    /// not be loaded before.
    ///
    /// # Errors
    /// It could not be loaded. It is tried again when it is due.
    pub(super) fn look(&mut self, within: Duration) -> Result<Came, BpfError> {
        if let (State::Waiting(since), Some(error)) = (&self.state, &self.failed) {
            if since.elapsed() < self.again {
                return Err(error.clone());
            }
            self.begin_anew()?;
        }
        let within = if self.failed.is_some() { Duration::ZERO } else { within };
        let (loading, done) = match &mut self.state {
            State::Rest(loading) => (loading, Came::Rest),
            State::Anew(loading) => (loading, Came::Anew),
            State::Waiting(_) => return Ok(Came::Nothing),
        };
        match loading.go_on(within > Duration::ZERO).next(within) {
            Ok(Told::Nothing | Told::First) => match &self.failed {
                Some(error) => Err(error.clone()),
                None => Ok(Came::Nothing),
            },
            Ok(Told::All) => Ok(done),
            Ok(Told::Failed(Some(error))) => Err(self.fail(error)),
            // Somebody may have killed it: another one is tried at once.
            Ok(Told::Failed(None)) if done == Came::Rest => {
                tracing::info!("program loader ended without a word; another one is started");
                self.begin_anew().map(|()| Came::Nothing)
            }
            Ok(Told::Failed(None)) => Err(self.fail(lost("it ended without a word"))),
            Err(error) => Err(self.fail(lost(&error.to_string()))),
        }
    }

    /// They are not there, for this reason; all are tried anew when it is due.
    pub(super) fn fail(&mut self, error: BpfError) -> BpfError {
        // What is tried again and again is told once.
        if !self.told && error.verifier_log.is_some() {
            error.log_verifier();
            self.told = true;
        }
        tracing::debug!(%error, "programs could not be loaded");
        self.state = State::Waiting(Instant::now());
        self.failed = Some(error.clone());
        error
    }

    fn begin_anew(&mut self) -> Result<(), BpfError> {
        match Loading::anew(&self.order) {
            Ok(loading) => {
                self.state = State::Anew(loading);
                Ok(())
            }
            Err(error) => Err(self.fail(lost(&error.to_string()))),
        }
    }
}

/// The process that loads them is of no use.
fn lost(why: &str) -> BpfError {
    BpfError::plain("load programs by", "a process of their own", why)
}
