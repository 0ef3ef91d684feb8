//! The routers: how each is started before the same engines, and what it is known to lack.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::load::{Ask, Outcome, send};
use super::replicas::{free_port, sum_of};
use super::shared_prefix::{self, MODEL};
use crate::background::Background;
use crate::clients::install::Installed;
use crate::gateway::{Cluster, Gateway, Setting};
use crate::{cargo, http};

pub const KEY: &str = "sk-fleet-key";
pub const TRIAL_KEY: &str = "sk-fleet-trial";
/// LiteLLM's second name for the engines, with a limit.
pub const LIMITED_MODEL: &str = "tiny-limited";
/// LiteLLM's imports alone take long on a small machine.
const START_LIMIT: Duration = Duration::from_mins(4);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Requests with the same prefix go to the same engine.
    Affinity,
    RoundRobin,
}

pub struct Router {
    pub name: &'static str,
    /// `requirements/<name>.txt`
    pub environment: &'static str,
    /// Its own names for the two policies.
    pub policies: [&'static str; 2],
    form: Form,
    /// Parts whose checks it is known to fail, with the reason. They are measured all the same.
    pub lacks: &'static [(&'static str, &'static str)],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A program that takes workers and a policy; arguments before them.
    Workers(&'static str, &'static [&'static str]),
    Envoy,
    LiteLlm,
    /// A frontend, and a worker of this repository for each engine.
    Dynamo,
}

const COOLDOWN: &str = "no health checks: engines that failed are left out for two seconds, and a request that finds none left is refused";
/// Its migration repeats requests that it has tokenized itself.
const NO_MIGRATION: &str =
    "a worker that takes texts, whose request fails, is not asked again or replaced";

pub const ROUTERS: [Router; 6] = [
    Router {
        name: "sglang-router",
        environment: "sglang_router",
        policies: ["cache_aware", "round_robin"],
        form: Form::Workers("sglang-router", &["launch"]),
        lacks: &[],
    },
    Router {
        name: "smg",
        environment: "smg",
        policies: ["cache_aware", "round_robin"],
        form: Form::Workers("smg", &["launch"]),
        lacks: &[],
    },
    Router {
        name: "vllm-router",
        environment: "vllm_router",
        policies: ["cache_aware", "round_robin"],
        form: Form::Workers("vllm-router", &[]),
        lacks: &[],
    },
    Router {
        name: "envoy",
        environment: crate::gateway::ENVIRONMENT,
        policies: ["MAGLEV by x-session-id", "ROUND_ROBIN"],
        form: Form::Envoy,
        lacks: &[],
    },
    Router {
        name: "litellm",
        environment: "litellm",
        policies: ["session_affinity", "simple-shuffle"],
        form: Form::LiteLlm,
        lacks: &[
            (
                "replica killed",
                "a stream that breaks before its first token is not sent again, and its client gets 500",
            ),
            ("replica drained", COOLDOWN),
            ("rolling restart", COOLDOWN),
        ],
    },
    Router {
        name: "dynamo",
        environment: "dynamo",
        policies: ["session affinity", "round-robin"],
        form: Form::Dynamo,
        lacks: &[
            (
                "shared prefixes",
                "neither of the session's headers decides where a text goes",
            ),
            ("replica killed", NO_MIGRATION),
            ("replica drained", NO_MIGRATION),
            ("rolling restart", NO_MIGRATION),
        ],
    },
];

pub fn names() -> Vec<&'static str> {
    ROUTERS.iter().map(|router| router.name).collect()
}

/// A router that runs.
pub struct Running {
    /// `host:port`
    pub address: String,
    _process: Process,
    /// Where it counts its retries, if not in its answers.
    prometheus: Option<String>,
}

enum Process {
    Programs { _all: Vec<Background> },
    Envoy { _gateway: Box<Gateway> },
}

impl Running {
    /// By its own count; `None` if only the answers tell.
    pub fn n_retries(&self) -> Option<f64> {
        let page = http::get(self.prometheus.as_ref()?, "/metrics").ok()?.body;
        let names = [
            "smg_worker_retries_total",
            "vllm_router_retries_total",
            "sgl_router_retries_total",
        ];
        Some(names.iter().map(|name| sum_of(&page, name)).sum())
    }
}

impl Router {
    pub fn policy_name(&self, policy: Policy) -> &'static str {
        self.policies[usize::from(policy == Policy::RoundRobin)]
    }

    /// Whether it checks keys and limits rates here.
    pub fn is_gateway(&self) -> bool {
        matches!(self.form, Form::Envoy | Form::LiteLlm)
    }

    /// What it answers to a wrong key, and to none. LiteLLM keeps keys other than the master key in a
    /// database; without one it lets no wrong key in, and says so in other ways.
    pub fn key_statuses(&self) -> [u16; 2] {
        if self.form == Form::LiteLlm {
            [400, 500]
        } else {
            [401, 401]
        }
    }

    /// Whether its limits are of a client's key, or else of a model.
    pub fn has_client_limits(&self) -> bool {
        self.form == Form::Envoy
    }

    /// Starts it before engines on these ports; returns when a request has come through.
    ///
    /// # Errors
    ///
    /// If it does not start, or answers nothing in time.
    pub fn start(
        &self,
        installed: &Installed,
        ports: &[u16],
        policy: Policy,
        folder: &Path,
    ) -> Result<Running> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let started = match self.form {
            Form::Workers(program, before) => {
                let program = installed.program_of(self.environment, program);
                self.start_workers(&program, before, ports, policy, folder)
            }
            Form::Envoy => {
                let envoy = installed.program_of(self.environment, "envoy");
                start_envoy(&envoy, ports, policy, folder)
            }
            Form::LiteLlm => {
                let litellm = installed.program_of(self.environment, "litellm");
                start_litellm(&litellm, ports, policy, folder)
            }
            Form::Dynamo => {
                let python = installed.program_of(self.environment, "python3");
                start_dynamo(&python, ports, policy, folder)
            }
        };
        started.with_context(|| self.name.to_owned())
    }

    fn start_workers(
        &self,
        program: &Path,
        before: &[&str],
        ports: &[u16],
        policy: Policy,
        folder: &Path,
    ) -> Result<Running> {
        let (port, prometheus) = (free_port()?, free_port()?);
        let mut args: Vec<String> = before.iter().map(|&arg| arg.to_owned()).collect();
        args.push("--worker-urls".into());
        args.extend(ports.iter().map(|port| format!("http://127.0.0.1:{port}")));
        for (name, value) in [
            ("--policy", self.policy_name(policy)),
            ("--host", "127.0.0.1"),
            ("--port", &port.to_string()),
            ("--prometheus-host", "127.0.0.1"),
            ("--prometheus-port", &prometheus.to_string()),
            ("--health-check-endpoint", "/readiness"),
            ("--health-check-interval-secs", "1"),
            ("--health-failure-threshold", "1"),
            ("--health-success-threshold", "1"),
            // With the default of ten, all retries of a request may go to the one replica that is down.
            ("--cb-failure-threshold", "2"),
            ("--cb-timeout-duration-secs", "2"),
            ("--cb-success-threshold", "1"),
            ("--worker-startup-timeout-secs", "60"),
            ("--worker-startup-check-interval", "1"),
        ] {
            args.extend([name.to_owned(), value.to_owned()]);
        }
        let background = Background::start(program, &args, folder, "router.log")?;
        let address = format!("127.0.0.1:{port}");
        Ok(Running {
            _process: Process::Programs {
                _all: vec![serving(background, &address)?],
            },
            address,
            prometheus: Some(format!("127.0.0.1:{prometheus}")),
        })
    }
}

fn start_envoy(program: &Path, ports: &[u16], policy: Policy, folder: &Path) -> Result<Running> {
    let setting = Setting {
        port: free_port()?,
        admin_port: free_port()?,
        key: KEY,
        trial_key: TRIAL_KEY,
        round_robin: policy == Policy::RoundRobin,
    };
    let stable = Cluster {
        name: "stable",
        ports,
    };
    let gateway = Gateway::start(program, &setting, &[stable], folder)?;
    super::load::until("a request comes through", START_LIMIT, || {
        answers(&gateway.address)
    })?;
    Ok(Running {
        address: gateway.address.clone(),
        _process: Process::Envoy {
            _gateway: Box::new(gateway),
        },
        prometheus: None,
    })
}

fn start_litellm(program: &Path, ports: &[u16], policy: Policy, folder: &Path) -> Result<Running> {
    let port = free_port()?;
    let config = folder.join("litellm.yaml");
    // JSON is YAML.
    fs::write(&config, litellm_config(ports, policy).to_string())
        .with_context(|| config.display().to_string())?;
    let config: PathBuf = config;
    let args = [
        "--config",
        &config.display().to_string(),
        "--host",
        "127.0.0.1",
        "--port",
        &port.to_string(),
        "--telemetry",
        "False",
    ];
    let background = Background::start(program, &args.map(str::to_owned), folder, "router.log")?;
    let address = format!("127.0.0.1:{port}");
    Ok(Running {
        _process: Process::Programs {
            _all: vec![serving(background, &address)?],
        },
        address,
        prometheus: None,
    })
}

/// With discovery by files: no etcd, no NATS.
fn start_dynamo(python: &Path, ports: &[u16], policy: Policy, folder: &Path) -> Result<Running> {
    let store = folder.join("discovery");
    // Of an earlier run, whose workers have ended.
    if store.exists() {
        fs::remove_dir_all(&store).with_context(|| store.display().to_string())?;
    }
    let environment = [
        ("DYN_FILE_KV", store.display().to_string()),
        ("DYN_LOGGING_CONSOLE_COLORS", "0".to_owned()),
    ];
    let start = |args: &[&str], log: &str| {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        Background::start_with(python, &args, folder, log, &environment)
    };
    let worker = cargo::root()?.join("engine/tests/clients/dynamo_worker.py");
    let worker = worker.display().to_string();
    let mut all = Vec::new();
    for port in ports {
        let url = format!("http://127.0.0.1:{port}");
        all.push(start(
            &[&worker, &url, MODEL],
            &format!("worker-{port}.log"),
        )?);
    }
    let port = free_port()?.to_string();
    let mut args = vec![
        "-m",
        "dynamo.frontend",
        "--http-host",
        "127.0.0.1",
        "--http-port",
        &port,
        "--discovery-backend",
        "file",
        "--request-plane",
        "tcp",
        "--event-plane",
        "zmq",
        "--router-mode",
        "round-robin",
        "--router-min-initial-workers",
    ];
    let n_workers = ports.len().to_string();
    args.push(&n_workers);
    if policy == Policy::Affinity {
        args.extend(["--router-session-affinity-ttl-secs", "600"]);
    }
    args.extend(["--migration-limit", "3"]);
    let address = format!("127.0.0.1:{port}");
    all.push(serving(start(&args, "router.log")?, &address)?);
    Ok(Running {
        _process: Process::Programs { _all: all },
        address,
        prometheus: None,
    })
}

/// Without a database: one master key, and limits by model.
fn litellm_config(ports: &[u16], policy: Policy) -> Value {
    let deployment = |name: &str, port: &u16| {
        json!({"model_name": name, "litellm_params": {
            "model": format!("hosted_vllm/{MODEL}"),
            "api_base": format!("http://127.0.0.1:{port}/v1"),
            "api_key": "none",
        }})
    };
    let mut models: Vec<Value> = ports.iter().map(|port| deployment(MODEL, port)).collect();
    let mut limited = deployment(LIMITED_MODEL, &ports[0]);
    limited["litellm_params"]["rpm"] = json!(3);
    models.push(limited);
    let mut checks = vec!["enforce_model_rate_limits"];
    if policy == Policy::Affinity {
        checks.push("session_affinity");
    }
    json!({
        "model_list": models,
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"telemetry": false, "request_timeout": 120},
        "router_settings": {
            "routing_strategy": "simple-shuffle",
            "num_retries": 5,
            "retry_after": 0,
            // A deployment that failed is left out for two seconds.
            "allowed_fails": 0,
            "cooldown_time": 2,
            "optional_pre_call_checks": checks,
        },
    })
}

fn serving(mut background: Background, address: &str) -> Result<Background> {
    background.until("a request comes through", START_LIMIT, || answers(address))?;
    Ok(background)
}

fn answers(address: &str) -> bool {
    let ask = ask("a first question", "start", 1, false);
    send(address, &ask).outcome == Outcome::Whole
}

/// A chat whose prefix is `system`, of one session.
pub fn ask(system: &str, session: &str, n_tokens: u32, stream: bool) -> Ask {
    shared_prefix::chat(system, session, n_tokens, stream, KEY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn litellm_is_told_every_engine_and_the_limit() {
        let config = litellm_config(&[1, 2, 3], Policy::Affinity);
        let models = config["model_list"].as_array().expect("models");
        assert_eq!(models.len(), 4);
        assert_eq!(models[3]["litellm_params"]["rpm"], 3);
        let checks = |policy| {
            let config = litellm_config(&[1], policy);
            config["router_settings"]["optional_pre_call_checks"].to_string()
        };
        assert!(checks(Policy::Affinity).contains("session_affinity"));
        assert!(!checks(Policy::RoundRobin).contains("session_affinity"));
    }
}
