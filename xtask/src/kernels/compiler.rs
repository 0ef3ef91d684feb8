//! Compiles every `kernels/src/**/*.cu` that has changed, in parallel.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail};
use duct::cmd;
use sha2::{Digest, Sha256};

use super::nvcc::Toolchain;
use super::resource_usage::{self, KernelUsage};
use crate::source_files::files_below;

const FLAGS: [&str; 6] = [
    "-O3",
    "-std=c++20",
    "--fatbin",
    "--compress-mode=size",
    "-Xptxas",
    "-v",
];
/// Increment when the files stored next to a fatbin change.
const CACHE_VERSION: &str = "1";

/// One fatbin's kernels.
#[derive(Debug)]
pub struct Compiled {
    /// Path of the source below `kernels/src` without its extension, `stream_linear/repack`; with
    /// the suffix `_bf16` if a source is also compiled for bf16, and `_as_sm_120` for code that a
    /// card profile runs.
    pub source_name: String,
    pub fatbin_bytes: u64,
    pub kernels: Vec<KernelUsage>,
}

/// The 16-bit type of activations that a source is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    F16,
    Bf16,
}

/// One fatbin to compile.
#[derive(Debug)]
struct Unit<'a> {
    source: &'a Path,
    /// `None` if the source names no element.
    element: Option<Element>,
    /// With the choices of sm_120, for other chips.
    is_profile: bool,
    with_jitter: bool,
    architectures: Vec<&'a str>,
}

impl Unit<'_> {
    /// The suffix that distinguishes this fatbin from the source's others.
    fn name_suffix(&self) -> &'static str {
        match (self.element, self.is_profile) {
            (None | Some(Element::F16), false) => "",
            (Some(Element::Bf16), false) => "_bf16",
            (None | Some(Element::F16), true) => "_as_sm_120",
            (Some(Element::Bf16), true) => "_bf16_as_sm_120",
        }
    }

    fn flags(&self) -> Vec<String> {
        let mut flags: Vec<String> = FLAGS.map(String::from).into();
        if self.element == Some(Element::Bf16) {
            flags.push("-DELEMENT_BF16".to_string());
        }
        if self.is_profile {
            flags.push("-DPROFILE_SM_120".to_string());
        }
        if self.with_jitter {
            flags.push("-DJITTER".to_string());
        }
        flags.extend(gencodes(&self.architectures));
        flags
    }
}

/// What to compile, from which tree and into which folder.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// Of the working tree.
    pub root: &'a Path,
    pub toolchain: &'a Toolchain,
    pub architectures: &'a [&'a str],
    /// With what card profiles run on other chips.
    pub with_profiles: bool,
    pub with_jitter: bool,
    /// For the fatbins and what is kept beside them.
    pub folder: &'a Path,
}

/// One fatbin a source and element, of the sources that `is_wanted` by their names.
pub fn compile(job: &Job<'_>, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<Compiled>> {
    let src = job.root.join("kernels").join("src");
    fs::create_dir_all(job.folder).with_context(|| job.folder.display().to_string())?;
    let sources = files_below(&src, &["cu"])?;
    let mut units = Vec::new();
    for source in &sources {
        let name = || source.display().to_string();
        if !is_wanted(&source_name(&src, source)?) {
            continue;
        }
        let text = fs::read_to_string(source).with_context(name)?;
        let units_here = units_of(source, &text, job.architectures).with_context(name)?;
        let units_here = units_here.into_iter().map(|unit| Unit {
            with_jitter: job.with_jitter,
            ..unit
        });
        units.extend(units_here.filter(|unit| job.with_profiles || !unit.is_profile));
    }
    let mut compiled = in_parallel(&units, |unit| {
        compile_one(&src, unit, job.toolchain, job.folder)
            .with_context(|| unit.source.display().to_string())
    })?;
    compiled.sort_by(|a, b| a.source_name.cmp(&b.source_name));
    Ok(compiled)
}

/// What `of_one` makes of each item, in their order, with a thread a core.
pub(super) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    of_one: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, Result<R>)>> = Mutex::default();
    let n_workers = available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..n_workers.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else {
                        return;
                    };
                    let result = of_one(item);
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    results.push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Path of a source below `kernels/src` without its ending.
fn source_name(src: &Path, source: &Path) -> Result<String> {
    let path = source.strip_prefix(src)?.with_extension("");
    let name = path.to_str().context("the name is not UTF-8")?;
    Ok(name.replace('\\', "/"))
}

fn compile_one(
    src: &Path,
    unit: &Unit<'_>,
    toolchain: &Toolchain,
    folder: &Path,
) -> Result<Compiled> {
    let source_name = source_name(src, unit.source)? + unit.name_suffix();
    let file = folder.join(file_name(&source_name));
    let fatbin = file.with_extension("fatbin");
    let (key_file, usage_file) = (file.with_extension("key"), file.with_extension("usage"));
    let key = cache_key(unit, toolchain)?;
    let is_fresh = fatbin.is_file() && fs::read_to_string(&key_file).is_ok_and(|old| old == key);
    let cached = if is_fresh {
        fs::read_to_string(&usage_file).ok()
    } else {
        None
    };
    let kernels = if let Some(text) = cached {
        resource_usage::from_lines(&text)?
    } else {
        let architectures = unit.architectures.join(", ");
        eprintln!("kernels: {source_name} for {architectures}");
        let log = run_nvcc(unit, toolchain, &fatbin)?;
        let elf = cmd!(&toolchain.cuobjdump, "-elf", &fatbin)
            .read()
            .context("cuobjdump -elf")?;
        let kernels = resource_usage::parse(&log, &elf)?;
        let serialised = resource_usage::serialised(&log);
        if !serialised.is_empty() && !unit.with_jitter {
            bail!(
                "ptxas makes wgmma wait for itself (C7512) in {}: too few registers, or a `trap`",
                serialised.join(", ")
            );
        }
        fs::write(&usage_file, resource_usage::to_lines(&kernels))?;
        fs::write(&key_file, key)?;
        kernels
    };
    let fatbin_bytes = fs::metadata(&fatbin)?.len();
    Ok(Compiled {
        source_name,
        fatbin_bytes,
        kernels,
    })
}

/// The compiler's output, which is the resource usage. It runs for minutes, so whatever else runs comes
/// first.
fn run_nvcc(unit: &Unit<'_>, toolchain: &Toolchain, fatbin: &Path) -> Result<String> {
    let mut args = unit.flags();
    args.extend(
        [
            "-o",
            &fatbin.display().to_string(),
            &unit.source.display().to_string(),
        ]
        .map(String::from),
    );
    let nice = ["-n", "10"].map(Into::into);
    let nvcc = toolchain.nvcc.clone().into_os_string();
    let words = nice.into_iter().chain([nvcc]);
    let output = cmd("nice", words.chain(args.into_iter().map(OsString::from)))
        .stderr_to_stdout()
        .stdout_capture()
        .unchecked()
        .run()
        .with_context(|| format!("{} cannot be started", toolchain.nvcc.display()))?;
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("nvcc failed ({}):\n{log}", output.status);
    }
    Ok(log)
}

/// A source with this header line uses instructions of that chip only.
const ONLY_SM_90A: &str = "// Architectures: sm_90a.";

/// Precedes the list of elements in the header of a source that is compiled once for each.
const ELEMENTS: &str = "Elements: ";

/// In the header of a source whose choices differ on sm_120: it is also compiled with them for
/// other chips, where `--card-profile` runs them.
const PROFILES: &str = "Profiles: sm_120.";

/// The fatbins of a source for the requested architectures.
fn units_of<'a>(source: &'a Path, text: &str, asked: &[&'a str]) -> Result<Vec<Unit<'a>>> {
    let architectures = architectures_of(text, asked);
    if architectures.is_empty() {
        return Ok(Vec::new());
    }
    let mut header = text.lines().take_while(|line| line.starts_with("//"));
    let others: Vec<&str> = if header.any(|line| line.contains(PROFILES)) {
        let others = architectures.iter().filter(|name| **name != "sm_120");
        others.copied().collect()
    } else {
        Vec::new()
    };
    let mut units = Vec::new();
    for element in elements_of(text)? {
        for (is_profile, architectures) in [(false, &architectures), (true, &others)] {
            if !architectures.is_empty() {
                units.push(Unit {
                    source,
                    element,
                    is_profile,
                    with_jitter: false,
                    architectures: architectures.clone(),
                });
            }
        }
    }
    Ok(units)
}

/// The architectures of a source among the requested ones: `sm_90a` for one with Hopper's own
/// instructions, none if sm_90 was not requested.
fn architectures_of<'a>(text: &str, asked: &[&'a str]) -> Vec<&'a str> {
    if !text.contains(ONLY_SM_90A) {
        return asked.to_vec();
    }
    if asked.contains(&"sm_90") {
        vec!["sm_90a"]
    } else {
        Vec::new()
    }
}

/// `Elements: f16, bf16.` in the header comment of a source; a single `None` if it is absent.
fn elements_of(text: &str) -> Result<Vec<Option<Element>>> {
    let mut header = text.lines().take_while(|line| line.starts_with("//"));
    let Some(list) = header.find_map(|line| line.split_once(ELEMENTS)?.1.split('.').next()) else {
        return Ok(vec![None]);
    };
    let mut elements = Vec::new();
    for name in list.split(',').map(str::trim) {
        let element = match name {
            "f16" => Element::F16,
            "bf16" => Element::Bf16,
            _ => bail!("`{ELEMENTS}{list}`: `{name}` is no element; known are f16 and bf16"),
        };
        if elements.contains(&Some(element)) {
            bail!("`{ELEMENTS}{list}` names {name} twice");
        }
        elements.push(Some(element));
    }
    Ok(elements)
}

fn gencodes(architectures: &[&str]) -> impl Iterator<Item = String> {
    architectures.iter().flat_map(|architecture| {
        let virtual_architecture = architecture.replace("sm_", "compute_");
        [
            "-gencode".to_string(),
            format!("arch={virtual_architecture},code={architecture}"),
        ]
    })
}

/// Digest of everything that the fatbin depends on.
fn cache_key(unit: &Unit<'_>, toolchain: &Toolchain) -> Result<String> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(CACHE_VERSION.as_bytes());
    add(toolchain.version.to_string().as_bytes());
    for flag in unit.flags() {
        add(flag.as_bytes());
    }
    let mut files = BTreeSet::new();
    collect_includes(unit.source, &mut files)?;
    for file in files {
        add(&fs::read(&file).with_context(|| file.display().to_string())?);
    }
    Ok(hex(&hash.finalize()))
}

/// `source` and the files of the tree that it includes.
fn collect_includes(source: &Path, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    let source = source
        .canonicalize()
        .with_context(|| source.display().to_string())?;
    let text = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
    if !files.insert(source.clone()) {
        return Ok(());
    }
    for included in text.lines().filter_map(included_file) {
        let path = source.parent().context("a source's folder")?.join(included);
        collect_includes(&path, files)?;
    }
    Ok(())
}

/// `#include "device.cuh"` → device.cuh; the toolkit's own are in angle brackets.
fn included_file(line: &str) -> Option<&str> {
    let rest = line
        .trim_start()
        .strip_prefix('#')?
        .trim_start()
        .strip_prefix("include")?;
    rest.trim_start().strip_prefix('"')?.split('"').next()
}

fn file_name(source_name: &str) -> String {
    source_name.replace('/', "-")
}

/// As `kernels/gpu/src/kernel_index.rs` reads it. `index_folder` is `folder`, where the fatbins are,
/// or a folder in it. Rewritten only when it changes: cargo looks at its time.
pub fn write_index(
    compiled: &[Compiled],
    architectures: &[&str],
    folder: &Path,
    index_folder: &Path,
) -> Result<()> {
    let up = if index_folder == folder { "" } else { "../" };
    fs::create_dir_all(index_folder).with_context(|| index_folder.display().to_string())?;
    let mut hash = Sha256::new();
    let mut index = String::new();
    for architecture in architectures {
        hash.update(format!("{architecture}\n"));
        let _ = writeln!(index, "architecture {architecture}");
    }
    for source in compiled {
        let file = format!("{}.fatbin", file_name(&source.source_name));
        let bytes = fs::read(folder.join(&file)).with_context(|| file.clone())?;
        hash.update(format!("{} {}\n", source.source_name, bytes.len()));
        hash.update(&bytes);
        let _ = writeln!(index, "fatbin {} {up}{file}", source.source_name);
    }
    let _ = writeln!(index, "sha256 {}", hex(&hash.finalize()));
    let path = index_folder.join("index.txt");
    if fs::read_to_string(&path).is_ok_and(|old| old == index) {
        return Ok(());
    }
    fs::write(&path, index).with_context(|| path.display().to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_included_files_of_the_tree_only() {
        assert_eq!(
            included_file("#include \"../cuda/device.cuh\""),
            Some("../cuda/device.cuh")
        );
        assert_eq!(included_file("  # include \"a.cuh\" // why"), Some("a.cuh"));
        assert_eq!(included_file("#include <cuda_fp16.h>"), None);
        assert_eq!(included_file("// include \"a.cuh\""), None);
    }

    #[test]
    fn elements_are_read_from_the_header_alone() {
        let both = "// y = W x\n// Architectures: sm_90. Elements: f16, bf16.\n// Idea: X\ncode";
        let expected = [Some(Element::F16), Some(Element::Bf16)];
        assert_eq!(elements_of(both).expect("known"), expected);
        let one = "// Elements: bf16.\n";
        assert_eq!(elements_of(one).expect("known"), [Some(Element::Bf16)]);
        let below = "// y = W x\n#include \"a.cuh\"\n// Elements: f16, bf16.\n";
        assert_eq!(elements_of(below).expect("says none"), [None]);
        let refused = |text| elements_of(text).expect_err("refused").to_string();
        assert_eq!(
            refused("// Elements: f16, fp8.\n"),
            "`Elements: f16, fp8`: `fp8` is no element; known are f16 and bf16"
        );
        assert!(refused("// Elements: f16, f16.\n").contains("names f16 twice"));
        assert!(refused("// Elements: .\n").contains("`` is no element"));
    }

    #[test]
    fn a_fatbin_is_made_for_each_element_and_chip() {
        let units = |text| units_of(Path::new("a.cu"), text, &["sm_90", "sm_120"]).expect("known");
        let both = units("// Architectures: sm_90a. Elements: f16, bf16.\n");
        let names: Vec<_> = both.iter().map(Unit::name_suffix).collect();
        assert_eq!(names, ["", "_bf16"]);
        assert_eq!(both[1].architectures, ["sm_90a"]);
        let define = "-DELEMENT_BF16".to_string();
        assert!(!both[0].flags().contains(&define) && both[1].flags().contains(&define));
        let plain = units("// Architectures: sm_90, sm_120.\n");
        assert_eq!((plain.len(), plain[0].name_suffix()), (1, ""));
        assert_eq!(plain[0].architectures, ["sm_90", "sm_120"]);
        let text = "// Architectures: sm_90a. Elements: f16, bf16.\n";
        let elsewhere = units_of(Path::new("a.cu"), text, &["sm_120"]).expect("known");
        assert!(elsewhere.is_empty());
    }

    #[test]
    fn choices_of_sm_120_are_compiled_for_other_chips_too_where_a_source_has_some() {
        let text =
            "// y = W x\n// Architectures: sm_90, sm_120. Elements: f16, bf16. Profiles: sm_120.\n";
        let units = |asked| units_of(Path::new("a.cu"), text, asked).expect("known");
        let both = units(&["sm_90", "sm_120"]);
        let names: Vec<_> = both.iter().map(Unit::name_suffix).collect();
        assert_eq!(names, ["", "_as_sm_120", "_bf16", "_bf16_as_sm_120"]);
        let define = "-DPROFILE_SM_120".to_string();
        assert!(!both[0].flags().contains(&define) && both[1].flags().contains(&define));
        assert_eq!(both[0].architectures, ["sm_90", "sm_120"]);
        assert_eq!(both[3].architectures, ["sm_90"]);
        assert_eq!(units(&["sm_120"]).len(), 2, "only the chip's own");
    }

    #[test]
    fn gencodes_name_real_code_only() {
        let args: Vec<_> = gencodes(&["sm_90", "sm_120"]).collect();
        let expected = [
            "-gencode",
            "arch=compute_90,code=sm_90",
            "-gencode",
            "arch=compute_120,code=sm_120",
        ];
        assert_eq!(args, expected);
    }
}
