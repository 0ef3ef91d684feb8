//! A campaign from its first check to its last status: servers are started and stopped, the load is sent,
//! a record is written for each start.

pub mod campaign;
pub mod rounds;

pub mod answers;
pub mod measurement;
pub mod replicate;
pub mod sealing;
pub mod slo;

// The server under measurement.
pub mod served_model;
pub mod server_process;
pub mod supervise;

// One measurement at a time; what stops it; what is shown meanwhile.
pub mod interrupts;
pub mod measurement_lock;
pub mod progress;
