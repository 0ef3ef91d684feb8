//! The machine a run took place on: `environment.json`.
//!
//! Read from `/proc`, `/etc`, `rustc` and `nvidia-smi`. A name that cannot be read is
//! `unknown` or null; a machine that does not tell its cores or memory is an error, since
//! figures without them compare with nothing.

use std::{fs, io};

pub use records::environment::{Clocks, Cpu, Environment, Gpu};

use crate::record::machine_load::load_averages;

const UNKNOWN: &str = "unknown";

/// Kept of the hundred flags a CPU lists.
const RELEVANT_CPU_FLAGS: [&str; 16] = [
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimddp",
];

pub fn read() -> io::Result<Environment> {
    let uname = rustix::system::uname();
    let text = |field: &std::ffi::CStr| field.to_string_lossy().into_owned();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    Ok(Environment {
        host: text(uname.nodename()),
        os: fs::read_to_string("/etc/os-release")
            .ok()
            .and_then(|release| os_name(&release))
            .unwrap_or_else(|| UNKNOWN.into()),
        kernel: Some(format!(
            "{} {} {}",
            text(uname.sysname()),
            text(uname.release()),
            text(uname.machine())
        )),
        cpu: parse_cpu(
            &cpuinfo,
            usize::from(std::thread::available_parallelism()?) as u32,
        ),
        memory_bytes: total_memory_bytes(&meminfo)
            .ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))?,
        gpu: query_gpu(),
        rustc: duct::cmd!("rustc", "--version").stderr_null().read().ok(),
        load_average: load_averages(),
    })
}

/// Memory in use on the first GPU; `None` without one.
pub fn gpu_memory_used_bytes() -> Option<u64> {
    let mib: u64 = nvidia_smi("memory.used")?.trim().parse().ok()?;
    Some(mib << 20)
}

/// Memory in use on the first GPU, and the power that it draws.
pub fn gpu_memory_and_power() -> (Option<u64>, Option<f64>) {
    let line = nvidia_smi("memory.used,power.draw").unwrap_or_default();
    let mut fields = line.split(',').map(str::trim);
    let memory = fields.next().and_then(|mib| mib.parse::<u64>().ok());
    let power = fields.next().and_then(|watts| watts.parse().ok());
    (memory.map(|mib| mib << 20), power)
}

fn query_gpu() -> Option<Gpu> {
    parse_gpu(&nvidia_smi(
        "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit",
    )?)
}

/// The first GPU's line of a query. The measured server runs on one GPU.
fn nvidia_smi(fields: &str) -> Option<String> {
    let query = format!("--query-gpu={fields}");
    let output = duct::cmd!("nvidia-smi", query, "--format=csv,noheader,nounits")
        .stderr_null()
        .read()
        .ok()?;
    output.lines().next().map(String::from)
}

fn parse_gpu(line: &str) -> Option<Gpu> {
    let mut fields = line.split(',').map(str::trim);
    let name = fields.next().filter(|name| !name.is_empty())?.to_string();
    let driver = fields.next().map(String::from);
    let mut number = || fields.next().and_then(|field| field.parse::<f64>().ok());
    Some(Gpu {
        name,
        driver,
        memory_bytes: number().map(|mib| (mib as u64) << 20),
        clocks: Some(Clocks {
            max_sm_mhz: number(),
            max_memory_mhz: number(),
        }),
        power_limit_w: number(),
    })
}

fn parse_cpu(cpuinfo: &str, n_cores: u32) -> Cpu {
    let value_of = |keys: &[&str]| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            keys.contains(&key.trim()).then(|| value.trim().to_string())
        })
    };
    let flags = value_of(&["flags", "Features"]).unwrap_or_default();
    Cpu {
        model: value_of(&["model name", "Model"]).unwrap_or_else(|| UNKNOWN.into()),
        n_cores,
        flags: flags
            .split_whitespace()
            .filter(|flag| RELEVANT_CPU_FLAGS.contains(flag))
            .map(String::from)
            .collect(),
    }
}

fn os_name(release: &str) -> Option<String> {
    let value = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_string())
}

fn total_memory_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_formats_of_proc_and_nvidia_smi() {
        let cpu = parse_cpu(
            "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\nflags\t\t: fpu avx2 fma mce\n",
            2,
        );
        assert_eq!(cpu.model, "Some CPU @ 2.0GHz");
        assert_eq!(cpu.flags, ["avx2", "fma"]);
        assert_eq!(
            total_memory_bytes("MemTotal:       16384 kB\nMemFree: 1 kB\n"),
            Some(16 << 20)
        );
        assert_eq!(
            os_name("ID=x\nPRETTY_NAME=\"Some Linux 1\"\n").as_deref(),
            Some("Some Linux 1")
        );

        let gpu = parse_gpu("NVIDIA GeForce RTX 5090, 570.86.10, 32607, 3090, 14001, 575.00")
            .expect("a GPU");
        assert_eq!(gpu.name, "NVIDIA GeForce RTX 5090");
        assert_eq!(gpu.memory_bytes, Some(32607 << 20));
        assert_eq!(
            gpu.clocks,
            Some(Clocks {
                max_sm_mhz: Some(3090.0),
                max_memory_mhz: Some(14001.0)
            })
        );
        assert_eq!(gpu.power_limit_w, Some(575.0));
        assert_eq!(
            parse_gpu("X, 1, [N/A], 1, 2, [N/A]").map(|gpu| (gpu.memory_bytes, gpu.power_limit_w)),
            Some((None, None))
        );
    }

    #[test]
    fn this_machine_has_a_name() {
        let environment = read().expect("readable");
        assert!(!environment.host.is_empty());
        assert!(environment.memory_bytes > 1 << 26 && environment.cpu.n_cores >= 1);
    }
}
