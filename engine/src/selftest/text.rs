//! A report for people.

use std::fmt;

use super::report::{GpuReport, Outcome, Report};

const GIB: f64 = (1_u64 << 30) as f64;
const KIB: f64 = 1024.0;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = &self.engine;
        let commit = engine.commit.as_deref().unwrap_or("of an unknown commit");
        writeln!(f, "engine {} {commit}", engine.version)?;
        if !engine.is_optimised {
            writeln!(f, "  a debug build: its rates of the CPU say nothing")?;
        }
        match (&self.gpu, &self.no_gpu) {
            (Some(gpu), _) => write_gpu(f, gpu)?,
            (None, Some(why)) => writeln!(f, "no GPU was tested: {why}")?,
            (None, None) => {}
        }
        writeln!(
            f,
            "CPU: {}, {} threads, {}",
            self.host.processor, self.host.n_threads, self.host.instruction_set
        )?;
        let cpu = &self.cpu;
        if let (Some(read), Some(f32), Some(int8)) = (
            cpu.read_gb_per_s,
            cpu.f32_tera_ops_per_s,
            cpu.int8_tera_ops_per_s,
        ) {
            writeln!(
                f,
                "  read {read:.1} GB/s, products {f32:.2} TFLOP/s in f32, {int8:.2} TOP/s in int8"
            )?;
        }
        write_checks(f, self)
    }
}

fn write_gpu(f: &mut fmt::Formatter<'_>, gpu: &GpuReport) -> fmt::Result {
    writeln!(f, "GPU: {}", gpu.name)?;
    if let Some(profile) = &gpu.card_profile {
        writeln!(
            f,
            "  treated as {profile}: its limits, kernels and launch shapes, not its speed"
        )?;
    }
    writeln!(
        f,
        "  compute capability {}, code {}, {} multiprocessors at up to {:.0} MHz, driver for CUDA {}",
        gpu.compute_capability, gpu.code, gpu.n_multiprocessors, gpu.clock_mhz, gpu.driver_cuda
    )?;
    writeln!(
        f,
        "  {:.1} GiB of memory, {} bits at {:.0} MHz ({:.0} GB/s at most), L2 {:.0} MiB, shared \
         memory {:.0} KiB a block, {:.0} KiB a multiprocessor",
        gpu.memory_bytes as f64 / GIB,
        gpu.memory_bus_bits,
        gpu.memory_clock_mhz,
        gpu.memory_peak_gb_per_s,
        gpu.l2_bytes as f64 / KIB / KIB,
        gpu.shared_bytes_per_block as f64 / KIB,
        gpu.shared_bytes_per_multiprocessor as f64 / KIB
    )?;
    if let Some(rates) = &gpu.rates {
        writeln!(
            f,
            "  memory: read {:.0} GB/s, copy {:.0} GB/s; host to device {:.1} GB/s, back {:.1} GB/s",
            rates.read_gb_per_s,
            rates.copy_gb_per_s,
            rates.to_device_gb_per_s,
            rates.to_host_gb_per_s
        )?;
        for product in &rates.products {
            writeln!(
                f,
                "  products: {} {:.0} T/s",
                product.instruction, product.tera_ops_per_s
            )?;
        }
    }
    if let Some(times) = &gpu.launches {
        writeln!(
            f,
            "  a launch: {:.1} us of the host, {:.1} us in a stream, {:.1} us in a graph, {:.1} us \
             dependent; {:.1} us there and back",
            times.host_us, times.stream_us, times.graph_us, times.dependent_us, times.round_trip_us
        )?;
    }
    for cluster in &gpu.clusters {
        let sizes: Vec<String> = cluster
            .n_active
            .iter()
            .map(|(size, n)| format!("{n} of {size}"))
            .collect();
        let fallback = if cluster.used < cluster.wanted {
            format!("; wants {}, uses {}", cluster.wanted, cluster.used)
        } else {
            String::new()
        };
        writeln!(
            f,
            "  clusters that fit, {} ({} threads, {:.0} KiB a block): {}{fallback}",
            cluster.kernel,
            cluster.n_threads,
            cluster.shared_bytes as f64 / KIB,
            sizes.join(", ")
        )?;
    }
    for rate in &gpu.projections {
        writeln!(
            f,
            "  {:<8} {:>5} rows {:<4} {:>9.1} us {:>6.0} GB/s {:>6.1} T/s  {}",
            rate.matrix,
            rate.rows,
            rate.activations,
            rate.us,
            rate.weight_gb_per_s,
            rate.tera_ops_per_s,
            rate.kernel
        )?;
    }
    Ok(())
}

fn write_checks(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let n_passed = |family: &str| {
        let of_family = report.checks.iter().filter(|check| check.family == family);
        let passed = of_family.filter(|check| check.outcome == Outcome::Passed);
        passed.count()
    };
    let mut families: Vec<&str> = Vec::new();
    for check in &report.checks {
        if !families.contains(&check.family.as_str()) {
            families.push(&check.family);
        }
    }
    for family in families {
        let of_family = report.checks.iter().filter(|check| check.family == family);
        writeln!(
            f,
            "{family}: {} of {} passed",
            n_passed(family),
            of_family.count()
        )?;
    }
    for failure in &report.failures {
        writeln!(f, "FAILED {failure}")?;
    }
    write!(
        f,
        "{} checks, {} failed, {:.1} s",
        report.checks.len(),
        report.failures.len(),
        report.elapsed_s
    )
}
