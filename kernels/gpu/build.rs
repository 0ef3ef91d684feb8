//! Puts the compiled CUDA kernels into the crate.
//!
//! `cargo xtask build --arch …` compiles them and names their folder in `ENGINE_KERNELS_DIR`.
//! Without that variable the table is empty, so that a bare machine needs no CUDA compiler.

#[path = "src/kernel_index.rs"]
mod kernel_index;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, process};

use kernel_index::KernelIndex;

fn main() {
    println!("cargo::rerun-if-env-changed=ENGINE_KERNELS_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/kernel_index.rs");
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
    let (mut index, mut fatbins) = (KernelIndex::default(), String::new());
    if let Some(folder) = folder {
        let path = folder.join("index.txt");
        println!("cargo::rerun-if-changed={}", path.display());
        let failed = |error: String| format!("ENGINE_KERNELS_DIR: {}: {error}", path.display());
        let text = fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
        index = KernelIndex::read(&text).map_err(failed)?;
        for (source, file) in &index.fatbins {
            let path = folder.join(file).display().to_string();
            println!("cargo::rerun-if-changed={path}");
            let _ = writeln!(fatbins, "    ({source:?}, include_bytes!({path:?})),");
        }
    }
    Ok(format!(
        "static FATBINS: &[(&str, &[u8])] = &[\n{fatbins}];\n\
         static ARCHITECTURES: &[&str] = &{:?};\n\
         static SHA256: &str = {:?};\n",
        index.architectures, index.sha256
    ))
}
