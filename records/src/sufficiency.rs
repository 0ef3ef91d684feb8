//! How much a case must have measured before its figures say something of the slowest requests.
//!
//! A case that lasts a second or two is its own beginning and end: queues have not formed, clocks have
//! not settled. It is marked as short, and no tail is told of it.

use crate::workload::Phase;

/// Measured seconds of one server start from which a case of this kind counts as long enough.
pub fn least_measured_s(phase: Phase) -> f64 {
    match phase {
        // A closed loop: the batch is full with its first requests, and no queue grows.
        Phase::Latency | Phase::Ladder | Phase::Models | Phase::Users => 10.0,
        // Requests arrive whatever became of earlier ones: a queue takes its time to form.
        Phase::Rate | Phase::Trace | Phase::Slo => 30.0,
    }
}

/// Requests from which on the `percent`th percentile is told: 20 lie beyond it.
///
/// ```
/// use records::sufficiency::least_requests;
///
/// assert_eq!([95, 99].map(least_requests), [400, 2_000]);
/// ```
pub fn least_requests(percent: u32) -> usize {
    2_000_usize.div_ceil(100_u32.saturating_sub(percent).max(1) as usize)
}
