//! `engine selftest`: whether this machine computes right, and how fast its parts are.

use std::io::Write;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use engine::executor::cuda::CardProfile;
use engine::selftest::{BuiltFrom, SelftestOptions, run};

#[derive(Debug, Args)]
pub struct SelftestArgs {
    /// Print one JSON object, the file to send in, in place of text
    #[arg(long)]
    json: bool,

    /// Treat the GPU as another chip: its limits, kernels and launch shapes, not its speed
    #[arg(long, value_name = "sm_120[:MULTIPROCESSORS]")]
    card_profile: Option<CardProfile>,

    /// With cuda, a machine without a usable GPU fails
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    device: Device,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Device {
    /// A GPU if there is one
    Auto,
    Cuda,
}

/// What `cargo xtask` built this program from.
const BUILT_FROM: BuiltFrom = BuiltFrom {
    commit: option_env!("ENGINE_COMMIT"),
};

/// The report on standard output; what runs, and each failure, on standard error.
pub fn selftest(args: &SelftestArgs) -> Result<()> {
    let options = SelftestOptions {
        card_profile: args.card_profile,
        needs_gpu: args.device == Device::Cuda || args.card_profile.is_some(),
    };
    let report = run(options, BUILT_FROM, &|part| {
        let _ = writeln!(std::io::stderr(), "selftest: {part}");
    });
    let mut text = if args.json {
        serde_json::to_string_pretty(&report).context("the report")?
    } else {
        report.to_string()
    };
    text.push('\n');
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to standard output")?;
    if report.failures.is_empty() {
        return Ok(());
    }
    if args.json {
        for failure in &report.failures {
            let _ = writeln!(std::io::stderr(), "FAILED {failure}");
        }
    }
    bail!(
        "selftest: {} of {} checks failed",
        report.failures.len(),
        report.checks.len()
    )
}
