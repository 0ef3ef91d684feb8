//! `engine serve`: bind, say where, load, serve, stop in order.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use engine::config::{HttpConfig, ModelPlan, ServePlan};
use engine::errors::Code;
use engine::launch::devices::Devices;
use engine::launch::{AskLimits, launch};
use engine::server;
use engine::server::models::{Entry, ModelState, Open};
use engine::server::state::AppState;
use engine::server::transport::open_files;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::failure::StartFailure;
use super::progress::ShownProgress;

/// Threads that do HTTP, JSON and text; the model has its own.
const N_HTTP_THREADS: usize = 2;

/// `words`: what was typed behind `serve`.
pub fn serve(words: &[String]) -> Result<()> {
    let plan = ServePlan::read(words)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(N_HTTP_THREADS)
        .enable_all()
        .build()
        .context("starting the HTTP threads")?;
    let outcome = runtime.block_on(run(plan));
    // A model that is still being loaded is not waited for.
    runtime.shutdown_background();
    outcome
}

async fn run(plan: ServePlan) -> Result<()> {
    let mut http = plan.http;
    for warning in plan.warnings {
        tracing::warn!("{warning}");
    }
    let limit = open_files::raise_limit();
    http.max_connections = open_files::connections_within(limit, http.max_connections);
    let address = format!("{}:{}", http.host, http.port);
    let listener = TcpListener::bind((http.host.as_str(), http.port))
        .await
        .map_err(|error| StartFailure {
            code: Code::Address,
            message: format!("listening on {address}: {error}"),
        })?;
    let bound = listener
        .local_addr()
        .context("asking for the bound address")?;
    // Signals count from here on, so that a stop during the start is a clean one.
    let stop = stop_signal()?;
    // One stable line for whoever started this with port 0. Requests are answered with 503
    // until their model is loaded.
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on http://{bound}").context("writing to standard output")?;
    stdout.flush().context("writing to standard output")?;

    let state = Arc::new(AppState::new(http.clone()));
    let open = opener(http);
    let mut at_start = Vec::new();
    for model in plan.models {
        let is_unloaded = model.start_unloaded;
        let entry = state.models.add(Entry::new(model.names(), open(model)));
        let entry = entry.map_err(|message| StartFailure {
            code: Code::BadFlag,
            message,
        })?;
        if !is_unloaded {
            entry.set_state(ModelState::Loading);
            at_start.push(entry);
        }
    }
    // Nobody else has set it.
    let _ = state.open.set(open);
    let loading = tokio::task::spawn_blocking({
        let state = Arc::clone(&state);
        move || load(&at_start, &state)
    });
    let failed = async {
        match loading.await {
            Ok(Ok(())) => std::future::pending().await,
            Ok(Err(error)) => error,
            Err(error) => anyhow!("loading the model: {error}"),
        }
    };
    tokio::select! {
        outcome = server::serve(listener, state, stop) => outcome.context("serving HTTP"),
        error = failed => Err(error),
    }
}

/// How each model of this process is loaded; they share its devices.
fn opener(http: HttpConfig) -> Open {
    let devices = Arc::new(Devices::default());
    Box::new(move |model: ModelPlan| {
        let (devices, http) = (Arc::clone(&devices), http.clone());
        Box::new(move || {
            let flags = json!({
                "typed": model.flags,
                "resolved": {"engine": model.engine, "http": http},
            });
            let names = model.name.clone().into_iter().collect();
            let shown = ShownProgress::new();
            launch(
                &model.typed,
                &model.engine,
                names,
                AskLimits::from(&http),
                flags,
                &devices,
                &|progress| shown.show(progress),
            )
        })
    })
}

/// One after the other: what fits depends on those before.
fn load(entries: &[Arc<Entry>], state: &AppState) -> Result<()> {
    // Whoever wants to change something by the admin API waits until all are there.
    let _one = state.changing.blocking_lock();
    for entry in entries {
        let started = Instant::now();
        if let Err(error) = entry.load() {
            let error = error.map_or_else(|| anyhow!("it cannot be loaded"), anyhow::Error::from);
            return Err(if state.models.list().len() > 1 {
                error.context(format!("the model {:?}", entry.name()))
            } else {
                error
            });
        }
        let seconds = started.elapsed().as_secs_f64();
        let load_s = format!("{seconds:.1}");
        tracing::info!(model = entry.name(), load_s, "ready");
    }
    state.set_started();
    Ok(())
}

/// Ready at the first SIGTERM or SIGINT. Further ones change nothing: the grace period bounds
/// the wait.
fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping: running requests may finish");
    })
}
