//! The packet path of flannel-ebpf.
//!
//! This library is the half without effects: the layouts that programs and
//! agent share ([`abi`]), headers ([`wire`]) and decisions ([`path`]). The
//! programs in `src/bin/flannel-ebpf` are glue around it, so the same code runs
//! under the verifier, in unit tests, in property tests and in fuzzers.
#![cfg_attr(not(any(test, feature = "fake")), no_std)]

pub mod abi;
pub mod path;
pub mod wire;
