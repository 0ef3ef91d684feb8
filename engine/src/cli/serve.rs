//! `engine serve`: binds, prints the address, loads, serves, and shuts down in order.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use engine::config::{HttpConfig, ModelPlan, ServePlan};
use engine::errors::Code;
use engine::launch::devices::Devices;
use engine::launch::{AskLimits, launch};
use engine::server;
use engine::server::models::{ModelEntry, ModelState, Open};
use engine::server::state::AppState;
use engine::server::transport::open_files;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::failure::StartFailure;
use super::progress::ShownProgress;

/// Threads for HTTP, JSON and text; each model has its own thread.
const N_HTTP_THREADS: usize = 2;

/// `args`: the arguments after `serve`.
pub fn serve(args: &[String]) -> Result<()> {
    let plan = ServePlan::read(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(N_HTTP_THREADS)
        .enable_all()
        .build()
        .context("starting the HTTP threads")?;
    let outcome = runtime.block_on(run(plan));
    // Do not wait for a model that is still being loaded.
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
    // Signals are handled from here on, so that a stop during start-up is a clean one.
    let stop = stop_signal()?;
    // One stable line for a caller that used port 0. Requests are answered with 503 until their
    // model is loaded.
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on http://{bound}").context("writing to standard output")?;
    stdout.flush().context("writing to standard output")?;

    let state = Arc::new(AppState::new(http.clone()));
    state.start_traces().map_err(|error| StartFailure {
        code: Code::BadFlag,
        message: format!("--otlp-traces-endpoint: {error}"),
    })?;
    let open = opener(http);
    let mut at_start = Vec::new();
    for model in plan.models {
        let is_unloaded = model.start_unloaded;
        let entry = state
            .models
            .add(ModelEntry::new(model.names(), open(model)));
        let entry = entry.map_err(|message| StartFailure {
            code: Code::BadFlag,
            message,
        })?;
        if !is_unloaded {
            entry.set_state(ModelState::Loading);
            at_start.push(entry);
        }
    }
    // It is set only here.
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

/// How to load a model of this process; all models share its devices.
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

/// Loads models one after the other: what fits depends on the previous ones.
fn load(entries: &[Arc<ModelEntry>], state: &AppState) -> Result<()> {
    // Requests to the admin API wait until all models are loaded.
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

/// Ready at the first SIGTERM or SIGINT. Further signals have no effect: the grace period bounds
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
