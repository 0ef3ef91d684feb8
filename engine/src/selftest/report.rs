//! What a self-test writes. `cargo xtask card` reads it; a field's unit is in its name.

use std::fmt;

use ::gpu::{CLUSTERS, CardProfile, Device, embedded_kernels};
use kernels::cuda::ClusterLaunch;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Increment when a field changes its meaning or goes; a new field changes nothing.
pub const SCHEMA_VERSION: u32 = 1;

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub schema_version: u32,
    pub engine: EngineInfo,
    /// The chip that the GPU was treated as, if not as itself.
    pub card_profile: Option<String>,
    pub host: HostInfo,
    /// `None`: none was tested; `no_gpu` says why.
    pub gpu: Option<GpuReport>,
    pub no_gpu: Option<String>,
    pub cpu: CpuReport,
    pub checks: Vec<Check>,
    /// One line for each check that failed.
    pub failures: Vec<String>,
    pub elapsed_s: f64,
}

/// What the program knows of its sources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BuiltFrom {
    /// With `+changes` if the tree had uncommitted ones; `None` if `cargo xtask` did not build it.
    pub commit: Option<&'static str>,
}

#[derive(Debug, Clone, Serialize)]
pub struct EngineInfo {
    pub version: String,
    pub commit: Option<String>,
    /// Of the program's file.
    pub binary_sha256: Option<String>,
    /// Over all CUDA kernels in it; empty without any.
    pub kernels_sha256: String,
    /// For example `sm_90`, `sm_120`.
    pub kernel_architectures: Vec<String>,
    /// Whether the program was compiled with optimisations: rates of the CPU need them.
    pub is_optimised: bool,
}

impl EngineInfo {
    pub(super) fn of(built_from: BuiltFrom) -> Self {
        let kernels = embedded_kernels();
        let program = std::env::current_exe().and_then(std::fs::read);
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: built_from.commit.map(str::to_owned),
            binary_sha256: program
                .ok()
                .map(|bytes| format!("{:x}", Sha256::digest(bytes))),
            kernels_sha256: kernels.sha256.to_owned(),
            kernel_architectures: kernels
                .architectures
                .iter()
                .map(|a| (*a).to_owned())
                .collect(),
            is_optimised: !cfg!(debug_assertions),
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct HostInfo {
    pub processor: String,
    /// Available to this process.
    pub n_threads: usize,
    /// Of the CPU kernels.
    pub instruction_set: String,
    pub system: String,
}

impl HostInfo {
    pub(super) fn new(n_threads: usize) -> Self {
        Self {
            processor: crate::executor::cpu::processor_name(),
            n_threads,
            instruction_set: kernels::Isa::detect().name().to_owned(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// What the GPU is, and what was measured. The limits are those of the card profile, if there is one;
/// clocks, memory and L2 are the card's own.
#[derive(Debug, Clone, Serialize)]
pub struct GpuReport {
    pub name: String,
    /// For example `9.0`.
    pub compute_capability: String,
    #[serde(skip)]
    pub card_profile: Option<String>,
    /// The card itself: as above, without the profile.
    pub own_compute_capability: String,
    pub own_n_multiprocessors: usize,
    /// The code of this program that it runs: `sm_90`, or `compute_120, compiled by the driver`.
    pub code: String,
    pub n_multiprocessors: usize,
    pub memory_bytes: usize,
    pub memory_free_bytes: Option<usize>,
    pub shared_bytes_per_block: usize,
    pub shared_bytes_per_multiprocessor: usize,
    pub reserved_shared_bytes_per_block: usize,
    pub l2_bytes: usize,
    /// Of the multiprocessors, at most.
    pub clock_mhz: f64,
    pub memory_clock_mhz: f64,
    pub memory_bus_bits: usize,
    /// What memory clock and bus allow, as a data sheet says it.
    pub memory_peak_gb_per_s: f64,
    /// The newest CUDA version that the driver runs.
    pub driver_cuda: String,
    /// Other processes may run kernels at the same time (MPS).
    pub is_shared: bool,
    pub rates: Option<Rates>,
    pub projections: Vec<ProjectionRate>,
    pub launches: Option<LaunchTimes>,
    pub clusters: Vec<Clusters>,
    /// Seconds that each part took.
    pub parts_s: Vec<(String, f64)>,
}

impl GpuReport {
    pub(super) fn of(device: &Device) -> Self {
        let (seen, own) = (device.properties(), device.own_properties());
        let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
        Self {
            name: own.name.clone(),
            compute_capability: version(seen.compute_capability),
            card_profile: seen.profile.map(|profile: CardProfile| profile.to_string()),
            own_compute_capability: version(own.compute_capability),
            own_n_multiprocessors: own.n_multiprocessors,
            code: device.image().to_string(),
            n_multiprocessors: seen.n_multiprocessors,
            memory_bytes: own.total_bytes,
            memory_free_bytes: device.memory_bytes().ok().map(|(free, _)| free),
            shared_bytes_per_block: seen.shared_bytes_per_block,
            shared_bytes_per_multiprocessor: seen.shared_bytes_per_multiprocessor,
            reserved_shared_bytes_per_block: seen.reserved_shared_bytes_per_block,
            l2_bytes: own.l2_bytes,
            clock_mhz: own.clock_khz as f64 / 1e3,
            memory_clock_mhz: own.memory_clock_khz as f64 / 1e3,
            memory_bus_bits: own.memory_bus_bits,
            memory_peak_gb_per_s: own.peak_gb_per_s(),
            driver_cuda: version((own.driver_version / 1000, own.driver_version % 1000 / 10)),
            is_shared: device.is_shared(),
            rates: None,
            projections: Vec::new(),
            launches: None,
            clusters: Vec::new(),
            parts_s: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Rates {
    /// A plain read of far more than the L2 holds.
    pub read_gb_per_s: f64,
    /// Bytes read and bytes written of a copy inside the device's memory, together.
    pub copy_gb_per_s: f64,
    /// From pinned host memory, and back.
    pub to_device_gb_per_s: f64,
    pub to_host_gb_per_s: f64,
    pub products: Vec<ProductRate>,
}

/// Products out of registers.
#[derive(Debug, Clone, Serialize)]
pub struct ProductRate {
    /// For example `mma.sync m16n8k16`.
    pub instruction: String,
    /// Multiplications and additions, floating-point or whole-number.
    pub tera_ops_per_s: f64,
}

/// One projection of a 32B model in 4 bits, alone and with nothing of it in the L2.
#[derive(Debug, Clone, Serialize)]
pub struct ProjectionRate {
    pub matrix: String,
    pub rows: usize,
    pub n: usize,
    pub k: usize,
    /// `f16` or `int8`.
    pub activations: String,
    /// The kernel and its launch shape.
    pub kernel: String,
    /// Median.
    pub us: f64,
    pub weight_gb_per_s: f64,
    pub tera_ops_per_s: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct LaunchTimes {
    /// The host's time to queue a launch.
    pub host_us: f64,
    /// From the start of one empty kernel to the next, in a stream.
    pub stream_us: f64,
    /// The same in a captured graph.
    pub graph_us: f64,
    /// A small norm that starts while the one before it ends, in a captured graph.
    pub dependent_us: f64,
    /// From queueing an empty kernel to the host's knowing that it ran.
    pub round_trip_us: f64,
}

/// A launch in clusters of blocks.
#[derive(Debug, Clone, Serialize)]
pub struct Clusters {
    pub kernel: String,
    pub n_threads: u32,
    pub shared_bytes: usize,
    /// Blocks of a cluster that the launcher wants, and that it uses here.
    pub wanted: u32,
    pub used: u32,
    /// (blocks of a cluster, clusters that the card holds at a time)
    pub n_active: Vec<(u32, usize)>,
}

impl From<ClusterLaunch> for Clusters {
    fn from(launch: ClusterLaunch) -> Self {
        Self {
            kernel: launch.kernel,
            n_threads: launch.n_threads,
            shared_bytes: launch.shared_bytes,
            wanted: launch.wanted,
            used: launch.used,
            n_active: CLUSTERS.into_iter().zip(launch.n_active).collect(),
        }
    }
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct CpuReport {
    pub read_gb_per_s: Option<f64>,
    /// Products out of registers: multiplications and additions.
    pub f32_tera_ops_per_s: Option<f64>,
    pub int8_tera_ops_per_s: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Passed,
    Failed,
}

#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub family: String,
    pub case: String,
    pub outcome: Outcome,
    /// How far off the result is, where that is a number.
    pub error: Option<f64>,
    pub limit: Option<f64>,
    /// Why it failed.
    pub message: Option<String>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}: ", self.family, self.case)?;
        match (&self.message, self.error) {
            (Some(message), _) => f.write_str(message),
            (None, Some(error)) => write!(f, "off by {error:.2e}"),
            (None, None) => f.write_str("passed"),
        }
    }
}
