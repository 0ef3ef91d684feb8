//! `page`: the page at `/` in a headless Chromium, against an engine with a tiny model.
//!
//! `engine/tests/page/check.mjs` drives the browser with playwright-core, which is installed below
//! the target folder. A missing browser is a failure: nothing is skipped.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use duct::cmd;

use crate::cargo;
use crate::served::Served;

const SCRIPT: &str = "check.mjs";
const API_KEY: &str = "page-key";
const ADMIN_KEY: &str = "admin-key";

pub fn run() -> Result<ExitCode> {
    cargo::build("dev", &cargo::MEASURED)?;
    check(&cargo::target_dir()?.join("debug/engine"))?;
    Ok(ExitCode::SUCCESS)
}

/// # Errors
///
/// If there is no browser or no npm, the engine does not start, or a check fails.
pub fn check(engine: &Path) -> Result<()> {
    let browser = cmd!(
        "sh",
        "-c",
        "command -v chromium || command -v google-chrome"
    )
    .read();
    let browser = browser.context(
        "the page's checks need a browser: neither chromium nor google-chrome is here (Debian: \
         chromium)",
    )?;
    let folder = cargo::target_dir()?.join("page");
    install(&cargo::root()?.join("engine/tests/page"), &folder)?;
    let mut flags = vec!["--device", "cpu", "--model-path", "synthetic:tiny-qwen3"];
    flags.extend(["--reasoning-parser", "qwen3"]);
    flags.extend(["--api-key", API_KEY, "--admin-api-key", ADMIN_KEY]);
    let served = Served::start(engine, &flags, &folder.join("engine.log"))?;
    let url = format!("http://{}", served.address);
    let status = cmd!("node", SCRIPT, url, API_KEY, ADMIN_KEY, browser)
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

/// The script, and its driver in the version that `package.json` pins.
fn install(sources: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for name in [SCRIPT, "package.json"] {
        fs::copy(sources.join(name), folder.join(name)).context(name)?;
    }
    let mut install = vec!["install", "--silent", "--prefer-offline", "--no-audit"];
    install.extend(["--no-fund", "--no-package-lock"]);
    cmd("npm", install)
        .dir(folder)
        .run()
        .context("npm could not install the browser's driver (Debian: npm)")?;
    Ok(())
}
