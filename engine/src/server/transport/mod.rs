//! What holds for every request before its path is looked at: connections, keys, origins, names.

pub(super) mod anthropic_errors;
pub(super) mod auth;
pub(super) mod blocking;
pub(super) mod connections;
pub(super) mod cors;
pub mod open_files;
pub(super) mod paths;
pub(super) mod request_id;
pub(super) mod traces;
pub mod web_pages;
