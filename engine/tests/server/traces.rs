//! Spans of requests as a collector receives them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use engine::traces::TracesConfig;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::client;
use crate::fixture::{LIMIT, TestConfig, TestServer, merged, until};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    services: Arc<Mutex<Vec<String>>>,
}

async fn collect(State(collector): State<Collector>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST;
    };
    for resource in request.resource_spans {
        let attributes = resource.resource.map(|r| r.attributes).unwrap_or_default();
        let attributes = attributes.into_iter().filter(|a| a.key == "service.name");
        let names = attributes.map(|a| format!("{:?}", a.value));
        collector.services.lock().expect("no panic").extend(names);
        for scope in resource.scope_spans {
            collector
                .spans
                .lock()
                .expect("no panic")
                .extend(scope.spans);
        }
    }
    StatusCode::OK
}

impl Collector {
    async fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = Router::new()
            .route("/v1/traces", post(collect))
            .with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collector, address)
    }

    /// The next request's spans, once it has a server span.
    async fn request(&self, server: &TestServer) -> Request {
        let mut found = None;
        until("a server span comes", LIMIT, async || {
            let state = Arc::clone(&server.state);
            let flushed = tokio::task::spawn_blocking(move || {
                state.tracer.get().expect("a tracer").flush();
            });
            flushed.await.expect("flushed");
            let mut spans = self.spans.lock().expect("no panic");
            let is_server = |span: &Span| span.kind == 2;
            found = spans.iter().position(is_server).map(|i| spans.remove(i));
            found.is_some()
        })
        .await;
        let span = found.expect("a span");
        let mut spans = self.spans.lock().expect("no panic");
        let is_child = |child: &mut Span| child.parent_span_id == span.span_id;
        let children = spans.extract_if(.., is_child).collect();
        Request { span, children }
    }
}

struct Request {
    span: Span,
    children: Vec<Span>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Request {
    fn attributes(&self) -> BTreeMap<&str, Value> {
        let attributes = self.span.attributes.iter().filter_map(|attribute| {
            let value = attribute.value.as_ref()?.value.as_ref()?;
            Some((attribute.key.as_str(), json_of(value)))
        });
        attributes.collect()
    }

    /// Names of the children by their start; checks that each is within the request and begins
    /// where the one before it ends.
    fn steps(&self) -> Vec<&str> {
        let mut children: Vec<&Span> = self.children.iter().collect();
        let rank = |span: &Span| {
            ["queue", "prefill", "decode"]
                .iter()
                .position(|n| *n == span.name)
        };
        children.sort_by_key(|span| (span.start_time_unix_nano, rank(span)));
        let mut last = self.span.start_time_unix_nano;
        for (i, child) in children.iter().enumerate() {
            assert_eq!(child.trace_id, self.span.trace_id);
            assert!(
                child.start_time_unix_nano >= last,
                "{} begins early",
                child.name
            );
            if i > 0 {
                assert_eq!(child.start_time_unix_nano, last);
            }
            assert!(child.end_time_unix_nano >= child.start_time_unix_nano);
            last = child.end_time_unix_nano;
        }
        assert!(
            self.span.end_time_unix_nano >= last,
            "the request ends last"
        );
        children.iter().map(|child| child.name.as_str()).collect()
    }
}

fn json_of(value: &Any) -> Value {
    match value {
        Any::StringValue(text) => json!(text),
        Any::IntValue(number) => json!(number),
        Any::DoubleValue(number) => json!(number),
        Any::ArrayValue(array) => {
            let values = array.values.iter().filter_map(|v| v.value.as_ref());
            values.map(json_of).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn traced(mut config: TestConfig, collector: SocketAddr) -> TestConfig {
    config.http.traces = Some(TracesConfig {
        endpoint: format!("http://{collector}/v1/traces"),
    });
    config
}

fn chat(fields: Value) -> Value {
    let message = json!([{"role": "user", "content": "count to three"}]);
    merged(
        json!({"model": "mock", "messages": message, "max_tokens": 5}),
        fields,
    )
}

async fn send(server: &TestServer, headers: &[(&str, &str)], body: &Value) -> client::Answer {
    let sent = body.to_string();
    let path = "/v1/chat/completions";
    client::send(server.address, "POST", path, headers, sent.as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_and_streamed_answers_have_a_span_with_its_steps_and_their_usage() {
    let (collector, address) = Collector::start().await;
    let server = TestServer::start(traced(TestConfig::default(), address)).await;
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let headers = [("traceparent", traceparent.as_str()), ("tracestate", "a=1")];
    for is_streamed in [false, true] {
        let answer = send(&server, &headers, &chat(json!({"stream": is_streamed}))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let request = collector.request(&server).await;
        assert_eq!(request.steps(), ["queue", "prefill", "decode"]);
        let span = &request.span;
        assert_eq!(
            (hex(&span.trace_id), hex(&span.parent_span_id)),
            (TRACE.to_owned(), PARENT.to_owned())
        );
        assert_eq!(span.trace_state, "a=1");
        assert_eq!(span.name, "chat mock");
        let own = format!("00-{TRACE}-{}-01", hex(&span.span_id));
        assert_eq!(answer.header("traceparent"), Some(own.as_str()));
        let attributes = request.attributes();
        for (name, value) in [
            ("gen_ai.operation.name", json!("chat")),
            ("gen_ai.request.model", json!("mock")),
            ("gen_ai.request.max_tokens", json!(5)),
            ("gen_ai.usage.completion_tokens", json!(5)),
            ("gen_ai.usage.output_tokens", json!(5)),
            ("gen_ai.response.finish_reasons", json!(["length"])),
            ("http.response.status_code", json!(200)),
            ("url.path", json!("/v1/chat/completions")),
        ] {
            assert_eq!(attributes[name], value, "{name}");
        }
        let cached = &attributes["gen_ai.usage.cache_read.input_tokens"];
        assert_eq!(
            cached == 0,
            !is_streamed,
            "the second has the first's prefix"
        );
        assert_eq!(
            attributes["gen_ai.usage.prompt_tokens"],
            attributes["gen_ai.usage.input_tokens"]
        );
        let s = |name: &str| attributes[name].as_f64().expect("seconds");
        let in_queue = s("gen_ai.latency.time_in_queue");
        let ttft = s("gen_ai.latency.time_to_first_token");
        assert!(0.0 <= in_queue && in_queue <= ttft && ttft <= s("gen_ai.latency.e2e"));
        assert!(!attributes.contains_key("error.type"));
    }
    let sent = server
        .metric(r#"engine_trace_spans_total{outcome="sent"}"#)
        .await;
    assert_eq!(sent as u64, 8);
    let services = collector.services.lock().expect("no panic").clone();
    assert!(services[0].contains("engine"), "{services:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parents_that_are_malformed_or_not_sampled_are_treated_as_w3c_says() {
    let (collector, address) = Collector::start().await;
    let server = TestServer::start(traced(TestConfig::default(), address)).await;
    let unsampled = format!("00-{TRACE}-{PARENT}-00");
    let answer = send(&server, &[("traceparent", &unsampled)], &chat(json!({}))).await;
    let told = answer.header("traceparent").expect("a header").to_owned();
    assert!(
        told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-00"),
        "{told}"
    );
    // The next one is the first that comes.
    let malformed = format!("00-{TRACE}-{PARENT}");
    let answer = send(
        &server,
        &[("traceparent", &malformed)],
        &chat(json!({"n": 2})),
    )
    .await;
    assert_eq!(answer.status, 200);
    let request = collector.request(&server).await;
    assert_ne!(hex(&request.span.trace_id), TRACE);
    assert!(request.span.parent_span_id.is_empty());
    assert_eq!(request.children.len(), 6, "three for each choice");
    let attributes = request.attributes();
    assert_eq!(attributes["gen_ai.usage.completion_tokens"], 10);
    assert_eq!(
        attributes["gen_ai.response.finish_reasons"],
        json!(["length", "length"])
    );
    assert!(
        collector.spans.lock().expect("no panic").is_empty(),
        "nothing of the first"
    );
    // What generates nothing has no span.
    let health = server.get("/health").await;
    assert_eq!(health.header("traceparent"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_and_abandoned_requests_say_why_they_ended() {
    let (collector, address) = Collector::start().await;
    let slow = TestConfig::default().slowly(Duration::from_millis(20));
    let server = TestServer::start(traced(slow, address)).await;
    let answer = send(&server, &[], &chat(json!({"temperature": -1}))).await;
    assert_eq!(answer.status, 400);
    let request = collector.request(&server).await;
    assert!(request.children.is_empty());
    let attributes = request.attributes();
    assert_eq!(attributes["error.type"], "invalid_value");
    assert_eq!(attributes["http.response.status_code"], 400);
    let status = request.span.status.as_ref().map_or(0, |status| status.code);
    assert_eq!(status, 0, "a client's error is not the server's");

    for is_streamed in [true, false] {
        let body = chat(json!({"stream": is_streamed, "max_tokens": 400, "ignore_eos": true}));
        let sent = body.to_string();
        let path = "/v1/chat/completions";
        let mut stream = client::open(server.address, "POST", path, &[], sent.as_bytes()).await;
        if is_streamed {
            let mut first = [0; 1];
            stream.read_exact(&mut first).await.expect("an answer");
        } else {
            server.runs().await;
        }
        drop(stream);
        server.assert_empties().await;
        let request = collector.request(&server).await;
        let steps = request.steps();
        assert!(
            ["queue", "prefill", "decode"].starts_with(&steps) && !steps.is_empty(),
            "{steps:?}"
        );
        let attributes = request.attributes();
        assert_eq!(attributes["error.type"], "client_disconnected");
        assert_eq!(
            attributes["gen_ai.response.finish_reasons"],
            json!(["abort"])
        );
        assert!(attributes["gen_ai.usage.completion_tokens"].as_i64() < Some(400));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_gone_costs_spans_and_no_request() {
    // Bound and closed again, so that nothing listens there.
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = gone.local_addr().expect("an address");
    drop(gone);
    let server = TestServer::start(traced(TestConfig::default(), address)).await;
    for _ in 0..3 {
        let answer = send(&server, &[], &chat(json!({}))).await;
        assert_eq!(answer.status, 200);
    }
    until("the spans have failed", LIMIT, async || {
        let state = Arc::clone(&server.state);
        let flush = move || state.tracer.get().map(engine::traces::Tracer::flush);
        tokio::task::spawn_blocking(flush).await.expect("flushed");
        server
            .metric(r#"engine_trace_spans_total{outcome="failed"}"#)
            .await
            >= 12.0
    })
    .await;
}
