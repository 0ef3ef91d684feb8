//! The way of a request from its client to the scheduler's queue: HTTP, JSON, tokenizer.
//!
//! Short texts are tokenized where they are read, one request after the other; long ones beside
//! them, a few at a time, so that short ones overtake them. What is sent at once does not arrive at
//! once, and who arrives first is in the first step.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::executor::simulated::card::Steps;
use crate::server::request::prompt::{INLINE_BYTES, LONG_TEXTS_AT_ONCE};

/// A prompt's text as the tokenizer sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text {
    pub n_bytes: usize,
    pub n_tokens: usize,
}

/// Requests in transit, by index of sending.
#[derive(Debug)]
pub(super) struct Arrivals {
    request: Duration,
    spacing: Duration,
    tokenize_s: f64,
    /// When the last short text arrived.
    last_short: Duration,
    /// When each of those who tokenize long texts has time again.
    long_free: [Duration; LONG_TEXTS_AT_ONCE],
    /// When and who.
    arriving: BinaryHeap<Reverse<(Duration, u64)>>,
}

impl Arrivals {
    pub fn new(steps: &Steps) -> Self {
        Self {
            request: Duration::from_secs_f64(steps.request_ms / 1e3),
            spacing: Duration::from_secs_f64(steps.arrival_spacing_ms / 1e3),
            tokenize_s: steps.tokenize_us / 1e6,
            last_short: Duration::ZERO,
            long_free: [Duration::ZERO; LONG_TEXTS_AT_ONCE],
            arriving: BinaryHeap::new(),
        }
    }

    pub fn send(&mut self, number: u64, text: Text, at: Duration) {
        let tokenizing = Duration::from_secs_f64(text.n_tokens as f64 * self.tokenize_s);
        let arrives_at = if text.n_bytes <= INLINE_BYTES {
            let after_the_last = self.last_short + self.spacing;
            self.last_short = (at + self.request + tokenizing).max(after_the_last);
            self.last_short
        } else {
            // There is at least one.
            let free = self.long_free.iter_mut().min();
            let done_at = free.map_or(at, |free| {
                *free = (*free).max(at) + tokenizing;
                *free
            });
            done_at + self.request
        };
        self.arriving.push(Reverse((arrives_at, number)));
    }

    /// When the next one arrives.
    pub fn next_at(&self) -> Option<Duration> {
        self.arriving.peek().map(|Reverse((at, _))| *at)
    }

    /// The next one that has arrived by `now`, and when.
    pub fn take(&mut self, now: Duration) -> Option<(Duration, u64)> {
        if self.next_at()? > now {
            return None;
        }
        self.arriving.pop().map(|Reverse(arrival)| arrival)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::simulated::Card;

    const SHORT: Text = Text {
        n_bytes: 80,
        n_tokens: 20,
    };
    const LONG: Text = Text {
        n_bytes: INLINE_BYTES + 1,
        n_tokens: 1000,
    };

    /// Sends all at once; who arrives when, in seconds.
    fn arrivals(texts: &[Text]) -> Vec<(u64, f64)> {
        let card = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut steps = Card::read(&card.join("../data/cards/h100.toml"))
            .unwrap()
            .steps;
        (
            steps.request_ms,
            steps.arrival_spacing_ms,
            steps.tokenize_us,
        ) = (1.0, 0.5, 2.0);
        let mut arrivals = Arrivals::new(&steps);
        for (number, text) in texts.iter().enumerate() {
            arrivals.send(number as u64, *text, Duration::ZERO);
        }
        let mut found = Vec::new();
        while let Some(at) = arrivals.next_at() {
            assert!(
                arrivals
                    .take(at.saturating_sub(Duration::from_nanos(1)))
                    .is_none()
            );
            let (at, number) = arrivals.take(at).unwrap();
            found.push((number, (at.as_secs_f64() * 1e6).round() / 1e6));
        }
        found
    }

    #[test]
    fn short_texts_follow_one_another_and_overtake_long_ones() {
        assert_eq!(
            arrivals(&[LONG, SHORT, SHORT]),
            [(1, 0.00104), (2, 0.00154), (0, 0.003)]
        );
    }

    #[test]
    fn long_texts_wait_for_those_who_tokenize() {
        assert_eq!(LONG_TEXTS_AT_ONCE, 2, "the figures below");
        assert_eq!(
            arrivals(&[LONG; 4]),
            [(0, 0.003), (1, 0.003), (2, 0.005), (3, 0.005)]
        );
    }
}
