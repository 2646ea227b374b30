//! The packet path of flannel-ebpf.
//!
//! This library is the half without effects: the layouts that programs and
//! agent share ([`abi`]), headers ([`wire`]), decisions ([`path`]), and what is told of
//! them ([`monitor`]). The programs in `src/bin` are glue around it, so the same code runs
//! under the verifier, in unit tests, in property tests and in fuzzers.
#![cfg_attr(not(any(test, feature = "fake")), no_std)]

pub mod abi;
pub mod monitor;
pub mod path;
pub mod wire;
