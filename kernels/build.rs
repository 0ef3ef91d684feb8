//! Puts the compiled CUDA kernels into the crate.
//!
//! `cargo xtask build --arch …` compiles them and names their folder in `ENGINE_KERNELS_DIR`.
//! Without that variable the table is empty, so that a bare machine needs no CUDA compiler.
//! The folder's `index.txt` has lines of a keyword and its values:
//! `architecture sm_90`, `sha256 <hex>`, `fatbin <source name> <file name>`; the fatbin of a source
//! for bf16 has the suffix `_bf16`, one with another chip's choices `_as_sm_120`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, process};

fn main() {
    println!("cargo::rerun-if-env-changed=ENGINE_KERNELS_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    // Tests that need a GPU are ignored by default, and run with `ENGINE_TEST_CUDA=1`.
    println!("cargo::rerun-if-env-changed=ENGINE_TEST_CUDA");
    println!("cargo::rustc-check-cfg=cfg(engine_test_cuda)");
    if env::var_os("ENGINE_TEST_CUDA").is_some_and(|value| value == "1") {
        println!("cargo::rustc-cfg=engine_test_cuda");
    }
    let folder = env::var_os("ENGINE_KERNELS_DIR")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from);
    if let Err(message) = table(folder.as_deref()).and_then(|text| write_table(&text)) {
        println!("cargo::error={message}");
        process::exit(1);
    }
}

fn write_table(text: &str) -> Result<(), String> {
    let out_dir = env::var_os("OUT_DIR").ok_or("cargo has set no OUT_DIR")?;
    let path = Path::new(&out_dir).join("embedded_kernels.rs");
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn table(folder: Option<&Path>) -> Result<String, String> {
    let (mut fatbins, mut architectures, mut sha256) =
        (String::new(), String::new(), String::new());
    if let Some(folder) = folder {
        let index = folder.join("index.txt");
        println!("cargo::rerun-if-changed={}", index.display());
        let text = fs::read_to_string(&index)
            .map_err(|error| format!("ENGINE_KERNELS_DIR: {}: {error}", index.display()))?;
        for line in text.lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["architecture", name] => {
                    let _ = write!(architectures, "{name:?}, ");
                }
                ["sha256", digest] => digest.clone_into(&mut sha256),
                ["fatbin", source, file] => {
                    let path = folder.join(file).display().to_string();
                    println!("cargo::rerun-if-changed={path}");
                    let _ = writeln!(fatbins, "    ({source:?}, include_bytes!({path:?})),");
                }
                _ => {
                    return Err(format!(
                        "{}: cannot read the line `{line}`",
                        index.display()
                    ));
                }
            }
        }
    }
    Ok(format!(
        "static FATBINS: &[(&str, &[u8])] = &[\n{fatbins}];\n\
         static ARCHITECTURES: &[&str] = &[{architectures}];\n\
         static SHA256: &str = {sha256:?};\n"
    ))
}
