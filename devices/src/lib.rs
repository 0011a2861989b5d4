//! A bus whose devices may answer late, and the platform devices of a microVM.
#![forbid(unsafe_code)]

pub mod bus;
