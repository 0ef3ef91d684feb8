//! What the notebook answers, and to whom.
//!
//! A page of another site can send requests to the loopback interface without reading their answers, and
//! with DNS rebinding it can read them, too. So every request has to name this machine in `Host`; what
//! changes something needs the token that was printed at the start, in a header that other origins
//! cannot set, and an `Origin` of this page's, if there is one.

use std::fs;
use std::io::{self, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::engine;
use super::files;
use super::reply::{Reply, send_head};
use super::request::HttpRequest;
use super::runner::{Run, Runner, Started};

const PREFIX: &str = "/notebook";
const TOKEN: &str = "X-Notebook-Token";
const MAX_BODY_BYTES: usize = 4096;
/// A stream without news gets a comment, which shows whether its client is there.
const STREAM_INTERVAL: Duration = Duration::from_secs(10);

pub struct Notebook {
    pub port: u16,
    pub token: String,
    /// Names and titles.
    pub experiments: Vec<(String, String)>,
    /// The folder of rendered reports.
    pub reports: PathBuf,
    /// `HOST:PORT` of the engine whose page is shown.
    pub engine: String,
    pub runner: Runner,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Reply(Reply),
    /// The events of runs; what the client has seen already.
    Events(Option<(u64, usize)>),
    PassOn,
}

impl Notebook {
    /// # Errors
    ///
    /// If the client has gone.
    pub fn answer(&self, mut stream: &TcpStream) -> io::Result<()> {
        let request = match HttpRequest::receive(stream)? {
            Ok(request) => request,
            Err((status, message)) => return Reply::error(status, message).send(&mut stream),
        };
        match self.decide(&request) {
            Answer::Reply(reply) => reply.send(&mut stream),
            Answer::Events(seen) => self.stream(stream, seen),
            Answer::PassOn => engine::pass_on(&request, &self.engine, &mut stream),
        }
    }

    fn decide(&self, asked: &HttpRequest) -> Answer {
        let path = asked.path();
        let is_local = |host: &str| self.is_own_host(host);
        if !asked.header("Host").is_some_and(is_local) {
            let message = format!("Host must be 127.0.0.1:{0} or localhost:{0}", self.port);
            return refused(403, message);
        }
        if !is_own(path) {
            return Answer::PassOn;
        }
        let name = path.strip_prefix(PREFIX).unwrap_or_default();
        match (asked.method.as_str(), name) {
            ("GET", "/api/experiments") => Answer::Reply(Reply::json(200, &self.overview())),
            ("GET", "/api/events") => Answer::Events(asked.header("Last-Event-ID").and_then(seen)),
            ("POST", "/api/start" | "/api/stop") => match self.refusal(asked) {
                Some(message) => refused(403, message),
                None if name == "/api/stop" => self.stop(),
                None => self.start(&asked.body),
            },
            (_, "/api/start" | "/api/stop") => refused(405, "this is done with POST"),
            ("GET", _) => {
                let file = match name.strip_prefix("/reports/") {
                    Some(path) => files::below(&self.reports, path),
                    None => files::of_page(name.trim_start_matches('/')),
                };
                let missing = || Reply::error(404, format!("{path} is not there"));
                Answer::Reply(file.unwrap_or_else(missing))
            }
            _ => refused(405, format!("{path} is only read")),
        }
    }

    /// Why a request may change nothing.
    fn refusal(&self, asked: &HttpRequest) -> Option<String> {
        let is_own = |origin: &str| {
            let host = origin.strip_prefix("http://");
            host.is_some_and(|host| self.is_own_host(host))
        };
        if asked.header("Origin").is_some_and(|origin| !is_own(origin)) {
            return Some("Origin is another page's".to_owned());
        }
        // Digests are compared, so that timing tells nothing of the token.
        let digest = |text: &str| Sha256::digest(text.as_bytes());
        let is_known = asked
            .header(TOKEN)
            .is_some_and(|sent| digest(sent) == digest(&self.token));
        let message = || format!("{TOKEN} must be the token that was printed at the start");
        (!is_known).then(message)
    }

    fn is_own_host(&self, host: &str) -> bool {
        let (name, port) = host.rsplit_once(':').unwrap_or((host, "80"));
        ["127.0.0.1", "localhost"].contains(&name) && port.parse() == Ok(self.port)
    }

    fn start(&self, body: &[u8]) -> Answer {
        if body.len() > MAX_BODY_BYTES {
            return refused(413, format!("a body has at most {MAX_BODY_BYTES} bytes"));
        }
        let started: Started = match serde_json::from_slice(body) {
            Ok(started) => started,
            Err(error) => {
                return refused(400, format!("{{\"name\", \"quick\"}} is asked: {error}"));
            }
        };
        if !self
            .experiments
            .iter()
            .any(|(name, _)| *name == started.name)
        {
            let known: Vec<&str> = self
                .experiments
                .iter()
                .map(|(name, _)| name.as_str())
                .collect();
            let (name, known) = (&started.name, known.join(", "));
            return refused(
                404,
                format!("no experiment is called {name:?}; there are: {known}"),
            );
        }
        match self.runner.start(started) {
            Some(run) => Answer::Reply(Reply::json(202, &json!(run))),
            None => refused(409, "an experiment runs; stop it or wait for its end"),
        }
    }

    fn stop(&self) -> Answer {
        match self.runner.stop() {
            Some(run) => Answer::Reply(Reply::json(202, &json!(run))),
            None => refused(409, "no experiment runs"),
        }
    }

    fn overview(&self) -> Value {
        let experiments = self.experiments.iter().map(
            |(name, title)| json!({"name": name, "title": title, "verdicts": self.verdicts(name)}),
        );
        json!({
            "experiments": experiments.collect::<Vec<_>>(),
            "reports": files::reports(&self.reports),
            "run": self.runner.run(),
        })
    }

    /// What the last rendered reports say of an experiment.
    fn verdicts(&self, experiment: &str) -> Vec<String> {
        let text = fs::read_to_string(self.reports.join("verdicts.json")).unwrap_or_default();
        let judged: Value = serde_json::from_str(&text).unwrap_or_default();
        let all = judged["experiments"].as_array().into_iter().flatten();
        all.filter(|one| one["experiment"] == experiment)
            .map(verdict_line)
            .collect()
    }

    fn stream(&self, mut to: &TcpStream, seen: Option<(u64, usize)>) -> io::Result<()> {
        let headers = [
            ("Content-Type", "text/event-stream"),
            ("Cache-Control", "no-store"),
        ];
        let headers = headers
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()));
        send_head(&mut to, 200, headers)?;
        let (mut known, mut next) = (None, 0);
        if let Some((number, n_lines)) = seen {
            known = self.runner.run().filter(|run| run.number == number);
            next = if known.is_some() { n_lines } else { 0 };
        }
        let mut is_first = true;
        loop {
            let limit = if is_first {
                Duration::ZERO
            } else {
                STREAM_INTERVAL
            };
            let news = self.runner.news(known.as_ref(), next, limit);
            // A new run first: the lines after it are its own.
            let mut text = String::new();
            if is_first || news.run != known {
                text += &self.state_event(news.run.as_ref());
            }
            text += &events(news.run.as_ref(), news.first, &news.lines);
            if text.is_empty() {
                text += ":\n\n";
            }
            to.write_all(text.as_bytes())?;
            next = news.first + news.lines.len();
            known = news.run;
            is_first = false;
        }
    }

    fn state_event(&self, run: Option<&Run>) -> String {
        let mut state = json!(run);
        if let Some(run) = run.filter(|run| run.phase.has_ended()) {
            state["verdicts"] = json!(self.verdicts(&run.started.name));
            state["reports"] = json!(files::reports(&self.reports));
        }
        format!("event: run\ndata: {state}\n\n")
    }
}

fn refused(status: u16, message: impl Into<String>) -> Answer {
    Answer::Reply(Reply::error(status, message))
}

fn is_own(path: &str) -> bool {
    path == PREFIX || path.starts_with(&format!("{PREFIX}/"))
}

/// `RUN-LINES`, the id of a line's event.
fn seen(id: &str) -> Option<(u64, usize)> {
    let (number, n_lines) = id.split_once('-')?;
    Some((number.parse().ok()?, n_lines.parse().ok()?))
}

/// An event for each line, whose id says what its reader has seen with it.
fn events(run: Option<&Run>, first: usize, lines: &[String]) -> String {
    let number = run.map_or(0, |run| run.number);
    let event = |(i, line): (usize, &String)| {
        let data = json!(line);
        format!(
            "id: {number}-{}\nevent: line\ndata: {data}\n\n",
            first + i + 1
        )
    };
    lines.iter().enumerate().map(event).collect()
}

fn verdict_line(judged: &Value) -> String {
    let verdicts = judged["verdicts"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| {
            let change = one["improvement_percent"].as_f64();
            let change = change.map_or(String::new(), |percent| format!(" {percent:+.1} %"));
            format!("{} {}{change}", word(&one["metric"]), word(&one["verdict"]))
        });
    format!(
        "{}: {} (against {}, {} starts)",
        word(&judged["group"]).replace('`', ""),
        verdicts.collect::<Vec<_>>().join(", "),
        word(&judged["against"]),
        judged["n_starts"]
    )
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const LIMIT: Duration = Duration::from_mins(1);
    const HOST: &str = "127.0.0.1:8888";
    const START: &[u8] = br#"{"name": "01-a", "quick": true}"#;

    fn notebook(reports: PathBuf) -> Notebook {
        Notebook {
            port: 8888,
            token: "secret".to_owned(),
            experiments: vec![("01-a".to_owned(), "First".to_owned())],
            reports,
            engine: String::new(),
            runner: Runner::new(|_| {
                let mut command = Command::new("sleep");
                command.arg("600");
                vec![command]
            }),
        }
    }

    /// A request of the page itself.
    fn own(method: &str, path: &str, body: &[u8]) -> HttpRequest {
        with(method, path, body, &[("Host", HOST), (TOKEN, "secret")])
    }

    fn with(method: &str, path: &str, body: &[u8], headers: &[(&str, &str)]) -> HttpRequest {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        HttpRequest {
            method: method.to_owned(),
            target: path.to_owned(),
            headers: headers.iter().map(owned).collect(),
            body: body.to_vec(),
        }
    }

    fn replied(notebook: &Notebook, asked: &HttpRequest) -> (u16, String) {
        match notebook.decide(asked) {
            Answer::Reply(reply) => (reply.status, String::from_utf8(reply.body).expect("a text")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_changes_something_needs_the_token_and_this_origin() {
        let notebook = notebook(PathBuf::new());
        let status = |headers: &[(&str, &str)]| {
            let asked = with("POST", "/notebook/api/start", START, headers);
            replied(&notebook, &asked).0
        };
        let (host, token) = (("Host", HOST), (TOKEN, "secret"));
        assert_eq!(status(&[host]), 403);
        assert_eq!(status(&[host, (TOKEN, "secre")]), 403);
        for wrong in ["http://example.org", "http://127.0.0.1:9999", "null"] {
            assert_eq!(status(&[host, token, ("Origin", wrong)]), 403);
        }
        assert_eq!(status(&[token]), 403);
        for wrong in ["example.org:8888", "127.0.0.1:80"] {
            assert_eq!(status(&[("Host", wrong), token]), 403);
            let read = with("GET", "/", b"", &[("Host", wrong)]);
            assert_eq!(replied(&notebook, &read).0, 403);
        }
        assert_eq!(notebook.runner.run(), None);
        let local = ("Origin", "http://localhost:8888");
        assert_eq!(status(&[("Host", "localhost:8888"), token, local]), 202);
        notebook.runner.end(LIMIT);
    }

    #[test]
    fn an_experiment_is_started_once_and_stopped() {
        let notebook = notebook(PathBuf::new());
        let post = |path, body| replied(&notebook, &own("POST", path, body));
        let (start, stop) = ("/notebook/api/start", "/notebook/api/stop");
        assert_eq!(post(stop, b"").0, 409);
        let (status, message) = post(start, br#"{"name": "07-z"}"#);
        assert!(status == 404 && message.contains("01-a"), "{message}");
        for body in ["{", "{}", r#"{"name": "01-a", "model": "x"}"#] {
            assert_eq!(post(start, body.as_bytes()).0, 400);
        }
        assert_eq!(post(start, &[b' '; 5000]).0, 413);
        assert_eq!(post(start, START).0, 202);
        assert_eq!(post(start, START).0, 409);
        assert_eq!(replied(&notebook, &own("GET", start, b"")).0, 405);
        assert_eq!(post(stop, b"").0, 202);
        notebook.runner.end(LIMIT);
        assert_eq!(post(stop, b"").0, 409);
    }

    #[test]
    fn paths_lead_to_the_page_the_reports_or_the_engine() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("index.ko.html"), "report").expect("written");
        let notebook = notebook(dir.path().to_owned());
        let get = |path: &str| replied(&notebook, &own("GET", path, b""));
        assert!(get("/notebook/").1.contains("notebook.js"));
        let report = get("/notebook/reports/index.ko.html");
        assert_eq!(report, (200, "report".to_owned()));
        for path in ["reports/../x.html", "reports//etc/a.md", "x", "api/x"] {
            assert_eq!(get(&format!("/notebook/{path}")).0, 404, "{path}");
        }
        let deleted = own("DELETE", "/notebook/", b"");
        assert_eq!(replied(&notebook, &deleted).0, 405);
        for path in ["/", "/v1/models", "/notebooks"] {
            assert_eq!(notebook.decide(&own("GET", path, b"")), Answer::PassOn);
        }
    }

    #[test]
    fn a_stream_goes_on_after_the_last_event() {
        assert_eq!((seen("3-17"), seen("3")), (Some((3, 17)), None));
        let event = "id: 0-5\nevent: line\ndata: \"a\\nb\"\n\n";
        assert_eq!(events(None, 4, &["a\nb".to_owned()]), event);
    }
}
