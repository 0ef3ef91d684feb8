//! The HTTP server over real loopback connections, with a mock executor behind the real
//! scheduler, and a tokenizer of 256 bytes, so that nothing is downloaded and characters of
//! several bytes are several tokens.

mod cache;
mod catalogue;
mod chat;
mod client;
mod command_line;
mod completions;
mod disk_full;
mod faults;
mod fixture;
mod flags;
mod hub;
mod lifecycle;
mod limits;
mod models;
mod program;
mod redis_server;
mod refusals;
mod result_cache;
mod secrets;
mod soak;
mod stress;
mod structured;
mod tools;
mod wheel;
