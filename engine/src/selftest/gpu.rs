//! The GPU's parts, one after the other.

use std::time::Instant;

use ::gpu::{CudaError, Device, Stream};

use super::checks::Checks;
use super::report::GpuReport;
use super::{attention, launches, linear, model, rates, rows, sampling};

type Part = fn(&Stream, &mut GpuReport, &mut Checks) -> Result<(), CudaError>;

const PARTS: [(&str, Part); 8] = [
    ("memory and products", |stream, report, _| {
        rates::measure(stream, report)
    }),
    ("launches and clusters", launches::measure),
    ("norms, embedding, SiLU", |stream, _, checks| {
        rows::check(stream, checks);
        Ok(())
    }),
    ("attention", |stream, _, checks| {
        attention::check(stream, checks)
    }),
    ("sampling", |stream, _, checks| {
        sampling::check(stream, checks);
        Ok(())
    }),
    ("projections", |stream, _, checks| {
        linear::check(stream, checks)
    }),
    ("speed of projections", |stream, report, _| {
        rates::projections(stream, report)
    }),
    ("two-layer model", |stream, _, checks| {
        model::check(stream, checks);
        Ok(())
    }),
];

/// Runs every part. One that cannot run is a failure, and the next one runs all the same, unless the
/// device is lost: then every call of this process would fail.
pub fn run(device: &Device, report: &mut GpuReport, checks: &mut Checks, progress: &dyn Fn(&str)) {
    for (i, (name, part)) in PARTS.into_iter().enumerate() {
        progress(name);
        let started = Instant::now();
        let outcome = Stream::new(device).and_then(|stream| part(&stream, report, checks));
        if let Err(error) = outcome {
            checks.fail(name, "run", error.to_string());
        }
        // Errors of launches that no check waited for come out here.
        let after = device.synchronize();
        report
            .parts_s
            .push((name.to_owned(), started.elapsed().as_secs_f64()));
        if let Err(error) = after {
            checks.fail(name, "wait for the GPU", error.to_string());
            if error.loses_device() {
                let left: Vec<_> = PARTS[i + 1..].iter().map(|(name, _)| *name).collect();
                let what = format!("the GPU is lost; not run: {}", left.join("; "));
                checks.fail("gpu", "lost", what);
                return;
            }
        }
    }
}
