//! What is done to the engines while requests go through a router, and what has to hold.

use std::time::Duration;

use anyhow::Result;

use super::load::{Answer, Load, Outcome, Tally, during, send};
use super::replicas::Replicas;
use super::router::{self, LIMITED_MODEL, Router, Running, TRIAL_KEY};
use super::shared_prefix;
use super::table::Row;

/// Requests for each prefix.
const N_ROUNDS: usize = 8;
const N_USERS: usize = 6;
/// Requests while one replica is lost.
const N_UNDER_LOAD: usize = 160;
const N_TOKENS: u32 = 48;
const LIMIT: Duration = Duration::from_mins(3);
/// Everything that a part uses.
pub struct Stage<'a> {
    pub router: &'a Router,
    pub running: &'a Running,
    pub replicas: &'a mut Replicas,
    pub n_engines: usize,
    pub version: &'a str,
    pub policy: &'a str,
}

impl Stage<'_> {
    fn row(&self, part: &'static str, answers: &[Answer], n_retries_before: Option<f64>) -> Row {
        let tally = Tally::of(answers);
        let own = self.running.n_retries().zip(n_retries_before);
        let n_retries = own.map_or(tally.n_retries, |(after, before)| (after - before) as usize);
        Row {
            router: self.router.name,
            version: self.version.to_owned(),
            n_engines: self.n_engines,
            part,
            policy: self.policy.to_owned(),
            n_retries,
            tally,
            hit_rate: None,
            notes: Vec::new(),
            faults: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// The share of prompt tokens that the engines found in their caches.
    ///
    /// # Errors
    ///
    /// If an engine tells no metrics.
    pub fn shared_prefixes(&mut self) -> Result<Row> {
        self.replicas.forget_prefixes()?;
        let before = self.replicas.cache_counts()?;
        let retries = self.running.n_retries();
        let load = Load {
            address: &self.running.address,
            n_users: 4,
            ask: &|i| shared_prefix::ask(i, 4, router::KEY),
            limit: Some(shared_prefix::N_PREFIXES * N_ROUNDS),
        };
        let (answers, ()) = during(&load, |_| Ok(()))?;
        let mut row = self.row("shared prefixes", &answers, retries);
        row.hit_rate = self.replicas.cache_counts()?.rate_since(before);
        row.must_lose_nothing();
        Ok(row)
    }

    /// SIGKILL: what streams is torn, and nothing else is lost.
    ///
    /// # Errors
    ///
    /// If the replica has no work to be killed in, or does not start again.
    pub fn kill(&mut self) -> Result<Row> {
        let retries = self.running.n_retries();
        let replicas = &mut *self.replicas;
        let (answers, ended) = during(&under_load(self.running, Some(N_UNDER_LOAD)), |progress| {
            progress.until_ended(N_UNDER_LOAD / 4, LIMIT)?;
            let ended = replicas.until_used(0).and_then(|()| replicas.kill(0));
            Ok(ended)
        })?;
        ended?;
        let mut row = self.row("replica killed", &answers, retries);
        // At most one request of each user was at that replica.
        let n_broken = row.tally.n_torn + row.tally.n_lost;
        if n_broken > N_USERS {
            row.fault(format!("{n_broken} broken, of {N_USERS} users"));
        }
        if row.tally.n_lost > 0 {
            row.fault(format!("{} lost", row.tally.n_lost));
        }
        self.replicas.start(0)?;
        let returned = self.returns(0)?;
        row.note_if(!returned, "the restarted replica gets no requests");
        Ok(row)
    }

    /// SIGTERM: streams end, requests go elsewhere.
    ///
    /// # Errors
    ///
    /// If the replica does not exit successfully, or does not start again.
    pub fn drain(&mut self) -> Result<Row> {
        let retries = self.running.n_retries();
        let replicas = &mut *self.replicas;
        let (answers, ended) = during(&under_load(self.running, Some(N_UNDER_LOAD)), |progress| {
            progress.until_ended(N_UNDER_LOAD / 4, LIMIT)?;
            let ended = replicas.until_used(1).and_then(|()| replicas.drain(1));
            Ok(ended)
        })?;
        ended?;
        let mut row = self.row("replica drained", &answers, retries);
        row.must_lose_nothing();
        self.replicas.start(1)?;
        let returned = self.returns(1)?;
        row.note_if(!returned, "the restarted replica gets no requests");
        Ok(row)
    }

    /// One replica after the other: SIGTERM, start, and its first request.
    ///
    /// # Errors
    ///
    /// If a replica does not exit successfully, or does not start again.
    pub fn rolling_restart(&mut self) -> Result<Row> {
        let retries = self.running.n_retries();
        let replicas = &mut *self.replicas;
        let n_engines = self.n_engines;
        let (answers, rolled) = during(&under_load(self.running, None), |progress| {
            progress.until_ended(N_USERS, LIMIT)?;
            Ok(roll(replicas, n_engines))
        })?;
        let unused = rolled?;
        let mut row = self.row("rolling restart", &answers, retries);
        row.must_lose_nothing();
        if !unused.is_empty() {
            row.fault(format!("no requests after its restart: {unused:?}"));
        }
        Ok(row)
    }

    /// Whether a replica that was started again gets requests.
    fn returns(&self, i: usize) -> Result<bool> {
        let replicas = &*self.replicas;
        let (_, used) = during(&under_load(self.running, None), |_| {
            Ok(replicas.until_used(i).is_ok())
        })?;
        Ok(used)
    }

    /// A wrong key and too many requests.
    pub fn keys_and_limits(&self) -> Row {
        let address = &self.running.address;
        let short = || router::ask("limits", "limits", 1, false);
        let with_key = |key: &str| {
            let mut ask = short();
            ask.headers[0].1 = format!("Bearer {key}");
            send(address, &ask)
        };
        let mut checks = Vec::new();
        let [wrong_status, none_status] = self.router.key_statuses();
        let wrong = with_key("sk-wrong");
        checks.push(("a wrong key", wrong_status, status_of(&wrong)));
        let mut ask = short();
        ask.headers.remove(0);
        let none = send(address, &ask);
        checks.push(("no key", none_status, status_of(&none)));
        let right = send(address, &short());
        checks.push(("the right key", 200, status_of(&right)));
        let limited: Vec<Answer> = (0..8)
            .map(|_| {
                if self.router.has_client_limits() {
                    return with_key(TRIAL_KEY);
                }
                let mut ask = short();
                ask.body["model"] = LIMITED_MODEL.into();
                send(address, &ask)
            })
            .collect();
        let statuses: Vec<u16> = limited.iter().map(status_of).collect();
        let n_passed = statuses.iter().filter(|status| **status == 200).count();
        checks.push(("the first request of the limited", 200, statuses[0]));
        for status in &statuses[n_passed..] {
            checks.push(("a request above the limit", 429, *status));
        }
        checks.push(("the last one above the limit", 429, statuses[7]));
        let mut row = self.row("keys and limits", &[], None);
        row.tally.n_requests = 3 + limited.len();
        row.notes.push(format!(
            "wrong key {wrong_status}, no key {none_status}; {n_passed} of 8 within the limit, the others 429"
        ));
        for (what, wanted, found) in checks {
            if found != wanted {
                row.failures
                    .push(format!("{what}: {found} in place of {wanted}"));
            }
        }
        row
    }
}

fn under_load(running: &Running, limit: Option<usize>) -> Load<'_> {
    Load {
        address: &running.address,
        n_users: N_USERS,
        ask: &|i| {
            // Every other pair is new: a policy with affinity gives it to a replica that has little.
            let session = match i % 4 {
                0 | 1 => format!("{} is a session", i % 40),
                _ => format!("{i} is a new session"),
            };
            router::ask(&session, &session, N_TOKENS, i % 2 == 0)
        },
        limit,
    }
}

/// Returns the replicas that got no request afterwards.
fn roll(replicas: &mut Replicas, n: usize) -> Result<Vec<usize>> {
    let mut unused = Vec::new();
    for i in 0..n {
        replicas.drain(i)?;
        replicas.start(i)?;
        if replicas.until_used(i).is_err() {
            unused.push(i);
        }
    }
    Ok(unused)
}

/// 0: none.
fn status_of(answer: &Answer) -> u16 {
    match &answer.outcome {
        Outcome::Whole | Outcome::Torn(_) => 200,
        Outcome::Refused(status, _) => *status,
        Outcome::Unanswered(_) => 0,
    }
}
