//! The load generator against a server that misbehaves in every way a server can.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use experiments::load::prompts::PromptSet;
use experiments::load::{Answer, BaseUrl, Company, RequestRow, RunClock, Target, run_case};
use experiments::spec::workload::{ApiEndpoint, Arrival, Case, Phase};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

const OK_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}"#;

fn token(text: &str) -> String {
    event(&format!(
        r#"{{"choices":[{{"text":"{text}","finish_reason":null}}]}}"#
    ))
}

fn last_token(text: &str) -> String {
    event(&format!(
        r#"{{"choices":[{{"text":"{text}","finish_reason":"length"}}]}}"#
    ))
}

fn event(json: &str) -> String {
    format!("data: {json}\n\n")
}

/// What a connection gets after the request: bytes of the body, sent as HTTP chunks cut where
/// the list is cut, with pauses between.
#[derive(Clone)]
enum Piece {
    Body(Vec<u8>),
    Raw(Vec<u8>),
    Pause(Duration),
    /// Ends the chunked body properly.
    End,
}

fn body(text: &str) -> Piece {
    Piece::Body(text.as_bytes().to_vec())
}

fn good_stream() -> String {
    [
        token("안녕"),
        token(" 🎉"),
        last_token("!"),
        event(USAGE),
        event("[DONE]"),
    ]
    .concat()
}

#[derive(Default)]
struct Seen {
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    n_requests: AtomicUsize,
    last_request: std::sync::Mutex<String>,
}

/// Plays the same pieces to every connection.
async fn serve(pieces: Vec<Piece>) -> (BaseUrl, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let url = format!("http://{}/gpu0/v1", listener.local_addr().expect("address"));
    let seen = Arc::new(Seen::default());
    let shared = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(play(stream, pieces.clone(), Arc::clone(&shared)));
        }
    });
    (
        BaseUrl::parse(&url, Some("key-1".into())).expect("base URL"),
        seen,
    )
}

async fn play(mut stream: TcpStream, pieces: Vec<Piece>, seen: Arc<Seen>) {
    let request = read_request(&mut stream).await;
    seen.n_requests.fetch_add(1, Ordering::SeqCst);
    let now = seen.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
    seen.most_in_flight.fetch_max(now, Ordering::SeqCst);
    *seen.last_request.lock().expect("not poisoned") = request;
    for piece in pieces {
        let sent = match piece {
            Piece::Body(bytes) => {
                let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
                chunk.extend(bytes);
                chunk.extend(b"\r\n");
                stream.write_all(&chunk).await
            }
            Piece::Raw(bytes) => stream.write_all(&bytes).await,
            Piece::Pause(length) => {
                sleep(length).await;
                Ok(())
            }
            Piece::End => stream.write_all(b"0\r\n\r\n").await,
        };
        if sent.is_err() {
            break;
        }
    }
    seen.in_flight.fetch_sub(1, Ordering::SeqCst);
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n_read = stream.read(&mut buffer).await.unwrap_or(0);
        bytes.extend_from_slice(&buffer[..n_read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, sent)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| {
                    line.to_ascii_lowercase()
                        .strip_prefix("content-length: ")
                        .map(String::from)
                })
                .and_then(|value| value.parse::<usize>().ok())
                .unwrap_or(0);
            if sent.len() >= length {
                return text;
            }
        }
        if n_read == 0 {
            return text;
        }
    }
}

fn target(base_url: BaseUrl) -> Target {
    Target {
        base_url,
        endpoint: ApiEndpoint::Completions,
        model: "m".into(),
        temperature: 0.0,
        ignore_eos: true,
        timeout: Duration::from_secs(5),
    }
}

async fn ask(pieces: Vec<Piece>) -> Answer {
    let (base_url, _) = serve(pieces).await;
    target(base_url)
        .ask(RunClock::start(), &"prompt".into(), 3)
        .await
}

fn head() -> Piece {
    Piece::Raw(OK_HEAD.into())
}

fn assert_error(answer: &Answer, part: &str) {
    assert!(
        answer
            .error
            .as_deref()
            .is_some_and(|error| error.contains(part)),
        "{answer:?} lacks `{part}`"
    );
}

#[tokio::test]
async fn a_stream_torn_at_every_byte_is_read_whole() {
    let mut pieces = vec![head()];
    pieces.extend(good_stream().bytes().map(|byte| Piece::Body(vec![byte])));
    pieces.push(Piece::End);
    let answer = ask(pieces).await;
    assert_eq!(answer.error, None);
    assert_eq!(answer.token_s.len(), 3);
    assert_eq!(
        (
            answer.prompt_tokens,
            answer.output_tokens,
            answer.cached_tokens
        ),
        (Some(7), Some(3), Some(4))
    );
    assert_eq!(answer.finish_reason.as_deref(), Some("length"));
}

#[tokio::test]
async fn the_request_carries_path_key_and_the_wish_for_usage() {
    let (base_url, seen) = serve(vec![head(), body(&good_stream()), Piece::End]).await;
    let answer = target(base_url)
        .ask(RunClock::start(), &"안녕".into(), 3)
        .await;
    assert_eq!(answer.error, None);
    let request = seen.last_request.lock().expect("not poisoned").clone();
    assert!(
        request.starts_with("POST /gpu0/v1/completions HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains("authorization: Bearer key-1\r\n"),
        "{request}"
    );
    let (_, json) = request.split_once("\r\n\r\n").expect("a body");
    let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
    assert_eq!(json["prompt"], "안녕");
    assert_eq!(json["max_tokens"], 3);
    assert_eq!(json["ignore_eos"], true);
    assert_eq!(json["stream_options"]["include_usage"], true);
}

#[tokio::test]
async fn a_chat_does_not_count_the_chunk_that_names_the_role() {
    let stream = [
        event(r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#),
        event(r#"{"choices":[{"delta":{"content":"Hi"},"finish_reason":null}]}"#),
        event(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#),
        event(USAGE),
        event("[DONE]"),
    ];
    let (base_url, seen) = serve(vec![head(), body(&stream.concat()), Piece::End]).await;
    let chat = Target {
        endpoint: ApiEndpoint::Chat,
        ..target(base_url)
    };
    let answer = chat.ask(RunClock::start(), &"hello".into(), 3).await;
    assert_eq!(
        (
            answer.error,
            answer.token_s.len(),
            answer.finish_reason.as_deref()
        ),
        (None, 1, Some("stop"))
    );
    let request = seen.last_request.lock().expect("not poisoned").clone();
    assert!(
        request.starts_with("POST /gpu0/v1/chat/completions "),
        "{request}"
    );
    assert!(
        request.contains(r#""messages":[{"role":"user","content":"hello"}]"#),
        "{request}"
    );
}

#[tokio::test]
async fn times_are_those_of_a_slow_server() {
    let pause = Duration::from_millis(60);
    let answer = ask(vec![
        head(),
        Piece::Pause(pause),
        body(&token("a")),
        Piece::Pause(pause),
        body(&token("b")),
        Piece::Pause(pause),
        body(&[last_token("c"), event(USAGE), event("[DONE]")].concat()),
        Piece::End,
    ])
    .await;
    assert_eq!(answer.error, None);
    let sent_s = answer.sent_s.expect("sent");
    let [first, second, third] = answer.token_s[..] else {
        panic!("{answer:?}")
    };
    // A pause is never shorter than asked; the upper bounds leave room for a busy machine.
    for gap in [first - sent_s, second - first, third - second] {
        assert!((0.055..2.0).contains(&gap), "{answer:?}");
    }
    assert!(answer.end_s >= third);
}

#[tokio::test]
async fn an_error_status_is_an_error_with_the_servers_words() {
    let text = r#"{"error":{"message":"too many requests","type":"overloaded"}}"#;
    let response = format!(
        "HTTP/1.1 429 Too Many Requests\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    );
    let answer = ask(vec![Piece::Raw(response.into())]).await;
    assert_error(&answer, "status 429");
    assert_error(&answer, "too many requests");
    assert!(answer.token_s.is_empty() && answer.sent_s.is_some());
}

#[tokio::test]
async fn a_connection_that_breaks_keeps_what_had_arrived() {
    let answer = ask(vec![head(), body(&token("a"))]).await;
    assert_error(&answer, "the connection broke");
    assert_eq!(answer.token_s.len(), 1);
}

#[tokio::test]
async fn broken_streams_are_errors() {
    let cases: [(String, &str); 6] = [
        (event("{broken"), "not JSON"),
        (
            event(r#"{"error":{"message":"out of pages"}}"#),
            "the server reported: out of pages",
        ),
        ([token("a"), event("[DONE]")].concat(), "no `usage`"),
        ([token("a"), event(USAGE)].concat(), "before `[DONE]`"),
        (
            [token("a"), "data: {\"choices\"".into()].concat(),
            "inside an event",
        ),
        (String::new(), "before `[DONE]`"),
    ];
    for (stream, part) in cases {
        let mut pieces = vec![head()];
        if !stream.is_empty() {
            pieces.push(body(&stream));
        }
        pieces.push(Piece::End);
        assert_error(&ask(pieces).await, part);
    }
    assert_error(
        &ask(vec![
            head(),
            Piece::Body(b"data: \xff\n\n".to_vec()),
            Piece::End,
        ])
        .await,
        "not UTF-8",
    );
}

#[tokio::test]
async fn a_silent_server_times_out() {
    let (base_url, _) = serve(vec![
        head(),
        body(&token("a")),
        Piece::Pause(Duration::from_secs(30)),
    ])
    .await;
    let hasty = Target {
        timeout: Duration::from_millis(200),
        ..target(base_url)
    };
    let answer = hasty.ask(RunClock::start(), &"prompt".into(), 3).await;
    assert_error(&answer, "not finished within 0.2 s");
    assert_eq!(answer.token_s.len(), 1);
}

#[tokio::test]
async fn nobody_there_means_nothing_was_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("address").port();
    drop(listener);
    let answer = target(BaseUrl::loopback(port))
        .ask(RunClock::start(), &"prompt".into(), 3)
        .await;
    assert_error(&answer, "cannot be reached");
    assert_eq!(answer.sent_s, None);
}

/// Runs cases of one round against a server that sends the same for every request.
async fn run_round(cases: Vec<Case>, pieces: Vec<Piece>) -> (Vec<RequestRow>, Arc<Seen>) {
    run_with("p", cases, pieces).await
}

/// The same with prompts of this source.
async fn run_with(
    source: &str,
    cases: Vec<Case>,
    pieces: Vec<Piece>,
) -> (Vec<RequestRow>, Arc<Seen>) {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (prompts, traces) = (dir.path().join("prompts"), dir.path().join("traces"));
    for folder in [&prompts, &traces] {
        std::fs::create_dir(folder).expect("made");
    }
    let prompt = "{\"id\":\"p\",\"text\":\"hello\"}";
    std::fs::write(prompts.join("p.jsonl"), prompt).expect("written");
    let of_trace = |at_ms: u32, output: u32| {
        format!("{{\"timestamp\":{at_ms},\"input_length\":40,\"output_length\":{output}}}\n")
    };
    let trace = [of_trace(1_000, 4), of_trace(1_060, 7), of_trace(1_200, 3)].concat();
    std::fs::write(traces.join("t.jsonl"), trace).expect("written");
    let prompts = PromptSet::load(&prompts, &[source.into()]).expect("prompts");
    let (base_url, seen) = serve(pieces).await;
    let (target, clock) = (target(base_url), RunClock::start());
    let company = Arc::new(Company::of(cases.len()));
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let mut running = tokio::task::JoinSet::new();
    for case in cases {
        let (target, prompts) = (target.clone(), prompts.clone());
        let (sender, company) = (sender.clone(), Arc::clone(&company));
        running.spawn(async move {
            run_case(&target, &case, &prompts, 1, clock, &sender, &company).await
        });
    }
    drop(sender);
    let mut rows = Vec::new();
    while let Some(row) = receiver.recv().await {
        rows.push(row);
    }
    for ended in running.join_all().await {
        ended.expect("no request panicked");
    }
    rows.sort_by_key(|row| row.index);
    (rows, seen)
}

/// An answer after so long.
fn slow_answer(pause: Duration) -> Vec<Piece> {
    vec![
        head(),
        Piece::Pause(pause),
        body(&good_stream()),
        Piece::End,
    ]
}

/// Runs a case alone.
async fn run(arrival: Arrival, n_requests: u32) -> (Vec<RequestRow>, Arc<Seen>) {
    let case = Case {
        name: "c".into(),
        phase: Phase::Users,
        warmup: false,
        arrival,
        n_requests,
        least_s: None,
        output_tokens: 3,
        model: None,
        round: None,
    };
    run_round(vec![case], slow_answer(Duration::from_millis(50))).await
}

/// A user of a model beside those of others.
fn case_beside_others(model: &str, n_requests: u32) -> Case {
    Case {
        name: format!("together-{model}"),
        phase: Phase::Models,
        warmup: false,
        arrival: Arrival::ClosedLoop { n_users: 1 },
        n_requests,
        least_s: None,
        output_tokens: 3,
        model: Some(model.into()),
        round: Some("together".into()),
    }
}

fn rows_of<'a>(rows: &'a [RequestRow], model: &str) -> Vec<&'a RequestRow> {
    rows.iter()
        .filter(|row| row.model.as_deref() == Some(model))
        .collect()
}

#[tokio::test]
async fn a_closed_loop_never_has_more_requests_in_flight_than_users() {
    let (rows, seen) = run(Arrival::ClosedLoop { n_users: 3 }, 8).await;
    assert_eq!(
        rows.iter().map(|row| row.index).collect::<Vec<_>>(),
        (0..8).collect::<Vec<_>>()
    );
    assert!(
        rows.iter()
            .all(|row| row.error.is_none() && row.n_users == Some(3) && row.rate_per_s.is_none())
    );
    assert!(rows.iter().all(|row| row.user.is_some_and(|user| user < 3)));
    assert_eq!(seen.n_requests.load(Ordering::SeqCst), 8);
    assert_eq!(seen.most_in_flight.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_open_loop_sends_on_time_whatever_the_server_does() {
    let (rows, seen) = run(Arrival::OpenLoop { rate_per_s: 200.0 }, 20).await;
    assert_eq!(rows.len(), 20);
    assert!(
        rows.iter()
            .all(|row| row.error.is_none() && row.user.is_none() && row.rate_per_s == Some(200.0))
    );
    // 20 requests within about 100 ms against answers of 50 ms overlap.
    assert!(
        seen.most_in_flight.load(Ordering::SeqCst) > 3,
        "{}",
        seen.most_in_flight.load(Ordering::SeqCst)
    );
    for row in &rows {
        assert!(
            row.sent_s.is_some_and(|sent_s| sent_s >= row.scheduled_s),
            "{row:?}"
        );
    }
}

/// Requests of a trace come at its times, here twice as fast, and ask for its output lengths.
#[tokio::test]
async fn a_trace_is_sent_at_its_own_times() {
    let case = Case {
        name: "trace-2x".into(),
        phase: Phase::Trace,
        warmup: false,
        arrival: Arrival::Trace { speed: 2.0 },
        n_requests: 3,
        least_s: None,
        output_tokens: 0,
        model: None,
        round: None,
    };
    let answer = slow_answer(Duration::from_millis(5));
    let (rows, _) = run_with("trace:t", vec![case], answer).await;
    let asked: Vec<u32> = rows.iter().map(|row| row.max_tokens).collect();
    assert_eq!(asked, [4, 7, 3]);
    let after_s = |row: &RequestRow| row.scheduled_s - rows[0].scheduled_s;
    let after: Vec<u32> = rows
        .iter()
        .map(|row| (1e3 * after_s(row)).round() as u32)
        .collect();
    assert_eq!(after, [0, 30, 100]);
    // Two requests after the first, in 0.1 s.
    let rate_per_s = rows[2].rate_per_s.expect("the rate of the trace");
    assert!((rate_per_s - 20.0).abs() < 1e-9, "{rate_per_s}");
    assert!(
        rows.iter()
            .all(|row| row.error.is_none() && row.user.is_none())
    );
}

/// Each user has conversations of its own, and every row its number in the case.
#[tokio::test]
async fn turns_follow_one_another_for_each_user() {
    let case = Case {
        name: "users-2".into(),
        phase: Phase::Users,
        warmup: false,
        arrival: Arrival::ClosedLoop { n_users: 2 },
        n_requests: 6,
        least_s: None,
        output_tokens: 3,
        model: None,
        round: None,
    };
    let answer = slow_answer(Duration::from_millis(5));
    let (rows, _) = run_with("turns:30+10x3", vec![case], answer).await;
    let numbers: Vec<u32> = rows.iter().map(|row| row.index).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
    for user in 0..2 {
        let mut own: Vec<&RequestRow> = rows.iter().filter(|r| r.user == Some(user)).collect();
        own.sort_by(|a, b| a.scheduled_s.total_cmp(&b.scheduled_s));
        let ids: Vec<&str> = own.iter().map(|row| row.prompt_id.as_str()).collect();
        assert_eq!(ids, ["turns-0-0", "turns-0-1", "turns-0-2"]);
        for pair in own.windows(2) {
            assert!(
                pair[1].scheduled_s >= pair[0].end_s,
                "a turn waits for the answer"
            );
        }
    }
}

/// The quicker of two cases goes on until the other one is done, in rows that nobody counts.
#[tokio::test]
async fn cases_of_one_round_keep_each_other_company() {
    let cases = vec![
        case_beside_others("short", 2),
        case_beside_others("long", 8),
    ];
    let (rows, seen) = run_round(cases, slow_answer(Duration::from_millis(30))).await;
    let (short, long) = (rows_of(&rows, "short"), rows_of(&rows, "long"));
    let measured = |rows: &[&RequestRow]| rows.iter().filter(|row| !row.warmup).count();
    assert_eq!((measured(&short), measured(&long)), (2, 8));
    let n_extra = short.len() - 2;
    assert!((3..=8).contains(&n_extra), "{n_extra} further requests");
    assert_eq!(long.len(), 8, "the last one to be done sends no more");
    assert_eq!(seen.most_in_flight.load(Ordering::SeqCst), 2);
}

/// A server that is gone is not asked over and over by the one that has nothing to measure left.
#[tokio::test]
async fn the_first_failed_request_for_companys_sake_is_the_last() {
    let cases = vec![
        case_beside_others("short", 1),
        case_beside_others("long", 20),
    ];
    let (rows, _) = run_round(cases, vec![Piece::Pause(Duration::from_millis(5))]).await;
    assert!(rows.iter().all(|row| row.error.is_some()));
    assert_eq!(rows_of(&rows, "long").len(), 20);
    assert_eq!(
        rows_of(&rows, "short").len(),
        2,
        "a measured one and one more"
    );
}
