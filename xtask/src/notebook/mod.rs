//! `notebook`: the rendered reports, a running engine's page and a page that starts experiments, on one
//! address of the loopback interface.
//!
//! Everything of the notebook lies below `/notebook/`; every other path is passed on to the engine
//! ([`engine`]). Experiments run one at a time ([`runner`]), as `cargo xtask exp` and `cargo xtask
//! report` would.
//! Deliberately absent: another address than the loopback's (an SSH tunnel reaches it), and users.

mod engine;
mod files;
mod handler;
mod reply;
mod request;
pub mod runner;

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::handler::Notebook;
use self::runner::{Runner, Started};
use crate::served::Served;
use crate::{cargo, exp};

/// Where experiments and rendered reports lie, below the root.
const EXPERIMENTS: &str = "experiments";
pub const REPORTS: &str = "reports/rendered";
/// Requests that are answered at the same time; streams are among them.
const MAX_REQUESTS: usize = 64;
/// How long an experiment that is told to end may take, when the notebook ends.
const END_LIMIT: Duration = Duration::from_mins(1);

#[derive(Args)]
pub struct NotebookArgs {
    /// Port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 8888)]
    port: u16,
    /// The running engine whose page is shown at `/`
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:30000")]
    engine: String,
    /// Flags of an engine that is started and ended with the notebook: --model-path synthetic:tiny-qwen3
    #[arg(last = true, value_name = "FLAGS", conflicts_with = "engine")]
    engine_flags: Vec<String>,
}

pub fn run(args: &NotebookArgs) -> Result<ExitCode> {
    let root = cargo::root()?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signals")?;
    let served = own_engine(&args.engine_flags)?;
    let address = served.as_ref().map_or(&args.engine, |own| &own.address);
    let runner = Runner::new(recipes(&root)?);
    let serving = Serving::start(&root, args.port, address, runner)?;
    println!("notebook: {}", serving.url());
    println!("engine's page: http://{}/ (of {address})", serving.address);
    println!("Ctrl-C ends it, and an experiment that runs");
    signals.forever().next();
    serving.notebook.runner.end(END_LIMIT);
    served.map_or(Ok(()), Served::stop)?;
    Ok(ExitCode::SUCCESS)
}

/// An engine with these flags; none without flags.
fn own_engine(flags: &[String]) -> Result<Option<Served>> {
    if flags.is_empty() {
        return Ok(None);
    }
    let engine = cargo::given_or_release_engine(None)?;
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let log = cargo::target_dir()?.join("notebook-engine.log");
    Served::start(&engine, &flags, &log).map(Some)
}

/// The experiment, then the reports with it.
fn recipes(root: &Path) -> Result<impl Fn(&Started) -> Vec<Command> + Send + Sync + 'static> {
    let own = std::env::current_exe().context("the path of xtask")?;
    let root = root.to_owned();
    Ok(move |started: &Started| {
        let recipe = |args: &[&str]| {
            let mut command = Command::new(&own);
            command.args(args).current_dir(&root);
            command
        };
        let quick = started.quick.then_some("--quick");
        let exp: Vec<&str> = ["exp", &started.name].into_iter().chain(quick).collect();
        vec![recipe(&exp), recipe(&["report"])]
    })
}

/// The server and its threads, which end with the process.
pub struct Serving {
    pub address: SocketAddr,
    pub notebook: Arc<Notebook>,
}

impl Serving {
    /// # Errors
    ///
    /// If the port is taken, or the experiments cannot be read.
    pub fn start(root: &Path, port: u16, engine: &str, runner: Runner) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("127.0.0.1:{port}"))?;
        let address = listener.local_addr()?;
        let notebook = Arc::new(Notebook {
            port: address.port(),
            token: token()?,
            experiments: listed(&root.join(EXPERIMENTS))?,
            reports: root.join(REPORTS),
            engine: engine.to_owned(),
            runner,
        });
        let shared = Arc::clone(&notebook);
        thread::spawn(move || accept(&listener, &shared));
        Ok(Self { address, notebook })
    }

    /// The page with the token. What follows `#` is never sent.
    pub fn url(&self) -> String {
        let token = &self.notebook.token;
        format!("http://{}/notebook/#token={token}", self.address)
    }
}

/// A thread for each connection; over the limit one is closed at once.
fn accept(listener: &TcpListener, notebook: &Arc<Notebook>) {
    let n_open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming().filter_map(Result::ok) {
        if n_open.load(Ordering::Acquire) >= MAX_REQUESTS {
            continue;
        }
        n_open.fetch_add(1, Ordering::AcqRel);
        let (notebook, n_open) = (Arc::clone(notebook), Arc::clone(&n_open));
        thread::spawn(move || {
            // The client may have gone.
            let _ = notebook.answer(&stream);
            n_open.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

/// 128 random bits.
fn token() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("/dev/urandom")?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// Names and titles of the numbered experiments.
fn listed(folder: &Path) -> Result<Vec<(String, String)>> {
    let title = |name: &String| {
        let file: PathBuf = folder.join(name).join("experiment.toml");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let table: toml::Table = text.parse().with_context(|| file.display().to_string())?;
        let title = table.get("title").and_then(toml::Value::as_str);
        Ok((name.clone(), title.unwrap_or_default().to_owned()))
    };
    exp::known(folder)?.iter().map(title).collect()
}
