//! Errors in a step, by scope: a row, the step, or the device.

use kernels::KernelError;
use kernels::cuda::CudaError;
use kernels::sampling::cuda::TokenError;

use crate::request::{Failure, SamplingParams};
use crate::sampler::SamplerError;

/// Why a row got no token. It ends only the row's own request: the step, its other rows and the
/// engine's health are unaffected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RowError {
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The code that the device wrote instead of a token.
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("more than {limit} distinct tokens have a penalty or a bias, the device's limit")]
    ListFull { limit: usize },
}

impl RowError {
    /// The failure reported to the client. `params`: the request's, which name what excluded all
    /// tokens.
    pub fn failure(&self, params: &SamplingParams) -> Failure {
        let message = self.to_string();
        match self {
            Self::Sampler(SamplerError::NotFinite { .. }) | Self::Token(TokenError::NotFinite) => {
                Failure::Logits { message }
            }
            Self::Sampler(SamplerError::AllMasked) | Self::Token(TokenError::AllMasked) => {
                nothing_left(params)
            }
            Self::Sampler(_) | Self::Token(_) | Self::ListFull { .. } => {
                Failure::Sampling { message }
            }
        }
    }
}

/// No token is allowed: caused by the request if it excludes some, otherwise by its output format
/// or the model.
fn nothing_left(params: &SamplingParams) -> Failure {
    let names = params.exclusions.names().join(" and ");
    match (names.as_str(), params.guide.is_some()) {
        ("", true) => Failure::Form {
            message: "the model gives every allowed token the logit -inf".to_owned(),
        },
        (names, true) => Failure::Form {
            message: format!("{names} and the output format together exclude every next token"),
        },
        ("", false) => Failure::Logits {
            message: SamplerError::AllMasked.to_string(),
        },
        (names, false) => Failure::Sampling {
            message: format!("{names}: every next token is excluded"),
        },
    }
}

/// Why a whole step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The server is stopping, and requests have no time left.
    #[error("the step was aborted because the server is stopping")]
    Stopped,
    /// The plan violates the scheduler's contract.
    #[error("{0}")]
    Plan(String),
    /// An error that the mock executor was told to report.
    #[error("{0}")]
    Told(String),
}

#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The step's requests end; the next step may succeed.
    #[error("step failed on the {device}: {source}")]
    Step {
        device: &'static str,
        source: StepError,
    },
    /// No further request of this process to the device can succeed.
    #[error("the {device} device is lost until the process is restarted: {source}")]
    DeviceLost {
        device: &'static str,
        source: StepError,
    },
    #[error("the {device} executor cannot sleep or wake: {message}")]
    Sleep {
        device: &'static str,
        message: String,
    },
}

impl ExecutorError {
    /// A failed step, or a lost device if the driver's error code says so.
    pub fn of_step(device: &'static str, source: impl Into<StepError>) -> Self {
        let source = source.into();
        match &source {
            StepError::Cuda(error) if error.loses_device() => Self::DeviceLost { device, source },
            _ => Self::Step { device, source },
        }
    }

    /// A plan that the executor refuses.
    pub fn of_plan(device: &'static str, message: impl Into<String>) -> Self {
        let source = StepError::Plan(message.into());
        Self::Step { device, source }
    }

    pub fn is_device_lost(&self) -> bool {
        matches!(self, Self::DeviceLost { .. })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sampler::exclusions::Exclusions;
    use crate::structured::guide_of;

    fn call(code: u32) -> CudaError {
        CudaError::Call {
            call: "cuLaunchKernelEx",
            name: "CUDA_ERROR".to_owned(),
            code,
        }
    }

    #[test]
    fn a_driver_error_that_lasts_is_a_lost_device_and_another_is_a_failed_step() {
        for code in [700, 702, 709, 710, 713, 714, 715, 716, 717, 718, 719, 999] {
            let error = ExecutorError::of_step("cuda", call(code));
            assert!(error.is_device_lost(), "{code}: {error}");
            assert!(error.to_string().contains(&code.to_string()), "{error}");
            assert!(std::error::Error::source(&error).is_some());
        }
        for code in [1, 2, 201, 600, 701, 720, 900] {
            let error = ExecutorError::of_step("cuda", call(code));
            assert!(!error.is_device_lost(), "{code}: {error}");
        }
        let shape = KernelError::Value {
            op: "copies",
            message: "wrong".to_owned(),
        };
        assert!(!ExecutorError::of_step("cuda", CudaError::from(shape)).is_device_lost());
    }

    #[test]
    fn each_kind_of_row_error_has_its_own_failure() {
        let not_finite = SamplerError::NotFinite {
            token: 3,
            value: f32::NAN,
        };
        let logits = [
            RowError::Sampler(not_finite),
            RowError::Token(TokenError::NotFinite),
        ];
        let free = SamplingParams::default();
        let guided = SamplingParams {
            guide: Some(guide_of("a")),
            ..free.clone()
        };
        for error in logits {
            for params in [&free, &guided] {
                let failure = error.failure(params);
                assert!(matches!(failure, Failure::Logits { .. }), "{failure:?}");
            }
        }
        let excluding = |params: &SamplingParams| SamplingParams {
            exclusions: Exclusions {
                allowed: Some(Arc::from([1])),
                bad_words: Arc::from([vec![2]]),
                min_tokens: 1,
                ends: Arc::from([3]),
            },
            ..params.clone()
        };
        let masked = [
            RowError::Sampler(SamplerError::AllMasked),
            RowError::Token(TokenError::AllMasked),
        ];
        for error in masked {
            // The request excludes no token, so the model is the cause.
            let failure = error.failure(&free);
            assert!(matches!(failure, Failure::Logits { .. }), "{failure:?}");
            let failure = error.failure(&guided);
            assert!(matches!(failure, Failure::Form { .. }), "{failure:?}");
            for (params, is_form) in [(excluding(&free), false), (excluding(&guided), true)] {
                let failure = error.failure(&params);
                assert_eq!(matches!(failure, Failure::Form { .. }), is_form);
                assert_eq!(matches!(failure, Failure::Sampling { .. }), !is_form);
                let message = failure.to_string();
                for name in ["allowed_token_ids", "bad_words", "min_tokens"] {
                    assert!(message.contains(name), "{message}");
                }
            }
        }
        let full = RowError::ListFull { limit: 4096 }.failure(&free);
        assert!(full.to_string().contains("4096"), "{full}");
    }
}
