//! Installs the clients' dependencies below the target folder: Python environments, one for each
//! set of compatible packages, and a Node project. Each is created again if its pinned versions
//! have changed.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use duct::cmd;

use super::catalogue::{Client, Runtime};

/// Program, the arguments that show that it works, and its Debian package.
type Tool = (&'static str, &'static [&'static str], &'static str);

const PYTHON_TOOLS: [Tool; 2] = [
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
];
const NODE_TOOLS: [Tool; 2] = [
    (
        "node",
        &["--version"],
        "Node.js 20 or later (Debian: nodejs)",
    ),
    ("npm", &["--version"], "npm (Debian: npm)"),
];

/// Fails with the list of everything that these clients need and this machine lacks.
pub fn check_tools(clients: &[&Client]) -> Result<()> {
    let needs = |wanted: fn(&Runtime) -> bool| clients.iter().any(|client| wanted(&client.runtime));
    let mut tools = Vec::new();
    if needs(|runtime| matches!(runtime, Runtime::Python(_))) {
        tools.extend(PYTHON_TOOLS);
    }
    if needs(|runtime| *runtime == Runtime::Node) {
        tools.extend(NODE_TOOLS);
    }
    check_present(&tools, "the clients need")
}

fn check_present(tools: &[Tool], who: &str) -> Result<()> {
    let missing: Vec<&str> = tools
        .iter()
        .filter(|(program, args, _)| {
            let ran = cmd(*program, *args)
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
    bail!("{who}, and this machine lacks: {}", missing.join("; "));
}

pub struct Installed {
    /// The sources in the repository.
    sources: PathBuf,
    /// The installation folder.
    folder: PathBuf,
}

impl Installed {
    /// Installs what these clients need and is missing.
    pub fn prepare(sources: &Path, folder: &Path, clients: &[&Client]) -> Result<Self> {
        let installed = Self {
            sources: sources.to_owned(),
            folder: folder.to_owned(),
        };
        for made in [installed.node(), installed.home()] {
            fs::create_dir_all(&made).with_context(|| made.display().to_string())?;
        }
        let mut done = Vec::new();
        for client in clients {
            if done.contains(&client.runtime) {
                continue;
            }
            match client.runtime {
                Runtime::Python(name) => installed.install_python(name)?,
                Runtime::Node => installed.install_node()?,
            }
            done.push(client.runtime);
        }
        Ok(installed)
    }

    /// Python environments alone, of `requirements/<name>.txt` each.
    pub fn environments(sources: &Path, folder: &Path, names: &[&str]) -> Result<Self> {
        check_present(&PYTHON_TOOLS, "this recipe needs")?;
        let installed = Self {
            sources: sources.to_owned(),
            folder: folder.to_owned(),
        };
        let home = installed.home();
        fs::create_dir_all(&home).with_context(|| home.display().to_string())?;
        for name in names {
            installed.install_python(name)?;
        }
        Ok(installed)
    }

    /// A program of an environment.
    pub fn program_of(&self, environment: &str, program: &str) -> PathBuf {
        self.python(environment).join("bin").join(program)
    }

    /// The pinned version of the first package of an environment.
    pub fn version_of(&self, environment: &str) -> Result<String> {
        let pinned = read(&self.requirements(environment))?;
        let first = lines(&pinned).find_map(|line| line.split_once("=="));
        let (_, version) = first.with_context(|| format!("{environment} pins nothing"))?;
        Ok(version.to_owned())
    }

    /// The program file, or a name to be looked up in `PATH`: not a path, which duct would resolve
    /// relative to the working folder.
    pub fn program(&self, client: &Client) -> OsString {
        match client.runtime {
            Runtime::Python(name) => self.python(name).join("bin").join(client.program).into(),
            Runtime::Node => client.program.into(),
        }
    }

    /// The folder that a client runs in. Node finds its packages from there.
    pub fn working_folder(&self, client: &Client) -> PathBuf {
        match client.runtime {
            Runtime::Node => self.node(),
            Runtime::Python(_) if client.program == "python3" => self.sources.clone(),
            // A foreign program may write to its working folder.
            Runtime::Python(_) => self.home(),
        }
    }

    /// A home folder for programs that write to theirs.
    pub fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    /// The installed version, which is the pinned one.
    pub fn version(&self, client: &Client) -> Result<String> {
        let Some(package) = client.package else {
            return Ok("–".to_owned());
        };
        let versions = match client.runtime {
            Runtime::Python(name) => pinned_for_python(&read(&self.requirements(name))?),
            Runtime::Node => pinned_for_node(&read(&self.sources.join("package.json"))?)?,
        };
        let version = versions.get(package).cloned();
        version.with_context(|| format!("{} pins no version of {package}", client.name))
    }

    fn requirements(&self, environment: &str) -> PathBuf {
        let name = format!("{environment}.txt");
        self.sources.join("requirements").join(name)
    }

    fn python(&self, environment: &str) -> PathBuf {
        self.folder.join("python").join(environment)
    }

    fn node(&self) -> PathBuf {
        self.folder.join("node")
    }

    fn install_python(&self, environment: &str) -> Result<()> {
        let requirements = read(&self.requirements(environment))?;
        let venv = self.python(environment);
        let marker = venv.join("installed.txt");
        let wanted = requirements.clone() + &self.stand_ins(&requirements)?;
        if fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted) {
            return Ok(());
        }
        announce(&lines(&requirements).collect::<Vec<_>>(), &venv);
        cmd!("python3", "-m", "venv", "--clear", &venv).run()?;
        // From a copy, since building a package writes next to its sources.
        let copy = venv.join("requirements");
        copy_folder(&self.sources.join("requirements"), &copy)?;
        cmd!(
            venv.join("bin/python3"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--requirement",
            format!("{environment}.txt"),
        )
        .dir(&copy)
        .run()
        .with_context(|| format!("pip could not install {}", lines_joined(&requirements)))?;
        fs::write(&marker, wanted).with_context(|| marker.display().to_string())
    }

    /// The sources of the packages in this repository.
    fn stand_ins(&self, requirements: &str) -> Result<String> {
        let mut sources = String::new();
        for folder in lines(requirements).filter(|line| line.starts_with("./")) {
            for file in files(&self.sources.join("requirements").join(folder))? {
                sources += &read(&file)?;
            }
        }
        Ok(sources)
    }

    fn install_node(&self) -> Result<()> {
        let folder = self.node();
        for file in files(&self.sources)? {
            if file.extension().is_some_and(|extension| extension == "mjs") {
                let name = file.file_name().unwrap_or_default();
                fs::copy(&file, folder.join(name)).with_context(|| file.display().to_string())?;
            }
        }
        let package = read(&self.sources.join("package.json"))?;
        let marker = folder.join("installed.json");
        if fs::read_to_string(&marker).is_ok_and(|installed| installed == package) {
            return Ok(());
        }
        let mut versions: Vec<String> = pinned_for_node(&package)?
            .iter()
            .map(|(name, version)| format!("{name}@{version}"))
            .collect();
        versions.sort();
        announce(&versions, &folder);
        fs::write(folder.join("package.json"), &package).context("package.json")?;
        cmd!(
            "npm",
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--no-package-lock"
        )
        .dir(&folder)
        .run()
        .context("npm could not install the clients")?;
        fs::write(&marker, package).with_context(|| marker.display().to_string())
    }
}

fn announce(packages: &[impl AsRef<str>], folder: &Path) {
    let packages: Vec<&str> = packages.iter().map(AsRef::as_ref).collect();
    eprintln!(
        "clients: installing {} with what they need into {}",
        packages.join(", "),
        folder.display()
    );
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| file.display().to_string())
}

/// All files of a folder and the folders in it, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    for file in files(from)? {
        let copy = to.join(file.strip_prefix(from)?);
        let folder = copy.parent().context("a file without a folder")?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        fs::copy(&file, &copy).with_context(|| copy.display().to_string())?;
    }
    Ok(())
}

fn lines(requirements: &str) -> impl Iterator<Item = &str> {
    let lines = requirements.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn lines_joined(requirements: &str) -> String {
    lines(requirements).collect::<Vec<_>>().join(", ")
}

/// Versions by package, without extras.
fn pinned_for_python(requirements: &str) -> HashMap<String, String> {
    lines(requirements)
        .filter_map(|line| line.split_once("=="))
        .map(|(package, version)| {
            let name = package.split('[').next().unwrap_or_default();
            (name.to_owned(), version.to_owned())
        })
        .collect()
}

fn pinned_for_node(package: &str) -> Result<HashMap<String, String>> {
    let package: serde_json::Value = serde_json::from_str(package).context("package.json")?;
    let versions = package["dependencies"].clone();
    serde_json::from_value(versions).context("the dependencies in package.json")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::catalogue::CLIENTS;
    use super::*;

    fn sources() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/clients")
    }

    fn installed() -> Installed {
        Installed {
            sources: sources(),
            folder: PathBuf::from("nowhere"),
        }
    }

    #[test]
    fn every_client_has_a_pinned_version() {
        for client in &CLIENTS {
            let version = installed().version(client).expect(client.name);
            let is_number = version.starts_with(|first: char| first.is_ascii_digit());
            assert_eq!(is_number, client.package.is_some(), "{}", client.name);
        }
    }

    #[test]
    fn every_requirement_is_pinned_or_here_and_used() {
        let used: HashSet<&str> = CLIENTS
            .iter()
            .filter_map(|client| match client.runtime {
                Runtime::Python(name) => Some(name),
                Runtime::Node => None,
            })
            .chain(crate::fleet::environments())
            .collect();
        let folder = sources().join("requirements");
        let mut found = HashSet::new();
        for entry in fs::read_dir(&folder).expect("the requirements") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                continue;
            }
            let name = path.file_stem().expect("a name").to_str().expect("UTF-8");
            found.insert(name.to_owned());
            let requirements = read(&path).expect("readable");
            assert!(lines(&requirements).count() > 0, "{name} is empty");
            for line in lines(&requirements) {
                let is_here = line.starts_with("./") && folder.join(line).is_dir();
                assert!(is_here || line.contains("=="), "{name}: {line}");
            }
        }
        assert_eq!(
            found.iter().map(String::as_str).collect::<HashSet<_>>(),
            used
        );
    }

    #[test]
    fn a_package_of_this_repository_belongs_to_what_is_installed() {
        let sources = installed().stand_ins("a==1\n./torch\n").expect("readable");
        assert!(sources.contains("class DataLoader"), "{sources}");
        assert_eq!(installed().stand_ins("a==1\n").expect("none"), "");
    }

    #[test]
    fn versions_are_found_with_extras_and_without() {
        let pinned = pinned_for_python("# x==1\na[b,c]==2.0\n./here\n\nd==3\n");
        assert_eq!(pinned.len(), 2, "{pinned:?}");
        assert_eq!(pinned["a"], "2.0");
        assert_eq!(pinned["d"], "3");
    }
}
