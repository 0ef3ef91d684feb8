//! The resources of a compiled kernel: registers, shared memory, stack and spills from the
//! compiler's log (`-Xptxas -v`), the launch bound from the code itself (`cuobjdump -elf`).

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelUsage {
    pub kernel: String,
    pub architecture: String,
    pub n_registers: usize,
    pub static_shared_bytes: usize,
    pub stack_bytes: usize,
    pub spill_store_bytes: usize,
    pub spill_load_bytes: usize,
    /// From `__launch_bounds__`; `None` without.
    pub max_threads: Option<usize>,
}

/// In the order of the log. An error if the log has no registers for a kernel: then its format has
/// changed, and an empty audit must not pass.
pub fn parse(log: &str, elf: &str) -> Result<Vec<KernelUsage>> {
    let bounds = launch_bounds(elf);
    let mut kernels: Vec<KernelUsage> = Vec::new();
    let mut n_entries = 0;
    // Functions that were not inlined have properties too; they count with their callers.
    let mut properties: Option<(String, [usize; 3])> = None;
    let mut entry: Option<(String, String)> = None;
    let mut of_function = String::new();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let mut quoted = rest.split('\'');
            let kernel = quoted.next().context("a kernel's name")?.to_string();
            let architecture = quoted
                .nth(1)
                .context("a kernel's architecture")?
                .to_string();
            entry = Some((kernel, architecture));
            properties = None;
            n_entries += 1;
        } else if let Some(function) = line.split("Function properties for ").nth(1) {
            of_function = function.trim().to_string();
        } else if line.contains("bytes stack frame") {
            let counts = [
                before(line, " bytes stack frame")?,
                before(line, " bytes spill stores")?,
                before(line, " bytes spill loads")?,
            ];
            properties = Some((of_function.clone(), counts));
        } else if let (true, Some((kernel, architecture))) = (
            line.contains("Used ") && line.contains(" registers"),
            entry.take(),
        ) {
            let Some((_, [stack_bytes, spill_store_bytes, spill_load_bytes])) = properties
                .take()
                .filter(|(function, _)| *function == kernel)
            else {
                bail!("the compiler's log has no function properties of {kernel}");
            };
            let static_shared_bytes = if line.contains(" bytes smem") {
                before(line, " bytes smem")?
            } else {
                0
            };
            kernels.push(KernelUsage {
                n_registers: before(line, " registers")?,
                static_shared_bytes,
                stack_bytes,
                spill_store_bytes,
                spill_load_bytes,
                max_threads: bounds.get(&(architecture.clone(), kernel.clone())).copied(),
                kernel,
                architecture,
            });
        }
    }
    if kernels.is_empty() || kernels.len() != n_entries {
        bail!(
            "the compiler's log names {n_entries} kernels and the registers of {}",
            kernels.len()
        );
    }
    Ok(kernels)
}

/// The number right before `label`.
fn before(line: &str, label: &str) -> Result<usize> {
    let number = line
        .split(label)
        .next()
        .and_then(|rest| rest.rsplit([' ', ',']).next());
    number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("no number before `{label}` in `{line}`"))
}

/// Kernels whose `wgmma` products ptxas has serialised, for lack of registers.
pub fn serialised(log: &str) -> Vec<&str> {
    log.lines()
        .filter(|line| line.contains("(C7512)"))
        .filter_map(|line| line.rsplit_once("function '")?.1.split('\'').next())
        .collect()
}

/// (architecture, kernel) → threads.
fn launch_bounds(elf: &str) -> BTreeMap<(String, String), usize> {
    let mut bounds = BTreeMap::new();
    let (mut architecture, mut kernel, mut is_bound) = (String::new(), String::new(), false);
    for line in elf.lines() {
        if let Some(name) = line.strip_prefix("arch = ") {
            architecture = name.trim().to_string();
        } else if let Some(name) = line.strip_prefix(".nv.info.") {
            kernel = name.trim().to_string();
        } else if let Some(attribute) = line.trim().strip_prefix("Attribute:") {
            is_bound = matches!(attribute.trim(), "EIATTR_MAX_THREADS" | "EIATTR_REQNTID");
        } else if is_bound && let Some(values) = line.trim().strip_prefix("Value:") {
            let n_threads = values
                .split_whitespace()
                .map(|value| usize::from_str_radix(value.trim_start_matches("0x"), 16).ok())
                .product::<Option<usize>>();
            if let Some(n_threads) = n_threads {
                bounds.insert((architecture.clone(), kernel.clone()), n_threads);
            }
            is_bound = false;
        }
    }
    bounds
}

/// One kernel on each line, as stored next to a fatbin.
pub fn to_lines(kernels: &[KernelUsage]) -> String {
    let mut text = String::new();
    for k in kernels {
        let _ = writeln!(
            text,
            "{} {} {} {} {} {} {} {}",
            k.kernel,
            k.architecture,
            k.n_registers,
            k.static_shared_bytes,
            k.stack_bytes,
            k.spill_store_bytes,
            k.spill_load_bytes,
            k.max_threads.unwrap_or(0)
        );
    }
    text
}

pub fn from_lines(text: &str) -> Result<Vec<KernelUsage>> {
    text.lines()
        .map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            let [kernel, architecture, counts @ ..] = &fields[..] else {
                bail!("cannot read `{line}`");
            };
            let counts = counts
                .iter()
                .map(|word| word.parse())
                .collect::<Result<Vec<usize>, _>>()?;
            let [
                n_registers,
                static_shared_bytes,
                stack_bytes,
                spill_store_bytes,
                spill_load_bytes,
                n_threads,
            ] = counts[..]
            else {
                bail!("cannot read `{line}`");
            };
            Ok(KernelUsage {
                kernel: (*kernel).to_string(),
                architecture: (*architecture).to_string(),
                n_registers,
                static_shared_bytes,
                stack_bytes,
                spill_store_bytes,
                spill_load_bytes,
                max_threads: Some(n_threads).filter(|n| *n > 0),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'wide' for 'sm_90'
ptxas info    : Function properties for wide
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 20 registers, used 0 barriers
ptxas info    : Compile time = 42.200 ms
ptxas info    : 0 bytes gmem, 24 bytes cmem[4]
ptxas info    : Compiling entry function 'wide' for 'sm_120'
ptxas info    : Function properties for wide
    56 bytes stack frame, 60 bytes spill stores, 88 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 56 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compile time = 12.0 ms
";
    const ELF: &str = "\
Fatbin elf code:
================
arch = sm_90
code version = [1,8]
.nv.info
\tAttribute:\tEIATTR_REGCOUNT
\tFormat:\tEIFMT_SVAL
\tValue:\tfunction: wide(0xa)\tregister count: 32
.nv.info.wide
\t<0x13>
\tAttribute:\tEIATTR_MAX_THREADS
\tFormat:\tEIFMT_SVAL
\tValue:\t0x180 0x2 0x1 
";

    #[test]
    fn reads_the_compilers_log_and_the_launch_bounds() {
        let kernels = parse(LOG, ELF).expect("a complete log");
        let usage = |architecture: &str, counts: [usize; 5], max_threads| KernelUsage {
            kernel: "wide".into(),
            architecture: architecture.into(),
            n_registers: counts[0],
            static_shared_bytes: counts[1],
            stack_bytes: counts[2],
            spill_store_bytes: counts[3],
            spill_load_bytes: counts[4],
            max_threads,
        };
        let expected = [
            usage("sm_90", [20, 0, 0, 0, 0], Some(768)),
            usage("sm_120", [255, 4096, 56, 60, 88], None),
        ];
        assert_eq!(kernels, expected);
        assert_eq!(
            from_lines(&to_lines(&kernels)).expect("own lines"),
            expected
        );
    }

    #[test]
    fn serialised_products_are_found_by_kernel() {
        let log = "ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions \
                   are serialized due to insufficient register resources for the function 'wgmma_a'\n\
                   ptxas info    : Compiling entry function 'wgmma_b' for 'sm_90a'\n";
        assert_eq!(serialised(log), ["wgmma_a"]);
    }

    #[test]
    fn a_log_it_cannot_read_is_an_error() {
        assert!(parse("", "").is_err());
        let cut = LOG
            .split("ptxas info    : Used 255")
            .next()
            .expect("the first part");
        assert!(
            parse(cut, ELF)
                .expect_err("cut")
                .to_string()
                .contains("names 2 kernels")
        );
        assert!(parse(&LOG.replace("spill loads", "loads"), ELF).is_err());
        assert!(from_lines("wide sm_90 1 2 3").is_err());
    }
}
