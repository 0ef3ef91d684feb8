//! `engine selftest`: whether this machine computes right, and how fast its parts are, in one file.
//!
//! On a GPU: what it is, every kernel family against f64 at small shapes and at those of a 32B
//! model, a two-layer model against the CPU executor, rates of memory and products, launches and
//! clusters. On every machine: the CPU executor against a plain forward pass in f64, and the rates of
//! memory and products. Everything is seeded, so two machines compute the same cases.
//!
//! A check that fails, or cannot run, is a line of its own in [`Report::failures`]; nothing stops at
//! the first one, unless the GPU is lost.
//!
//! [`report`] is what is written, [`checks`] collects, [`cpu`] and [`gpu`] run.
//! Deliberately absent: verdicts about speed. A figure is compared by who reads the file.

mod attention;
mod checks;
mod cpu;
mod gpu;
mod launches;
mod linear;
mod model;
mod random;
mod rates;
pub mod report;
mod rows;
mod sampling;
mod text;
mod twin;

use std::time::Instant;

use ::gpu::{CardProfile, CudaError, Device};

use self::checks::Checks;
pub use self::report::{BuiltFrom, Report};
use self::report::{EngineInfo, GpuReport, HostInfo, SCHEMA_VERSION};

/// What to test.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SelftestOptions {
    /// The chip that the GPU is treated as; `None`: the one named by `ENGINE_CARD_PROFILE`, or its
    /// own.
    pub card_profile: Option<CardProfile>,
    /// A machine without a usable GPU fails; otherwise it is only said.
    pub needs_gpu: bool,
}

/// Runs everything. `progress` is called with the name of each part as it begins.
pub fn run(options: SelftestOptions, built_from: BuiltFrom, progress: &dyn Fn(&str)) -> Report {
    let started = Instant::now();
    let mut checks = Checks::default();
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let profile = options.card_profile.map_or_else(
        || CardProfile::from_environment().map_err(CudaError::from),
        |profile| Ok(Some(profile)),
    );
    let opened = profile.and_then(|profile| Device::open_as(0, profile));
    let (gpu, no_gpu) = match opened {
        Ok(device) => {
            let mut report = GpuReport::of(&device);
            gpu::run(&device, &mut report, &mut checks, progress);
            (Some(report), None)
        }
        Err(error) => {
            let why = why_no_gpu(&error, Device::count());
            if options.needs_gpu || why.is_fault {
                checks.fail("gpu", "open", why.text.clone());
            }
            (None, Some(why.text))
        }
    };
    progress("CPU");
    let cpu = cpu::run(n_threads, &mut checks);
    Report {
        schema_version: SCHEMA_VERSION,
        engine: EngineInfo::of(built_from),
        card_profile: gpu.as_ref().and_then(|gpu| gpu.card_profile.clone()),
        host: HostInfo::new(n_threads),
        gpu,
        no_gpu,
        cpu,
        failures: checks.failures(),
        checks: checks.into_list(),
        elapsed_s: started.elapsed().as_secs_f64(),
    }
}

/// Why no GPU was tested.
struct NoGpu {
    text: String,
    /// There is a GPU, and it cannot be used as asked.
    is_fault: bool,
}

/// A machine without a driver or a GPU is in order; a GPU that this program cannot use is not.
fn why_no_gpu(error: &CudaError, n_devices: usize) -> NoGpu {
    let is_absent = matches!(error, CudaError::NoDriver | CudaError::NoDevice { .. })
        || (n_devices == 0
            && !matches!(
                error,
                CudaError::OldDriver { .. } | CudaError::UnknownProfile(_)
            ));
    NoGpu {
        text: error.to_string(),
        is_fault: !is_absent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_gpu_is_in_order_and_one_with_an_unusable_gpu_is_not() {
        let too_old = CudaError::TooOld {
            name: "NVIDIA A100".to_owned(),
            found: "8.0".to_owned(),
            needed: "9.0".to_owned(),
        };
        let absent = CudaError::NoDevice {
            ordinal: 0,
            n_devices: 0,
        };
        assert!(!why_no_gpu(&CudaError::NoDriver, 0).is_fault);
        assert!(!why_no_gpu(&absent, 0).is_fault);
        let why = why_no_gpu(&too_old, 1);
        assert!(why.is_fault && why.text.contains("NVIDIA A100 has compute capability 8.0"));
        let no_kernels = CudaError::NoKernels {
            wanted: "sm_90".to_owned(),
        };
        assert!(why_no_gpu(&no_kernels, 1).is_fault);
        let old_driver = CudaError::OldDriver {
            found: "12.2".to_owned(),
            needed: "12.8".to_owned(),
        };
        assert!(why_no_gpu(&old_driver, 0).is_fault);
    }

    /// The CPU's part, as it runs anywhere.
    #[test]
    fn a_machine_without_a_gpu_tests_its_cpu_and_the_report_is_complete() {
        if Device::count() > 0 {
            return;
        }
        let built_from = BuiltFrom {
            commit: Some("0123abc"),
        };
        let report = run(SelftestOptions::default(), built_from, &|_| {});
        assert_eq!(report.failures, Vec::<String>::new());
        assert!(report.gpu.is_none() && report.no_gpu.is_some());
        assert!(report.checks.len() >= 2, "{:?}", report.checks);
        let json = serde_json::to_value(&report).expect("json");
        assert_eq!(json["schema_version"], SCHEMA_VERSION);
        assert_eq!(json["engine"]["commit"], "0123abc");
        assert!(json["cpu"]["read_gb_per_s"].as_f64().expect("a rate") > 0.0);
        let text = report.to_string();
        assert!(
            text.contains("no GPU was tested") && text.contains("passed"),
            "{text}"
        );

        let asked = SelftestOptions {
            needs_gpu: true,
            ..SelftestOptions::default()
        };
        let report = run(asked, BuiltFrom { commit: None }, &|_| {});
        assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
    }
}
