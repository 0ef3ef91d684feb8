//! No function of a CUDA source is longer than [`MOST_LINES`], but for those that
//! `kernels/audit.toml` lists: with how many lines they have, so that the list only shrinks.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::source_files::files_below;

const MOST_LINES: usize = 120;

/// `[[long_function]]` in `audit.toml`.
#[derive(Debug, PartialEq, Eq)]
pub struct LongFunction {
    /// Path below `kernels/src`.
    pub source: String,
    pub function: String,
    /// At most.
    pub n_lines: usize,
}

#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    n_lines: usize,
}

pub fn check(root: &Path, allowed: &[LongFunction]) -> Result<()> {
    let src = root.join("kernels").join("src");
    let mut functions = Vec::new();
    for path in files_below(&src, &["cu", "cuh"])? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let source = path.strip_prefix(&src)?.display().to_string();
        functions.extend(functions_of(&text).into_iter().map(|f| (source.clone(), f)));
    }
    let faults = faults(&functions, allowed);
    if faults.is_empty() {
        return Ok(());
    }
    bail!("functions of CUDA sources:\n  {}", faults.join("\n  "))
}

fn faults(functions: &[(String, Function)], allowed: &[LongFunction]) -> Vec<String> {
    let mut faults = Vec::new();
    for (source, Function { name, n_lines }) in functions {
        if *n_lines <= MOST_LINES {
            continue;
        }
        let listed = allowed
            .iter()
            .find(|entry| entry.source == *source && entry.function == *name);
        match listed {
            None => faults.push(format!(
                "{name} of {source} has {n_lines} lines, more than {MOST_LINES}: split it into phases"
            )),
            Some(entry) if entry.n_lines < *n_lines => faults.push(format!(
                "{name} of {source} has grown to {n_lines} lines; audit.toml allows {}",
                entry.n_lines
            )),
            Some(entry) if entry.n_lines > *n_lines => faults.push(format!(
                "{name} of {source} has {n_lines} lines; audit.toml still allows {}",
                entry.n_lines
            )),
            Some(_) => {}
        }
    }
    for entry in allowed {
        let is_long = functions.iter().any(|(source, function)| {
            entry.source == *source
                && entry.function == function.name
                && function.n_lines > MOST_LINES
        });
        if !is_long {
            faults.push(format!(
                "audit.toml allows {} of {} to be long, which no such function needs any more",
                entry.function, entry.source
            ));
        }
    }
    faults
}

/// Device functions and kernels, from the line with their name to their closing brace. Macros and
/// the bodies that they make are one line each and are left out.
fn functions_of(text: &str) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    let mut functions = Vec::new();
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        at += 1;
        let line = line.trim();
        let is_definition =
            line.starts_with("DEVICE ") || line.starts_with("extern \"C\" __global__");
        if !is_definition {
            continue;
        }
        let first = at - 1;
        let (mut depth, mut is_open) = (0i64, false);
        for (i, line) in lines.iter().enumerate().skip(first) {
            let code = line.split("//").next().unwrap_or_default();
            is_open |= code.contains('{');
            depth += code.matches('{').count() as i64 - code.matches('}').count() as i64;
            if !is_open && code.trim_end().ends_with(';') {
                break; // declared alone
            }
            if is_open && depth == 0 {
                let name = name_of(&lines[first..=i]);
                functions.push(Function {
                    name,
                    n_lines: i + 1 - first,
                });
                at = i + 1;
                break;
            }
        }
    }
    functions
}

/// The word before the list of parameters: the first `(` that follows no attribute.
fn name_of(lines: &[&str]) -> String {
    let head = lines.join(" ");
    let head = head.split('{').next().unwrap_or_default();
    let mut rest = head;
    while let Some((before, after)) = rest.split_once('(') {
        let name = before
            .rsplit(|c: char| !c.is_alphanumeric() && c != '_')
            .find(|word| !word.is_empty())
            .unwrap_or_default();
        if name != "__launch_bounds__" {
            return name.to_owned();
        }
        rest = after;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(name: &str, n_lines: usize) -> (String, Function) {
        let name = name.to_owned();
        ("op/op.cu".to_owned(), Function { name, n_lines })
    }

    fn allowed(n_lines: usize) -> Vec<LongFunction> {
        vec![LongFunction {
            source: "op/op.cu".to_owned(),
            function: "walk".to_owned(),
            n_lines,
        }]
    }

    #[test]
    fn functions_are_found_with_their_lengths() {
        let text = "\
DEVICE int declared(int x);
DEVICE float one(float x) { return x; }
struct Ring {
    // DEVICE { in a comment
    template <int N>
    DEVICE void step(int n) {
        if (n) {
        }
    }
};
extern \"C\" __global__ void __launch_bounds__(THREADS)
    kernel(const __grid_constant__ Params p) {
    one(1.f);
}
#define KERNEL(name) extern \"C\" __global__ void name() {}
";
        let found: Vec<_> = functions_of(text)
            .into_iter()
            .map(|function| (function.name, function.n_lines))
            .collect();
        let expected = [("one", 1), ("step", 4), ("kernel", 4)];
        let expected = expected.map(|(name, n)| (name.to_owned(), n));
        assert_eq!(found, expected);
    }

    #[test]
    fn long_functions_must_be_listed_with_their_exact_length() {
        let functions = [long("walk", 150), long("short", 120)];
        assert_eq!(faults(&functions, &allowed(150)), Vec::<String>::new());
        let text = |n_lines, allowed: &[LongFunction]| {
            faults(&[long("walk", n_lines)], allowed).join("; ")
        };
        assert!(text(121, &[]).contains("walk of op/op.cu has 121 lines, more than 120"));
        assert!(text(151, &allowed(150)).contains("has grown to 151 lines"));
        assert!(text(149, &allowed(150)).contains("audit.toml still allows 150"));
        assert!(text(120, &allowed(150)).contains("no such function needs any more"));
    }
}
