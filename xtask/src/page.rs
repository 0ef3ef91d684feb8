//! `page`: the page at `/` in a real headless Chromium, against an engine with a tiny model.
//!
//! `engine/tests/page/check.mjs` drives the browser with playwright-core, which is installed below
//! the target folder. A missing browser is a failure: nothing is skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use duct::cmd;

use crate::cargo;
use crate::served::Served;

const SCRIPT: &str = "check.mjs";
const PACKAGES: &str = "package.json";
const API_KEY: &str = "page-key";
const ADMIN_KEY: &str = "admin-key";

#[derive(Args)]
pub struct PageArgs {
    /// An engine that has been built [default: build it in the dev profile]
    #[arg(long, value_name = "FILE")]
    engine_bin: Option<PathBuf>,
}

pub fn run(args: &PageArgs) -> Result<ExitCode> {
    let engine = if let Some(engine) = &args.engine_bin {
        engine.clone()
    } else {
        cargo::build("dev", &cargo::MEASURED)?;
        cargo::target_dir()?.join("debug").join("engine")
    };
    check(&engine)?;
    Ok(ExitCode::SUCCESS)
}

/// # Errors
///
/// If there is no browser or no Node.js, the engine does not start, or a check fails.
pub fn check(engine: &Path) -> Result<()> {
    let browser = browser()?;
    let folder = cargo::target_dir()?.join("page");
    install(&cargo::root()?.join("engine/tests/page"), &folder)?;
    let flags = [
        "--device",
        "cpu",
        "--model-path",
        "synthetic:tiny-qwen3",
        "--reasoning-parser",
        "qwen3",
        "--api-key",
        API_KEY,
        "--admin-api-key",
        ADMIN_KEY,
    ];
    let served = Served::start(engine, &flags, &folder.join("engine.log"))?;
    let url = format!("http://{}", served.address);
    let script = vec![
        SCRIPT.into(),
        url,
        API_KEY.into(),
        ADMIN_KEY.into(),
        browser,
    ];
    let status = cmd("node", script)
        .dir(&folder)
        .unchecked()
        .run()
        .context("node cannot be started (Debian: nodejs)")?
        .status;
    if !status.success() {
        bail!("the page fails a check ({status})");
    }
    served.stop()
}

/// The driver asks for a path.
fn browser() -> Result<String> {
    let found = cmd!(
        "sh",
        "-c",
        "command -v chromium || command -v google-chrome"
    );
    found.read().context(
        "the page's checks need a browser, and neither chromium nor google-chrome is here (Debian: \
         chromium)",
    )
}

/// The script and its packages, in the versions that `package.json` pins.
fn install(sources: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let copy =
        |name: &str| fs::copy(sources.join(name), folder.join(name)).context(name.to_owned());
    copy(SCRIPT)?;
    let packages = fs::read(sources.join(PACKAGES)).context(PACKAGES)?;
    let marker = folder.join("installed.json");
    if fs::read(&marker).is_ok_and(|installed| installed == packages) {
        return Ok(());
    }
    copy(PACKAGES)?;
    cmd!(
        "npm",
        "install",
        "--silent",
        "--no-audit",
        "--no-fund",
        "--no-package-lock"
    )
    .dir(folder)
    .run()
    .context("npm could not install the browser's driver (Debian: npm)")?;
    fs::write(&marker, packages).with_context(|| marker.display().to_string())
}
