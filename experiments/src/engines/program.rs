//! Where another engine's program is, which version it is, and a digest that tells two installations
//! apart.
//!
//! A Python engine is a package: in an environment (a folder with `bin/python`), in a kit folder that
//! goes on PYTHONPATH, or that of a script on PATH, whose first line names its Python.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use records::digests::digest_of_file;
use serde::Deserialize;

/// A program that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The program, and the arguments that always follow it.
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub version: String,
    pub sha256: String,
    /// The file that `sha256` is of.
    pub digest_of: String,
}

/// A package that is run as `python3 -m <module>`.
#[derive(Debug, Clone, Copy)]
pub struct PythonPackage {
    pub name: &'static str,
    pub module: &'static str,
    pub arguments: &'static [&'static str],
}

/// Asks the Python that will serve, so that what it finds first is what is recorded.
const ASK: &str = "import importlib.metadata as m, json, sys\n\
d = m.distribution(sys.argv[1])\n\
print(json.dumps({'version': d.version, 'folder': str(d._path)}))";

/// What a Python says of a package.
#[derive(Deserialize)]
struct Installed {
    version: String,
    folder: PathBuf,
}

impl PythonPackage {
    pub fn find(&self, place: Option<&Path>) -> Result<Program> {
        let (python, environment) = match place {
            None => (python_of_script(&on_path(self.name)?)?, BTreeMap::new()),
            Some(place) => self.at(place)?,
        };
        let installed = self.ask(&python, &environment)?;
        let (file, digest_of) = listing_in(&installed.folder)?;
        let mut command = vec![python.to_string_lossy().into_owned(), "-m".into()];
        command.push(self.module.into());
        command.extend(self.arguments.iter().map(ToString::to_string));
        Ok(Program {
            command,
            environment,
            version: installed.version,
            sha256: digest_of_file(&file).with_context(|| file.display().to_string())?,
            digest_of,
        })
    }

    /// An environment, a kit folder, or a program: a Python or the package's script.
    fn at(&self, place: &Path) -> Result<(PathBuf, BTreeMap<String, String>)> {
        let python = place.join("bin/python");
        if python.is_file() {
            return Ok((python, BTreeMap::new()));
        }
        if place.join(self.name).is_dir() {
            let mut path = place.to_string_lossy().into_owned();
            if let Ok(others) = std::env::var("PYTHONPATH")
                && !others.is_empty()
            {
                path = format!("{path}:{others}");
            }
            let environment = BTreeMap::from([("PYTHONPATH".to_owned(), path)]);
            return Ok((on_path("python3")?, environment));
        }
        if place.is_file() {
            let name = place.file_name().unwrap_or_default().to_string_lossy();
            let python = if name.starts_with("python") {
                place.to_owned()
            } else {
                python_of_script(place)?
            };
            return Ok((python, BTreeMap::new()));
        }
        bail!(
            "{} is neither a Python environment (no bin/python), nor a folder with the package {}, nor a program",
            place.display(),
            self.name
        )
    }

    fn ask(&self, python: &Path, environment: &BTreeMap<String, String>) -> Result<Installed> {
        let mut question = duct::cmd!(python, "-c", ASK, self.name)
            .stdout_capture()
            .stderr_capture()
            .unchecked();
        for (key, value) in environment {
            question = question.env(key, value);
        }
        let answer = question
            .run()
            .with_context(|| format!("{} cannot be started", python.display()))?;
        let said = String::from_utf8_lossy(&answer.stderr);
        if !answer.status.success() {
            let last = said.lines().last().unwrap_or("it said nothing");
            bail!("{} has no package {}: {last}", python.display(), self.name);
        }
        serde_json::from_slice(&answer.stdout)
            .with_context(|| format!("what {} says of {}", python.display(), self.name))
    }
}

/// The file of a package's metadata that names all its files with their digests, or else what there
/// is; and how the record calls it.
fn listing_in(folder: &Path) -> Result<(PathBuf, String)> {
    let names = ["RECORD", "METADATA", "PKG-INFO"];
    let Some(name) = names.iter().find(|name| folder.join(name).is_file()) else {
        bail!("{} has none of {}", folder.display(), names.join(", "));
    };
    let parent = folder.file_name().unwrap_or_default().to_string_lossy();
    Ok((folder.join(name), format!("{parent}/{name}")))
}

/// From the first line of a script that pip installed.
fn python_of_script(script: &Path) -> Result<PathBuf> {
    let bytes = fs::read(script).with_context(|| script.display().to_string())?;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).into_owned();
    let line = text.lines().next().unwrap_or_default();
    let mut words = line
        .strip_prefix("#!")
        .unwrap_or_default()
        .split_whitespace();
    let python = match (words.next(), words.next()) {
        (Some(env), Some(name)) if env.ends_with("/env") => on_path(name)?,
        (Some(python), _) => PathBuf::from(python),
        (None, _) => bail!(
            "{} is no script whose first line names a Python; name its environment with --engine-path",
            script.display()
        ),
    };
    Ok(python)
}

/// The first executable of this name.
pub fn on_path(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| is_executable(file))
        .with_context(|| format!("no {name} on PATH; --engine-path names another place"))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// A binary that says its version in a line that begins with `mark`.
pub fn binary(program: PathBuf, mark: &str) -> Result<Program> {
    let said = duct::cmd!(&program, "--version")
        .stderr_to_stdout()
        .unchecked()
        .read()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    let version = said.lines().find_map(|line| line.trim().strip_prefix(mark));
    let Some(version) = version.map(str::trim).filter(|version| !version.is_empty()) else {
        bail!(
            "{} --version has no line that begins with {mark:?}",
            program.display()
        );
    };
    Ok(Program {
        version: version.to_owned(),
        sha256: digest_of_file(&program).with_context(|| program.display().to_string())?,
        digest_of: program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        command: vec![program.to_string_lossy().into_owned()],
        environment: BTreeMap::new(),
    })
}
