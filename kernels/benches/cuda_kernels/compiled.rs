//! Which compiled kernels are measured. Plain `cargo bench` has none built in, so it calls the recipe
//! that compiles what has changed since the last time.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gpu::{embedded_kernels, use_compiled_kernels, use_kernels_of_environment};

/// Says what was chosen.
pub fn choose() -> Result<String, Box<dyn Error>> {
    if let Some(folder) = use_kernels_of_environment()? {
        return Ok(format!("those in {}", folder.display()));
    }
    if !embedded_kernels().fatbins.is_empty() {
        return Ok("those built into this program".to_owned());
    }
    println!("kernels: none built into this program; `cargo xtask kernel all --build-only` first");
    let folder = compiled_by_the_recipe()?;
    use_compiled_kernels(&folder)?;
    Ok(format!("those in {}", folder.display()))
}

/// The folder is the last line that the recipe prints.
fn compiled_by_the_recipe() -> Result<PathBuf, Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let own = std::env::current_exe()?;
    // <target>/release/deps/cuda_kernels-…
    let target = own.ancestors().nth(3);
    let (root, target) = root
        .zip(target)
        .ok_or("this program lies in no target folder")?;
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["xtask", "kernel", "all", "--build-only"])
        .current_dir(root)
        .env("CARGO_TARGET_DIR", target)
        .stderr(Stdio::inherit())
        .output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        print!("{printed}");
        return Err(format!("the kernels were not built ({})", output.status).into());
    }
    let folder = printed.lines().next_back().map(PathBuf::from);
    Ok(folder.ok_or("the recipe names no folder")?)
}
