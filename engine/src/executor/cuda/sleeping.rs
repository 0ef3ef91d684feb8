//! A model that gives the card's memory back for a while.
//!
//! Weights go to the host's memory as they lie on the card; everything else is made anew when the
//! model wakes, the graphs too.

use kernels::cuda::CudaError;

use super::place::Place;
use super::weights::HostWeights;
use super::{CudaExecutor, CudaLoadError, CudaOptions, DEVICE, step_error};
use crate::executor::{Asleep, Executor, ExecutorError, host_memory};
use crate::model::config::ModelConfig;

/// A model whose memory on the card was given back: its weights lie in the host's.
struct SleepingCuda {
    config: ModelConfig,
    options: CudaOptions,
    weights: HostWeights,
}

impl Asleep for SleepingCuda {
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
        let place = Place::open(&self.options)?;
        let n_pages = place.pool_pages(&self.config, &self.options, self.weights.n_bytes)?;
        let weights = self.weights.upload(
            &place.stream,
            place.many_rows,
            place.int8_room(&self.config, &self.options),
        )?;
        let (config, options) = (self.config.clone(), self.options.clone());
        CudaExecutor::with_weights(config, weights, n_pages, place, options)
    }
}

/// The model asleep; where it cannot sleep, the executor as it was and why.
pub(super) fn put_to_sleep(
    mut awake: Box<CudaExecutor>,
) -> Result<Box<dyn Asleep>, (Box<dyn Executor>, ExecutorError)> {
    let weights = match download(&mut awake) {
        Ok(weights) => weights,
        Err(error) => return Err((awake, error)),
    };
    let options = CudaOptions {
        // The scheduler counts on the same pool.
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

/// A card that is lost is lost to sleeping and waking, too.
fn sleep_error(error: CudaError) -> ExecutorError {
    if error.loses_device() {
        step_error(error)
    } else {
        cannot(error.to_string())
    }
}
