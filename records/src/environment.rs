//! The machine a run took place on: `environment.json`.

use serde::{Deserialize, Serialize};

/// `environment.json`: the machine. A name that cannot be read is `unknown` or null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Environment {
    pub host: String,
    /// Distribution, `Debian GNU/Linux 12 (bookworm)`.
    pub os: String,
    /// `Linux 6.1.0-18-amd64 x86_64`.
    #[serde(default)]
    pub kernel: Option<String>,
    pub cpu: Cpu,
    pub memory_bytes: u64,
    #[serde(default)]
    pub gpu: Option<Gpu>,
    #[serde(default)]
    pub rustc: Option<String>,
    /// Over one, five and fifteen minutes at the start of the campaign; absent in records of older
    /// versions.
    #[serde(default)]
    pub load_average: Option<[f64; 3]>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cpu {
    pub model: String,
    /// Cores available to this process, which a container may limit.
    pub n_cores: u32,
    /// The instruction-set extensions that decide which kernels run.
    #[serde(default)]
    pub flags: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Gpu {
    pub name: String,
    #[serde(default)]
    pub driver: Option<String>,
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    #[serde(default)]
    pub clocks: Option<Clocks>,
    #[serde(default)]
    pub power_limit_w: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Clocks {
    pub max_sm_mhz: Option<f64>,
    pub max_memory_mhz: Option<f64>,
}

impl Environment {
    /// The machine's name in tables: its GPU, otherwise its CPU.
    pub fn device(&self) -> String {
        match &self.gpu {
            Some(gpu) => gpu.name.clone(),
            None => format!("{} ({} cores)", self.cpu.model, self.cpu.n_cores),
        }
    }
}
