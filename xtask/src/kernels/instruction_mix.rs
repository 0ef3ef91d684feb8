//! The instruction mix of the same kernel on the two chips, from the machine code (`cuobjdump -sass`).
//!
//! The kernels of sm_120 run under test as another chip's code (`--card-profile`), so what the
//! compiler makes of the same source on both must be the same kind of code. Of each kind of
//! instruction that the design depends on, a kernel has it on both chips or on neither, and at most
//! [`MOST_RATIO`] times as often on one of them: loops are unrolled differently. What differs more
//! fails the audit unless `kernels/audit.toml` lists it as `[[mix]]` with a reason, and so does an
//! entry there that explains nothing any more.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use duct::cmd;

use super::compiler::{Compiled, in_parallel};
use super::nvcc::Toolchain;

/// Products of the tensor cores, bulk copies, barriers, local memory (spills and arrays), copies of
/// single words to shared memory, matrix loads, launch overlap.
const KINDS: [&str; 10] = [
    "HMMA", "IMMA", "UBLKCP", "SYNCS", "LDL", "STL", "LDGSTS", "LDSM", "ACQBULK", "PREEXIT",
];
const CHIPS: [&str; 2] = ["sm_90", "sm_120"];
const MOST_RATIO: usize = 2;
/// Increment when the lines beside a fatbin change.
const VERSION: &str = "1";

/// An entry of `[[mix]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// A kernel's name, or a pattern with one star.
    pub kernel: String,
    pub instruction: String,
}

/// Counts of one kernel by chip and kind.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mix {
    source_name: String,
    kernel: String,
    counts: BTreeMap<String, [usize; 2]>,
}

/// A kind of instruction that a kernel has on one chip, or much more often there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Difference<'a> {
    mix: &'a Mix,
    kind: &'a str,
    counts: [usize; 2],
}

/// Faults of the kernels that were compiled for both chips; none if one of them was not asked for.
pub fn faults(
    toolchain: &Toolchain,
    compiled: &[Compiled],
    architectures: &[&str],
    explained: &[Explained],
    folder: &Path,
) -> Result<Vec<String>> {
    if CHIPS.iter().any(|chip| !architectures.contains(chip)) {
        return Ok(Vec::new());
    }
    let is_for_both = |source: &&Compiled| {
        let is_on = |chip: &str| source.kernels.iter().any(|k| k.architecture == chip);
        CHIPS.into_iter().all(is_on)
    };
    let sources: Vec<&Compiled> = compiled.iter().filter(is_for_both).collect();
    let mixes = in_parallel(&sources, |source| mixes_of(toolchain, source, folder))?;
    let mixes = mixes.concat();
    fs::write(folder.join("mix.txt"), table(&mixes))?;
    Ok(judged(&mixes, explained))
}

/// Disassembling takes minutes, so the counts are kept beside the fatbin.
fn mixes_of(toolchain: &Toolchain, source: &Compiled, folder: &Path) -> Result<Vec<Mix>> {
    let file = folder.join(source.source_name.replace('/', "-"));
    let key = fs::read_to_string(file.with_extension("key"))?;
    let first_line = format!("{VERSION} {key}");
    let kept = file.with_extension("mix");
    if let Ok(text) = fs::read_to_string(&kept)
        && let Some((first, lines)) = text.split_once('\n')
        && first == first_line
    {
        return from_lines(&source.source_name, lines);
    }
    eprintln!("kernels: instruction mix of {}", source.source_name);
    let disassembler = toolchain.disassembler()?;
    let tools = disassembler.parent().context("the disassembler's folder")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(tools.to_path_buf()).chain(std::env::split_paths(&path));
    let sass = cmd!(&toolchain.cuobjdump, "-sass", file.with_extension("fatbin"))
        .env("PATH", std::env::join_paths(paths)?)
        .read()
        .context("cuobjdump -sass")?;
    let mixes = parse(&source.source_name, &sass)?;
    let n_kernels = source
        .kernels
        .iter()
        .filter(|k| k.architecture == CHIPS[0])
        .count();
    if mixes.len() != n_kernels {
        bail!(
            "cuobjdump -sass shows {} kernels of {}, the compiler {n_kernels}",
            mixes.len(),
            source.source_name
        );
    }
    fs::write(&kept, format!("{first_line}\n{}", to_lines(&mixes)))?;
    Ok(mixes)
}

/// Counts of the kernels that are there for both chips. An error where there is no instruction at
/// all: then the format has changed, and an empty audit must not pass.
fn parse(source_name: &str, sass: &str) -> Result<Vec<Mix>> {
    let mut kernels: BTreeMap<String, Mix> = BTreeMap::new();
    let (mut chip, mut kernel) = (None, None);
    let mut n_instructions = [0_usize; 2];
    for line in sass.lines() {
        if let Some(name) = line.strip_prefix("arch = ") {
            chip = CHIPS.iter().position(|chip| *chip == name.trim());
            kernel = None;
        } else if let Some(name) = line.trim().strip_prefix("Function : ") {
            kernel = Some(name.trim().to_owned());
        } else if let (Some(chip), Some(kernel), Some(kind)) = (chip, &kernel, kind_of(line)) {
            n_instructions[chip] += 1;
            let mix = kernels.entry(kernel.clone()).or_insert_with(|| Mix {
                source_name: source_name.to_owned(),
                kernel: kernel.clone(),
                counts: BTreeMap::new(),
            });
            if KINDS.contains(&kind) {
                mix.counts.entry(kind.to_owned()).or_default()[chip] += 1;
            }
        }
    }
    if n_instructions.contains(&0) {
        bail!("cuobjdump -sass shows no instructions of {source_name}");
    }
    Ok(kernels.into_values().collect())
}

/// `        /*0070*/      @!P0 LDC.64 R16, c[0x0][0x228] ;   /* 0x… */` → LDC
fn kind_of(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("/*")?;
    let (address, rest) = rest.split_once("*/")?;
    if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut words = rest.split_whitespace();
    let mut word = words.next()?;
    if word.starts_with('@') {
        word = words.next()?;
    }
    let kind = word.split(['.', ';']).next()?;
    let is_name = kind.starts_with(|c: char| c.is_ascii_uppercase());
    is_name.then_some(kind)
}

fn judged(mixes: &[Mix], explained: &[Explained]) -> Vec<String> {
    let differences: Vec<Difference<'_>> = mixes.iter().flat_map(differences).collect();
    let explains = |entry: &Explained, found: &Difference<'_>| {
        entry.instruction == found.kind && super::audit::matches(&entry.kernel, &found.mix.kernel)
    };
    let mut faults = Vec::new();
    for found in &differences {
        if explained.iter().any(|entry| explains(entry, found)) {
            continue;
        }
        faults.push(format!(
            "{} of {}: {} {} times on {} and {} times on {}, not explained in audit.toml",
            found.mix.kernel,
            found.mix.source_name,
            found.kind,
            found.counts[0],
            CHIPS[0],
            found.counts[1],
            CHIPS[1]
        ));
    }
    for entry in explained {
        if !differences.iter().any(|found| explains(entry, found)) {
            faults.push(format!(
                "audit.toml explains {} of {}, which does not differ any more",
                entry.instruction, entry.kernel
            ));
        }
    }
    faults
}

fn differences(mix: &Mix) -> impl Iterator<Item = Difference<'_>> {
    mix.counts.iter().filter_map(move |(kind, &counts)| {
        let (least, most) = (counts[0].min(counts[1]), counts[0].max(counts[1]));
        (most > MOST_RATIO * least).then_some(Difference { mix, kind, counts })
    })
}

fn to_lines(mixes: &[Mix]) -> String {
    let mut text = String::new();
    for mix in mixes {
        let _ = write!(text, "{}", mix.kernel);
        for (kind, counts) in &mix.counts {
            let _ = write!(text, " {kind} {} {}", counts[0], counts[1]);
        }
        text.push('\n');
    }
    text
}

fn from_lines(source_name: &str, text: &str) -> Result<Vec<Mix>> {
    let mut mixes = Vec::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let kernel = words.next().context("a kernel's name")?.to_owned();
        let words: Vec<&str> = words.collect();
        let mut counts = BTreeMap::new();
        for entry in words.chunks(3) {
            let &[kind, first, second] = entry else {
                bail!("cannot read the line `{line}`");
            };
            counts.insert(kind.to_owned(), [first.parse()?, second.parse()?]);
        }
        mixes.push(Mix {
            source_name: source_name.to_owned(),
            kernel,
            counts,
        });
    }
    Ok(mixes)
}

/// For people: every kernel's counts on both chips.
fn table(mixes: &[Mix]) -> String {
    let mut text = String::new();
    for mix in mixes {
        let _ = write!(text, "{} {}:", mix.source_name, mix.kernel);
        for (kind, [first, second]) in &mix.counts {
            let _ = write!(text, " {kind} {first}/{second}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As cuobjdump writes it: two kernels on both chips.
    const SASS: &str = "
Fatbin elf code:
================
arch = sm_90
code version = [1,8]

\t\tFunction : first
        /*0000*/                   LDC R1, c[0x0][0x28] ;        /* 0x00000a00ff017b82 */
                                                                 /* 0x000fe20000000800 */
        /*0010*/              @!P0 HMMA.16816.F32 R4, R8, R2, R4 ; /* 0x0 */
        /*0020*/                   HMMA.16816.F32 R4, R8, R2, R4 ; /* 0x0 */
        /*0030*/                   UBLKCP.S.G [UR4], [UR6], UR8 ;  /* 0x0 */
\t\tFunction : second
        /*0000*/                   EXIT ;                        /* 0x0 */

Fatbin elf code:
================
arch = sm_120
code version = [1,8]

\t\tFunction : first
        /*0000*/                   HMMA.16816.F32 R4, R8, R2, R4 ; /* 0x0 */
        /*0010*/             @P1   UBLKCP.S.G [UR4], [UR6], UR8 ;  /* 0x0 */
\t\tFunction : second
        /*0000*/                   EXIT ;                        /* 0x0 */
";

    #[test]
    fn instructions_are_counted_by_kernel_and_chip() {
        let mixes = parse("op/a", SASS).expect("two kernels");
        assert_eq!(mixes.len(), 2);
        assert_eq!(mixes[0].counts["HMMA"], [2, 1]);
        assert_eq!(mixes[0].counts["UBLKCP"], [1, 1]);
        assert!(mixes[1].counts.is_empty(), "{mixes:?}");
        assert_eq!(
            from_lines("op/a", &to_lines(&mixes)).expect("as written"),
            mixes
        );
        let error = parse("op/a", "arch = sm_90\n").expect_err("nothing");
        assert!(error.to_string().contains("no instructions of op/a"));
        assert!(
            judged(&mixes, &[]).is_empty(),
            "unrolled twice is no difference"
        );
    }

    /// Spills on one chip, products missing on the other, a loop unrolled three times: each fails
    /// until it is explained.
    #[test]
    fn planted_differences_fail_by_name_and_explained_ones_do_not() {
        let planted = SASS
            .replacen("LDC R1, c[0x0][0x28] ;", "STL [R1], R4 ;", 1)
            .replace(
                "HMMA.16816.F32 R4, R8, R2, R4 ; /* 0x0 */\n        /*0010*/             @P1",
                "NOP ; /* 0x0 */\n        /*0010*/             @P1",
            );
        let mixes = parse("op/a", &planted).expect("two kernels");
        let faults = judged(&mixes, &[]);
        assert_eq!(
            faults,
            [
                "first of op/a: HMMA 2 times on sm_90 and 0 times on sm_120, not explained in \
                 audit.toml",
                "first of op/a: STL 1 times on sm_90 and 0 times on sm_120, not explained in \
                 audit.toml",
            ]
        );
        let entry = |kernel: &str, instruction: &str| Explained {
            kernel: kernel.to_owned(),
            instruction: instruction.to_owned(),
        };
        let both = [entry("fir*", "HMMA"), entry("first", "STL")];
        assert!(judged(&mixes, &both).is_empty());
        // An entry that explains nothing fails too.
        let stale = judged(
            &mixes,
            &[both[0].clone(), both[1].clone(), entry("first", "IMMA")],
        );
        assert_eq!(
            stale,
            ["audit.toml explains IMMA of first, which does not differ any more"]
        );
        let unrolled = SASS.replacen(
            "LDC R1, c[0x0][0x28] ;",
            "HMMA.16816.F32 R4, R8, R2, R4 ;",
            1,
        );
        let faults = judged(&parse("op/a", &unrolled).expect("two kernels"), &[]);
        assert!(
            faults[0].contains("HMMA 3 times on sm_90 and 1 times"),
            "{faults:?}"
        );
    }
}
