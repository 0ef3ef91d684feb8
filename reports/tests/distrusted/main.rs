//! Records are not trusted: neither the text in them nor that they are what a run wrote.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod broken;
mod strings;

use std::path::{Path, PathBuf};

fn data(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(part)
}
