//! `bench [arguments]`: the kernels' benchmarks, of the GPU where there is one, else of the CPU. The
//! GPU's compiles its kernels itself where `build --arch` has not.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::passed_on::PassedOn;
use crate::{cargo, kernels};

/// There on a Linux machine whose NVIDIA driver has a card.
const GPU: &str = "/dev/nvidiactl";

pub fn run(args: &PassedOn) -> Result<ExitCode> {
    let kernels = kernels::remembered()?;
    let mut words: Vec<String> = ["bench", "--package", "kernels"].map(String::from).into();
    if !names_a_target(&args.words) {
        let (target, reason) = choice(Path::new(GPU).exists());
        eprintln!("bench: {target}: {reason}");
        words.extend(["--bench".to_owned(), target.to_owned()]);
    }
    words.extend(args.words.iter().cloned());
    cargo::become_cargo_with_kernels(&words, kernels.as_deref())
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

/// Whether the user has chosen, so that nothing is chosen here.
fn names_a_target(arguments: &[String]) -> bool {
    let mut of_cargo = arguments.iter().take_while(|word| *word != "--");
    of_cargo.any(|word| word == "--benches" || word == "--bench" || word.starts_with("--bench="))
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
        let words =
            |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
        assert!(names_a_target(&words("--bench cuda_kernels")));
        assert!(names_a_target(&words("--bench=cpu_kernels -- decode")));
        assert!(!names_a_target(&words("")));
        assert!(!names_a_target(&words("-- --bench")));
    }
}
