//! The flags that say which rules there are.

use clap::{ArgAction, Args};

use crate::flag;

/// Which rules there are.
#[derive(Args, Clone, Copy, Debug)]
pub struct RuleOptions {
    /// Masquerade traffic that leaves the overlay
    #[arg(long = "ip-masq", value_name = "BOOL", value_parser = flag::go_bool, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", default_value = "false",
          action = ArgAction::Set)]
    pub masquerade: bool,
    /// Masquerade without random source ports
    #[arg(long = "ip-masq-fully-random-disable", value_name = "BOOL",
          value_parser = flag::go_bool, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", action = ArgAction::Set)]
    pub fully_random_disable: bool,
    /// Accept forwarded packets of the overlay in the firewall
    #[arg(long = "iptables-forward-rules", value_name = "BOOL", value_parser = flag::go_bool,
          num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "true", action = ArgAction::Set)]
    pub forward: bool,
}
