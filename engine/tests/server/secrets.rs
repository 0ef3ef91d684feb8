//! Keys and passwords appear in no log, no `/server_info` and no metrics.

use serde_json::json;

use crate::client;
use crate::flags::fixture::Model;
use crate::hub::{Hub, hub_environment};
use crate::program::Program;

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_passwords_are_written_nowhere() {
    const KEY: &str = "k3y-of-clients";
    const ADMIN_KEY: &str = "adm1n-key";
    const PASSWORD: &str = "p4ssword-of-redis";
    const TOKEN: &str = "t0ken-of-the-hub";
    let folder = tempfile::tempdir().expect("a folder");
    let model = Model::f16();
    let hub = Hub::of("org/name", &model.path());
    let endpoint = hub.start().await;
    let line = format!(
        "--device cpu --n-threads 1 --max-total-tokens 512 --load-format dummy \
         --model-path org/name --cache-dir {} --port 0 --api-key {KEY} --admin-api-key {ADMIN_KEY} \
         --result-cache redis://user:{PASSWORD}@127.0.0.1:1",
        folder.path().join("cache").display()
    );
    let mut environment = hub_environment(endpoint, folder.path()).to_vec();
    environment.push(("RUST_LOG", "trace,hyper=info".to_owned()));
    environment.push(("HF_TOKEN", TOKEN.to_owned()));
    let program = Program::start(&line, &environment).await;
    let keys = hub.keys.lock().expect("no panic").clone();
    assert_eq!(Vec::from_iter(keys), [format!("Bearer {TOKEN}")]);
    let bearer = format!("Bearer {KEY}");
    let headers = [("Authorization", bearer.as_str())];
    let mut said = String::new();
    let body = json!({"prompt": "1", "max_tokens": 2, "temperature": 0}).to_string();
    for (method, path, body) in [
        ("GET", "/server_info", ""),
        ("GET", "/get_server_info", ""),
        ("GET", "/metrics", ""),
        ("GET", "/v1/models", ""),
        ("POST", "/v1/completions", body.as_str()),
        ("POST", "/v1/completions", "{"),
    ] {
        let answer = client::send(program.address, method, path, &headers, body.as_bytes()).await;
        assert_ne!(answer.status, 401, "{path}");
        said += answer.text();
    }
    let bearer = format!("Bearer {ADMIN_KEY}");
    let headers = [("Authorization", bearer.as_str())];
    let models = client::send(program.address, "GET", "/admin/models", &headers, b"").await;
    assert_eq!(models.status, 200);
    said += models.text();
    let wrong = [("Authorization", "Bearer wr0ng-key")];
    for path in ["/v1/models", "/admin/models"] {
        let refused = client::send(program.address, "GET", path, &wrong, b"").await;
        assert_eq!(refused.status, 401);
        said += refused.text();
    }
    said += &program.log();
    for secret in [KEY, ADMIN_KEY, PASSWORD, TOKEN, "wr0ng-key"] {
        assert!(!said.contains(secret), "{secret} was written out: {said}");
    }
    assert!(
        said.contains("(withheld)"),
        "the flags are recorded without them"
    );
}
