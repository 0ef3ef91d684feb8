//! CUDA kernels for given architectures.

use anyhow::{Result, bail};

/// CUDA kernels are not part of this build: asking for them is an error, not a build without.
pub fn compile(architectures: &[String]) -> Result<()> {
    bail!(
        "--arch {}: CUDA kernels are not part of this build; the engine runs on the CPU",
        architectures.join(" ")
    );
}
