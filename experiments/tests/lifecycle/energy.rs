//! Energy in the records: of a stand-in driver's library and `nvidia-smi`, and of a stand-in folder
//! of processor counters.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use records::rows::{CaseLoad, EnergySource, ServerSample};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::notebook::{Notebook, PROGRAM};

/// A GPU of 300 W whose counter goes on by 50 J whenever it is read.
const NVML: &str = "
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory;
static unsigned long long mj = 7000;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = &mj; return index ? 2 : 0; }
int nvmlDeviceGetPowerUsage(void *device, unsigned *mw) { *mw = 300000; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *out) { *out = mj += 50000; return 0; }
int nvmlDeviceGetMemoryInfo_v2(void *device, Memory *memory) { memory->used = 5 << 20; return 0; }
";

const NVIDIA_SMI: &str = "#!/bin/sh
case \"$1\" in
  --query-gpu=name,*) echo 'Stand-in GPU, 1.0, 1000, 100, 100, 300' ;;
  --query-gpu=memory.used,power.draw) echo '7, 250.5' ;;
  *) echo 7 ;;
esac
";

/// A token takes so long that the latency case lasts more than a second, and the others do not.
const TOKEN_S: &str = "0.1";

struct Machine {
    notebook: Notebook,
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self {
            notebook: Notebook::new(),
            dir: tempfile::tempdir().expect("temporary folder"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn with_nvidia_smi(self) -> Self {
        let path = self.path("nvidia-smi");
        fs::write(&path, NVIDIA_SMI).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        self
    }

    /// One that fails, in front of one that might be there.
    fn without_gpu(self) -> Self {
        let path = self.path("nvidia-smi");
        fs::write(&path, "#!/bin/sh\nexit 9\n").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        self
    }

    fn with_nvml(self) -> Self {
        let source = self.path("nvml.c");
        fs::write(&source, NVML).expect("written");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(self.path("libnvidia-ml.so.1"))
            .arg(&source)
            .status()
            .expect("a C compiler");
        assert!(status.success());
        self
    }

    /// A library that cannot be loaded, in front of one that might be there.
    fn without_nvml(self) -> Self {
        fs::write(self.path("libnvidia-ml.so.1"), "no library ".repeat(100)).expect("written");
        self
    }

    fn with_package(self, uj: &str) -> Self {
        let zone = self.path("powercap/intel-rapl:0");
        fs::create_dir_all(&zone).expect("made");
        for (file, text) in [
            ("name", "package-0"),
            ("energy_uj", uj),
            ("max_energy_range_uj", "1000000000"),
        ] {
            fs::write(zone.join(file), text).expect("written");
        }
        self
    }

    /// Runs to the end; what was said, and the run's folder.
    fn run(&self) -> (String, PathBuf) {
        let mut command = Command::new(PROGRAM);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", self.dir.path().display()))
            .env("LD_LIBRARY_PATH", self.dir.path());
        let powercap = self.path("powercap");
        let powercap = powercap.to_str().expect("UTF-8");
        let child = self
            .notebook
            .start_as(command, "good", TOKEN_S, &["--powercap-dir", powercap]);
        let output = child.wait_with_output().expect("ended");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        (said, self.notebook.only_run())
    }
}

fn lines<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    let text = fs::read_to_string(path).expect("readable");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect()
}

fn is(found: &Value, expected: f64) -> bool {
    let found = found.as_f64().expect("a number");
    (found - expected).abs() <= 1e-9 * expected
}

fn load_of(run: &Path, case: &str) -> CaseLoad {
    let loads: Vec<CaseLoad> = lines(&run.join("machine_load.jsonl"));
    let mut loads = loads.into_iter();
    loads.find(|load| load.cases == [case]).expect("the case")
}

fn summary_of(run: &Path, case: &str) -> Value {
    let text = fs::read_to_string(run.join("summary.json")).expect("readable");
    let summary: Value = serde_json::from_str(&text).expect("JSON");
    let cases = summary["cases"].as_array().expect("cases");
    let found = cases.iter().find(|found| found["case"] == case);
    found.expect("the case").clone()
}

#[test]
fn the_gpus_own_counter_is_taken() {
    let machine = Machine::new().with_nvidia_smi().with_nvml();
    let (said, run) = machine.run();
    assert!(said.contains("energy: the GPU's by NVML"), "{said}");
    let energy = load_of(&run, "latency-4").energy.expect("metered");
    assert_eq!(energy.gpu_source, Some(EnergySource::Counter));
    let joules = energy.gpu_j.expect("the GPU's");
    // The case's own readings are one step apart, the sampler's lie in between.
    assert!(joules >= 50.0 && joules % 50.0 < 1e-9, "{joules}");
    let summary = summary_of(&run, "latency-4");
    assert!(is(&summary["joules_per_output_token"], joules / 12.0));
    assert!(is(&summary["mean_power_w"], joules / energy.seconds));
    // Too short to be metered, which is no zero.
    assert_eq!(load_of(&run, "users-2").energy, None);
    assert!(summary_of(&run, "users-2").get("mean_power_w").is_none());
    let samples: Vec<ServerSample> = lines(&run.join("server_metrics.jsonl"));
    assert!(!samples.is_empty());
    assert!(
        samples
            .iter()
            .all(|sample| sample.gpu_power_w == Some(300.0)
                && sample.gpu_memory_bytes == Some(5 << 20)
                && sample.gpu_energy_j.is_some())
    );
}

#[test]
fn without_the_drivers_library_power_is_summed() {
    let machine = Machine::new().with_nvidia_smi().without_nvml();
    let (said, run) = machine.run();
    assert!(said.contains("energy: the GPU's by nvidia-smi"), "{said}");
    let energy = load_of(&run, "latency-4").energy.expect("metered");
    assert_eq!(energy.gpu_source, Some(EnergySource::Power));
    let watts = energy.gpu_j.expect("the GPU's") / energy.seconds;
    assert!((watts - 250.5).abs() < 0.5, "{watts}");
}

#[test]
fn a_machine_without_meters_has_no_energy() {
    let machine = Machine::new().without_gpu().without_nvml();
    let (said, run) = machine.run();
    assert!(said.contains("the processor's is not recorded"), "{said}");
    for file in ["machine_load.jsonl", "server_metrics.jsonl", "summary.json"] {
        let text = fs::read_to_string(run.join(file)).expect("readable");
        for word in ["energy", "joules", "_w\""] {
            assert!(!text.contains(word), "{word} in {file}");
        }
    }
}

#[test]
fn a_processor_is_metered_by_its_packages() {
    let machine = Machine::new().without_gpu().with_package("1000000");
    let counter = machine.path("powercap/intel-rapl:0/energy_uj");
    let ticking = std::thread::spawn({
        let mut uj = 1_000_000_u64;
        move || {
            // Until its folder is gone with the test.
            while counter.exists() {
                uj += 500_000;
                let beside = counter.with_extension("new");
                let _ = fs::write(&beside, uj.to_string());
                let _ = fs::rename(&beside, &counter);
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    });
    let (said, run) = machine.run();
    assert!(said.contains("by RAPL, 1 package(s)"), "{said}");
    let energy = load_of(&run, "latency-4").energy.expect("metered");
    assert_eq!((energy.gpu_j, energy.gpu_source), (None, None));
    let joules = energy.cpu_j.expect("the processor's");
    assert!(joules > 0.0);
    let summary = summary_of(&run, "latency-4");
    assert!(is(&summary["joules_per_output_token"], joules / 12.0));
    drop(machine);
    ticking.join().expect("ended");
}
