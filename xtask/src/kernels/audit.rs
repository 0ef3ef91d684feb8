//! The audit: the resources of each kernel, and what exceeds a chip's limits.
//!
//! An excess fails the build unless `kernels/audit.toml` lists it with a reason; so does an entry
//! there that is no longer needed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use super::compiler::Compiled;
use super::function_length::{self, LongFunction};
use super::instruction_mix::{self, Explained};
use super::nvcc::Toolchain;
use super::occupancy::{limits_of, occupancy};
use super::resource_usage::KernelUsage;

/// `kernels/audit.toml`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Exceptions {
    dynamic_shared: Vec<DynamicShared>,
    allowed: Vec<Allowed>,
    long_functions: Vec<LongFunction>,
    mixes: Vec<Explained>,
}

/// The most dynamic shared memory that the launcher asks for; the compiler cannot know it.
#[derive(Debug, PartialEq, Eq)]
struct DynamicShared {
    kernel: String,
    bytes: BTreeMap<String, usize>,
}

#[derive(Debug, PartialEq, Eq)]
struct Allowed {
    kernel: String,
    architecture: String,
    excess: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    source_name: String,
    usage: KernelUsage,
    dynamic_shared_bytes: usize,
    n_blocks: usize,
    occupancy_percent: usize,
    excesses: Vec<&'static str>,
}

/// How much of the tree was compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    All,
    /// Entries for kernels that were left out say nothing about being needed.
    Some,
}

/// Prints the table, keeps the full one in `folder`, and fails on what `kernels/audit.toml` of the
/// tree at `root` does not list.
pub fn run(
    root: &Path,
    compiled: &[Compiled],
    architectures: &[&str],
    scope: Scope,
    folder: &Path,
) -> Result<()> {
    let path = root.join("kernels").join("audit.toml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let exceptions = read(&text).with_context(|| path.display().to_string())?;
    function_length::check(root, &exceptions.long_functions)?;
    let rows = rows_of(compiled, &exceptions)?;
    let full: Vec<_> = rows
        .iter()
        .map(|row| (row.usage.kernel.clone(), row))
        .collect();
    fs::write(folder.join("audit.txt"), table(&full))?;
    println!("{}", table(&grouped(&rows)));
    let fatbin_bytes: u64 = compiled.iter().map(|source| source.fatbin_bytes).sum();
    println!(
        "{} kernels, each for one architecture and element, in {} fatbins for {}, {} KiB",
        rows.len(),
        compiled.len(),
        architectures.join(" and "),
        fatbin_bytes.div_ceil(1024)
    );
    let mut faults = excesses(&rows, &exceptions);
    if scope == Scope::All {
        faults.extend(unneeded(&rows, &exceptions, architectures));
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("the kernel audit failed:\n  {}", faults.join("\n  "))
}

/// Compares the instruction mix of both chips, and fails on what `kernels/audit.toml` does not explain.
pub fn compare_chips(
    root: &Path,
    toolchain: &Toolchain,
    compiled: &[Compiled],
    architectures: &[&str],
    folder: &Path,
) -> Result<()> {
    let path = root.join("kernels").join("audit.toml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let exceptions = read(&text).with_context(|| path.display().to_string())?;
    let explained = &exceptions.mixes;
    let faults = instruction_mix::faults(toolchain, compiled, architectures, explained, folder)?;
    if faults.is_empty() {
        return Ok(());
    }
    bail!(
        "the audit of the chips' instruction mix failed:\n  {}",
        faults.join("\n  ")
    )
}

fn rows_of(compiled: &[Compiled], exceptions: &Exceptions) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for source in compiled {
        for usage in &source.kernels {
            rows.push(row_of(&source.source_name, usage, exceptions)?);
        }
    }
    rows.sort_by_cached_key(|row| {
        let number = row
            .usage
            .architecture
            .trim_start_matches("sm_")
            .parse::<u32>()
            .unwrap_or(0);
        (row.source_name.clone(), row.usage.kernel.clone(), number)
    });
    Ok(rows)
}

fn row_of(source_name: &str, usage: &KernelUsage, exceptions: &Exceptions) -> Result<Row> {
    let chip = limits_of(&usage.architecture)
        .with_context(|| format!("the limits of {} are not known", usage.architecture))?;
    let dynamic_shared_bytes = exceptions
        .dynamic_shared
        .iter()
        .filter(|entry| matches(&entry.kernel, &usage.kernel))
        .filter_map(|entry| entry.bytes.get(&usage.architecture).copied())
        .max()
        .unwrap_or(0);
    let shared_bytes = usage.static_shared_bytes + dynamic_shared_bytes;
    let fit = occupancy(
        &chip,
        usage.max_threads.unwrap_or(1024),
        usage.n_registers,
        shared_bytes,
    );
    let mut excesses = Vec::new();
    let mut note = |is_excess: bool, name| {
        if is_excess {
            excesses.push(name);
        }
    };
    note(
        usage.spill_store_bytes + usage.spill_load_bytes > 0,
        "spill",
    );
    // Spilled registers are on the stack; the rest are arrays with indices unknown at compile time.
    note(
        usage.stack_bytes > 0 && usage.spill_store_bytes == 0,
        "stack",
    );
    note(shared_bytes > chip.shared_bytes_per_block, "shared");
    note(usage.max_threads.is_none(), "no launch bound");
    note(
        fit.n_blocks == 0 && shared_bytes <= chip.shared_bytes_per_block,
        "registers",
    );
    Ok(Row {
        source_name: source_name.to_string(),
        usage: usage.clone(),
        dynamic_shared_bytes,
        n_blocks: fit.n_blocks,
        occupancy_percent: fit.n_warps * 100 / chip.warps_per_sm,
        excesses,
    })
}

/// What is not listed.
fn excesses(rows: &[Row], exceptions: &Exceptions) -> Vec<String> {
    let is_listed = |row: &Row, excess: &str| {
        exceptions.allowed.iter().any(|entry| {
            matches(&entry.kernel, &row.usage.kernel)
                && entry.architecture == row.usage.architecture
                && entry.excess == excess
        })
    };
    let mut faults = Vec::new();
    for row in rows {
        for excess in row.excesses.iter().filter(|excess| !is_listed(row, excess)) {
            let (kernel, architecture) = (&row.usage.kernel, &row.usage.architecture);
            let source_name = &row.source_name;
            faults.push(format!(
                "{kernel} of {source_name} on {architecture}: {excess}, not listed in audit.toml"
            ));
        }
    }
    faults
}

/// Entries that no kernel needs. Those for an architecture that was not built say nothing.
fn unneeded(rows: &[Row], exceptions: &Exceptions, architectures: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    let is_built = |architecture: &str| architectures.contains(&architecture);
    for entry in exceptions
        .allowed
        .iter()
        .filter(|entry| is_built(&entry.architecture))
    {
        let is_needed = rows.iter().any(|row| {
            matches(&entry.kernel, &row.usage.kernel)
                && entry.architecture == row.usage.architecture
                && row.excesses.contains(&entry.excess.as_str())
        });
        if !is_needed {
            faults.push(format!(
                "audit.toml allows `{}` on {} for {}, which no kernel needs any more",
                entry.excess, entry.architecture, entry.kernel
            ));
        }
    }
    for entry in &exceptions.dynamic_shared {
        if !rows
            .iter()
            .any(|row| matches(&entry.kernel, &row.usage.kernel))
        {
            faults.push(format!(
                "audit.toml sizes {}, which is no kernel any more",
                entry.kernel
            ));
        }
    }
    faults
}

/// `stream_*_8` or an exact name; one star.
pub(super) fn matches(pattern: &str, kernel: &str) -> bool {
    match pattern.split_once('*') {
        Some((head, tail)) => {
            kernel.len() >= head.len() + tail.len()
                && kernel.starts_with(head)
                && kernel.ends_with(tail)
        }
        None => pattern == kernel,
    }
}

/// One row for the kernels of a source with equal figures on an architecture.
fn grouped(rows: &[Row]) -> Vec<(String, &Row)> {
    let mut groups: Vec<(&Row, usize)> = Vec::new();
    for row in rows {
        let is_same = |other: &Row| {
            let usage = KernelUsage {
                kernel: row.usage.kernel.clone(),
                ..other.usage.clone()
            };
            Row {
                usage,
                ..other.clone()
            } == *row
        };
        match groups.iter_mut().find(|(first, _)| is_same(first)) {
            Some((_, n_others)) => *n_others += 1,
            None => groups.push((row, 0)),
        }
    }
    let name = |row: &Row, n_others: usize| match n_others {
        0 => row.usage.kernel.clone(),
        _ => format!("{} +{n_others}", row.usage.kernel),
    };
    groups
        .into_iter()
        .map(|(row, n_others)| (name(row, n_others), row))
        .collect()
}

fn table(rows: &[(String, &Row)]) -> String {
    let width = rows
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0)
        .max(6);
    let mut text = format!(
        "{:width$}  arch    regs  threads  shared static+dynamic  stack  spill st/ld  blocks/SM  occupancy",
        "kernel"
    );
    for (name, row) in rows {
        let usage = &row.usage;
        let threads = usage.max_threads.map_or("-".to_string(), |n| n.to_string());
        let shared = format!("{}+{}", usage.static_shared_bytes, row.dynamic_shared_bytes);
        let spill = format!("{}/{}", usage.spill_store_bytes, usage.spill_load_bytes);
        let _ = write!(
            text,
            "\n{name:width$}  {:6}  {:4}  {threads:>7}  {shared:>21}  {:5}  {spill:>11}  {:9}  {:8}%{}{}",
            usage.architecture,
            usage.n_registers,
            usage.stack_bytes,
            row.n_blocks,
            row.occupancy_percent,
            if row.excesses.is_empty() { "" } else { "  ! " },
            row.excesses.join(", ")
        );
    }
    text
}

fn read(text: &str) -> Result<Exceptions> {
    let table: Table = text.parse()?;
    let mut exceptions = Exceptions::default();
    for (section, value) in &table {
        let entries = value
            .as_array()
            .with_context(|| format!("{section} is no list"))?;
        for entry in entries {
            let entry = entry
                .as_table()
                .with_context(|| format!("an entry of {section}"))?;
            let word = |key: &str| -> Result<String> {
                let value = entry.get(key).and_then(Value::as_str).map(str::trim);
                let value = value.filter(|value| !value.is_empty());
                value
                    .map(str::to_string)
                    .with_context(|| format!("an entry of {section} has no {key}"))
            };
            word("reason")?;
            match section.as_str() {
                "dynamic_shared" => {
                    let numbers = entry.iter().filter_map(|(key, value)| {
                        Some((key.clone(), usize::try_from(value.as_integer()?).ok()?))
                    });
                    let bytes: BTreeMap<_, _> = numbers.collect();
                    if let Some(other) = bytes.keys().find(|key| limits_of(key).is_none()) {
                        bail!("dynamic_shared: `{other}` is no known architecture");
                    }
                    exceptions.dynamic_shared.push(DynamicShared {
                        kernel: word("kernel")?,
                        bytes,
                    });
                }
                "allow" => exceptions.allowed.push(Allowed {
                    kernel: word("kernel")?,
                    architecture: word("architecture")?,
                    excess: word("excess")?,
                }),
                "long_function" => exceptions.long_functions.push(LongFunction {
                    source: word("source")?,
                    function: word("function")?,
                    n_lines: lines_of(entry).context("a long_function has no lines")?,
                }),
                "mix" => exceptions.mixes.push(Explained {
                    kernel: word("kernel")?,
                    instruction: word("instruction")?,
                }),
                _ => bail!(
                    "unknown section `{section}`; known: allow, dynamic_shared, long_function, mix"
                ),
            }
        }
    }
    Ok(exceptions)
}

fn lines_of(entry: &Table) -> Option<usize> {
    usize::try_from(entry.get("lines")?.as_integer()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXCEPTIONS: &str = r#"
        [[dynamic_shared]]
        kernel = "stream_*"
        sm_120 = 101376
        reason = "the planner fills the block's limit"
        [[allow]]
        kernel = "slow"
        architecture = "sm_120"
        excess = "spill"
        reason = "runs once a load"
    "#;

    fn usage(
        kernel: &str,
        n_registers: usize,
        spill: usize,
        threads: Option<usize>,
    ) -> KernelUsage {
        KernelUsage {
            kernel: kernel.into(),
            architecture: "sm_120".into(),
            n_registers,
            static_shared_bytes: 0,
            stack_bytes: spill,
            spill_store_bytes: spill,
            spill_load_bytes: spill,
            max_threads: threads,
        }
    }

    fn audit(kernels: Vec<KernelUsage>) -> (Vec<Row>, Vec<String>) {
        let exceptions = read(EXCEPTIONS).expect("readable");
        let compiled = [Compiled {
            source_name: "op/op".into(),
            fatbin_bytes: 1,
            kernels,
        }];
        let rows = rows_of(&compiled, &exceptions).expect("known chips");
        let mut faults = excesses(&rows, &exceptions);
        faults.extend(unneeded(&rows, &exceptions, &["sm_120"]));
        (rows, faults)
    }

    #[test]
    fn listed_excesses_pass_and_dynamic_shared_memory_counts() {
        let kernels = vec![
            usage("slow", 255, 8, Some(256)),
            usage("stream_a", 100, 0, Some(256)),
        ];
        let (rows, faults) = audit(kernels);
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(
            (rows[1].dynamic_shared_bytes, rows[1].n_blocks),
            (101_376, 1)
        );
        assert_eq!(rows[1].occupancy_percent, 16);
    }

    #[test]
    fn unlisted_excesses_and_stale_entries_fail() {
        let (_, faults) = audit(vec![
            usage("fast", 64, 4, Some(256)),
            usage("open", 64, 0, None),
            usage("fat", 255, 0, Some(512)),
        ]);
        let expected = [
            "fast of op/op on sm_120: spill, not listed in audit.toml",
            "fat of op/op on sm_120: registers, not listed in audit.toml",
            "open of op/op on sm_120: no launch bound, not listed in audit.toml",
            "audit.toml allows `spill` on sm_120 for slow, which no kernel needs any more",
            "audit.toml sizes stream_*, which is no kernel any more",
        ];
        assert_eq!(faults, expected);
    }

    #[test]
    fn kernels_of_the_same_figures_share_a_row() {
        let (rows, _) = audit(vec![
            usage("stream_a", 100, 0, Some(256)),
            usage("stream_b", 100, 0, Some(256)),
            usage("stream_c", 101, 0, Some(256)),
        ]);
        let names: Vec<_> = grouped(&rows).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["stream_a +1", "stream_c"]);
        let text = table(&grouped(&rows));
        assert!(
            text.contains("stream_a +1  sm_120   100      256               0+101376"),
            "{text}"
        );
    }

    #[test]
    fn exceptions_need_a_reason_and_known_words() {
        let text = |toml: &str| read(toml).expect_err("refused").to_string();
        let entry = "[[allow]]\nkernel = \"a\"\narchitecture = \"sm_90\"\nexcess = \"spill\"";
        assert_eq!(text(entry), "an entry of allow has no reason");
        assert!(text("[[alow]]\nreason = \"x\"").contains("unknown section `alow`"));
        let sized = "[[dynamic_shared]]\nkernel = \"a\"\nsm_7 = 3\nreason = \"x\"";
        assert!(text(sized).contains("`sm_7` is no known architecture"));
        assert!(matches("a_*_8", "a_b_8") && !matches("a_*_8", "a_8") && matches("a", "a"));
    }
}
