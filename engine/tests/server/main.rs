//! The HTTP server over real loopback connections, with a mock executor under the real
//! scheduler, and a tokenizer of 256 bytes, so that nothing is downloaded and characters of
//! several bytes are several tokens.

mod anthropic;
mod anthropic_refusals;
mod cache;
mod catalogue;
mod chat;
mod client;
mod command_line;
mod completions;
mod conversations;
mod dashboards;
mod disk_full;
mod faults;
mod fixture;
mod flags;
mod generate;
mod hostile_forms;
mod hub;
mod kept_responses;
mod lifecycle;
mod limits;
mod models;
mod native;
mod openapi;
mod program;
mod redis_server;
mod refusals;
mod responses;
mod result_cache;
mod resumed_streams;
mod routers;
mod row_faults;
mod scoring;
mod secrets;
mod shell;
mod soak;
mod speculation;
mod stress;
mod structured;
mod tool_choice;
mod tools;
mod unmet_fields;
mod web;
mod wheel;
