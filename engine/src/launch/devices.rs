//! State shared by the models of a process: the arbiter of each device, and the CPU's memory.
//!
//! Suspending a model on the CPU keeps nothing: its weights are in host memory, which is what other
//! models need. It wakes by reading its checkpoint again, which is usually still in the page cache.
//! (A model on a GPU keeps its packed weights in host memory.)

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::LaunchError;
use super::draft_model::DraftHead;
use super::executor::load_cpu;
use super::model::{LoadedModel, check_unchanged, open};
use crate::config::EngineConfig;
use crate::config::typed::Device;
use crate::engine_loop::device_arbiter::DeviceArbiter;
use crate::executor::{
    DraftAsk, Executor, ExecutorCounts, ExecutorError, ExecutorInfo, StopFlag, SuspendedExecutor,
};
use crate::source::ResolvedModel;
use crate::step::{StepOutput, StepPlan};
use crate::weights::Checkpoint;

/// One for each process.
#[derive(Debug, Default)]
pub struct Devices {
    cpu_arbiter: Arc<DeviceArbiter>,
    cuda_arbiter: Arc<DeviceArbiter>,
    cpu_memory: Arc<CpuMemory>,
}

/// Bytes of `--device-memory-limit` used by models on the CPU. Models are loaded one after the
/// other, so checking and reserving need not be atomic.
#[derive(Debug, Default)]
struct CpuMemory(AtomicU64);

/// One model's share of it, released on drop.
struct MemoryReservation {
    of: Arc<CpuMemory>,
    n_bytes: u64,
}

impl Devices {
    pub fn arbiter(&self, device: Device) -> &Arc<DeviceArbiter> {
        match device {
            Device::Cuda => &self.cuda_arbiter,
            Device::Cpu | Device::Auto => &self.cpu_arbiter,
        }
    }

    pub(super) fn load_on_cpu(
        &self,
        config: &EngineConfig,
        model: &LoadedModel,
        draft_head: Option<DraftHead>,
    ) -> Result<Box<dyn Executor>, LaunchError> {
        let mut reload = ReloadSource {
            draft_head,
            config: config.clone(),
            model: model.resolved.clone(),
            memory: Arc::clone(&self.cpu_memory),
        };
        let (executor, reservation) = reload.load(model.checkpoint.as_ref())?;
        // The scheduler relies on the same pool size from then on.
        reload.config.max_total_tokens = Some(executor.info().kv_pool_tokens);
        Ok(Box::new(ManagedCpuExecutor {
            executor,
            reservation,
            reload,
        }))
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.n_bytes, Ordering::AcqRel);
    }
}

/// What is needed to reload a model on the CPU.
#[derive(Clone)]
struct ReloadSource {
    draft_head: Option<DraftHead>,
    config: EngineConfig,
    model: ResolvedModel,
    memory: Arc<CpuMemory>,
}

impl ReloadSource {
    fn load(
        &self,
        checkpoint: &dyn Checkpoint,
    ) -> Result<(Box<dyn Executor>, Option<MemoryReservation>), LaunchError> {
        let in_use = self.memory.0.load(Ordering::Acquire);
        let executor = load_cpu(&self.config, checkpoint, in_use, self.draft_head.as_ref())?;
        let reservation = self.config.device_memory_limit_bytes.map(|_| {
            let info = executor.info();
            let n_bytes = info.weight_bytes + info.kv_pool_bytes;
            self.memory.0.fetch_add(n_bytes, Ordering::AcqRel);
            MemoryReservation {
                of: Arc::clone(&self.memory),
                n_bytes,
            }
        });
        Ok((executor, reservation))
    }
}

struct ManagedCpuExecutor {
    executor: Box<dyn Executor>,
    reservation: Option<MemoryReservation>,
    reload: ReloadSource,
}

impl Executor for ManagedCpuExecutor {
    fn info(&self) -> &ExecutorInfo {
        self.executor.info()
    }

    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        self.executor.execute(plan)
    }

    fn draft(&mut self, asks: &[DraftAsk<'_>]) -> Result<Vec<Vec<u32>>, ExecutorError> {
        self.executor.draft(asks)
    }

    fn counts(&self) -> ExecutorCounts {
        self.executor.counts()
    }

    fn watch(&mut self, stop: &StopFlag) {
        self.executor.watch(stop);
    }

    fn sleep(
        self: Box<Self>,
    ) -> Result<Box<dyn SuspendedExecutor>, (Box<dyn Executor>, ExecutorError)> {
        let Self {
            executor,
            reservation,
            reload,
        } = *self;
        drop(executor);
        drop(reservation);
        Ok(Box::new(SuspendedCpuModel(reload)))
    }
}

struct SuspendedCpuModel(ReloadSource);

impl SuspendedExecutor for SuspendedCpuModel {
    fn wake(&mut self) -> Result<Box<dyn Executor>, ExecutorError> {
        let failed = |error: LaunchError| ExecutorError::Sleep {
            device: "cpu",
            message: error.to_string(),
        };
        let reload = self.0.clone();
        check_unchanged(&reload.config, &reload.model).map_err(failed)?;
        let opened = open(&reload.config, &reload.model).map_err(|error| failed(error.into()))?;
        let (executor, reservation) = reload.load(opened.as_ref()).map_err(failed)?;
        Ok(Box::new(ManagedCpuExecutor {
            executor,
            reservation,
            reload,
        }))
    }
}
