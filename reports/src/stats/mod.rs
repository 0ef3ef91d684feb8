//! Statistics of run records: descriptions, intervals, tests and verdicts.
//!
//! The replicate is a server start. Requests of one run share the server, its caches and the
//! machine's state (thermals, background load) at that time, so they describe the run but are not independent evidence about
//! a configuration: [`verdict::compare_family`] takes one number a run, never one a request.
//!
//! Everything here is pure and deterministic: random resampling uses a generator with a fixed
//! algorithm ([`rng::SplitMix64`]) and a stated seed, so the same runs give the same digits.
//!
//! Absent on purpose: outlier removal, and the assumption that few replicates are normal.

pub mod bootstrap;
pub mod describe;
pub mod holm;
pub mod normal;
pub mod permutation;
pub mod rank;
pub mod rng;
pub mod signed_rank;
pub mod trust;
pub mod verdict;
