//! Which code an error at the start has.

use super::Code;
use crate::config::{ConfigError, PlanError};
use crate::engine_loop::StartError;
use crate::executor::cpu::CpuLoadError;
use crate::executor::cuda::CudaLoadError;
use crate::launch::LaunchError;
use crate::server::ServeError;
use crate::source::SourceError;
use crate::text::TextError;
use crate::weights::WeightError;

impl Code {
    /// The code of whatever ended the program, as far as it is one of ours.
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

/// A failure of the program itself before it serves: of the address, a signal, a thread.
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
            Self::Config(_) => Code::ModelConfig,
        }
    }
}

impl TextError {
    pub fn code(&self) -> Code {
        Code::Tokenizer
    }
}
