//! The way of tokens to experts and back: which experts a token goes to, its copies in the order of the
//! experts, and the sum of what they made of it.
//!
//! Experts are chosen by the softmax of all logits, largest first; of equal logits the expert of the
//! lower number comes first. A copy is a *place*: expert after expert, in an expert token after token,
//! so that each expert's weights are read once. A token's sum is taken in the order of its choice.
//! All of a token's numbers depend on that token alone, bit for bit.
//!
//! Logits that are NaN or infinite make their own token's weights NaN.

pub mod cuda;
pub mod reference;

use std::ops::Range;

use host::pool::{DisjointMut, WorkerPool};

use crate::KernelError;
use crate::error::check_shape;

const OP: &str = "experts";
/// Below this many tokens a thread, nothing here is worth a parallel region.
const MIN_TOKENS: usize = 4;

/// How experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    pub n_experts: usize,
    /// Chosen for a token: 1 to `n_experts`.
    pub n_active: usize,
    /// Divide the weights of those chosen by their sum.
    pub normalise: bool,
}

/// Where the tokens of a pass go. Buffers grow and are reused.
#[derive(Debug, Default)]
pub struct Routing {
    n_active: usize,
    /// `[n_tokens, n_active]`
    experts: Vec<u32>,
    weights: Vec<f32>,
    /// The place of each of these.
    places: Vec<u32>,
    /// First place of each expert, and the number of places: `[n_experts + 1]`
    starts: Vec<usize>,
    /// The token of each place.
    tokens: Vec<u32>,
}

impl Routing {
    /// Chooses experts by `logits: [n_tokens, n_experts]`.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] if `n_active` is not 1 to `n_experts` or `logits` are no whole rows;
    /// [`KernelError::Host`] if a worker thread panicked.
    pub fn choose(
        &mut self,
        pool: &mut WorkerPool,
        logits: &[f32],
        choice: Choice,
    ) -> Result<(), KernelError> {
        let Choice {
            n_experts,
            n_active,
            ..
        } = choice;
        if n_active == 0 || n_active > n_experts {
            return Err(KernelError::Shape {
                op: OP,
                what: "number of experts a token",
                found: n_active,
                expected: format!("1 to {n_experts}"),
            });
        }
        let n_tokens = logits.len() / n_experts;
        check_shape(OP, "length of logits", logits.len(), n_tokens * n_experts)?;
        self.n_active = n_active;
        self.experts.resize(n_tokens * n_active, 0);
        self.weights.resize(n_tokens * n_active, 0.0);
        let experts = DisjointMut::new(&mut self.experts);
        let weights = DisjointMut::new(&mut self.weights);
        pool.for_ranges(n_tokens, MIN_TOKENS, &|tokens| {
            for token in tokens {
                let logits = &logits[token * n_experts..][..n_experts];
                // SAFETY: a token's part is written by the one thread whose range it is in.
                let (experts, weights) = unsafe {
                    let at = token * n_active;
                    (experts.slice(at, n_active), weights.slice(at, n_active))
                };
                choose_for_token(logits, choice.normalise, experts, weights);
            }
        })?;
        self.group(n_experts);
        Ok(())
    }

    /// `[n_tokens, n_active]`, the most weighted first.
    #[must_use]
    pub fn experts(&self) -> &[u32] {
        &self.experts
    }

    /// Of [`Self::experts`].
    #[must_use]
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Copies of tokens: `n_tokens * n_active`.
    #[must_use]
    pub fn n_places(&self) -> usize {
        self.experts.len()
    }

    /// The experts that have tokens, ascending, with their places.
    pub fn groups(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let places = self.starts.windows(2).map(|ends| ends[0]..ends[1]);
        places.enumerate().filter(|(_, places)| !places.is_empty())
    }

    fn group(&mut self, n_experts: usize) {
        self.starts.clear();
        self.starts.resize(n_experts + 1, 0);
        for expert in &self.experts {
            self.starts[*expert as usize + 1] += 1;
        }
        for expert in 0..n_experts {
            self.starts[expert + 1] += self.starts[expert];
        }
        let mut next = self.starts.clone();
        self.places.resize(self.experts.len(), 0);
        self.tokens.resize(self.experts.len(), 0);
        for (i, expert) in self.experts.iter().enumerate() {
            let place = &mut next[*expert as usize];
            self.places[i] = *place as u32;
            self.tokens[*place] = (i / self.n_active) as u32;
            *place += 1;
        }
    }

    /// Copies `x: [n_tokens, width]` to the places, `out: [n_places, width]`.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] if a length is another; [`KernelError::Host`] if a worker thread
    /// panicked.
    pub fn gather(
        &self,
        pool: &mut WorkerPool,
        x: &[f32],
        width: usize,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        self.check_lengths(x, width, out)?;
        let out = DisjointMut::new(out);
        pool.for_ranges(self.n_places(), MIN_TOKENS, &|places| {
            for place in places {
                let token = self.tokens[place] as usize;
                // SAFETY: a place is written by the one thread whose range it is in.
                let out = unsafe { out.slice(place * width, width) };
                out.copy_from_slice(&x[token * width..][..width]);
            }
        })?;
        Ok(())
    }

    /// Adds the weighted sum of a token's places, `made: [n_places, width]`, to its row of
    /// `x: [n_tokens, width]`.
    ///
    /// # Errors
    ///
    /// As [`Self::gather`].
    pub fn add(
        &self,
        pool: &mut WorkerPool,
        made: &[f32],
        width: usize,
        x: &mut [f32],
    ) -> Result<(), KernelError> {
        self.check_lengths(x, width, made)?;
        let n_tokens = self.n_places() / self.n_active.max(1);
        let x = DisjointMut::new(x);
        pool.for_ranges(n_tokens, MIN_TOKENS, &|tokens| {
            let mut sum = vec![0.0f32; width];
            for token in tokens {
                let chosen = token * self.n_active..(token + 1) * self.n_active;
                sum.fill(0.0);
                for i in chosen {
                    let made = &made[self.places[i] as usize * width..][..width];
                    let weight = self.weights[i];
                    for (sum, made) in sum.iter_mut().zip(made) {
                        *sum += weight * made;
                    }
                }
                // SAFETY: a token's row is written by the one thread whose range it is in.
                let x = unsafe { x.slice(token * width, width) };
                x.iter_mut().zip(&sum).for_each(|(x, sum)| *x += sum);
            }
        })?;
        Ok(())
    }

    fn check_lengths(&self, x: &[f32], width: usize, placed: &[f32]) -> Result<(), KernelError> {
        let n_tokens = self.n_places() / self.n_active.max(1);
        check_shape(OP, "length of tokens", x.len(), n_tokens * width)?;
        let n_places = self.n_places();
        check_shape(OP, "length of places", placed.len(), n_places * width)
    }
}

/// Sorts the largest logits of a token into `experts`, and their weights into `weights`.
fn choose_for_token(logits: &[f32], normalise: bool, experts: &mut [u32], weights: &mut [f32]) {
    // While they are chosen, `weights` has their logits.
    let mut n_chosen = 0;
    for (expert, logit) in logits.iter().enumerate() {
        let is_above = |other: &f32| logit > other;
        let at = weights[..n_chosen].iter().position(is_above);
        let at = at.unwrap_or(n_chosen);
        if at == weights.len() {
            continue;
        }
        n_chosen = (n_chosen + 1).min(weights.len());
        weights[at..n_chosen].rotate_right(1);
        experts[at..n_chosen].rotate_right(1);
        (weights[at], experts[at]) = (*logit, expert as u32);
    }
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f32 = logits.iter().map(|logit| (logit - most).exp()).sum();
    for weight in weights.iter_mut() {
        *weight = (*weight - most).exp() / total;
    }
    if normalise {
        let sum: f32 = weights.iter().sum();
        for weight in weights {
            *weight /= sum;
        }
    }
}

#[cfg(test)]
mod tests;
