//! Errors in a step, by scope: a row, the step, or the device.

use gpu::CudaError;
use kernels::KernelError;

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
    use super::*;

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
}
