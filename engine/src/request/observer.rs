//! Who is told when a request leaves the engine, with the times that metrics are made of.

use std::time::Instant;

use super::TokenEvent;

/// When a request got how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestTimes {
    pub submitted: Instant,
    /// When it was first admitted to the running batch.
    pub admitted: Option<Instant>,
    pub first_token: Option<Instant>,
    pub ended: Instant,
}

/// Told once, on the engine's thread, so it must not wait for anything.
pub trait Observer: std::fmt::Debug + Send + Sync {
    /// `last`: the request's last event, with its usage unless it failed.
    fn left(&self, times: RequestTimes, last: &TokenEvent);
}
