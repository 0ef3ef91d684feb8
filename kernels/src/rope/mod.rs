//! Rotary position embedding, half-split (dimension `i` is rotated with `i + head_dim / 2`).
//!
//! Frequencies follow Hugging Face's `modeling_rope_utils`: default, linear, dynamic NTK, Llama 3
//! and YaRN. With dynamic NTK the base grows with the length of the sequence; here a token at
//! position `p` uses the base of a sequence of `p + 1` tokens, so that the result does not depend
//! on how a prompt was split into steps. No model defines it that way, so the engine serves such
//! models only up to `original` positions, where nothing is scaled.

pub mod reference;

use host::pool::{DisjointMut, WorkerPool};

use crate::KernelError;
use crate::error::check_shape;
use crate::isa::Isa;
use crate::lanes::{LANES, Lanes, at, at_mut, for_isa};

const OP: &str = "rope";
/// Elements a thread must have for a parallel region to pay.
const MIN_ELEMENTS: usize = 8192;

/// How a model's context was extended beyond the positions it was trained on. Validated by the code
/// that reads it from a file; [`Rope::new`] accepts any values.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Scaling {
    None,
    Linear {
        factor: f32,
    },
    /// NTK-aware, grows with the sequence beyond `original` positions.
    Dynamic {
        factor: f32,
        original: usize,
    },
    Llama3 {
        factor: f32,
        low_freq: f32,
        high_freq: f32,
        original: usize,
    },
    Yarn {
        factor: f32,
        original: usize,
        beta_fast: f32,
        beta_slow: f32,
        attention_factor: f32,
    },
}

/// The angles' frequencies for one model.
#[derive(Debug, Clone)]
pub struct Rope {
    head_dim: usize,
    theta: f32,
    scaling: Scaling,
    /// `[head_dim / 2]`, radians a position
    frequencies: Vec<f32>,
    /// Factor on cos and sin (YaRN's attention factor, otherwise 1).
    amplitude: f32,
}

impl Rope {
    /// The frequencies of a model.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] unless `head_dim` is even and not 0.
    pub fn new(head_dim: usize, theta: f32, scaling: Scaling) -> Result<Self, KernelError> {
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(KernelError::Shape {
                op: OP,
                what: "head_dim",
                found: head_dim,
                expected: "even".to_owned(),
            });
        }
        let mut frequencies = base_frequencies(head_dim, f64::from(theta));
        let mut amplitude = 1.0;
        match scaling {
            Scaling::None | Scaling::Dynamic { .. } => {}
            Scaling::Linear { factor } => {
                for f in &mut frequencies {
                    *f /= f64::from(factor);
                }
            }
            Scaling::Llama3 {
                factor,
                low_freq,
                high_freq,
                original,
            } => {
                for f in &mut frequencies {
                    *f = llama3_frequency(*f, factor, low_freq, high_freq, original);
                }
            }
            Scaling::Yarn {
                factor,
                original,
                beta_fast,
                beta_slow,
                attention_factor,
            } => {
                scale_yarn(
                    &mut frequencies,
                    theta,
                    factor,
                    original,
                    beta_fast,
                    beta_slow,
                );
                amplitude = attention_factor;
            }
        }
        let frequencies = frequencies.into_iter().map(|f| f as f32).collect();
        Ok(Self {
            head_dim,
            theta,
            scaling,
            frequencies,
            amplitude,
        })
    }

    /// Writes `cos` then `sin`, each `[head_dim / 2]`, for a position into `out: [head_dim]`.
    ///
    /// ```
    /// use kernels::rope::{Rope, Scaling};
    ///
    /// let rope = Rope::new(4, 10_000.0, Scaling::None)?;
    /// let mut angles = [0.0; 4];
    /// rope.angles(0, &mut angles)?;
    /// assert_eq!(angles, [1.0, 1.0, 0.0, 0.0]); // cos, cos, sin, sin
    /// assert!(rope.angles(0, &mut [0.0; 3]).is_err());
    /// # Ok::<(), kernels::KernelError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If `out` is not as long as a head.
    pub fn angles(&self, position: usize, out: &mut [f32]) -> Result<(), KernelError> {
        check_shape(OP, "length of angles", out.len(), self.head_dim)?;
        let (cos, sin) = out.split_at_mut(self.head_dim / 2);
        let mut fill = |frequencies: &[f32]| {
            for ((cos, sin), f) in cos.iter_mut().zip(sin.iter_mut()).zip(frequencies) {
                let (s, c) = (position as f32 * f).sin_cos();
                (*cos, *sin) = (c * self.amplitude, s * self.amplitude);
            }
        };
        if let Scaling::Dynamic { factor, original } = self.scaling
            && position >= original
        {
            let (factor, dim) = (f64::from(factor), self.head_dim as f64);
            let growth = factor * (position + 1) as f64 / original as f64 - (factor - 1.0);
            let base = f64::from(self.theta) * growth.powf(dim / (dim - 2.0));
            let frequencies: Vec<f32> = base_frequencies(self.head_dim, base)
                .into_iter()
                .map(|f| f as f32)
                .collect();
            fill(&frequencies);
        } else {
            fill(&self.frequencies);
        }
        Ok(())
    }
}

/// Rotates every head of `x: [n_tokens, n_heads, head_dim]` by its token's `angles: [n_tokens,
/// head_dim]` (cos, then sin).
///
/// # Errors
///
/// [`KernelError::Shape`] unless `head_dim` is even and not 0, `angles` is a whole number of
/// tokens, and `x` of as many; [`KernelError::Host`] if a worker thread panicked.
pub fn rotate(
    pool: &mut WorkerPool,
    isa: Isa,
    head_dim: usize,
    angles: &[f32],
    x: &mut [f32],
) -> Result<(), KernelError> {
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(KernelError::Shape {
            op: OP,
            what: "head_dim",
            found: head_dim,
            expected: "even".to_owned(),
        });
    }
    let n_tokens = angles.len() / head_dim;
    check_shape(
        OP,
        "remainder of angles by head_dim",
        angles.len() % head_dim,
        0,
    )?;
    check_shape(
        OP,
        "remainder of x by tokens and head_dim",
        x.len() % angles.len().max(1),
        0,
    )?;
    let width = x.len() / n_tokens.max(1);
    let x = DisjointMut::new(x);
    pool.for_ranges(n_tokens, MIN_ELEMENTS.div_ceil(width.max(1)), &|tokens| {
        for token in tokens {
            // SAFETY: token ranges of different threads do not overlap.
            let x = unsafe { x.slice(token * width, width) };
            let angles = &angles[token * head_dim..][..head_dim];
            for_isa!(isa, rotate_heads(x: &mut [f32], angles: &[f32]));
        }
    })?;
    Ok(())
}

#[inline(always)]
fn rotate_heads<L: Lanes>(x: &mut [f32], angles: &[f32]) {
    let half = angles.len() / 2;
    let (cos, sin) = angles.split_at(half);
    let whole = half / LANES * LANES;
    for head in x.chunks_exact_mut(2 * half) {
        let (first, second) = head.split_at_mut(half);
        for i in (0..whole).step_by(LANES) {
            let (a, b) = (L::load(at(first, i)), L::load(at(second, i)));
            let (c, s) = (L::load(at(cos, i)), L::load(at(sin, i)));
            a.mul(c).sub(b.mul(s)).store(at_mut(first, i));
            b.mul(c).add(a.mul(s)).store(at_mut(second, i));
        }
        for i in whole..half {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cos[i] - b * sin[i];
            second[i] = b * cos[i] + a * sin[i];
        }
    }
}

fn base_frequencies(head_dim: usize, theta: f64) -> Vec<f64> {
    (0..head_dim / 2)
        .map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64))
        .collect()
}

/// Long waves are stretched, short ones kept, with a ramp in between.
fn llama3_frequency(f: f64, factor: f32, low_freq: f32, high_freq: f32, original: usize) -> f64 {
    let (factor, low, high) = (f64::from(factor), f64::from(low_freq), f64::from(high_freq));
    let turns = original as f64 * f / (2.0 * std::f64::consts::PI);
    if turns < low {
        return f / factor;
    }
    if turns > high {
        return f;
    }
    let smooth = (turns - low) / (high - low);
    (1.0 - smooth) * f / factor + smooth * f
}

/// Interpolates the dimensions with fewer than `beta_slow` periods over the original context, keeps
/// those with more than `beta_fast`, and blends between.
fn scale_yarn(
    frequencies: &mut [f64],
    theta: f32,
    factor: f32,
    original: usize,
    beta_fast: f32,
    beta_slow: f32,
) {
    let head_dim = (2 * frequencies.len()) as f64;
    let dimension_of = |turns: f32| {
        head_dim * (original as f64 / (f64::from(turns) * 2.0 * std::f64::consts::PI)).ln()
            / (2.0 * f64::from(theta).ln())
    };
    let low = dimension_of(beta_fast).floor().max(0.0);
    let high = dimension_of(beta_slow).ceil().min(head_dim - 1.0);
    let width = if high > low { high - low } else { 0.001 };
    for (i, f) in frequencies.iter_mut().enumerate() {
        let ramp = ((i as f64 - low) / width).clamp(0.0, 1.0);
        *f = *f / f64::from(factor) * ramp + *f * (1.0 - ramp);
    }
}

#[cfg(test)]
mod tests;
