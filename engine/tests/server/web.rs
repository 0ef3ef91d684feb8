//! Checks before a model is involved: requests of web pages, request ids, paths, names, keys,
//! compressed bodies.

use engine::config::AllowedOrigins;
use serde_json::{Value, json};

use crate::client::{self, Answer};
use crate::fixture::{TestConfig, TestServer};

const PAGE: &str = "https://chat.example";
const CHAT: &str = "/v1/chat/completions";

async fn server(origins: AllowedOrigins, key: Option<&str>) -> TestServer {
    let mut config = TestConfig::default();
    config.http.allowed_origins = origins;
    config.http.api_key = key.map(str::to_owned);
    TestServer::start(config).await
}

async fn preflight(server: &TestServer, path: &str) -> Answer {
    let headers = [
        ("Origin", PAGE),
        ("Access-Control-Request-Method", "POST"),
        (
            "Access-Control-Request-Headers",
            "authorization,content-type",
        ),
    ];
    client::send(server.address, "OPTIONS", path, &headers, b"").await
}

fn allowed(answer: &Answer) -> Option<&str> {
    answer.header("access-control-allow-origin")
}

#[tokio::test]
async fn a_page_is_answered_before_the_key_is_looked_at() {
    for (origins, expected) in [
        (AllowedOrigins::Any, Some("*")),
        (AllowedOrigins::AnyWithKey, Some("*")),
        (AllowedOrigins::These(vec![PAGE.to_owned()]), Some(PAGE)),
        (
            AllowedOrigins::These(vec!["https://other.example".to_owned()]),
            None,
        ),
        (AllowedOrigins::None, None),
    ] {
        let server = server(origins.clone(), Some("s3cret")).await;
        let asked = preflight(&server, CHAT).await;
        assert_eq!(allowed(&asked), expected, "{origins:?}");
        assert_eq!(
            asked.status,
            if expected.is_some() { 204 } else { 401 },
            "{origins:?}"
        );
        if expected.is_some() {
            let header = |name| asked.header(name).unwrap_or_default();
            assert!(header("access-control-allow-methods").contains("POST"));
            assert_eq!(
                header("access-control-allow-headers"),
                "authorization,content-type"
            );
            assert!(asked.header("access-control-allow-credentials").is_none());
        }
        // The key is still required, and a page may read that it is.
        let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1});
        for (key, status) in [("Bearer wrong", 401), ("Bearer s3cret", 200)] {
            let headers = [("Origin", PAGE), ("Authorization", key)];
            let body = body.to_string();
            let answer =
                client::send(server.address, "POST", CHAT, &headers, body.as_bytes()).await;
            assert_eq!(
                (answer.status, allowed(&answer)),
                (status, expected),
                "{origins:?}"
            );
        }
    }
}

#[tokio::test]
async fn open_paths_are_no_pages_by_default_and_the_admins_never() {
    let get = async |server: &TestServer, path: &str| {
        client::send(server.address, "GET", path, &[("Origin", PAGE)], b"").await
    };
    let by_default = server(AllowedOrigins::AnyWithKey, Some("s3cret")).await;
    for path in ["/health", "/metrics", "/ping"] {
        assert_eq!(allowed(&get(&by_default, path).await), None, "{path}");
    }
    let any = server(AllowedOrigins::Any, None).await;
    assert_eq!(allowed(&get(&any, "/health").await), Some("*"));
    for path in ["/admin/models", "/admin"] {
        assert_eq!(allowed(&get(&any, path).await), None, "{path}");
        assert_eq!(preflight(&any, path).await.status, 404, "{path}");
    }
    let these = server(AllowedOrigins::These(vec![PAGE.to_owned()]), None).await;
    let answer = client::get(these.address, "/health").await;
    assert_eq!(
        (allowed(&answer), answer.header("vary")),
        (None, Some("origin"))
    );
}

#[tokio::test]
async fn every_answer_has_a_request_id() {
    let server = TestServer::start(TestConfig::default()).await;
    let with = async |id: &str| {
        let answer = client::send(
            server.address,
            "GET",
            "/v1/models",
            &[("X-Request-Id", id)],
            b"",
        )
        .await;
        answer.header("x-request-id").expect("an id").to_owned()
    };
    assert_eq!(with("abc-1").await, "abc-1");
    for unusable in ["", "a b", &"x".repeat(200)] {
        assert!(with(unusable).await.starts_with("req_"), "{unusable}");
    }
    for path in ["/health", "/nothing", "/v1/models"] {
        let answer = server.get(path).await;
        assert!(
            answer
                .header("x-request-id")
                .is_some_and(|id| id.starts_with("req_"))
        );
    }
}

#[tokio::test]
async fn paths_are_found_without_prefix_and_with_a_slash() {
    let server = TestServer::start(TestConfig::default()).await;
    for path in [
        "/models",
        "/v1/models/",
        "/models/",
        "/v1/models/org/mock/",
        "/health/",
    ] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    let messages = json!([{"role": "user", "content": "x"}]);
    for (path, body) in [
        ("/completions", json!({"prompt": "x", "max_tokens": 1})),
        ("/v1/completions/", json!({"prompt": "x", "max_tokens": 1})),
        (
            "/chat/completions",
            json!({"messages": messages, "max_tokens": 1}),
        ),
        (
            "/v1/chat/completions/",
            json!({"messages": messages, "max_tokens": 1}),
        ),
        ("/v1/tokenize", json!({"prompt": "x"})),
        ("/v1/detokenize", json!({"tokens": [97]})),
    ] {
        server.ok(path, body).await;
    }
    let version = server.get("/version").await.json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(server.get("/ping").await.status, 200);
    assert_eq!(server.get("//health").await.status, 404);
}

#[tokio::test]
async fn a_server_of_one_model_answers_to_any_name_and_says_its_own() {
    let body = json!({"model": "gpt-4o", "prompt": "x", "max_tokens": 1});
    let lenient = TestServer::start(TestConfig::default()).await;
    let answer = lenient.ok("/v1/completions", body.clone()).await;
    assert_eq!(answer["model"], "mock");
    assert_eq!(lenient.get("/v1/models/gpt-4o").await.status, 404);
    let mut config = TestConfig::default();
    config.http.strict_model_name = true;
    let strict = TestServer::start(config).await;
    assert_eq!(strict.post("/v1/completions", body).await.status, 404);
    let long = json!({"model": "x".repeat(50_000), "prompt": "x"});
    let refused = strict.post("/v1/completions", long).await;
    assert_eq!(refused.status, 404);
    assert!(refused.body.len() < 500, "{} bytes", refused.body.len());
}

#[tokio::test]
async fn the_key_is_taken_from_either_header() {
    let mut config = TestConfig::default();
    config.http.api_key = Some("s3cret".to_owned());
    config.http.admin_api_key = Some("adm1n".to_owned());
    let server = TestServer::start(config).await;
    for (method, path, header, key, status) in [
        ("GET", "/v1/models", "X-Api-Key", "s3cret", 200),
        ("GET", "/v1/models", "x-api-key", "adm1n", 401),
        ("GET", "/v1/models/", "X-Api-Key", "wrong", 401),
        ("GET", "/admin/models", "X-Api-Key", "adm1n", 200),
        ("GET", "/admin/models/", "X-Api-Key", "s3cret", 401),
        // Requests that affect all clients need the admin key.
        ("POST", "/flush_cache", "X-Api-Key", "s3cret", 401),
        (
            "GET",
            "/flush_cache/",
            "Authorization",
            "Bearer s3cret",
            401,
        ),
        ("POST", "/reset_prefix_cache", "X-Api-Key", "s3cret", 401),
        ("POST", "/abort_request", "X-Api-Key", "s3cret", 401),
        ("POST", "/flush_cache", "Authorization", "Bearer adm1n", 200),
        ("GET", "/get_load", "X-Api-Key", "s3cret", 200),
        ("GET", "/get_load", "X-Api-Key", "", 401),
        ("GET", "/version", "X-Other", "", 401),
        ("GET", "/ping", "X-Other", "", 200),
        ("GET", "/health_generate", "X-Other", "", 200),
    ] {
        let answer = client::send(server.address, method, path, &[(header, key)], b"").await;
        assert_eq!(answer.status, status, "{method} {path} {header}: {key}");
    }
}

#[tokio::test]
async fn without_an_admin_key_the_api_key_flushes() {
    let mut config = TestConfig::default();
    config.http.api_key = Some("s3cret".to_owned());
    let server = TestServer::start(config).await;
    let headers = [("Authorization", "Bearer s3cret")];
    let with = client::send(server.address, "POST", "/flush_cache", &headers, b"").await;
    assert_eq!(with.status, 200);
    let without = client::send(server.address, "POST", "/flush_cache", &[], b"").await;
    assert_eq!(without.status, 401);
}

#[tokio::test]
async fn what_is_not_there_is_not_tried_again() {
    let server = TestServer::start(TestConfig::default()).await;
    // OpenAI's clients retry 408, 409, 429 and every status from 500 on.
    for path in ["/v1/embeddings", "/embeddings"] {
        let answer = server.post(path, json!({"input": "x"})).await;
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["code"], "not_implemented");
    }
}

#[tokio::test]
async fn packed_and_marked_bodies_are_named() {
    let server = TestServer::start(TestConfig::default()).await;
    let body = json!({"prompt": "x", "max_tokens": 1}).to_string();
    let send = async |headers: &[(&str, &str)], body: &[u8]| {
        client::send(server.address, "POST", "/v1/completions", headers, body).await
    };
    for encoding in ["gzip", "deflate", "br"] {
        let answer = send(&[("Content-Encoding", encoding)], body.as_bytes()).await;
        let error: Value = answer.json()["error"].clone();
        assert_eq!(
            (answer.status, &error["code"]),
            (415, &json!("unsupported_encoding"))
        );
        assert!(
            error["message"]
                .as_str()
                .expect("a text")
                .contains(encoding)
        );
    }
    assert_eq!(
        send(&[("Content-Encoding", "identity")], body.as_bytes())
            .await
            .status,
        200
    );
    for (start, what) in [
        (b"\xef\xbb\xbf".as_slice(), "byte order mark (BOM)"),
        (b"\xff\xfe", "UTF-16"),
        (b"\x1f\x8b", "gzip"),
    ] {
        let answer = send(&[], &[start, body.as_bytes()].concat()).await;
        assert_eq!(answer.status, 400, "{what}");
        assert!(answer.text().contains(what), "{}", answer.text());
    }
}

#[tokio::test]
async fn the_page_is_open_and_its_requests_are_not() {
    let server = server(AllowedOrigins::AnyWithKey, Some("s3cret")).await;
    let get = async |path: &str, headers: &[(&str, &str)]| {
        client::send(server.address, "GET", path, headers, b"").await
    };
    for (path, kind) in [
        ("/", "text/html"),
        ("/assets/page.css", "text/css"),
        ("/assets/page.js", "text/javascript"),
        ("/assets/icon.svg", "image/svg+xml"),
    ] {
        let page = get(path, &[("Origin", PAGE)]).await;
        assert_eq!((page.status, allowed(&page)), (200, None), "{path}");
        let header = |name| page.header(name).unwrap_or_default();
        assert!(header("content-type").starts_with(kind), "{path}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
        let policy = header("content-security-policy");
        for rule in [
            "default-src 'none'",
            "connect-src 'self'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(rule), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        let again = get(path, &[("If-None-Match", header("etag"))]).await;
        assert_eq!((again.status, again.body.len()), (304, 0), "{path}");
        assert_eq!(again.header("etag"), page.header("etag"), "{path}");
    }
    for path in ["/assets/secret.js", "/assets", "/v1/models", "/server_info"] {
        assert_eq!(get(path, &[]).await.status, 401, "{path}");
    }
    let missing = get("/assets/secret.js", &[("Authorization", "Bearer s3cret")]).await;
    assert_eq!(missing.status, 404);
}
