//! `engine serve`: bind, say where, load, serve, stop in order.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use engine::config::{ServeArgs, ServeConfig};
use engine::errors::{Code, StartFailure};
use engine::launch::{AskLimits, launch};
use engine::server;
use engine::server::state::AppState;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::progress::ShownProgress;

/// Threads that do HTTP, JSON and text; the model has its own.
const N_HTTP_THREADS: usize = 2;

pub fn serve(args: &ServeArgs) -> Result<()> {
    let config = args.resolve()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(N_HTTP_THREADS)
        .enable_all()
        .build()
        .context("starting the HTTP threads")?;
    let outcome = runtime.block_on(run(args, config));
    // A model that is still being loaded is not waited for.
    runtime.shutdown_background();
    outcome
}

async fn run(args: &ServeArgs, config: ServeConfig) -> Result<()> {
    let address = format!("{}:{}", config.http.host, config.http.port);
    let listener = TcpListener::bind((config.http.host.as_str(), config.http.port))
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
    // until the model is loaded.
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on http://{bound}").context("writing to standard output")?;
    stdout.flush().context("writing to standard output")?;

    let state = Arc::new(AppState::new(config.http.clone()));
    let loading = tokio::task::spawn_blocking({
        let state = Arc::clone(&state);
        let typed = args.engine.clone();
        move || load(&typed, &config, &state)
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

fn load(typed: &engine::config::EngineArgs, config: &ServeConfig, state: &AppState) -> Result<()> {
    let started = std::time::Instant::now();
    let flags = json!({
        "typed": config.typed,
        "resolved": {"engine": config.engine, "http": config.http},
    });
    let names = config.http.served_model_name.clone().into_iter().collect();
    let shown = ShownProgress::new();
    let model = launch(
        typed,
        &config.engine,
        names,
        AskLimits::from(&config.http),
        flags,
        &|progress| shown.show(progress),
    )?;
    let name = model.name().to_owned();
    if state.set_model(model).is_err() {
        return Err(anyhow!("the model was loaded twice"));
    }
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(model = name, load_s = format!("{seconds:.1}"), "ready");
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
