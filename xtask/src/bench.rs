//! `bench [arguments]`: the kernels' benchmarks, of the GPU where there is one and kernels for it
//! were built, else of the CPU.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::trailing_args::TrailingArgs;
use crate::{cargo, kernels};

/// There on a Linux machine whose NVIDIA driver has a card.
const GPU: &str = "/dev/nvidiactl";

pub fn run(args: &TrailingArgs) -> Result<ExitCode> {
    let kernels = kernels::remembered()?;
    let mut words: Vec<String> = ["bench", "--package", "kernels"].map(String::from).into();
    if !names_a_target(&args.words) {
        let (target, reason) = choice(Path::new(GPU).exists(), kernels.is_some());
        eprintln!("bench: {target}: {reason}");
        words.extend(["--bench".to_owned(), target.to_owned()]);
    }
    words.extend(args.words.iter().cloned());
    cargo::exec_cargo_with_kernels(&words, kernels.as_deref())
}

/// The bench target and why.
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

/// Whether the user has chosen, so that nothing is chosen here.
fn names_a_target(arguments: &[String]) -> bool {
    let mut of_cargo = arguments.iter().take_while(|word| *word != "--");
    of_cargo.any(|word| word == "--benches" || word == "--bench" || word.starts_with("--bench="))
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
        let words =
            |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
        assert!(names_a_target(&words("--bench cuda_kernels")));
        assert!(names_a_target(&words("--bench=cpu_kernels -- decode")));
        assert!(!names_a_target(&words("")));
        assert!(!names_a_target(&words("-- --bench")));
    }
}
