//! The canary on this machine: a stable engine, the candidate, the gateway's own files, and a load with
//! shared prefixes. The clients' own view is a stage, too: nothing may be lost, whatever the verdict.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::canary::{Canary, Cluster, Limits};
use super::configuration::Configuration;
use super::journal::{Journal, Verdict};
use crate::cargo;
use crate::clients::install::Installed;
use crate::fleet::load::{Answer, Load, Tally, during, quantile, until};
use crate::fleet::replicas::{Replicas, free_port};
use crate::fleet::shared_prefix;
use crate::gateway::{self, ENVIRONMENT, Gateway, Setting};

const KEY: &str = "sk-promote-key";
const N_USERS: usize = 4;
const N_TOKENS: u32 = 24;
const HEALTHY_LIMIT: Duration = Duration::from_secs(30);

/// Returns whether it was promoted.
pub fn canary(
    engine: &Path,
    deployed: &Configuration,
    candidate: &Configuration,
    cache: &Path,
    limits: Limits,
    journal: &mut Journal,
) -> Result<bool> {
    let sources = cargo::root()?.join("engine/tests/clients");
    let clients = cargo::target_dir()?.join("clients");
    let installed = Installed::environments(&sources, &clients, &[ENVIRONMENT])?;
    let mut replicas = Replicas::new(engine, &journal.folder().join("engines"))?;
    let stable = replicas.add(&deployed.serve_flags(cache))?;
    let new = replicas.add(&candidate.serve_flags(cache))?;
    let (stable_port, new_port) = (replicas.port(stable), replicas.port(new));
    let clusters =
        [("stable", &stable_port), ("canary", &new_port)].map(|(name, port)| gateway::Cluster {
            name,
            ports: std::slice::from_ref(port),
        });
    let setting = Setting {
        port: free_port()?,
        admin_port: free_port()?,
        key: KEY,
        trial_key: "sk-promote-trial",
        round_robin: false,
    };
    let envoy = installed.program_of(ENVIRONMENT, "envoy");
    let folder = journal.folder().join("gateway");
    let gateway = Gateway::start(&envoy, &setting, &clusters, &folder)?;
    let healthy = |cluster: &str| {
        until(&format!("{cluster} is healthy"), HEALTHY_LIMIT, || {
            gateway.admin.n_healthy(cluster).is_ok_and(|n| n == 1)
        })
    };
    healthy("stable")?;
    healthy("canary")?;
    let judged = Canary {
        admin: &gateway.admin,
        stable: Cluster {
            name: "stable",
            engines: vec![replicas.address(stable)],
        },
        candidate: Cluster {
            name: "canary",
            engines: vec![replicas.address(new)],
        },
        limits,
    };
    let load = Load {
        address: &gateway.address,
        n_users: N_USERS,
        ask: &|i| shared_prefix::ask(i, N_TOKENS, KEY),
        limit: None,
    };
    let (answers, passed) = during(&load, |_| {
        let passed = judged.run(journal)?;
        if passed {
            journal.stage("stable engines restarted", |_| {
                replicas.set_flags(stable, &candidate.serve_flags(cache));
                replicas.drain(stable)?;
                replicas.start(stable)?;
                healthy("stable")?;
                gateway.admin.set_canary_percent(0)?;
                replicas.until_used(stable)?;
                Ok(Verdict::Passed("with the candidate's configuration".into()))
            })
        } else {
            Ok(false)
        }
    })?;
    replicas.drain(new)?;
    let kept = journal.stage("clients", |_| Ok(clients_saw(&answers)))?;
    replicas.drain(stable).context("the stable engine")?;
    Ok(passed && kept)
}

fn clients_saw(answers: &[Answer]) -> Verdict {
    let tally = Tally::of(answers);
    let p95 = |of: fn(&Answer) -> Option<Duration>| {
        let value = quantile(answers.iter().filter_map(of).collect(), 0.95);
        value.map_or(0.0, |value| value.as_secs_f64() * 1e3)
    };
    let told = format!(
        "{} requests, {} lost, {} torn, {} retried; p95 of the first event {:.0} ms, of the whole {:.0} ms",
        tally.n_requests,
        tally.n_lost,
        tally.n_torn,
        tally.n_retries,
        p95(|answer| answer.ttft),
        p95(|answer| Some(answer.elapsed)),
    );
    if tally.n_lost + tally.n_torn == 0 && tally.n_requests > 0 {
        return Verdict::Passed(told);
    }
    Verdict::Refused(format!("{told}: {:?}", tally.faults))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::load::Outcome;

    #[test]
    fn a_lost_request_refuses() {
        let answer = |outcome| Answer {
            outcome,
            ttft: Some(Duration::from_millis(5)),
            elapsed: Duration::from_millis(50),
            n_retries: 1,
        };
        let seen = clients_saw(&[answer(Outcome::Whole)]);
        assert!(
            matches!(&seen, Verdict::Passed(told) if told.contains("1 requests, 0 lost, 0 torn, 1 retried; p95 of the first event 5 ms")),
            "{seen:?}"
        );
        for outcome in [
            Outcome::Refused(503, "no".into()),
            Outcome::Torn("x".into()),
        ] {
            let seen = clients_saw(&[answer(Outcome::Whole), answer(outcome)]);
            assert!(matches!(seen, Verdict::Refused(_)), "{seen:?}");
        }
        assert!(matches!(clients_saw(&[]), Verdict::Refused(_)));
    }
}
