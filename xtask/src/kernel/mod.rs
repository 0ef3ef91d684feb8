//! `kernel <op>`: one op's CUDA kernels, from an edit to a figure. Compiles and audits the op's
//! sources, checks them against the plain reference (the op's GPU tests), times them (the op's part
//! of the bench `cuda_kernels`), and prints the rate, its share of the roofline and what was measured
//! before. Tests and bench load the compiled kernels at run time, so Rust is not built again for a
//! changed `.cu`.

mod against;
mod figures;
mod gpu;
pub mod op;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use duct::{Expression, cmd};

use self::against::Against;
use self::figures::Figure;
use self::op::Op;
use crate::kernels::of_op::Builder;
use crate::{cargo, kernels};

/// A folder of compiled kernels for tests and benches (`kernels/gpu/src/embedded.rs`).
const TEST_KERNELS: &str = "ENGINE_TEST_KERNELS_DIR";
const EMBEDDED_KERNELS: &str = "ENGINE_KERNELS_DIR";
/// Read by the bench.
const BENCH_OP: &str = "ENGINE_BENCH_OP";
const BENCH_SHAPE: &str = "ENGINE_BENCH_SHAPE";
const BENCH_JSON: &str = "ENGINE_BENCH_JSON";
/// Nothing was checked or timed.
const NO_GPU: u8 = 3;

#[derive(Args)]
pub struct KernelArgs {
    /// A folder below kernels/src with CUDA sources, or `all`
    op: String,
    /// The GPU to compile for; this machine's by default, all where it has none
    #[arg(long, value_name = "ARCH", value_parser = kernels::ARCHITECTURES)]
    arch: Option<String>,
    /// Rows, in place of the model's
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    m: Option<u32>,
    /// Columns, in place of the model's; of attention tokens, of sampling the vocabulary
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    n: Option<u32>,
    /// Columns of the input (with --n)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), requires = "n")]
    k: Option<u32>,
    /// Compare with the kernels of this commit
    #[arg(long, value_name = "REVISION")]
    against: Option<String>,
    /// Compile and audit, no more
    #[arg(long)]
    build_only: bool,
}

pub fn run(args: &KernelArgs) -> Result<ExitCode> {
    let root = cargo::root()?;
    let op = Op::find(&args.op)?;
    let shape = shape(op, args)?;
    let gpu = gpu::find();
    let architectures = match (&args.arch, &gpu) {
        (Some(asked), _) => vec![asked.clone()],
        (None, Some(gpu)) => vec![gpu.architecture.clone()],
        (None, None) => kernels::ARCHITECTURES.map(String::from).into(),
    };
    let builder = Builder::of_this_tree(&architectures)?;
    let compiled = builder.own(op)?;
    let against = match &args.against {
        Some(revision) => {
            let against = Against::check_out(&root, revision, &builder)?;
            println!("\n{}", against.compare(op, &compiled)?);
            Some(against)
        }
        None => None,
    };
    if args.build_only {
        println!("{}", builder.index(op.name, &compiled)?.display());
        return Ok(ExitCode::SUCCESS);
    }
    let Some(gpu) = gpu else {
        eprintln!(
            "kernel: no NVIDIA GPU was found: {} was built and audited, but not checked against \
             the reference and not timed (--build-only asks for no more)",
            op.name
        );
        return Ok(ExitCode::from(NO_GPU));
    };
    if architectures != [gpu.architecture.as_str()] {
        bail!(
            "--arch {}: the GPU here, {}, is {}; nothing was checked or timed",
            architectures.join(", "),
            gpu.name,
            gpu.architecture
        );
    }
    let folder = builder.with_support(op)?;
    check(&root, op, &folder)?;
    let new = measure(&root, op, &folder, &shape)?;
    let other = match &against {
        Some(against) => Some(measure_commit(&root, op, against, &shape)?),
        None => None,
    };
    let other = against.as_ref().zip(other.as_ref());
    let other = other.map(|(against, figures)| (against.name.as_str(), figures.as_slice()));
    let committed = figures::committed(&root)?;
    println!("\n{}", figures::table(&new, &committed, other));
    Ok(ExitCode::SUCCESS)
}

/// `m=8 n=5120 k=5120`, empty for the model's.
fn shape(op: &Op, args: &KernelArgs) -> Result<String> {
    let mut parts = Vec::new();
    for (name, value) in [('m', args.m), ('n', args.n), ('k', args.k)] {
        let Some(value) = value else { continue };
        if !op.shape.contains(name) {
            let known: Vec<_> = op.shape.chars().map(|name| format!("--{name}")).collect();
            match &known[..] {
                [] => bail!("--{name}: {} takes no shape", op.name),
                _ => bail!("--{name}: {} takes {}", op.name, known.join(", ")),
            }
        }
        parts.push(format!("{name}={value}"));
    }
    if op.shape.contains('k') && args.n.is_some() && args.k.is_none() {
        bail!("--n without --k: {} needs both or none", op.name);
    }
    Ok(parts.join(" "))
}

/// The op's tests against the reference, those that need a GPU included.
fn check(root: &Path, op: &Op, folder: &Path) -> Result<()> {
    let mut args: Vec<String> = ["test", "--release", "--quiet", "--package", "kernels"]
        .map(String::from)
        .into();
    for test in op.tests(root)? {
        args.extend(["--test".to_owned(), test]);
    }
    args.extend(["--", "--include-ignored"].map(String::from));
    let tests = cmd("cargo", args)
        .dir(root)
        .env(TEST_KERNELS, folder)
        .env_remove(EMBEDDED_KERNELS);
    succeed(&tests, "the check against the reference")
}

fn measure(root: &Path, op: &Op, folder: &Path, shape: &str) -> Result<Vec<Figure>> {
    let json = json_file(op, "here")?;
    let bench = cmd!(
        "cargo",
        "bench",
        "--package",
        "kernels",
        "--bench",
        "cuda_kernels"
    )
    .dir(root)
    .env_remove(EMBEDDED_KERNELS)
    .env(TEST_KERNELS, folder);
    let bench = with_bench_variables(&bench, op, shape, &json);
    succeed(&bench, "the bench")?;
    figures::read(&json)
}

/// By this tree's bench if it can launch the commit's kernels, else by the commit's own, built in its
/// tree with its kernels embedded. One that does not know single shapes measures the model's.
fn measure_commit(root: &Path, op: &Op, against: &Against, shape: &str) -> Result<Vec<Figure>> {
    let folder = against.folder_to_run(op)?;
    if against.has_same_host_code {
        return measure(root, op, &folder, shape);
    }
    eprintln!(
        "kernel: the launchers of {} are not those of this tree, so its own bench measures it",
        against.name
    );
    let json = json_file(op, "against")?;
    let filter = match op.groups {
        [] => String::new(),
        groups => format!("^({})/", groups.join("|")),
    };
    let bench = cmd!(
        "cargo",
        "bench",
        "--package",
        "kernels",
        "--bench",
        "cuda_kernels",
        "--",
        filter
    )
    .dir(&against.tree)
    .env("CARGO_TARGET_DIR", cargo::target_dir()?.join("against"))
    .env_remove(TEST_KERNELS)
    .env(EMBEDDED_KERNELS, folder);
    let bench = with_bench_variables(&bench, op, shape, &json);
    succeed(&bench, &format!("the bench of {}", against.name))?;
    figures::read(&json)
}

fn with_bench_variables(bench: &Expression, op: &Op, shape: &str, json: &Path) -> Expression {
    let op = if op.is_all() { "" } else { op.name };
    bench
        .env(BENCH_OP, op)
        .env(BENCH_SHAPE, shape)
        .env(BENCH_JSON, json)
}

/// An older one is removed: it must not be taken for a new one.
fn json_file(op: &Op, name: &str) -> Result<PathBuf> {
    let path = cargo::target_dir()?
        .join("kernels")
        .join(format!("{}-{name}.jsonl", op.name));
    if path.exists() {
        fs::remove_file(&path).with_context(|| path.display().to_string())?;
    }
    Ok(path)
}

/// What the program prints goes to stderr: stdout is for the result.
fn succeed(program: &Expression, what: &str) -> Result<()> {
    let status = program
        .stdout_to_stderr()
        .unchecked()
        .run()
        .context("cargo cannot be started")?
        .status;
    if !status.success() {
        bail!("{what} failed ({status})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(op: &str, [m, n, k]: [Option<u32>; 3]) -> KernelArgs {
        KernelArgs {
            op: op.into(),
            arch: None,
            m,
            n,
            k,
            against: None,
            build_only: false,
        }
    }

    fn shape_of(op: &str, mnk: [Option<u32>; 3]) -> Result<String> {
        shape(Op::find(op).expect("known"), &args(op, mnk))
    }

    #[test]
    fn an_op_takes_the_numbers_of_its_shape_alone() {
        let all = [Some(8), Some(5120), Some(5120)];
        let words = shape_of("stream_linear", all).expect("its shape");
        assert_eq!(words, "m=8 n=5120 k=5120");
        let text = |op, mnk| shape_of(op, mnk).expect_err("refused").to_string();
        assert_eq!(text("rms_norm", all), "--k: rms_norm takes --m, --n");
        assert_eq!(text("roofline", all), "--m: roofline takes no shape");
        let half = [None, Some(5120), None];
        assert_eq!(
            text("stream_linear", half),
            "--n without --k: stream_linear needs both or none"
        );
        assert_eq!(shape_of("all", [None; 3]).expect("none"), "");
    }
}
