//! The one table of what the server answers to: the router and the document of the API
//! ([`openapi`]) are made from it.

use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodFilter, MethodRouter, get, on};
use serde_json::{Value, json};

use super::endpoints::{
    admin, anthropic, chat, completions, flush, generate, loads, native, requests, responses,
    status, streams, tokenize, web_ui,
};
use super::state::AppState;
use super::{embeddings, openapi, running};

/// A method of a path.
pub struct Operation {
    pub method: &'static str,
    /// What comes before `path`. With and without `/v1`, since clients differ in what they consider
    /// part of the base URL.
    prefixes: &'static [&'static str],
    path: &'static str,
    /// The component of the body's schema, or nothing.
    pub body: &'static str,
    /// The component of the answer; `text` is no JSON, and nothing is refused or streamed.
    pub answer: &'static str,
    /// The component of a streamed answer's events, or nothing.
    pub event: &'static str,
    handlers: MethodRouter<Arc<AppState>>,
}

impl Operation {
    /// The paths as the router has them.
    pub fn paths(&self) -> impl Iterator<Item = String> {
        let path = self.path;
        self.prefixes
            .iter()
            .map(move |prefix| format!("{prefix}{path}"))
    }

    /// Parameters of the query and of headers, with their schemas.
    pub fn parameters(&self) -> Vec<(&'static str, Value)> {
        let number = || json!({"type": "integer", "minimum": 0});
        match (self.path, self.event) {
            ("/responses/{id}", "ResponseEvent") => vec![
                ("stream", json!({"type": "boolean"})),
                (streams::STARTING_AFTER, number()),
                ("include_obfuscation", json!({"enum": [false]})),
            ],
            ("/responses/{id}/input_items", _) => vec![
                ("limit", responses::limit_schema()),
                ("order", json!({"enum": ["asc", "desc"]})),
                ("after", json!({"type": "string"})),
            ],
            ("/stream/{id}", "StreamEvent") => vec![
                (streams::STARTING_AFTER, number()),
                (streams::LAST_EVENT_ID, number()),
            ],
            (_, event) if !event.is_empty() => vec![("X-Conversation-Id", running::id_schema())],
            ("/tokenizer_info" | "/admin/requests", _) => {
                vec![("model", json!({"type": "string"}))]
            }
            ("/v1/loads", _) => vec![
                ("include", loads::include_schema()),
                ("dp_rank", number()),
                ("format", json!({"enum": ["json"]})),
            ],
            ("/flush_cache", _) => vec![("timeout", flush::timeout_schema())],
            ("/reset_prefix_cache", _) => vec![
                ("reset_running_requests", json!({"enum": ["false", "0"]})),
                (
                    "reset_external",
                    json!({"enum": ["true", "false", "1", "0"]}),
                ),
            ],
            _ => Vec::new(),
        }
    }
}

const V1: &[&str] = &["/v1", ""];
const ROOT: &[&str] = &[""];

/// `METHOD PREFIXES "path" handler: BODY => ANSWER, EVENT`.
macro_rules! operations {
    ($($method:ident $prefixes:ident $path:literal $handler:path:
        $body:literal => $answer:literal, $event:literal)+) => {
        /// All operations, without what every path has: preflights, and errors of unknown paths and
        /// methods.
        pub fn operations() -> Vec<Operation> {
            vec![$(Operation {
                method: stringify!($method),
                prefixes: $prefixes,
                path: $path,
                body: $body,
                answer: $answer,
                event: $event,
                handlers: on(MethodFilter::$method, $handler),
            },)+]
        }
    };
}

operations! {
    POST V1 "/chat/completions" chat::chat: "ChatRequest" => "ChatCompletion", "ChatCompletionChunk"
    POST V1 "/completions" completions::complete: "CompletionRequest" => "Completion", "CompletionChunk"
    POST V1 "/messages" anthropic::create: "MessageRequest" => "Message", "MessageEvent"
    POST V1 "/messages/count_tokens" anthropic::count_tokens: "CountRequest" => "TokenCount", ""
    POST V1 "/responses" responses::create: "ResponseRequest" => "Response", "ResponseEvent"
    POST V1 "/responses/input_tokens" responses::input_tokens: "ResponseRequest" => "InputTokens", ""
    GET V1 "/responses/{id}" responses::retrieve: "" => "Response", "ResponseEvent"
    DELETE V1 "/responses/{id}" responses::delete: "" => "Deleted", ""
    POST V1 "/responses/{id}/cancel" responses::cancel: "" => "Response", ""
    GET V1 "/responses/{id}/input_items" responses::input_items: "" => "InputItems", ""
    GET V1 "/stream/{id}" streams::resume: "" => "", "StreamEvent"
    DELETE V1 "/stream/{id}" streams::cancel: "" => "Deleted", ""
    POST V1 "/embeddings" embeddings: "" => "", ""
    GET V1 "/models" status::models: "" => "Models", ""
    GET V1 "/models/{*name}" status::model: "" => "Model", ""
    POST V1 "/tokenize" tokenize::tokenize: "TokenizeRequest" => "Tokens", ""
    POST V1 "/detokenize" tokenize::detokenize: "DetokenizeRequest" => "Text", ""
    GET ROOT "/tokenizer_info" tokenize::tokenizer_info: "" => "Anything", ""
    POST ROOT "/generate" generate::generate: "GenerateRequest" => "Generated", "GeneratedChunk"
    GET ROOT "/health" status::health: "" => "Health", ""
    GET ROOT "/ping" status::health: "" => "Health", ""
    POST ROOT "/ping" status::health: "" => "Health", ""
    GET ROOT "/readiness" status::readiness: "" => "Health", ""
    GET ROOT "/liveness" status::liveness: "" => "Health", ""
    GET ROOT "/health_generate" native::health_generate: "" => "Health", ""
    GET ROOT "/metrics" status::metrics: "" => "text", ""
    GET ROOT "/version" native::version: "" => "Version", ""
    GET ROOT "/model_info" native::model_info: "" => "Anything", ""
    GET ROOT "/get_model_info" native::model_info: "" => "Anything", ""
    GET ROOT "/server_info" status::server_info: "" => "Anything", ""
    GET ROOT "/get_server_info" status::server_info: "" => "Anything", ""
    GET ROOT "/openapi.json" openapi::document: "" => "Anything", ""
    GET ROOT "/v1/loads" loads::loads: "" => "Anything", ""
    GET ROOT "/get_load" loads::get_load: "" => "AnyList", ""
    GET ROOT "/load" loads::load: "" => "Load", ""
    GET ROOT "/flush_cache" flush::flush_cache: "" => "text", ""
    POST ROOT "/flush_cache" flush::flush_cache: "" => "text", ""
    POST ROOT "/reset_prefix_cache" flush::reset_prefix_cache: "" => "Success", ""
    POST ROOT "/abort_request" running::abort_request: "AbortRequest" => "Aborted", ""
    GET ROOT "/admin/requests" requests::list: "" => "ListedRequests", ""
    GET ROOT "/admin/models" admin::list: "" => "ManagedModels", ""
    POST ROOT "/admin/models/load" admin::load: "ModelLoad" => "ManagedModel", ""
    POST ROOT "/admin/models/unload" admin::unload: "ModelChangeInTime" => "ManagedModel", ""
    POST ROOT "/admin/models/sleep" admin::sleep: "ModelChangeInTime" => "ManagedModel", ""
    POST ROOT "/admin/models/wake" admin::wake: "ModelChange" => "ManagedModel", ""
}

/// The router of all operations, and of the page for people, which is no part of the API.
pub(super) fn router() -> Router<Arc<AppState>> {
    let page = Router::new()
        .route("/", get(web_ui::file))
        .route("/assets/{name}", get(web_ui::file));
    operations().into_iter().fold(page, |router, op| {
        let add = |router: Router<_>, path: String| router.route(&path, op.handlers.clone());
        op.paths().fold(router, add)
    })
}
