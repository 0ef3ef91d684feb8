//! Records are not trusted: neither the text in them nor that they are what a run wrote.

mod broken;
mod strings;

use std::path::{Path, PathBuf};

fn data(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(part)
}
