//! `bench [arguments]`: the kernels' benchmarks, of the GPU where there is one, else of the CPU. The
//! GPU's compiles its kernels itself where `build --arch` has not.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::trailing_args::TrailingArgs;
use crate::{cargo, kernels};

/// Exists on a Linux machine whose NVIDIA driver has a GPU.
const GPU: &str = "/dev/nvidiactl";

pub fn run(args: &TrailingArgs) -> Result<ExitCode> {
    let kernels = kernels::remembered()?;
    let mut arguments: Vec<String> = ["bench", "--package", "kernels"].map(String::from).into();
    if !names_a_target(&args.args) {
        let (target, reason) = choice(Path::new(GPU).exists());
        eprintln!("bench: {target}: {reason}");
        arguments.extend(["--bench".to_owned(), target.to_owned()]);
    }
    arguments.extend(args.args.iter().cloned());
    cargo::exec_cargo_with_kernels(&arguments, kernels.as_deref())
}

/// The bench target and why.
fn choice(has_gpu: bool) -> (&'static str, &'static str) {
    if has_gpu {
        (
            "cuda_kernels",
            "there is an NVIDIA GPU (`--bench cpu_kernels` measures the CPU's)",
        )
    } else {
        ("cpu_kernels", "there is no NVIDIA GPU")
    }
}

/// Whether the user has selected a target.
fn names_a_target(arguments: &[String]) -> bool {
    let mut of_cargo = arguments.iter().take_while(|arg| *arg != "--");
    of_cargo.any(|arg| arg == "--benches" || arg == "--bench" || arg.starts_with("--bench="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gpu_is_measured_where_there_is_one() {
        assert_eq!(choice(true).0, "cuda_kernels");
        assert_eq!(choice(false).0, "cpu_kernels");
    }

    #[test]
    fn what_the_user_names_is_left_alone() {
        let args =
            |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
        assert!(names_a_target(&args("--bench cuda_kernels")));
        assert!(names_a_target(&args("--bench=cpu_kernels -- decode")));
        assert!(!names_a_target(&args("")));
        assert!(!names_a_target(&args("-- --bench")));
    }
}
