//! What each path does.

pub(super) mod admin;
pub(super) mod anthropic;
pub(super) mod chat;
pub(super) mod completions;
pub(super) mod exposition;
pub(super) mod flush;
pub(super) mod generate;
pub(super) mod loads;
pub(super) mod native;
pub(super) mod requests;
pub(super) mod responses;
pub(super) mod status;
pub(super) mod streams;
pub(super) mod tokenize;
pub(super) mod web_ui;
