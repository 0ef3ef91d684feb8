//! The HTTP server over real loopback connections, with a mock executor behind the real
//! scheduler, and a tokenizer of 256 bytes, so that nothing is downloaded and characters of
//! several bytes are several tokens.

mod chat;
mod client;
mod command_line;
mod completions;
mod fixture;
mod flags;
mod hub;
mod lifecycle;
mod models;
mod program;
mod refusals;
mod stress;
mod structured;
mod tools;
