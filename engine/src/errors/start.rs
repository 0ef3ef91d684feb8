//! Maps start-up errors to their codes.

use super::Code;
use crate::config::{ConfigError, PlanError};
use crate::engine_loop::StartError;
use crate::executor::cpu::CpuLoadError;
use crate::executor::cuda::CudaLoadError;
use crate::launch::LaunchError;
use crate::model::config::ConfigError as ModelConfigError;
use crate::server::ServeError;
use crate::source::SourceError;
use crate::text::TextError;
use crate::weights::WeightError;

impl Code {
    /// The code of the error that ended the program, if it has one.
    pub fn of(error: &anyhow::Error) -> Option<Self> {
        error.chain().find_map(|cause| {
            None.or_else(|| cause.downcast_ref().map(|_: &ConfigError| Self::BadFlag))
                .or_else(|| cause.downcast_ref().map(|_: &PlanError| Self::BadFlag))
                .or_else(|| cause.downcast_ref().map(LaunchError::code))
                .or_else(|| cause.downcast_ref().map(SourceError::code))
                .or_else(|| cause.downcast_ref().map(WeightError::code))
                .or_else(|| cause.downcast_ref().map(TextError::code))
                .or_else(|| match cause.downcast_ref::<ServeError>()? {
                    ServeError::EngineStopped => Some(Self::EngineStopped),
                    ServeError::Io(_) => Some(Self::System),
                })
                .or_else(|| {
                    cause
                        .downcast_ref::<StartFailure>()
                        .map(|failure| failure.code)
                })
        })
    }
}

/// An error and its causes on one line. Many errors repeat their cause's text for readers who only
/// see the outermost one; here each is written once.
pub fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    line
}

/// A failure of the program itself before it serves: address, signal handler or thread.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StartFailure {
    pub code: Code,
    pub message: String,
}

impl LaunchError {
    pub fn code(&self) -> Code {
        match self {
            Self::Source(error) => error.code(),
            Self::Weights(error)
            | Self::Cpu(CpuLoadError::Weights(error))
            | Self::Cuda(CudaLoadError::Weights(error)) => error.code(),
            Self::Text(error) => error.code(),
            Self::ChatTemplate { .. } => Code::BadFlag,
            Self::NoTokenizer { .. } => Code::NoTokenizer,
            Self::Quantization { .. } => Code::QuantizationMismatch,
            Self::NoCuda { .. } => Code::NoCuda,
            Self::Isa { .. } => Code::CpuIsa,
            Self::ContextLength { .. } => Code::ContextLength,
            Self::Cpu(CpuLoadError::Option { .. }) | Self::Cuda(CudaLoadError::Option { .. }) => {
                Code::BadFlag
            }
            Self::CpuMemory(_)
            | Self::Cuda(CudaLoadError::Memory(_))
            | Self::Cpu(CpuLoadError::HostTier(_)) => Code::DeviceMemory,
            Self::Cpu(_) | Self::Cuda(_) => Code::LoadFailed,
            Self::Start(StartError::PoolTooSmall { .. }) => Code::PoolTooSmall,
            Self::Start(StartError::Thread(_)) => Code::System,
        }
    }
}

impl SourceError {
    pub fn code(&self) -> Code {
        match self {
            Self::Parse { .. } => Code::ModelName,
            Self::File { .. } => Code::ModelFile,
            Self::Fetch { .. } => Code::FetchFailed,
            Self::Digest { .. } => Code::DigestMismatch,
            Self::NotOnHub { .. } => Code::NotOnHub,
            Self::Choice { .. } => Code::ModelChoice,
            Self::NoCacheFolder => Code::NoCacheFolder,
            Self::Config(error) => error.code(),
            Self::Weights(error) => error.code(),
        }
    }
}

impl WeightError {
    pub fn code(&self) -> Code {
        match self {
            Self::File { .. } => Code::WeightsFile,
            Self::Missing { .. } => Code::WeightsMissing,
            Self::Shape { .. } => Code::WeightsShape,
            Self::Format { .. } => Code::WeightsFormat,
            Self::Unreadable { .. } => Code::ModelFile,
            Self::Absent { .. } => Code::NoWeights,
            Self::LoadFormat { .. } => Code::LoadFormat,
            Self::Config(error) => error.code(),
        }
    }
}

impl ModelConfigError {
    pub fn code(&self) -> Code {
        match self {
            Self::Unsupported { key, .. } if key.ends_with("architecture") => {
                Code::UnsupportedArchitecture
            }
            Self::Unsupported { key, .. } if key == "architectures" => {
                Code::UnsupportedArchitecture
            }
            Self::Unsupported { key, .. } if key.contains("quant") => Code::UnsupportedQuantization,
            _ => Code::ModelConfig,
        }
    }
}

impl TextError {
    pub fn code(&self) -> Code {
        Code::Tokenizer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_its_error_repeats_is_said_once() {
        let missing = || WeightError::Missing { name: "x".into() };
        let error = anyhow::Error::from(LaunchError::Weights(missing()));
        let line = in_one_line(&error.context("loading"));
        assert_eq!(
            line,
            "loading: reading the weights: the checkpoint has no tensor x"
        );
        let plain = anyhow::Error::from(missing()).context("reading");
        assert_eq!(
            in_one_line(&plain),
            "reading: the checkpoint has no tensor x"
        );
    }

    #[test]
    fn what_is_not_supported_has_the_code_that_fits() {
        let unsupported = |key: &str| ModelConfigError::Unsupported {
            key: key.into(),
            value: "x".into(),
            supported: "y",
        };
        for (key, code) in [
            ("architectures", Code::UnsupportedArchitecture),
            ("general.architecture", Code::UnsupportedArchitecture),
            (
                "quantization_config.quant_method",
                Code::UnsupportedQuantization,
            ),
            ("quant_config.json: bits", Code::UnsupportedQuantization),
            ("rope_scaling.rope_type", Code::ModelConfig),
        ] {
            assert_eq!(unsupported(key).code(), code, "{key}");
        }
    }
}
