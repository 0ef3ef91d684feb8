//! Ranges of sampling parameters: the single table used to validate HTTP requests, queued requests
//! and the samplers' input.
//!
//! Bounds are f32 and inclusive, so a number that is inside as f64 is inside as f32. `top_p` 0
//! keeps only the most likely token. Within [`REPETITION_PENALTY`] a logit up to 1e36 stays finite,
//! whatever the other parameters are.

use super::SamplingParams;

/// The valid values of one parameter, bounds included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// The name in the API.
    pub name: &'static str,
    pub least: f32,
    pub most: f32,
}

impl Range {
    const fn new(name: &'static str, least: f32, most: f32) -> Self {
        Self { name, least, most }
    }

    /// NaN is in no range.
    pub fn contains(&self, value: f32) -> bool {
        (self.least..=self.most).contains(&value)
    }

    /// As a JSON schema.
    pub fn schema(&self) -> serde_json::Value {
        // With the digits of an f32, not those that it has as an f64.
        let digits = |bound: f32| {
            let short = bound.to_string().parse::<f64>().ok();
            let inside = short.filter(|short| self.take(*short).is_some());
            inside.unwrap_or(f64::from(bound))
        };
        let mut schema = serde_json::json!({"type": "number", "minimum": digits(self.least)});
        if self.most < f32::MAX {
            schema["maximum"] = digits(self.most).into();
        } else {
            // 2 to the power of 128, above which no decimal digits are an f32.
            schema["exclusiveMaximum"] = 2_f64.powi(128).into();
        }
        schema
    }

    /// `value` converted to the samplers' type, if it is inside.
    pub fn take(&self, value: f64) -> Option<f32> {
        (f64::from(self.least)..=f64::from(self.most))
            .contains(&value)
            .then_some(value as f32)
    }
}

/// `0 to 1`.
impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.most > 1e6 {
            write!(f, "{} to {:e}", self.least, self.most)
        } else {
            write!(f, "{} to {}", self.least, self.most)
        }
    }
}

pub const TEMPERATURE: Range = Range::new("temperature", 0.0, f32::MAX);
/// Below 1 all tokens are kept.
pub const TOP_K: std::ops::RangeInclusive<i64> = -1..=i32::MAX as i64;
pub const TOP_P: Range = Range::new("top_p", 0.0, 1.0);
pub const MIN_P: Range = Range::new("min_p", 0.0, 1.0);
pub const REPETITION_PENALTY: Range = Range::new("repetition_penalty", 0.01, 10.0);
pub const PRESENCE_PENALTY: Range = Range::new("presence_penalty", -2.0, 2.0);
pub const FREQUENCY_PENALTY: Range = Range::new("frequency_penalty", -2.0, 2.0);
/// For each token; the engine itself masks tokens with -inf.
pub const LOGIT_BIAS: Range = Range::new("logit_bias", -100.0, 100.0);

/// A parameter outside its range.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{} is {value}, but must be from {range}", range.name)]
pub struct OutOfRange {
    pub value: f32,
    pub range: Range,
}

/// Refuses parameters outside their range.
pub(crate) fn check(params: &SamplingParams) -> Result<(), OutOfRange> {
    let values = [
        (TEMPERATURE, params.temperature),
        (TOP_P, params.top_p),
        (MIN_P, params.min_p),
        (REPETITION_PENALTY, params.repetition_penalty),
        (PRESENCE_PENALTY, params.presence_penalty),
        (FREQUENCY_PENALTY, params.frequency_penalty),
    ];
    let biases = params
        .logit_bias
        .iter()
        .map(|(_, bias)| (LOGIT_BIAS, *bias))
        .filter(|(_, bias)| *bias != f32::NEG_INFINITY);
    match values
        .into_iter()
        .chain(biases)
        .find(|(range, value)| !range.contains(*value))
    {
        Some((range, value)) => Err(OutOfRange { value, range }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sampler::SampleSpec;
    use crate::sampler::{adjust, plain, sample};

    /// Each parameter of the table, set to `value`.
    fn all_with(value: f32) -> [(Range, SamplingParams); 7] {
        let hot = SamplingParams {
            temperature: 1.0,
            ..SamplingParams::default()
        };
        let of = |range: Range, set: &dyn Fn(&mut SamplingParams)| {
            let mut params = hot.clone();
            set(&mut params);
            (range, params)
        };
        [
            of(TEMPERATURE, &|p| p.temperature = value),
            of(TOP_P, &|p| p.top_p = value),
            of(MIN_P, &|p| p.min_p = value),
            of(REPETITION_PENALTY, &|p| p.repetition_penalty = value),
            of(PRESENCE_PENALTY, &|p| p.presence_penalty = value),
            of(FREQUENCY_PENALTY, &|p| p.frequency_penalty = value),
            of(LOGIT_BIAS, &|p| p.logit_bias = vec![(1, value)]),
        ]
    }

    fn spec(params: SamplingParams) -> SampleSpec {
        SampleSpec {
            history: if params.needs_history() {
                vec![0, 1, 1, 2]
            } else {
                Vec::new()
            },
            params: Arc::new(params),
            output_index: 3,
            n_prompt: 1,
        }
    }

    #[test]
    fn what_the_table_holds_can_be_sampled_and_nothing_else() {
        const LOGITS: [&[f32]; 3] = [
            &[1.0, 2.5, -0.5, 2.0],
            &[1e36, -1e36, 0.0, f32::NEG_INFINITY],
            &[-3.0, -3.0, -3.0, -3.0],
        ];
        let (mut n_held, mut n_refused) = (0, 0);
        let borders = |range: Range| {
            [
                range.least,
                range.least.next_up(),
                range.least.next_down(),
                range.most,
                range.most.next_up(),
                range.most.next_down(),
            ]
        };
        let odd = [
            0.0,
            -0.0,
            1e-46_f64 as f32,
            1e-45,
            1e-40,
            1e-38,
            f32::MIN_POSITIVE,
            1e-7,
            0.999_999_9,
            1e38,
            f32::MAX,
            f32::MIN,
            f32::NAN,
            f32::INFINITY,
        ];
        for i in 0..7 {
            let range = all_with(0.0)[i].0;
            for value in borders(range).into_iter().chain(odd) {
                let params = all_with(value)[i].1.clone();
                let found = check(&params);
                assert_eq!(found.is_ok(), range.contains(value), "{range:?} {value}");
                for logits in LOGITS {
                    let spec = spec(params.clone());
                    let (one, other) = (
                        sample(logits, &spec, 0, &[]),
                        plain::sample(logits, &spec, 0, &[]),
                    );
                    if found.is_err() {
                        let message = one.expect_err("refused").to_string();
                        assert!(message.starts_with(range.name), "{message}");
                        assert!(other.is_err());
                        n_refused += 1;
                        continue;
                    }
                    let token = one
                        .unwrap_or_else(|e| panic!("{range:?} {value}: {e}"))
                        .token;
                    assert!(logits[token as usize] > f32::NEG_INFINITY);
                    assert_eq!(other.expect("as the other").token, token);
                    for logit in adjust(logits, &spec, 0, &[]).expect("adjusted").iter() {
                        assert!(*logit < f32::INFINITY, "{range:?} {value}: {logit}");
                    }
                    n_held += 1;
                }
            }
        }
        assert!(n_held > 150 && n_refused > 100, "{n_held}, {n_refused}");
    }

    #[test]
    fn a_number_of_a_request_is_inside_as_f64_and_as_f32_or_outside() {
        for (range, _) in all_with(0.0) {
            for value in [
                0.0,
                -0.0,
                1e-300,
                -1e-300,
                1e-50,
                1e-46,
                1e-45,
                1e-38,
                0.01,
                0.009_999_999_9,
                1.0,
                1.000_000_000_1,
                2.0,
                2.000_000_000_1,
                10.0,
                100.0,
                3.402_823_4e38,
                3.5e38,
                1e300,
                -2.0,
                -2.000_000_1,
                -100.0,
                f64::MAX,
                f64::MIN_POSITIVE,
            ] {
                if let Some(taken) = range.take(value) {
                    assert!(range.contains(taken), "{range:?} {value:e} {taken:e}");
                    assert!(taken.is_finite());
                }
            }
            let inside = range
                .take(f64::from(range.least))
                .zip(range.take(f64::from(range.most)));
            assert_eq!(inside, Some((range.least, range.most)));
        }
        assert_eq!(TOP_P.take(1e-300), Some(0.0));
        assert_eq!(REPETITION_PENALTY.take(1e-38), None);
    }

    #[test]
    fn top_p_of_nothing_keeps_the_likeliest() {
        for top_p in [0.0, 1e-45, 1e-38] {
            let params = SamplingParams {
                temperature: 2.0,
                top_p,
                ..SamplingParams::default()
            };
            for output_index in 0..50 {
                let spec = SampleSpec {
                    output_index,
                    ..spec(params.clone())
                };
                let logits = [1.0, 1.2, 1.2, 0.5];
                assert_eq!(sample(&logits, &spec, 0, &[]).expect("a token").token, 1);
                assert_eq!(plain::sample(&logits, &spec, 0, &[]).expect("one").token, 1);
            }
        }
    }
}
