//! One run: a server start, the workload, a record of it.
//!
//! The order of things is [`run_replicate`]'s: record → server → health → warm-up and cases →
//! summary → server stopped → status. Whatever goes wrong in between (an error, Ctrl-C), the
//! last two steps still happen.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use records::manifest::{Hashes, Manifest, ModelUsed};
use records::run_folder;
use records::run_folder::{JsonLines, RunRecord};
use records::status::RunStatus;
use records::utc;
use tokio::time::{sleep, timeout};

use crate::engines::Engine;
use crate::load::prompts;
use crate::load::{BaseUrl, HttpError, RunClock, Target};
use crate::record::energy::SharedMeters;
use crate::record::environment::gpu_memory_used_bytes;
use crate::record::machine_load::LoadWatch;
use crate::record::process_tree;
use crate::record::sampler::Sampler;
use crate::record::summary::Summary;
use crate::run::answers::{self, WrongAnswers};
use crate::run::campaign::{Arm, Campaign, ServerSource, UNREACHABLE_LIMIT};
use crate::run::interrupts::Interrupts;
use crate::run::measurement::{Load, Measured, judge, run_cases};
use crate::run::progress::Progress;
use crate::run::served_model::{self, take_in_model};
use crate::run::server_process::{
    ServerConfig, ServerProcess, first_error, listening_port, log_tail,
};
use crate::run::supervise::Ending;
use crate::spec::Experiment;
use crate::spec::workload::SloSearch;
use crate::terminal::{in_one_line, note, say};

const HEALTH_POLL: Duration = Duration::from_millis(100);
const HEALTH_LIMIT: Duration = Duration::from_secs(10);
/// The wall clock may differ so much from the monotonic one over a run without a remark.
const CLOCK_TOLERANCE_S: f64 = 2.0;
/// Requests that fail because the server has died can be over before its end is noticed.
const EXIT_NOTICE: Duration = Duration::from_millis(500);
const SERVER_ENDED: &str = "the server ended during the run";
const LOG_LINES_SHOWN: usize = 12;
const FREED_POLL: Duration = Duration::from_millis(500);
const N_FREED_POLLS: u32 = 60;
/// Other programs use some of the GPU, too.
const FREED_TOLERANCE_BYTES: u64 = 1 << 30;

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RunEnd {
    pub run_id: String,
    pub dir: PathBuf,
    pub status: RunStatus,
    pub reason: Option<String>,
    pub interrupted: bool,
}

/// Runs one replicate. An `Err` means that not even a record could be made or finished.
pub async fn run_replicate(
    campaign: &Campaign,
    arm: &Arm,
    replicate: u32,
    interrupts: &mut Interrupts,
) -> Result<RunEnd> {
    let name = arm.name();
    let started_unix_s = utc::now_unix_s();
    let started = Instant::now();
    let salt = format!(
        "{} {name} {replicate} {:?}",
        campaign.id,
        std::time::SystemTime::now()
    );
    let run_id = run_folder::run_id(started_unix_s, &name, &campaign.environment.host, &salt);
    let mut record = RunRecord::create(&campaign.runs_dir, &run_id)?;
    note!(
        "{name} replicate {replicate} → {}",
        campaign.repository.relative(record.dir()).display()
    );

    let mut run = Run {
        campaign,
        arm,
        experiment: &arm.experiment,
        replicate,
        run_id: &run_id,
        started_unix_s,
        server: None,
    };
    let gpu_before = campaign
        .environment
        .gpu
        .as_ref()
        .and_then(|_| gpu_memory_used_bytes());
    let mut interrupted = false;
    let outcome = tokio::select! {
        outcome = run.measure(&mut record) => outcome,
        name = interrupts.next() => {
            interrupted = true;
            Err(anyhow::anyhow!("interrupted ({name})"))
        }
    };
    if let Some(server) = run.server.take() {
        let progress = Progress::spinner("stop the server");
        server.stop();
        if let Some(before) = gpu_before {
            wait_until_freed(before, gpu_memory_used_bytes, FREED_POLL);
        }
        progress.finish("stopped");
    }
    let (status, reason) = match outcome {
        Ok(remark) => {
            let shift = clock_remark(
                started_unix_s,
                utc::now_unix_s(),
                started.elapsed().as_secs_f64(),
            );
            let remarks: Vec<String> = remark.into_iter().chain(shift).collect();
            (
                RunStatus::Complete,
                (!remarks.is_empty()).then(|| remarks.join("; ")),
            )
        }
        Err(error) => {
            let status = if error.is::<WrongAnswers>() {
                RunStatus::Wrong
            } else {
                RunStatus::Failed
            };
            (status, Some(in_one_line(&error)))
        }
    };
    let dir = record.dir().to_path_buf();
    record.finish(status, reason.clone())?;
    Ok(RunEnd {
        run_id,
        dir,
        status,
        reason,
        interrupted,
    })
}

/// A killed server's GPU memory is given back a moment after its end; the next server, perhaps another
/// engine's, sizes its pool by what is free.
fn wait_until_freed(before: u64, mut used: impl FnMut() -> Option<u64>, poll: Duration) {
    for _ in 0..N_FREED_POLLS {
        match used() {
            Some(now) if now > before + FREED_TOLERANCE_BYTES => std::thread::sleep(poll),
            _ => return,
        }
    }
    note!("WARNING: the server has ended and its GPU memory is still in use");
}

/// The clock was set while the run went on: its times of day are of no use, its durations are.
fn clock_remark(started_unix_s: u64, finished_unix_s: u64, took_s: f64) -> Option<String> {
    let by_clock_s = finished_unix_s as f64 - started_unix_s as f64;
    let shift_s = by_clock_s - took_s;
    (shift_s.abs() > CLOCK_TOLERANCE_S).then(|| {
        format!(
            "the machine's clock was set by {shift_s:+.0} s during the run; its durations are not affected"
        )
    })
}

#[expect(
    clippy::struct_field_names,
    reason = "`run_id` is the record's name for it"
)]
struct Run<'a> {
    campaign: &'a Campaign,
    arm: &'a Arm,
    experiment: &'a Experiment,
    replicate: u32,
    run_id: &'a str,
    started_unix_s: u64,
    server: Option<ServerProcess>,
}

impl Run<'_> {
    /// Returns a remark on a run that is complete but not flawless.
    async fn measure(&mut self, record: &mut RunRecord) -> Result<Option<String>> {
        let clock = RunClock::start();
        record.write_json(records::ENVIRONMENT, &self.campaign.environment)?;
        record.write_toml(records::CONFIG, self.experiment)?;
        if let Some(changes) = &self.campaign.sources.changes {
            record.write_text(records::CHANGES, changes)?;
        }

        let engine = &self.arm.engine;
        // Ours takes a free port itself and says which.
        let port = match engine {
            Engine::Ours => 0,
            Engine::Other(_) => free_port()?,
        };
        let command = match &self.campaign.source {
            ServerSource::External { .. } => Vec::new(),
            ServerSource::Engine { binary, .. } => engine.command(binary, self.experiment, port),
        };
        let mut manifest = self.manifest(&command);
        record.write_json(records::MANIFEST, &manifest)?;
        if let ServerSource::Engine { supervisor, .. } = &self.campaign.source {
            self.server = Some(ServerProcess::start(&ServerConfig {
                supervisor: supervisor.clone(),
                command,
                environment: engine.environment(),
                log: Some(record.path(records::SERVER_LOG)),
                run_folder: Some(record.dir().to_path_buf()),
            })?);
        }
        let base_url = self.wait_until_healthy(record, port).await?;

        let asked = match &self.campaign.source {
            ServerSource::External { model, .. } => model.as_deref(),
            ServerSource::Engine { .. } => None,
        };
        let mut model_is_named = false;
        match engine {
            Engine::Ours => {
                if let Some(info) = served_model::server_info(&base_url).await? {
                    record.write_json(records::SERVER_INFO, &info)?;
                    model_is_named = take_in_model(&mut manifest, &info, asked);
                }
            }
            // What another engine has under that name, if anything, is kept and not read.
            Engine::Other(other) => {
                if let Ok(Some(info)) = served_model::server_info(&base_url).await {
                    record.write_json(records::SERVER_INFO, &info)?;
                }
                if let Some(model) = other.model() {
                    manifest.sha256.model.clone_from(&model.sha256);
                    manifest.model.used.clone_from(&model.source);
                    model_is_named = true;
                }
            }
        }
        let model_name = served_model::model_name(&base_url, asked).await?;
        if !model_is_named {
            manifest.model.used.clone_from(&model_name);
        }
        record.write_json(records::MANIFEST, &manifest)?;
        if let Some(reason) = &manifest.model.fallback_reason {
            note!(
                "WARNING: {} is served instead of {}: {reason}",
                manifest.model.used,
                manifest.model.requested
            );
        }

        if let Some(book) = &self.campaign.answers {
            let log = record.path(records::SERVER_LOG);
            let start = answers::Start {
                base_url: &base_url,
                model: &model_name,
                engine: engine.shown(),
                requested: &self.experiment.model,
                weights: manifest.sha256.model.clone(),
                incomparable: match engine {
                    Engine::Ours => None,
                    Engine::Other(other) => other.incomparable.clone(),
                },
            };
            let found = tokio::select! {
                found = book.check(&start) => found.context("the answers to the fixed text")?,
                how = server_exit(self.server.as_mut()) => bail!("{SERVER_ENDED} ({how}):\n{}", log_tail(&log, LOG_LINES_SHOWN)),
            };
            note!("{}: {}", engine.shown(), answers::told(&found));
            let wrong = answers::wrong(&found);
            if let Some(used) = &mut manifest.engine {
                used.answers = Some(found);
            }
            record.write_json(records::MANIFEST, &manifest)?;
            if let Some(wrong) = wrong {
                return Err(wrong.into());
            }
        }

        let workload = &self.experiment.workload;
        let target = Target {
            base_url: base_url.clone(),
            endpoint: workload.endpoint,
            model: model_name,
            temperature: workload.temperature,
            ignore_eos: workload.ignore_eos,
            timeout: Duration::from_secs_f64(workload.request_timeout_s),
        };
        let server_pids = self.server.as_ref().map(|server| match engine {
            Engine::Ours => vec![server.pid()],
            // Python engines compute in processes of their own.
            Engine::Other(_) => process_tree::with_descendants(server.pid()),
        });
        let meters = SharedMeters::open(
            self.campaign.environment.gpu.is_some(),
            &self.campaign.powercap_dir,
        );
        note!("energy: {}", meters.describe());
        let sampler = Sampler {
            server_pids: server_pids.clone(),
            base_url,
            clock,
            meters: meters.clone(),
        };
        let samples = JsonLines::create(&record.path(records::SERVER_METRICS))?;
        let loads = JsonLines::create(&record.path(records::MACHINE_LOAD))?;
        let mut load_watch = LoadWatch::new(server_pids, loads, meters);
        let log = record.path(records::SERVER_LOG);
        let seed = self.experiment.seed.wrapping_add(u64::from(self.replicate));
        let load = Load {
            target,
            prompts: self.arm.prompts.clone(),
            seed,
            clock,
        };
        let measured = tokio::select! {
            measured = run_cases(self.experiment, &load, record, &mut load_watch) => measured?,
            error = sampler.run(samples) => return Err(error.into()),
            how = server_exit(self.server.as_mut()) => bail!("{SERVER_ENDED} ({how}):\n{}", log_tail(&log, LOG_LINES_SHOWN)),
        };

        let Measured { rows, trials, slo } = measured;
        if rows.iter().any(|row| row.error.is_some())
            && let Ok(how) = timeout(EXIT_NOTICE, server_exit(self.server.as_mut())).await
        {
            bail!(
                "{SERVER_ENDED} ({how}):\n{}",
                log_tail(&log, LOG_LINES_SHOWN)
            );
        }

        let mut summary = Summary::of(
            self.run_id,
            &[workload.cases(), trials].concat(),
            &rows,
            workload
                .slo
                .as_ref()
                .map(SloSearch::limits)
                .or_else(|| workload.goodput.clone())
                .as_ref(),
        );
        summary.take_in_energy(load_watch.loads(), self.campaign.environment.gpu.is_some());
        record.write_json(records::SUMMARY, &summary)?;
        for case in &summary.cases {
            say!("{}", case.block());
        }
        say!(
            "{} replicate {} ({})\n{}",
            self.arm.name(),
            self.replicate,
            manifest.model.used,
            summary.table()
        );
        if let Some(short) = summary.shortness() {
            note!("{short}");
        }
        let remark = judge(&summary, &rows, workload.ignore_eos)?;
        let nothing_found = slo
            .filter(|found| found.highest.is_none())
            .map(|_| "no load that was tried keeps the limits of the SLO search".to_owned());
        let remarks: Vec<String> = remark
            .into_iter()
            .chain(nothing_found)
            .chain(load_watch.remark())
            .collect();
        Ok((!remarks.is_empty()).then(|| remarks.join("; ")))
    }

    fn manifest(&self, command: &[String]) -> Manifest {
        let external = match &self.campaign.source {
            ServerSource::External { base_url, .. } => Some(base_url.display()),
            ServerSource::Engine { .. } => None,
        };
        let engine = match &self.campaign.source {
            ServerSource::External { .. } => None,
            ServerSource::Engine { .. } => {
                Some(self.arm.engine.used(self.campaign.our_version.as_ref()))
            }
        };
        let mut sha256 = Hashes {
            prompts: Some(self.arm.prompts.sha256.clone()),
            ..self.campaign.sources.sha256.clone()
        };
        if !self.arm.engine.is_ours() {
            // Neither serves here.
            sha256.engine_binary = None;
            sha256.kernels = None;
        }
        Manifest {
            schema_version: records::SCHEMA_VERSION,
            run_id: self.run_id.into(),
            campaign: self.campaign.id.clone(),
            experiment: self.experiment.name.clone(),
            replicate: self.replicate,
            quick: self.experiment.quick,
            git: self.campaign.sources.git.clone(),
            sha256,
            model: ModelUsed {
                requested: self.experiment.model.clone(),
                used: self.experiment.model.clone(),
                fallback_reason: None,
                format: None,
            },
            seed: self.experiment.seed.wrapping_add(u64::from(self.replicate)),
            generator: Some(prompts::GENERATOR.into()),
            command: portable(command),
            extra_flags: self.experiment.extra_flags.clone(),
            base_url: external,
            engine,
            derived: self.experiment.derived.clone(),
            baseline: self.experiment.baseline,
            focus: self.experiment.focus,
            started_utc: utc::rfc3339(self.started_unix_s),
        }
    }

    /// Returns where the server is.
    async fn wait_until_healthy(&self, record: &RunRecord, port: u16) -> Result<BaseUrl> {
        let log = record.path(records::SERVER_LOG);
        let is_ours = self.server.is_some();
        let progress = Progress::spinner(if is_ours {
            "start the server"
        } else {
            "wait for the server"
        });
        let engine = &self.arm.engine;
        let limit = self.campaign.start_limit.unwrap_or(engine.ready_limit());
        let deadline = Instant::now() + limit;
        let base_url = match &self.campaign.source {
            ServerSource::External { base_url, .. } => base_url.clone(),
            ServerSource::Engine { .. } if !engine.is_ours() => BaseUrl::loopback(port),
            ServerSource::Engine { .. } => loop {
                if let Some(port) = listening_port(&log) {
                    break BaseUrl::loopback(port);
                }
                self.check_runs(&log)?;
                if Instant::now() >= deadline {
                    bail!(
                        "the server is not healthy after {} s: it does not say where it listens",
                        limit.as_secs()
                    );
                }
                progress.tell(log_tail(&log, 1));
                sleep(HEALTH_POLL).await;
            },
        };
        let mut unreachable_since: Option<Instant> = None;
        loop {
            let last = match base_url.get_root("/health", HEALTH_LIMIT).await {
                Ok(_) => {
                    progress.finish("healthy");
                    return Ok(base_url);
                }
                // It answers, but has no such page.
                Err(HttpError::Status {
                    status: 404 | 405, ..
                }) if !is_ours => {
                    progress.finish("there, without /health");
                    return Ok(base_url);
                }
                Err(last) => last,
            };
            if matches!(last, HttpError::Connect { .. }) && !is_ours {
                let since = unreachable_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= UNREACHABLE_LIMIT {
                    bail!("{last}");
                }
            } else {
                unreachable_since = None;
            }
            self.check_runs(&log)?;
            if Instant::now() >= deadline {
                bail!(
                    "the server is not healthy after {} s: {last}",
                    limit.as_secs()
                );
            }
            progress.tell(log_tail(&log, 1));
            sleep(HEALTH_POLL).await;
        }
    }

    /// Of a server that is starting.
    fn check_runs(&self, log: &Path) -> Result<()> {
        if let Some(how) = self.server.as_ref().and_then(ServerProcess::exited) {
            let reason = first_error(log).map_or(String::new(), |error| format!(": {error}"));
            bail!(
                "the server ended before it was healthy ({how}){reason}\n{}",
                log_tail(log, LOG_LINES_SHOWN)
            );
        }
        Ok(())
    }
}

/// Resolves once the server has ended; never for an external one.
async fn server_exit(server: Option<&mut ServerProcess>) -> Ending {
    match server {
        Some(server) => server.ended().await,
        None => std::future::pending().await,
    }
}

/// The command as it is recorded: where this machine keeps the program says nothing of the run.
fn portable(command: &[String]) -> Vec<String> {
    let mut command = command.to_vec();
    if let Some(program) = command.first_mut()
        && let Some(name) = Path::new(program.as_str()).file_name()
    {
        *program = name.to_string_lossy().into_owned();
    }
    command
}

/// For a server that cannot be told to take one itself. Another program may take it before the server
/// does; the start then fails and says so.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port")?;
    Ok(listener.local_addr().context("no free port")?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_server_waits_for_the_last_ones_gpu_memory() {
        let polls = |readings: &[Option<u64>]| {
            let mut left = readings.iter().copied();
            let mut n_asked = 0;
            let used = || {
                n_asked += 1;
                left.next().flatten()
            };
            wait_until_freed(5 << 30, used, Duration::ZERO);
            n_asked
        };
        let (full, free) = (Some(20 << 30), Some(5 << 30));
        assert_eq!(polls(&[full, full, free, full]), 3);
        assert_eq!(polls(&[None]), 1, "nothing can be said");
        assert_eq!(polls(&[full; 100]), N_FREED_POLLS);
    }

    #[test]
    fn a_clock_that_was_set_is_remarked() {
        assert_eq!(clock_remark(1_000, 1_060, 59.2), None);
        let back = clock_remark(1_000, 400, 60.0).expect("a remark");
        assert!(back.contains("set by -660 s"), "{back}");
        let ahead = clock_remark(1_000, 87_460, 60.0).expect("a remark");
        assert!(ahead.contains("set by +86400 s"), "{ahead}");
    }
}
