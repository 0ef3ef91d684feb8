//! Frees a model's GPU memory for a while.
//!
//! Weights are copied to host memory in their packed form; everything else is created again when
//! the model wakes, including the graphs.

use gpu::CudaError;

use super::device_setup::DeviceSetup;
use super::weights::HostWeights;
use super::{CudaExecutor, CudaLoadError, CudaOptions, DEVICE, step_error};
use crate::executor::{Executor, ExecutorError, SuspendedExecutor, host_memory};
use crate::model::config::ModelConfig;

/// A suspended model: its weights are in host memory.
struct SleepingCuda {
    config: ModelConfig,
    options: CudaOptions,
    weights: HostWeights,
}

impl SuspendedExecutor for SleepingCuda {
    fn wake(&mut self) -> Result<Box<dyn Executor>, ExecutorError> {
        match self.load() {
            Ok(awake) => Ok(Box::new(awake)),
            Err(CudaLoadError::Cuda(error)) => Err(sleep_error(error)),
            Err(error) => Err(cannot(error.to_string())),
        }
    }
}

impl SleepingCuda {
    fn load(&self) -> Result<CudaExecutor, CudaLoadError> {
        let setup = DeviceSetup::open(&self.options)?;
        let pool = setup.pool_pages(&self.config, &self.options, self.weights.n_bytes)?;
        let weights = self.weights.upload(
            &setup.stream,
            setup.large_m,
            setup.int8_room(&self.config, &self.options),
        )?;
        let (config, options) = (self.config.clone(), self.options.clone());
        CudaExecutor::with_weights(config, weights, pool, setup, options)
    }
}

/// Suspends the executor; on failure returns it unchanged with the reason.
pub(super) fn put_to_sleep(
    mut awake: Box<CudaExecutor>,
) -> Result<Box<dyn SuspendedExecutor>, (Box<dyn Executor>, ExecutorError)> {
    let weights = match download(&mut awake) {
        Ok(weights) => weights,
        Err(error) => return Err((awake, error)),
    };
    let options = CudaOptions {
        // The scheduler relies on the same pool size.
        max_total_tokens: Some(awake.info.kv_pool_tokens),
        ..awake.options.clone()
    };
    Ok(Box::new(SleepingCuda {
        config: awake.forward.config().clone(),
        options,
        weights,
    }))
}

fn download(awake: &mut CudaExecutor) -> Result<HostWeights, ExecutorError> {
    let needed = awake.info.weight_bytes;
    if let Some(free) = host_memory::free_bytes().filter(|free| *free < needed) {
        return Err(cannot(format!(
            "its weights are {needed} bytes, the host has {free} bytes free"
        )));
    }
    awake.forget_batch();
    let copied = awake.stream.synchronize();
    let copied = copied.and_then(|()| awake.forward.weights().download(&awake.stream));
    copied.map_err(sleep_error)
}

fn cannot(message: String) -> ExecutorError {
    let device = DEVICE;
    ExecutorError::Sleep { device, message }
}

/// A lost device stays lost for sleeping and waking too.
fn sleep_error(error: CudaError) -> ExecutorError {
    if error.loses_device() {
        step_error(error)
    } else {
        cannot(error.to_string())
    }
}
