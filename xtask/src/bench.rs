//! `bench [arguments]`: the kernels' benchmarks, of the GPU if there is one and kernels for it were
//! built, otherwise of the CPU.

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
        let (target, reason) = choice(Path::new(GPU).exists(), kernels.is_some());
        eprintln!("bench: {target}: {reason}");
        arguments.extend(["--bench".to_owned(), target.to_owned()]);
    }
    arguments.extend(args.args.iter().cloned());
    cargo::exec_cargo_with_kernels(&arguments, kernels.as_deref())
}

/// The bench target and the reason.
fn choice(has_gpu: bool, has_kernels: bool) -> (&'static str, &'static str) {
    match (has_gpu, has_kernels) {
        (true, true) => (
            "cuda_kernels",
            "there is an NVIDIA GPU (`--bench cpu_kernels` measures the CPU's)",
        ),
        (true, false) => (
            "cpu_kernels",
            "there is an NVIDIA GPU, but no kernels for it: `cargo xtask build --arch sm_120` (or \
             sm_90) comes first",
        ),
        (false, _) => ("cpu_kernels", "there is no NVIDIA GPU"),
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
    fn the_gpu_is_measured_where_it_can_be() {
        assert_eq!(choice(true, true).0, "cuda_kernels");
        for (has_gpu, has_kernels) in [(true, false), (false, true), (false, false)] {
            assert_eq!(choice(has_gpu, has_kernels).0, "cpu_kernels");
        }
        assert!(choice(true, false).1.contains("--arch"));
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
