//! The machine's energy meters: NVML's of the first GPU, RAPL's of the processor packages.
//!
//! NVML is the driver's library and is loaded as the program runs. A GPU without an energy counter, or
//! one that only `nvidia-smi` can ask, has its power summed over time. A machine without a meter has
//! no energy in its records: absent, never zero.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nvml_wrapper::Nvml;
pub use records::rows::{CaseEnergy, EnergySource};

use crate::record::environment;

/// Where Linux shows RAPL's counters.
pub const POWERCAP_DIR: &str = "/sys/class/powercap";
/// GPUs renew their counters several times a second; less than this cannot be told.
const LEAST_METERED_S: f64 = 1.0;

/// What the meters say at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    at: Instant,
    pub gpu_power_w: Option<f64>,
    pub gpu_memory_bytes: Option<u64>,
    /// Since the meters were opened, as is the next.
    pub gpu_energy_j: Option<f64>,
    gpu_source: Option<EnergySource>,
    pub cpu_energy_j: Option<f64>,
}

/// Meters that the sampler and the cases read.
#[derive(Debug, Clone)]
pub struct SharedMeters(Arc<Mutex<Meters>>);

impl SharedMeters {
    pub fn open(has_gpu: bool, powercap: &Path) -> Self {
        Self(Arc::new(Mutex::new(Meters::open(has_gpu, powercap))))
    }

    /// Takes milliseconds, or tens of them where [`Self::is_slow`].
    pub fn read(&self) -> Reading {
        self.lock().read()
    }

    /// Whether reading starts a program.
    pub fn is_slow(&self) -> bool {
        matches!(self.lock().gpu, Some(GpuMeter::NvidiaSmi))
    }

    /// What is metered, and what is not.
    pub fn describe(&self) -> String {
        self.lock().describe()
    }

    fn lock(&self) -> MutexGuard<'_, Meters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Meters {
    gpu: Option<GpuMeter>,
    /// The counter's first value.
    gpu_start_j: Option<f64>,
    summed: PowerSum,
    packages: Vec<Package>,
    powercap: PathBuf,
}

enum GpuMeter {
    Nvml(Box<Nvml>),
    NvidiaSmi,
}

impl fmt::Debug for GpuMeter {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Nvml(_) => "NVML",
            Self::NvidiaSmi => "nvidia-smi",
        })
    }
}

/// What a GPU says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct GpuReading {
    power_w: Option<f64>,
    memory_bytes: Option<u64>,
    counter_j: Option<f64>,
}

impl Meters {
    fn open(has_gpu: bool, powercap: &Path) -> Self {
        let with_nvml = || match Nvml::init() {
            Ok(nvml) => GpuMeter::Nvml(Box::new(nvml)),
            Err(_) => GpuMeter::NvidiaSmi,
        };
        Self {
            gpu: has_gpu.then(with_nvml),
            gpu_start_j: None,
            summed: PowerSum::default(),
            packages: packages_in(powercap),
            powercap: powercap.to_owned(),
        }
    }

    fn read(&mut self) -> Reading {
        let gpu = self.gpu.as_ref().map(GpuMeter::read).unwrap_or_default();
        let at = Instant::now();
        let (gpu_energy_j, gpu_source) = if let Some(counter_j) = gpu.counter_j {
            let start_j = *self.gpu_start_j.get_or_insert(counter_j);
            (Some(counter_j - start_j), Some(EnergySource::Counter))
        } else {
            let summed_j = self.summed.add(at, gpu.power_w);
            (summed_j, summed_j.map(|_| EnergySource::Power))
        };
        let packages: Option<Vec<f64>> = self.packages.iter_mut().map(Package::read_j).collect();
        Reading {
            at,
            gpu_power_w: gpu.power_w,
            gpu_memory_bytes: gpu.memory_bytes,
            gpu_energy_j,
            gpu_source,
            cpu_energy_j: packages
                .filter(|all| !all.is_empty())
                .map(|all| all.iter().sum()),
        }
    }

    fn describe(&self) -> String {
        let gpu = match &self.gpu {
            Some(meter) => format!("the GPU's by {meter:?}"),
            None => "no GPU".into(),
        };
        let processor = match self.packages.len() {
            0 => format!(
                "the processor's is not recorded, {} has no counter that can be read",
                self.powercap.display()
            ),
            n => format!("the processor's by RAPL, {n} package(s)"),
        };
        format!("{gpu}; {processor}")
    }
}

impl GpuMeter {
    fn read(&self) -> GpuReading {
        match self {
            Self::Nvml(nvml) => {
                let Ok(gpu) = nvml.device_by_index(0) else {
                    return GpuReading::default();
                };
                GpuReading {
                    power_w: gpu.power_usage().ok().map(|mw| f64::from(mw) / 1e3),
                    memory_bytes: gpu.memory_info().ok().map(|memory| memory.used),
                    counter_j: gpu
                        .total_energy_consumption()
                        .ok()
                        .map(|mj| mj as f64 / 1e3),
                }
            }
            Self::NvidiaSmi => {
                let (memory_bytes, power_w) = environment::gpu_memory_and_power();
                GpuReading {
                    power_w,
                    memory_bytes,
                    counter_j: None,
                }
            }
        }
    }
}

/// Power over time, by trapezoids.
#[derive(Debug, Default)]
struct PowerSum {
    last: Option<(Instant, f64)>,
    joules: f64,
}

impl PowerSum {
    /// The energy so far; none while the power is unknown.
    fn add(&mut self, at: Instant, power_w: Option<f64>) -> Option<f64> {
        let power_w = power_w?;
        if let Some((last, last_w)) = self.last.replace((at, power_w)) {
            let seconds = at.saturating_duration_since(last).as_secs_f64();
            self.joules += seconds * (power_w + last_w) / 2.0;
        }
        Some(self.joules)
    }
}

/// A processor package's counter, which begins anew at its limit.
#[derive(Debug)]
struct Package {
    counter: PathBuf,
    limit_uj: u64,
    last_uj: u64,
    total_uj: u64,
}

impl Package {
    fn read_j(&mut self) -> Option<f64> {
        let now_uj = number_in(&self.counter)?;
        self.total_uj += if now_uj >= self.last_uj {
            now_uj - self.last_uj
        } else {
            self.limit_uj.saturating_sub(self.last_uj) + now_uj
        };
        self.last_uj = now_uj;
        Some(self.total_uj as f64 / 1e6)
    }
}

/// Packages whose counter can be read; domains below one are part of it. Since 2020 Linux shows the
/// counters to root alone.
fn packages_in(powercap: &Path) -> Vec<Package> {
    let Ok(entries) = fs::read_dir(powercap) else {
        return Vec::new();
    };
    let mut zones: Vec<PathBuf> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
    zones.sort();
    let package = |zone: &PathBuf| {
        let name = fs::read_to_string(zone.join("name")).ok()?;
        let counter = zone.join("energy_uj");
        let last_uj = number_in(&counter).filter(|_| name.starts_with("package"))?;
        Some(Package {
            limit_uj: number_in(&zone.join("max_energy_range_uj")).unwrap_or(last_uj),
            counter,
            last_uj,
            total_uj: 0,
        })
    };
    zones.iter().filter_map(package).collect()
}

fn number_in(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What was used between two readings; `None` without a meter and for what is too short.
pub fn between(before: &Reading, after: &Reading) -> Option<CaseEnergy> {
    let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
    let used = |from: Option<f64>, to: Option<f64>| Some(to? - from?).filter(|j| *j > 0.0);
    let gpu_j = used(before.gpu_energy_j, after.gpu_energy_j);
    let energy = CaseEnergy {
        seconds,
        gpu_j,
        gpu_source: after.gpu_source.filter(|_| gpu_j.is_some()),
        cpu_j: used(before.cpu_energy_j, after.cpu_energy_j),
    };
    let is_metered = energy.gpu_j.or(energy.cpu_j).is_some();
    (is_metered && seconds >= LEAST_METERED_S).then_some(energy)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn powercap(zones: &[(&str, &str, u64)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary folder");
        for (zone, name, uj) in zones {
            let zone = dir.path().join(zone);
            fs::create_dir(&zone).expect("made");
            for (file, text) in [
                ("name", format!("{name}\n")),
                ("energy_uj", format!("{uj}\n")),
                ("max_energy_range_uj", "10000000\n".into()),
            ] {
                fs::write(zone.join(file), text).expect("written");
            }
        }
        dir
    }

    #[test]
    fn packages_are_summed_and_counters_may_begin_anew() {
        let dir = powercap(&[
            ("intel-rapl:0", "package-0", 9_000_000),
            ("intel-rapl:0:0", "core", 5_000_000),
            ("intel-rapl:1", "package-1", 1_000_000),
            ("intel-rapl:2", "psys", 1),
        ]);
        let set = |zone: &str, uj: u64| {
            fs::write(dir.path().join(zone).join("energy_uj"), uj.to_string()).expect("written");
        };
        let mut meters = Meters::open(false, dir.path());
        assert_eq!(meters.read().cpu_energy_j, Some(0.0));
        set("intel-rapl:0", 500_000);
        set("intel-rapl:0:0", 9_000_000);
        set("intel-rapl:1", 3_000_000);
        // 1 J to the limit and 0.5 J beyond, and 2 J.
        assert_eq!(meters.read().cpu_energy_j, Some(3.5));
        assert!(meters.describe().contains("RAPL, 2 package(s)"));
        fs::remove_file(dir.path().join("intel-rapl:1/energy_uj")).expect("removed");
        assert_eq!(meters.read().cpu_energy_j, None);
    }

    #[test]
    fn without_a_meter_there_is_no_energy() {
        let dir = tempfile::tempdir().expect("temporary folder");
        for powercap in [dir.path().to_owned(), dir.path().join("missing")] {
            let mut meters = Meters::open(false, &powercap);
            let reading = meters.read();
            assert_eq!((reading.gpu_energy_j, reading.cpu_energy_j), (None, None));
            let later = Reading {
                at: reading.at + Duration::from_secs(9),
                ..reading
            };
            assert_eq!(between(&reading, &later), None);
            assert!(meters.describe().contains("is not recorded"));
        }
    }

    #[test]
    fn power_is_summed_over_time() {
        let start = Instant::now();
        let mut sum = PowerSum::default();
        let at = |s: u64| start + Duration::from_secs(s);
        assert_eq!(sum.add(at(0), None), None);
        assert_eq!(sum.add(at(1), Some(100.0)), Some(0.0));
        assert_eq!(sum.add(at(3), Some(300.0)), Some(400.0));
        assert_eq!(sum.add(at(4), None), None);
        assert_eq!(sum.add(at(5), Some(300.0)), Some(1000.0));
    }

    #[test]
    fn a_case_uses_what_lies_between_its_readings() {
        let before = Reading {
            at: Instant::now(),
            gpu_power_w: Some(100.0),
            gpu_memory_bytes: None,
            gpu_energy_j: Some(10.0),
            gpu_source: Some(EnergySource::Counter),
            cpu_energy_j: None,
        };
        let after = |seconds: f64, gpu_energy_j: Option<f64>| Reading {
            at: before.at + Duration::from_secs_f64(seconds),
            gpu_energy_j,
            ..before
        };
        let used = between(&before, &after(4.0, Some(410.0))).expect("metered");
        assert_eq!((used.gpu_j, used.cpu_j), (Some(400.0), None));
        assert_eq!(used.gpu_source, Some(EnergySource::Counter));
        assert!((used.seconds - 4.0).abs() < 1e-9);
        assert_eq!(between(&before, &after(0.5, Some(60.0))), None);
        assert_eq!(between(&before, &after(4.0, None)), None);
        // A counter that stood still tells nothing.
        assert_eq!(between(&before, &after(4.0, Some(10.0))), None);
    }
}
