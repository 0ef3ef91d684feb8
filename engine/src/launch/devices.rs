//! What the models of a process share: the turns on each device, and the CPU's memory.
//!
//! A model on the CPU sleeps by keeping nothing: its weights lay in the host's memory already, and
//! that is what others need. It wakes by reading its checkpoint again, which the system mostly
//! still has in memory. (A model on a card keeps its weights packed in the host's memory.)

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::LaunchError;
use super::executor::load_cpu;
use super::model::{LoadedModel, check_unchanged, open};
use crate::config::EngineConfig;
use crate::config::typed::Device;
use crate::engine_loop::turns::Turns;
use crate::executor::{Asleep, Executor, ExecutorCounts, ExecutorError, ExecutorInfo, StopFlag};
use crate::source::ResolvedModel;
use crate::step::{StepOutput, StepPlan};
use crate::weights::Checkpoint;

/// One for a process.
#[derive(Debug, Default)]
pub struct Devices {
    cpu_turns: Arc<Turns>,
    cuda_turns: Arc<Turns>,
    cpu_memory: Arc<CpuMemory>,
}

/// Bytes of `--device-memory-limit` that models on the CPU have. Models are loaded one after the
/// other, so that asking and taking need not be one act.
#[derive(Debug, Default)]
struct CpuMemory(AtomicU64);

/// What one model has of it, until this is dropped.
struct Share {
    of: Arc<CpuMemory>,
    n_bytes: u64,
}

impl Devices {
    pub fn turns(&self, device: Device) -> &Arc<Turns> {
        match device {
            Device::Cuda => &self.cuda_turns,
            Device::Cpu | Device::Auto => &self.cpu_turns,
        }
    }

    pub(super) fn load_on_cpu(
        &self,
        config: &EngineConfig,
        model: &LoadedModel,
    ) -> Result<Box<dyn Executor>, LaunchError> {
        let mut origin = Origin {
            config: config.clone(),
            model: model.resolved.clone(),
            memory: Arc::clone(&self.cpu_memory),
        };
        let (executor, share) = origin.load(model.checkpoint.as_ref())?;
        // The scheduler counts on the same pool ever after.
        origin.config.max_total_tokens = Some(executor.info().kv_pool_tokens);
        Ok(Box::new(OnCpu {
            executor,
            share,
            origin,
        }))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.n_bytes, Ordering::AcqRel);
    }
}

/// Where a model on the CPU comes from, again.
#[derive(Clone)]
struct Origin {
    config: EngineConfig,
    model: ResolvedModel,
    memory: Arc<CpuMemory>,
}

impl Origin {
    fn load(
        &self,
        checkpoint: &dyn Checkpoint,
    ) -> Result<(Box<dyn Executor>, Option<Share>), LaunchError> {
        let in_use = self.memory.0.load(Ordering::Acquire);
        let executor = load_cpu(&self.config, checkpoint, in_use)?;
        let share = self.config.device_memory_limit_bytes.map(|_| {
            let info = executor.info();
            let n_bytes = info.weight_bytes + info.kv_pool_bytes;
            self.memory.0.fetch_add(n_bytes, Ordering::AcqRel);
            Share {
                of: Arc::clone(&self.memory),
                n_bytes,
            }
        });
        Ok((executor, share))
    }
}

struct OnCpu {
    executor: Box<dyn Executor>,
    share: Option<Share>,
    origin: Origin,
}

impl Executor for OnCpu {
    fn info(&self) -> &ExecutorInfo {
        self.executor.info()
    }

    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        self.executor.execute(plan)
    }

    fn counts(&self) -> ExecutorCounts {
        self.executor.counts()
    }

    fn watch(&mut self, stop: &StopFlag) {
        self.executor.watch(stop);
    }

    fn sleep(self: Box<Self>) -> Result<Box<dyn Asleep>, (Box<dyn Executor>, ExecutorError)> {
        let Self {
            executor,
            share,
            origin,
        } = *self;
        drop(executor);
        drop(share);
        Ok(Box::new(SleepingOnCpu(origin)))
    }
}

struct SleepingOnCpu(Origin);

impl Asleep for SleepingOnCpu {
    fn wake(&mut self) -> Result<Box<dyn Executor>, ExecutorError> {
        let failed = |error: LaunchError| ExecutorError::Sleep {
            device: "cpu",
            message: error.to_string(),
        };
        let origin = self.0.clone();
        check_unchanged(&origin.config, &origin.model).map_err(failed)?;
        let opened = open(&origin.config, &origin.model).map_err(|error| failed(error.into()))?;
        let (executor, share) = origin.load(opened.as_ref()).map_err(failed)?;
        Ok(Box::new(OnCpu {
            executor,
            share,
            origin,
        }))
    }
}
