//! What is recorded of a run beside its request rows, and what is read back of it.
//!
//! The files' types are those of the crate `records`; here they are filled: the machine, the sources, the
//! server's samples, the summary.

// Once a campaign, and once a run.
pub mod environment;
pub mod provenance;

// While a run goes on.
pub mod energy;
pub mod machine_load;
pub mod process_tree;
pub mod sampler;

// Of its rows.
pub mod statistics;
pub mod summary;

// Read back.
pub mod drift;
pub mod recorded;
