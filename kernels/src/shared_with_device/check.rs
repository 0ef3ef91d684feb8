//! The device's definitions, read from the text of the CUDA sources and evaluated by the host's C
//! compiler. Parameter structs are plain C; what is not (a method, a template) does not compile here
//! and fails the test.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs};

pub(crate) struct HostField {
    pub name: &'static str,
    pub offset: usize,
    pub n_bytes: usize,
}

pub(crate) struct HostStruct {
    pub device_name: &'static str,
    pub n_bytes: usize,
    pub fields: Vec<HostField>,
}

pub(crate) const fn size_of_field<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

/// `source`: its path below `kernels/src`.
pub(crate) fn assert_same_struct(source: &str, host: &HostStruct) {
    let differences = struct_differences(&text_of(source), host);
    assert!(
        differences.is_empty(),
        "{source} and its host struct differ:\n  {}",
        differences.join("\n  ")
    );
}

pub(crate) fn assert_same_constants(source: &str, host: &[(&'static str, i64)]) {
    let differences = constant_differences(&text_of(source), host);
    assert!(
        differences.is_empty(),
        "{source} and its host constants differ:\n  {}",
        differences.join("\n  ")
    );
}

fn struct_differences(text: &str, host: &HostStruct) -> Vec<String> {
    let name = host.device_name;
    let mut program = Program::default();
    program.define_struct(text, name);
    let mut expected = vec![(name.to_owned(), 0, host.n_bytes)];
    program.print(name, "0", &format!("sizeof({name})"));
    for field in &host.fields {
        let label = format!("{name}.{}", field.name);
        program.print(
            &label,
            &format!("offsetof({name}, {})", field.name),
            &format!("sizeof((({name}*)0)->{})", field.name),
        );
        expected.push((label, field.offset, field.n_bytes));
    }
    program
        .run()
        .into_iter()
        .zip(expected)
        .filter_map(|((label, offset, n_bytes), host)| {
            assert_eq!(label, host.0, "one line a field, in their order");
            let (at, size) = (host.1 as i64, host.2 as i64);
            ((offset, n_bytes) != (at, size)).then(|| {
                format!(
                    "{label}: {n_bytes} bytes at {offset} on the device, {size} at {at} on the host"
                )
            })
        })
        .collect()
}

fn constant_differences(text: &str, host: &[(&'static str, i64)]) -> Vec<String> {
    let mut program = Program::default();
    for (name, _) in host {
        program.define_constant(text, name);
        program.print(name, &format!("({name})"), "0");
    }
    program
        .run()
        .into_iter()
        .zip(host)
        .filter_map(|((label, device, _), (name, host))| {
            assert_eq!(label, *name, "one line a constant, in their order");
            (device != *host).then(|| format!("{name}: {device} on the device, {host} on the host"))
        })
        .collect()
}

/// A C program that prints lines of a label and two numbers.
#[derive(Default)]
struct Program {
    defined: BTreeSet<String>,
    definitions: String,
    body: String,
}

/// What the sources have from CUDA's headers, as far as parameter structs name it.
const PRELUDE: &str = "\
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
typedef uint16_t elem, __half;
typedef struct { float x, y, z, w; } float4;
typedef struct { uint32_t x, y, z, w; } uint4;
typedef struct { int32_t x, y, z, w; } int4;
";

impl Program {
    /// With the structs that are among its fields.
    fn define_struct(&mut self, text: &str, name: &str) {
        if !self.defined.insert(name.to_owned()) {
            return;
        }
        let definition = struct_text(text, name)
            .unwrap_or_else(|| panic!("no `struct {name} {{` in the source or what it includes"));
        for word in words(definition) {
            if word != name && struct_text(text, word).is_some() {
                self.define_struct(text, word);
            }
        }
        let _ = writeln!(self.definitions, "typedef {definition} {name};");
    }

    /// With the constants that its expression names.
    fn define_constant(&mut self, text: &str, name: &str) {
        if !self.defined.insert(name.to_owned()) {
            return;
        }
        let value = constant_text(text, name)
            .unwrap_or_else(|| panic!("no `constexpr … {name} =` in the source or its includes"));
        for word in words(value) {
            if word != name && constant_text(text, word).is_some() {
                self.define_constant(text, word);
            }
        }
        let _ = writeln!(self.definitions, "#define {name} ({value})");
    }

    fn print(&mut self, label: &str, first: &str, second: &str) {
        let _ = writeln!(
            self.body,
            "    printf(\"{label} %lld %lld\\n\", (long long)({first}), (long long)({second}));"
        );
    }

    fn run(&self) -> Vec<(String, i64, i64)> {
        let source = format!(
            "{PRELUDE}{}int main(void) {{\n{}    return 0;\n}}\n",
            self.definitions, self.body
        );
        let printed = compile_and_run(&source);
        let line = |line: &str| {
            let (rest, second) = line.rsplit_once(' ')?;
            let (label, first) = rest.rsplit_once(' ')?;
            Some((label.to_owned(), first.parse().ok()?, second.parse().ok()?))
        };
        printed
            .lines()
            .map(|text| line(text).unwrap_or_else(|| panic!("the program printed `{text}`")))
            .collect()
    }
}

fn compile_and_run(source: &str) -> String {
    static N_PROGRAMS: AtomicUsize = AtomicUsize::new(0);
    let program = env::temp_dir().join(format!(
        "shared-with-device-{}-{}",
        std::process::id(),
        N_PROGRAMS.fetch_add(1, Ordering::Relaxed)
    ));
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let mut child = Command::new(&compiler)
        .args(["-x", "c", "-std=c11", "-w", "-o"])
        .arg(&program)
        .arg("-")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{compiler}: {error}; CC names another C compiler"));
    let mut input = child.stdin.take().expect("it is piped");
    input
        .write_all(source.as_bytes())
        .expect("the compiler reads");
    drop(input);
    let compiled = child.wait_with_output().expect("the compiler ends");
    assert!(
        compiled.status.success(),
        "a name is not the device's, or the struct is not plain C:\n{}\n{source}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let output = Command::new(&program).output();
    fs::remove_file(&program).expect("the program was there");
    String::from_utf8(output.expect("the program runs").stdout).expect("ASCII")
}

/// A source below `kernels/src`, after everything of the tree that it includes.
fn text_of(source: &str) -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut text, mut seen) = (String::new(), BTreeSet::new());
    read_with_includes(&src.join(source), &mut seen, &mut text);
    text
}

fn read_with_includes(path: &Path, seen: &mut BTreeSet<PathBuf>, text: &mut String) {
    let path = path
        .canonicalize()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if !seen.insert(path.clone()) {
        return;
    }
    let own = fs::read_to_string(&path).expect("a source of the tree");
    let folder = path.parent().expect("a file has a folder");
    let included = own
        .lines()
        .filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'));
    for file in included {
        read_with_includes(&folder.join(file), seen, text);
    }
    text.push_str(&own);
}

/// From `struct` to its closing brace.
fn struct_text<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let head = format!("struct {name} {{");
    let start = text
        .match_indices(&head)
        .map(|(at, _)| at)
        .find(|at| text[..*at].ends_with('\n'))?;
    let n_bytes = text[start..].find("\n};")?;
    Some(&text[start..start + n_bytes + 2])
}

/// The expression after `NAME =` in a declaration of constants.
fn constant_text<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let declarations = text
        .lines()
        .filter_map(|line| line.split_once("constexpr ")?.1.split(';').next());
    declarations
        .flat_map(|declaration| declaration.split(", "))
        .find_map(|part| {
            let (left, value) = part.split_once('=')?;
            (left.split_whitespace().next_back()? == name).then(|| value.trim())
        })
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let code = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""));
    code.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
constexpr int K = 256, PAIRS = 8;
constexpr int BYTES = K * PAIRS / 2;  // of a chunk
struct Inner {
    const elem* x;  // an Outer has one
    int32_t rows;
    float scale;
};
struct Outer {
    int32_t m, n;
    Inner inner;
    unsigned long long* sums;
};
";

    fn host() -> HostStruct {
        let field = |name, offset, n_bytes| HostField {
            name,
            offset,
            n_bytes,
        };
        HostStruct {
            device_name: "Outer",
            n_bytes: 32,
            fields: vec![
                field("m", 0, 4),
                field("n", 4, 4),
                field("inner", 8, 16),
                field("sums", 24, 8),
            ],
        }
    }

    #[test]
    fn the_same_struct_passes() {
        assert_eq!(struct_differences(TEXT, &host()), Vec::<String>::new());
    }

    #[test]
    fn swapped_fields_of_one_type_are_found_though_the_size_is_the_same() {
        let swapped = TEXT.replace("int32_t m, n;", "int32_t n, m;");
        let expected = [
            "Outer.m: 4 bytes at 4 on the device, 4 at 0 on the host",
            "Outer.n: 4 bytes at 0 on the device, 4 at 4 on the host",
        ];
        assert_eq!(struct_differences(&swapped, &host()), expected);
    }

    #[test]
    fn a_field_that_the_host_lacks_is_found() {
        let longer = TEXT.replace("int32_t rows;", "int64_t rows;");
        let expected = [
            "Outer: 40 bytes at 0 on the device, 32 at 0 on the host",
            "Outer.inner: 24 bytes at 8 on the device, 16 at 8 on the host",
            "Outer.sums: 8 bytes at 32 on the device, 8 at 24 on the host",
        ];
        assert_eq!(struct_differences(&longer, &host()), expected);
    }

    #[test]
    #[should_panic(expected = "a name is not the device's")]
    fn a_field_of_another_name_is_found() {
        struct_differences(&TEXT.replace("m, n;", "m, n_columns;"), &host());
    }

    #[test]
    fn constants_are_evaluated_and_compared() {
        let differences = |value| constant_differences(TEXT, &[("PAIRS", 8), ("BYTES", value)]);
        assert_eq!(differences(1024), Vec::<String>::new());
        assert_eq!(
            differences(2048),
            ["BYTES: 1024 on the device, 2048 on the host"]
        );
    }

    /// A real struct of the tree with two of its fields exchanged.
    #[test]
    fn a_swap_planted_in_a_source_is_found() {
        let text = text_of("stream_linear/repack.cu");
        let swapped = text.replace("int32_t n, k, group;", "int32_t k, n, group;");
        assert_ne!(text, swapped);
        let host = HostStruct {
            device_name: "RepackAwqParams",
            n_bytes: 64,
            fields: vec![
                HostField {
                    name: "n",
                    offset: 40,
                    n_bytes: 4,
                },
                HostField {
                    name: "k",
                    offset: 44,
                    n_bytes: 4,
                },
            ],
        };
        assert_eq!(struct_differences(&text, &host), Vec::<String>::new());
        assert_eq!(struct_differences(&swapped, &host).len(), 2);
    }

    /// Every struct with C's layout is one of `device_structs!`, hence checked.
    #[test]
    fn no_struct_of_a_kernel_goes_unchecked() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let allowed = [src.join("shared_with_device.rs")];
        let mut folders = vec![src];
        let (mut n_files, mut unchecked) = (0, Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a folder of the tree") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|ending| ending == "rs") {
                    n_files += 1;
                    let text = fs::read_to_string(&path).expect("a source");
                    let is_bare = text.lines().any(|line| line.trim() == "#[repr(C)]");
                    if is_bare && !allowed.contains(&path) {
                        unchecked.push(path);
                    }
                }
            }
        }
        assert!(n_files > 50, "{n_files} files were read");
        assert_eq!(unchecked, Vec::<PathBuf>::new());
    }
}
