//! The clients: what each is called, what brings it, and how it is run.

use std::path::Path;

/// Where a client's packages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The Python environment of `requirements/<name>.txt`.
    Python(&'static str),
    /// The one Node project.
    Node,
}

/// What a client is told.
pub struct Server<'a> {
    /// `http://host:port`
    pub url: &'a str,
    /// As the server calls it.
    pub model: &'a str,
    /// A folder.
    pub tokenizer: &'a Path,
    /// Of a text for prompts.
    pub book_url: &'a str,
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
    /// As `--only` and the table have it.
    pub name: &'static str,
    pub runtime: Runtime,
    /// The package that the client is; none for this repository's own.
    pub package: Option<&'static str>,
    /// Within its place.
    pub program: &'static str,
    /// Says PASS or FAIL of each of its checks; otherwise its exit code is its one check.
    pub has_checks: bool,
    words: fn(&Server) -> Vec<String>,
}

impl Client {
    /// One of the scripts of checks.
    const fn checks(
        name: &'static str,
        package: &'static str,
        runtime: Runtime,
        words: fn(&Server) -> Vec<String>,
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
            words,
        }
    }

    pub fn words(&self, server: &Server) -> Vec<String> {
        (self.words)(server)
    }
}

const OPENAI: Runtime = Runtime::Python("openai");
const LITELLM: Runtime = Runtime::Python("litellm");
const LOAD: Runtime = Runtime::Python("load_generators");

/// In the order in which they run: the heaviest last.
pub const CLIENTS: [Client; 13] = [
    Client::checks("openai", "openai", OPENAI, |server| {
        script("openai_client.py", server)
    }),
    Client::checks("openai-forms", "openai", OPENAI, |server| {
        script("openai_forms.py", server)
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
        words: llama_benchy,
    },
    Client {
        name: "stress",
        runtime: OPENAI,
        package: None,
        program: "python3",
        has_checks: false,
        // Without the process id, so it does not look at memory: that swings more in a few rounds
        // than it may grow in many.
        words: |server| vec!["stress.py".to_owned(), server.url.to_owned()],
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
    let words = [
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
        // What random weights say is never coherent.
        "--skip-coherence",
    ];
    words.map(str::to_owned).to_vec()
}
