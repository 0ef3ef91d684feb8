//! `page`: the page at `/` and the notebook's in a headless Chromium, against an engine with a tiny
//! model.
//!
//! `engine/tests/page/check.mjs` and `xtask/notebook/check.mjs` drive the browser with
//! playwright-core, which is installed below the target folder. A missing browser is a failure: nothing
//! is skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use duct::cmd;

use crate::cargo;
use crate::notebook::runner::Runner;
use crate::notebook::{REPORTS, Serving};
use crate::served::Served;

pub const SCRIPT: &str = "check.mjs";
const API_KEY: &str = "page-key";
const ADMIN_KEY: &str = "admin-key";
const NOTEBOOK_SCRIPT: &str = "notebook.mjs";
const VERDICTS: &str = r#"{"experiments": [{"experiment": "02-ends", "group": "card", "against": "01-runs",
    "n_starts": 8, "verdicts": [{"metric": "ttft", "verdict": "faster", "improvement_percent": 7.38}]}]}"#;

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
        cargo::target_dir()?.join("debug/engine")
    };
    check(&engine)?;
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
    let root = cargo::root()?;
    install(&root.join("engine/tests/page"), &folder)?;
    let script = folder.join(NOTEBOOK_SCRIPT);
    fs::copy(root.join("xtask/notebook/check.mjs"), script).context(NOTEBOOK_SCRIPT)?;
    let mut flags = vec!["--device", "cpu", "--model-path", "synthetic:tiny-qwen3"];
    flags.extend(["--reasoning-parser", "qwen3", "--max-running-requests", "1"]);
    flags.extend(["--api-key", API_KEY, "--admin-api-key", ADMIN_KEY]);
    let served = Served::start(engine, &flags, &folder.join("engine.log"))?;
    let url = format!("http://{}", served.address);
    drive(&folder, &[SCRIPT, &url, API_KEY, ADMIN_KEY, &browser])?;
    served.stop()?;
    check_notebook(engine, &folder, &browser)
}

fn drive(folder: &Path, args: &[&str]) -> Result<()> {
    let status = cmd("node", args)
        .dir(folder)
        .unchecked()
        .run()
        .context("node cannot be started (Debian: nodejs)")?
        .status;
    if !status.success() {
        bail!("{} fails ({status})", args[0]);
    }
    Ok(())
}

/// The notebook before an engine without keys; its experiments are shell scripts.
fn check_notebook(engine: &Path, folder: &Path, browser: &str) -> Result<()> {
    let root = folder.join("notebook");
    for (file, text) in [
        ("experiments/01-runs/experiment.toml", "title = \"Runs\""),
        ("experiments/02-ends/experiment.toml", "title = \"Ends\""),
        (&format!("{REPORTS}/index.ko.html"), "<p>A report</p>"),
        (&format!("{REPORTS}/verdicts.json"), VERDICTS),
    ] {
        let file = root.join(file);
        fs::create_dir_all(file.parent().context("a folder")?)?;
        fs::write(&file, text).with_context(|| file.display().to_string())?;
    }
    let runner = Runner::new(|started| {
        let rest = if started.name == "01-runs" {
            "exec sleep 600"
        } else {
            "echo the end"
        };
        let mut command = Command::new("sh");
        let script = format!("echo exp {} {}; {rest}", started.name, started.quick);
        command.args(["-c", &script]);
        vec![command]
    });
    let flags = ["--device", "cpu", "--model-path", "synthetic:tiny-qwen3"];
    let served = Served::start(engine, &flags, &folder.join("engine.log"))?;
    let serving = Serving::start(&root, 0, &served.address, runner)?;
    let outcome = drive(folder, &[NOTEBOOK_SCRIPT, &serving.url(), browser]);
    serving.notebook.runner.end(Duration::from_secs(10));
    outcome.and_then(|()| served.stop())
}

/// A script, and its packages in the versions that `package.json` pins.
///
/// # Errors
///
/// If a file cannot be written, or npm cannot install a package.
pub fn install(sources: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for name in [SCRIPT, "package.json"] {
        fs::copy(sources.join(name), folder.join(name)).context(name)?;
    }
    let mut install = vec!["install", "--silent", "--prefer-offline", "--no-audit"];
    install.extend(["--no-fund", "--no-package-lock"]);
    cmd("npm", install)
        .dir(folder)
        .run()
        .context("npm could not install a package (Debian: npm)")?;
    Ok(())
}
