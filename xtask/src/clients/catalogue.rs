//! The clients: their names, packages, and how they are run.

use std::path::Path;

/// The runtime of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The Python environment of `requirements/<name>.txt`.
    Python(&'static str),
    /// The one Node project.
    Node,
}

/// Settings passed to a client.
pub struct Server<'a> {
    /// `http://host:port`
    pub url: &'a str,
    /// The server's name for the model.
    pub model: &'a str,
    /// Folder of the tokenizer.
    pub tokenizer: &'a Path,
    /// URL of a text for prompts.
    pub book_url: &'a str,
    /// Endpoints of its KV events and their replays.
    pub kv_events: [&'a str; 2],
}

impl Server<'_> {
    fn api(&self) -> String {
        format!("{}/v1", self.url)
    }

    fn tokenizer(&self) -> String {
        self.tokenizer.display().to_string()
    }
}

pub struct Client {
    /// The name for `--only` and in the table.
    pub name: &'static str,
    pub runtime: Runtime,
    /// The package of the client; none for this repository's own.
    pub package: Option<&'static str>,
    /// Path within its environment.
    pub program: &'static str,
    /// Prints PASS or FAIL for each of its checks; otherwise its exit code is its only check.
    pub has_checks: bool,
    /// Flags of a server of its own; without any it shares the others'.
    pub flags: &'static [&'static str],
    args: fn(&Server) -> Vec<String>,
}

impl Client {
    /// One of the scripts with checks.
    const fn checks(
        name: &'static str,
        package: &'static str,
        runtime: Runtime,
        args: fn(&Server) -> Vec<String>,
    ) -> Self {
        Self {
            name,
            runtime,
            package: Some(package),
            program: match runtime {
                Runtime::Python(_) => "python3",
                Runtime::Node => "node",
            },
            has_checks: true,
            flags: &[],
            args,
        }
    }

    pub fn args(&self, server: &Server) -> Vec<String> {
        (self.args)(server)
    }
}

const OPENAI: Runtime = Runtime::Python("openai");
const LITELLM: Runtime = Runtime::Python("litellm");
const LOAD: Runtime = Runtime::Python("load_generators");

const KEY: &str = "key-of-the-tests";
/// For requests that say anything: no answer is long, and no stream is kept for long.
const KEYS_AND_SHORT_OUTPUT: [&str; 8] = [
    "--api-key",
    KEY,
    "--admin-api-key",
    KEY,
    "--max-output-tokens",
    "8",
    "--kept-stream-s",
    "1",
];

/// In the order in which they run: the heaviest last.
pub const CLIENTS: [Client; 18] = [
    // First, since it has to know what the prefix cache held from its beginning.
    Client::checks(
        "kv-events",
        "pyzmq",
        Runtime::Python("kv_events"),
        |server| {
            let mut args = script("kv_events.py", server);
            args.extend(server.kv_events.map(str::to_owned));
            args
        },
    ),
    Client::checks("openai", "openai", OPENAI, |server| {
        script("openai_client.py", server)
    }),
    Client::checks("openai-forms", "openai", OPENAI, |server| {
        script("openai_forms.py", server)
    }),
    Client::checks("openai-responses", "openai", OPENAI, |server| {
        script("openai_responses.py", server)
    }),
    Client::checks("anthropic", "anthropic", OPENAI, |server| {
        script("anthropic_client.py", server)
    }),
    Client::checks("openai-js", "openai", Runtime::Node, |server| {
        script("openai_client.mjs", server)
    }),
    Client::checks("ai-sdk", "ai", Runtime::Node, |server| {
        script("ai_sdk.mjs", server)
    }),
    Client::checks("langchain", "langchain-openai", OPENAI, |server| {
        script("langchain_client.py", server)
    }),
    Client::checks("openai-agents", "openai-agents", OPENAI, |server| {
        script("agents_client.py", server)
    }),
    Client::checks("pydantic-ai", "pydantic-ai-slim", OPENAI, |server| {
        script("pydantic_ai_client.py", server)
    }),
    Client::checks(
        "instructor",
        "instructor",
        Runtime::Python("instructor"),
        |server| script("instructor_client.py", server),
    ),
    Client::checks("litellm", "litellm", LITELLM, |server| {
        script("litellm_client.py", server)
    }),
    Client::checks("litellm-proxy", "litellm", LITELLM, |server| {
        script("litellm_proxy.py", server)
    }),
    Client {
        flags: &KEYS_AND_SHORT_OUTPUT,
        ..Client::checks(
            "schemathesis",
            "schemathesis",
            Runtime::Python("schemathesis"),
            |server| {
                let mut args = script("schemathesis_client.py", server);
                args.push(KEY.to_owned());
                args
            },
        )
    },
    Client::checks("lm-eval", "lm_eval", Runtime::Python("lm_eval"), |server| {
        with_tokenizer("lm_eval_client.py", server)
    }),
    Client::checks("guidellm", "guidellm", LOAD, |server| {
        with_tokenizer("guidellm_client.py", server)
    }),
    Client {
        name: "llama-benchy",
        runtime: LOAD,
        package: Some("llama-benchy"),
        program: "llama-benchy",
        has_checks: false,
        flags: &[],
        args: llama_benchy,
    },
    Client {
        name: "stress",
        runtime: OPENAI,
        package: None,
        program: "python3",
        has_checks: false,
        flags: &[],
        // Without the process id, so it does not check memory: within a few rounds that varies more
        // than it may grow in many.
        args: |server| vec!["stress.py".to_owned(), server.url.to_owned()],
    },
];

pub fn names() -> Vec<&'static str> {
    CLIENTS.iter().map(|client| client.name).collect()
}

fn script(file: &str, server: &Server) -> Vec<String> {
    vec![file.to_owned(), server.api()]
}

fn with_tokenizer(file: &str, server: &Server) -> Vec<String> {
    vec![file.to_owned(), server.api(), server.tokenizer()]
}

fn llama_benchy(server: &Server) -> Vec<String> {
    let (api, tokenizer) = (server.api(), server.tokenizer());
    let args = [
        "--base-url",
        &api,
        "--model",
        server.model,
        "--tokenizer",
        &tokenizer,
        "--book-url",
        server.book_url,
        "--pp",
        "128",
        "--tg",
        "16",
        "--runs",
        "2",
        "--concurrency",
        "1",
        "4",
        "--exit-on-first-fail",
        // Text from random weights is never coherent.
        "--skip-coherence",
    ];
    args.map(str::to_owned).to_vec()
}
