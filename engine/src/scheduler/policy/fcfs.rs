//! `fcfs`: first come, first served.

use super::{Candidate, Policy};

#[derive(Debug)]
pub struct Fcfs;

impl Policy for Fcfs {
    fn handicap_us(&self, _candidate: &Candidate<'_>) -> i64 {
        0
    }
}
