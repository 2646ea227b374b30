//! libFuzzer's program of one target.
#![cfg_attr(fuzzing, no_main)]

flannel_fuzz::program!("config");
