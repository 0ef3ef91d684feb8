//! Requests through a gateway, and what became of each.
//!
//! A request is lost if its client sees no answer, or another status than 200. A stream is torn if it
//! began and did not end as it should: no router can repeat that one.

use std::io::{BufRead, BufReader};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::http;

/// Of one request, from its connection to its last byte.
const TIMEOUT: Duration = Duration::from_mins(2);
/// What gateways that retry say of it in their answers: the header, and what it counts.
const ATTEMPTS: [(&str, u32); 2] = [
    // All attempts, the first one included.
    ("x-envoy-attempt-count", 1),
    ("x-litellm-attempted-retries", 0),
];

pub struct Ask {
    pub path: &'static str,
    pub body: Value,
    pub headers: Vec<(&'static str, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Whole,
    /// Another status than 200.
    Refused(u16, String),
    /// No status.
    Unanswered(String),
    /// 200, and then not the whole answer.
    Torn(String),
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub outcome: Outcome,
    /// To the first event of a stream.
    pub ttft: Option<Duration>,
    pub elapsed: Duration,
    /// As the gateway tells it.
    pub n_retries: u32,
}

/// Users who each send their next request when the last one has ended.
pub struct Load<'a> {
    /// `host:port`
    pub address: &'a str,
    pub n_users: usize,
    pub ask: &'a (dyn Fn(usize) -> Ask + Sync),
    /// Requests to send; `None`: as long as the action takes.
    pub limit: Option<usize>,
}

#[derive(Default)]
pub struct Progress {
    n_begun: AtomicUsize,
    n_ended: AtomicUsize,
    is_over: AtomicBool,
}

impl Progress {
    pub fn n_ended(&self) -> usize {
        self.n_ended.load(Ordering::Relaxed)
    }

    /// # Errors
    ///
    /// If fewer requests have ended within `limit`.
    pub fn until_ended(&self, n: usize, limit: Duration) -> Result<()> {
        until(&format!("{n} requests have ended"), limit, || {
            self.n_ended() >= n
        })
    }
}

/// # Errors
///
/// If the condition does not hold within `limit`; the message names it.
pub fn until(what: &str, limit: Duration, holds: impl Fn() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > limit {
            return Err(anyhow!("after {} s it is not so: {what}", limit.as_secs()));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Sends requests while `act` runs, and to their limit. Returns all answers and what `act` returned.
///
/// # Errors
///
/// What `act` returned.
pub fn during<T>(
    load: &Load<'_>,
    act: impl FnOnce(&Progress) -> Result<T>,
) -> Result<(Vec<Answer>, T)> {
    let progress = Progress::default();
    let answers = Mutex::new(Vec::new());
    let acted = thread::scope(|scope| {
        for _ in 0..load.n_users {
            scope.spawn(|| use_it(load, &progress, &answers));
        }
        let acted = act(&progress);
        if acted.is_err() || load.limit.is_none() {
            progress.is_over.store(true, Ordering::Relaxed);
        }
        acted
    })?;
    let answers = answers
        .into_inner()
        .map_err(|_| anyhow!("a user's thread has panicked"))?;
    Ok((answers, acted))
}

fn use_it(load: &Load<'_>, progress: &Progress, answers: &Mutex<Vec<Answer>>) {
    while !progress.is_over.load(Ordering::Relaxed) {
        let i = progress.n_begun.fetch_add(1, Ordering::Relaxed);
        if load.limit.is_some_and(|limit| i >= limit) {
            return;
        }
        let answer = send(load.address, &(load.ask)(i));
        if let Ok(mut answers) = answers.lock() {
            answers.push(answer);
        }
        progress.n_ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// One request on a connection of its own.
pub fn send(address: &str, ask: &Ask) -> Answer {
    let begun = Instant::now();
    let mut answer = Answer {
        outcome: Outcome::Whole,
        ttft: None,
        elapsed: Duration::ZERO,
        n_retries: 0,
    };
    answer.outcome = match outcome(address, ask, begun, &mut answer) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Unanswered(format!("{error:#}")),
    };
    answer.elapsed = begun.elapsed();
    answer
}

fn outcome(address: &str, ask: &Ask, begun: Instant, answer: &mut Answer) -> Result<Outcome> {
    let mut request = http::agent(TIMEOUT)
        .post(http::url(address, ask.path))
        .header("content-type", "application/json");
    for (name, value) in &ask.headers {
        request = request.header(*name, value);
    }
    let mut response = request.send(ask.body.to_string().as_str())?;
    answer.n_retries = ATTEMPTS
        .iter()
        .filter_map(|(name, n_first)| {
            let value = response.headers().get(*name)?.to_str().ok()?;
            Some(value.parse::<u32>().ok()?.saturating_sub(*n_first))
        })
        .sum();
    let status = response.status().as_u16();
    if status != 200 {
        let text = response.body_mut().read_to_string().unwrap_or_default();
        return Ok(Outcome::Refused(status, text.chars().take(300).collect()));
    }
    let wanted = ask.body["max_tokens"].as_u64();
    let body = BufReader::new(response.body_mut().as_reader());
    let read = if ask.body["stream"] == true {
        read_stream(body, begun, answer)
    } else {
        serde_json::from_reader(body).context("the answer is no JSON")
    };
    Ok(read
        .and_then(|last| check_length(&last, wanted))
        .map_or_else(
            |error| Outcome::Torn(format!("{error:#}")),
            |()| Outcome::Whole,
        ))
}

/// Returns the event that has the usage.
fn read_stream(body: impl BufRead, begun: Instant, answer: &mut Answer) -> Result<Value> {
    let mut last = Value::Null;
    for line in body.lines() {
        let line = line?;
        let Some(event) = line.strip_prefix("data:").map(str::trim) else {
            continue;
        };
        answer.ttft.get_or_insert_with(|| begun.elapsed());
        if event == "[DONE]" {
            return Ok(last);
        }
        let event: Value = serde_json::from_str(event).context("an event is no JSON")?;
        if !event["error"].is_null() {
            return Err(anyhow!("{}", event["error"]));
        }
        if event["usage"].is_object() {
            last = event;
        }
    }
    Err(anyhow!("the stream ends without [DONE]"))
}

fn check_length(answer: &Value, wanted: Option<u64>) -> Result<()> {
    let length = answer["usage"]["completion_tokens"].as_u64();
    if wanted.is_some() && length != wanted {
        return Err(anyhow!(
            "{length:?} tokens in place of {wanted:?} in {answer}"
        ));
    }
    Ok(())
}

/// What became of many.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub n_requests: usize,
    /// Lost before anything was streamed.
    pub n_lost: usize,
    pub n_torn: usize,
    pub n_retries: usize,
    /// The first fault of each kind, with its count.
    pub faults: Vec<(String, usize)>,
}

impl Tally {
    pub fn of(answers: &[Answer]) -> Self {
        let mut tally = Self {
            n_requests: answers.len(),
            ..Self::default()
        };
        for answer in answers {
            tally.n_retries += answer.n_retries as usize;
            let fault = match &answer.outcome {
                Outcome::Whole => continue,
                Outcome::Refused(status, text) => {
                    tally.n_lost += 1;
                    format!("{status} {text}")
                }
                Outcome::Unanswered(error) => {
                    tally.n_lost += 1;
                    error.clone()
                }
                Outcome::Torn(error) => {
                    tally.n_torn += 1;
                    format!("torn: {error}")
                }
            };
            let fault: String = fault.chars().take(160).collect();
            match tally.faults.iter_mut().find(|(known, _)| *known == fault) {
                Some((_, n)) => *n += 1,
                None => tally.faults.push((fault, 1)),
            }
        }
        tally
    }
}

/// The value below which `share` of the durations lie; `None` of none.
pub fn quantile(mut values: Vec<Duration>, share: f64) -> Option<Duration> {
    values.sort_unstable();
    let last = values.len().checked_sub(1)?;
    Some(values[(last as f64 * share).round() as usize])
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use serde_json::json;

    use super::*;

    /// A server that says these bytes to every client.
    fn saying(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.expect("a client");
                let mut request = Vec::new();
                let mut some = [0; 1000];
                while !request.ends_with(b"}") {
                    let n = client.read(&mut some).expect("a request");
                    request.extend(&some[..n]);
                }
                let _ = client.write_all(answer.as_bytes());
            }
        });
        address
    }

    fn outcome_of(answer: &'static str, stream: bool) -> Answer {
        let ask = Ask {
            path: "/v1/completions",
            body: json!({"stream": stream, "max_tokens": 2}),
            headers: vec![("x-session-id", "a".into())],
        };
        send(&saying(answer), &ask)
    }

    #[test]
    fn whole_lost_and_torn_are_told_apart() {
        let head = "HTTP/1.1 200 OK\r\nx-envoy-attempt-count: 3\r\nConnection: close\r\n\r\n";
        let usage = "data: {\"usage\": {\"completion_tokens\": 2}}\n\n";
        let leak = |text: String| -> &'static str { text.leak() };
        let whole = outcome_of(leak(format!("{head}{usage}data: [DONE]\n\n")), true);
        assert_eq!((whole.outcome, whole.n_retries), (Outcome::Whole, 2));
        assert!(whole.ttft.is_some());
        let torn = outcome_of(leak(format!("{head}{usage}")), true);
        assert!(matches!(torn.outcome, Outcome::Torn(error) if error.contains("[DONE]")));
        let short = "{\"usage\": {\"completion_tokens\": 1}}";
        let short = outcome_of(leak(format!("{head}{short}")), false);
        assert!(matches!(short.outcome, Outcome::Torn(error) if error.contains("Some(1)")));
        let refused = "HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno";
        let refused = outcome_of(refused, false);
        assert_eq!(refused.outcome, Outcome::Refused(503, "no".into()));
        let nothing = outcome_of("", false);
        assert!(matches!(nothing.outcome, Outcome::Unanswered(_)));
    }

    #[test]
    fn a_tally_groups_faults_and_a_limit_is_kept() {
        let address = saying("HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno");
        let ask = |_| Ask {
            path: "/",
            body: json!({}),
            headers: Vec::new(),
        };
        let load = Load {
            address: &address,
            n_users: 3,
            ask: &ask,
            limit: Some(10),
        };
        let (answers, ()) = during(&load, |progress| {
            progress.until_ended(10, Duration::from_mins(1))
        })
        .expect("answers");
        let tally = Tally::of(&answers);
        assert_eq!((tally.n_requests, tally.n_lost, tally.n_torn), (10, 10, 0));
        assert_eq!(tally.faults, [("503 no".to_owned(), 10)]);
        let error = during(&load, |_| -> Result<()> { Err(anyhow!("no")) });
        assert!(error.is_err());
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let ms = Duration::from_millis;
        assert_eq!(quantile(vec![ms(3), ms(1), ms(2)], 0.5), Some(ms(2)));
        assert_eq!(quantile(vec![ms(3), ms(1), ms(2)], 0.95), Some(ms(3)));
        assert_eq!(quantile(Vec::new(), 0.5), None);
    }
}
