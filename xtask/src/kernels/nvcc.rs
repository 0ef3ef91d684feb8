//! Finds the CUDA compiler, or installs it below the working tree, and reports its version.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail};
use duct::cmd;

/// In the working tree, ignored by git, removed by `clean`.
const FOLDER: &str = ".cuda";
/// All five extras are needed, and the pin: a newer compiler's code needs a newer driver.
const COMPILER: Package = Package {
    folder: "compiler",
    name: "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==13.0.2",
};
/// Separate from the compiler, because its dependencies and pip's `--target` would replace parts.
const OBJDUMP: Package = Package {
    folder: "objdump",
    name: "nvidia-cuda-cuobjdump==13.2.51",
};

/// Installed when an audit first disassembles. `cuobjdump` calls it.
const DISASSEMBLER: Package = Package {
    folder: "disassembler",
    name: "nvidia-cuda-nvdisasm==13.5.37",
};

/// A package and its folder below [`FOLDER`].
struct Package {
    folder: &'static str,
    name: &'static str,
}

impl Package {
    fn program(&self, root: &Path, program: &str) -> PathBuf {
        let bin = root
            .join(FOLDER)
            .join(self.folder)
            .join("nvidia")
            .join("cu13")
            .join("bin");
        bin.join(program)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// sm_120 is unknown to older compilers.
const FIRST_WITH_SM_120: Version = Version {
    major: 12,
    minor: 8,
};
/// The sources use C++20.
const FIRST: Version = Version {
    major: 12,
    minor: 0,
};

#[derive(Debug)]
pub struct Toolchain {
    pub nvcc: PathBuf,
    pub cuobjdump: PathBuf,
    pub version: Version,
    /// The CUDA version of the driver on this machine, if there is one.
    driver: Option<Version>,
    /// The working tree, for what is installed below it.
    root: PathBuf,
}

impl Toolchain {
    pub fn describe(&self) -> String {
        let driver = match self.driver {
            Some(driver) => format!("the driver here runs CUDA {driver}"),
            None => "no driver here to compare it with".to_string(),
        };
        format!("{} is CUDA {}; {driver}", self.nvcc.display(), self.version)
    }
}

impl Toolchain {
    /// `nvdisasm`: beside nvcc, on the path, or in the working tree's `.cuda`, where it is
    /// installed if necessary (6 MB).
    pub fn disassembler(&self) -> Result<PathBuf> {
        let beside = Some(self.nvcc.with_file_name("nvdisasm")).filter(|path| path.is_file());
        let own = DISASSEMBLER.program(&self.root, "nvdisasm");
        if let Some(found) = beside.or_else(|| on_path("nvdisasm")) {
            return Ok(found);
        }
        if !own.is_file() {
            pip_install(&self.root, &DISASSEMBLER, &["--no-deps"])?;
        }
        if !own.is_file() {
            bail!("pip has installed no {}", own.display());
        }
        Ok(own)
    }
}

/// From `CUDA_HOME`, the path, or the working tree's `.cuda`, which is installed if necessary.
pub fn find(root: &Path, architectures: &[&str]) -> Result<Toolchain> {
    let nvcc = match installed(root)? {
        Some(nvcc) => nvcc,
        None => install(root)?,
    };
    let text = cmd!(&nvcc, "--version")
        .stderr_to_stdout()
        .read()
        .with_context(|| format!("{} --version", nvcc.display()))?;
    let version = version_after(&text, "release ")
        .with_context(|| format!("no version in what {} --version says", nvcc.display()))?;
    let driver = driver_version();
    check_versions(version, driver, architectures)?;
    let beside = nvcc.with_file_name("cuobjdump");
    let cuobjdump = Some(beside.clone())
        .filter(|path| path.is_file())
        .or_else(|| on_path("cuobjdump"))
        .or_else(|| Some(OBJDUMP.program(root, "cuobjdump")).filter(|path| path.is_file()))
        .with_context(|| format!("{} is missing; the audit needs it", beside.display()))?;
    Ok(Toolchain {
        nvcc,
        cuobjdump,
        version,
        driver,
        root: root.to_path_buf(),
    })
}

fn check_versions(nvcc: Version, driver: Option<Version>, architectures: &[&str]) -> Result<()> {
    if nvcc < FIRST {
        bail!("nvcc {nvcc} is too old: the sources need {FIRST} at least");
    }
    if architectures.contains(&"sm_120") && nvcc < FIRST_WITH_SM_120 {
        bail!(
            "nvcc {nvcc} does not know sm_120, {FIRST_WITH_SM_120} is the first that does; \
             unset CUDA_HOME to have the recipe install its own, or build for sm_90 only"
        );
    }
    if let Some(driver) = driver.filter(|driver| nvcc > *driver) {
        bail!(
            "nvcc {nvcc} is newer than the driver, which runs CUDA {driver} at most and would not \
             load its kernels; update the driver, or set CUDA_HOME to a CUDA {FIRST_WITH_SM_120} \
             to {driver} toolkit"
        );
    }
    Ok(())
}

fn installed(root: &Path) -> Result<Option<PathBuf>> {
    if let Some(home) = env::var_os("CUDA_HOME").filter(|home| !home.is_empty()) {
        let nvcc = Path::new(&home).join("bin").join("nvcc");
        if !nvcc.is_file() {
            bail!(
                "CUDA_HOME is {}, but there is no bin/nvcc",
                Path::new(&home).display()
            );
        }
        return Ok(Some(nvcc));
    }
    if let Some(nvcc) = on_path("nvcc") {
        return Ok(Some(nvcc));
    }
    Ok(is_complete(root).then(|| COMPILER.program(root, "nvcc")))
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Written last, so that an interrupted download is not taken for a toolchain.
fn mark(root: &Path) -> PathBuf {
    root.join(FOLDER).join("complete")
}

fn pins() -> String {
    format!("{}\n{}\n", COMPILER.name, OBJDUMP.name)
}

fn is_complete(root: &Path) -> bool {
    fs::read_to_string(mark(root)).is_ok_and(|text| text == pins())
}

/// 105 MB to download, 270 MB on disk.
fn install(root: &Path) -> Result<PathBuf> {
    eprintln!("kernels: no nvcc in CUDA_HOME or PATH; installing it with pip into {FOLDER}");
    let folder = root.join(FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    pip_install(root, &COMPILER, &[])?;
    pip_install(root, &OBJDUMP, &["--no-deps"])?;
    for program in [
        COMPILER.program(root, "nvcc"),
        OBJDUMP.program(root, "cuobjdump"),
    ] {
        if !program.is_file() {
            bail!("pip has installed no {}", program.display());
        }
    }
    fs::write(mark(root), pins()).with_context(|| mark(root).display().to_string())?;
    Ok(COMPILER.program(root, "nvcc"))
}

fn pip_install(root: &Path, package: &Package, extra: &[&str]) -> Result<()> {
    let folder = root.join(FOLDER).join(package.folder);
    let target = folder
        .to_str()
        .context("the working tree's path is not UTF-8")?;
    let mut args = vec![
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ];
    args.extend([
        "--no-compile",
        "--root-user-action",
        "ignore",
        "--target",
        target,
    ]);
    args.extend(extra);
    args.push(package.name);
    let status = cmd("python3", &args)
        .stdout_to_stderr()
        .unchecked()
        .run()
        .context("python3 cannot be started; the CUDA compiler is installed with its pip")?
        .status;
    if !status.success() {
        bail!(
            "pip could not install {} ({status}); install a CUDA toolkit and set CUDA_HOME",
            package.name
        );
    }
    Ok(())
}

/// The maximum CUDA version of the driver here, as printed by nvidia-smi; `None` without a driver.
fn driver_version() -> Option<Version> {
    let program = on_path("nvidia-smi")?;
    let text = cmd!(program).stderr_null().read().ok()?;
    version_after(&text, "CUDA Version: ")
}

/// `release 13.0, V13.0.88` after `release ` → 13.0.
fn version_after(text: &str, label: &str) -> Option<Version> {
    let rest = text.split(label).nth(1)?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    Some(Version {
        major: numbers.next()?.parse().ok()?,
        minor: numbers.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V12_6: Version = Version {
        major: 12,
        minor: 6,
    };
    const V12_8: Version = Version {
        major: 12,
        minor: 8,
    };
    const V13_0: Version = Version {
        major: 13,
        minor: 0,
    };

    #[test]
    fn reads_versions() {
        let nvcc = "Cuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0.r13.0";
        assert_eq!(version_after(nvcc, "release "), Some(V13_0));
        let smi = "| NVIDIA-SMI 570.86.15    Driver Version: 570.86.15    CUDA Version: 12.8     |";
        assert_eq!(version_after(smi, "CUDA Version: "), Some(V12_8));
        assert_eq!(version_after("CUDA Version: N/A", "CUDA Version: "), None);
    }

    #[test]
    fn refuses_what_cannot_work_and_says_why() {
        let text = |nvcc, driver, arch: &str| {
            check_versions(nvcc, driver, &[arch])
                .expect_err("refused")
                .to_string()
        };
        assert!(text(V12_6, None, "sm_120").contains("does not know sm_120, 12.8 is the first"));
        assert!(text(V13_0, Some(V12_8), "sm_90").contains("newer than the driver"));
        assert!(check_versions(V12_6, None, &["sm_90"]).is_ok());
        assert!(check_versions(V12_8, Some(V13_0), &["sm_120"]).is_ok());
        assert!(check_versions(V13_0, Some(V13_0), &["sm_90", "sm_120"]).is_ok());
    }
}
