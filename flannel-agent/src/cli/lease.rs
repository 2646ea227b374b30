//! The flags about this node's lease.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::flag;

/// Bounds of `--subnet-lease-renew-margin` in minutes: below the lease's 24 h.
const RENEW_MARGIN: RangeInclusive<i64> = 1..=1439;

/// How this node's lease is kept.
#[derive(Args, Clone, Copy, Debug)]
pub struct LeaseOptions {
    /// Minutes before a lease's end at which it is renewed (1 to 1439)
    #[arg(long = "subnet-lease-renew-margin", value_name = "MINUTES", default_value_t = 60,
          allow_negative_numbers = true, value_parser = flag::go_int)]
    margin: i64,
    /// What to do when our lease is deleted, runs out or is taken by another node
    #[arg(long = "on-lost-lease", value_enum, value_name = "WHAT", default_value_t)]
    pub on_lost: OnLostLease,
}

impl LeaseOptions {
    /// How long before its end a lease is renewed.
    pub fn renew_margin(&self) -> Duration {
        let minutes = self.margin.clamp(*RENEW_MARGIN.start(), *RENEW_MARGIN.end());
        Duration::from_secs(60 * minutes.unsigned_abs())
    }

    /// # Errors
    /// A value is out of its bounds, in flannel's words.
    pub(super) fn check(&self) -> Result<(), String> {
        if RENEW_MARGIN.contains(&self.margin) {
            return Ok(());
        }
        Err(format!(
            "Invalid subnet-lease-renew-margin option, out of acceptable range \
             ({} is not in {} to {} minutes)\n",
            self.margin,
            RENEW_MARGIN.start(),
            RENEW_MARGIN.end()
        ))
    }
}

/// `--on-lost-lease`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnLostLease {
    /// Stay, and claim it again when the subnet is free
    #[default]
    Stay,
    /// End with exit code 4
    Exit,
}
