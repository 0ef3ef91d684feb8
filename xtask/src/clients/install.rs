//! What the clients need, below the target folder: a Python environment and a Node project. Both
//! are made again where the pinned versions have changed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use duct::cmd;

/// Program, the first words that show that it works, and what brings it.
const TOOLS: [(&str, &[&str], &str); 4] = [
    (
        "python3",
        &["--version"],
        "Python 3.10 or later (Debian: python3)",
    ),
    (
        "python3",
        &["-c", "import venv, ensurepip"],
        "Python's venv (Debian: python3-venv)",
    ),
    (
        "node",
        &["--version"],
        "Node.js 20 or later (Debian: nodejs)",
    ),
    ("npm", &["--version"], "npm (Debian: npm)"),
];

/// Fails with everything that is missing.
pub fn check_tools() -> Result<()> {
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(program, words, _)| {
            let ran = cmd(*program, *words)
                .stdout_null()
                .stderr_null()
                .unchecked()
                .run();
            !ran.is_ok_and(|output| output.status.success())
        })
        .map(|(_, _, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "the clients need, and this machine lacks: {}",
        missing.join("; ")
    );
}

pub struct Installed {
    venv: PathBuf,
    node: PathBuf,
    home: PathBuf,
}

impl Installed {
    pub fn prepare(sources: &Path, folder: &Path) -> Result<Self> {
        let installed = Self {
            venv: folder.join("venv"),
            node: folder.join("node"),
            home: folder.join("home"),
        };
        for made in [&installed.node, &installed.home] {
            fs::create_dir_all(made).with_context(|| made.display().to_string())?;
        }
        installed.install_python(&sources.join("requirements.txt"))?;
        installed.install_node(sources)?;
        Ok(installed)
    }

    pub fn python(&self) -> PathBuf {
        self.python_program("python3")
    }

    pub fn python_program(&self, name: &str) -> PathBuf {
        self.venv.join("bin").join(name)
    }

    /// The folder that Node finds its packages from.
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// A home for programs that write into theirs.
    pub fn home(&self) -> &Path {
        &self.home
    }

    fn install_python(&self, requirements: &Path) -> Result<()> {
        let marker = self.venv.join("requirements.txt");
        if is_copy(requirements, &marker) {
            return Ok(());
        }
        eprintln!("clients: a Python environment in {}", self.venv.display());
        cmd!("python3", "-m", "venv", "--clear", &self.venv).run()?;
        cmd!(
            self.python(),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--requirement",
            requirements,
        )
        .run()
        .context("pip could not install the clients")?;
        fs::copy(requirements, &marker).with_context(|| marker.display().to_string())?;
        Ok(())
    }

    fn install_node(&self, sources: &Path) -> Result<()> {
        let script = "openai_client.mjs";
        fs::copy(sources.join(script), self.node.join(script)).context(script)?;
        let (package, marker) = (
            sources.join("package.json"),
            self.node.join("installed.json"),
        );
        if is_copy(&package, &marker) {
            return Ok(());
        }
        eprintln!("clients: Node packages in {}", self.node.display());
        fs::copy(&package, self.node.join("package.json")).context("package.json")?;
        cmd!(
            "npm",
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--no-package-lock"
        )
        .dir(&self.node)
        .run()
        .context("npm could not install the clients")?;
        fs::copy(&package, &marker).with_context(|| marker.display().to_string())?;
        Ok(())
    }
}

fn is_copy(file: &Path, copy: &Path) -> bool {
    match (fs::read(file), fs::read(copy)) {
        (Ok(file), Ok(copy)) => file == copy,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_pinned() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/clients");
        let read = |name: &str| fs::read_to_string(sources.join(name)).expect(name);
        let requirements = read("requirements.txt");
        let packages: Vec<&str> = requirements
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect();
        assert!(packages.len() >= 2 && packages.iter().all(|line| line.contains("==")));
        let package = read("package.json");
        let version = package.split("\"openai\": \"").nth(1).expect("the client");
        assert!(
            version.starts_with(|first: char| first.is_ascii_digit()),
            "{version}"
        );
    }
}
