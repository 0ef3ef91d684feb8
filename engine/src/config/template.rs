//! `--chat-template`: the operator's template, for checkpoints with none or a wrong one.

use std::path::PathBuf;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::resolved::ConfigError;

const FLAG: &str = "--chat-template";
/// The template's own limit is lower; this one catches files of another kind.
const MAX_BYTES: u64 = 1 << 20;

/// The template, read together with the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatTemplateFlag {
    /// `None`: the template itself was typed.
    pub file: Option<PathBuf>,
    /// Digest of the source in hexadecimal, which the record contains instead.
    pub sha256: String,
    #[serde(skip)]
    pub source: String,
}

impl ChatTemplateFlag {
    /// Reads a file, or takes the text itself if it contains a template tag.
    pub(super) fn read(typed: &str) -> Result<Self, ConfigError> {
        if typed.contains("{{") || typed.contains("{%") {
            return Ok(Self::new(None, typed.to_owned()));
        }
        let file = PathBuf::from(typed);
        let wrong = |limit: String| ConfigError::new(FLAG, typed, limit);
        let about = std::fs::metadata(&file).map_err(|error| {
            wrong(format!(
                "cannot be read ({error}); it must be a file with a Jinja template, or the \
                 template itself"
            ))
        })?;
        if !about.is_file() || about.len() > MAX_BYTES {
            let limit = format!("must be a file of at most {MAX_BYTES} bytes");
            return Err(wrong(limit));
        }
        let source = std::fs::read_to_string(&file)
            .map_err(|error| wrong(format!("cannot be read: {error}")))?;
        if source.trim().is_empty() {
            return Err(wrong("is empty".to_owned()));
        }
        Ok(Self::new(Some(file), source))
    }

    fn new(file: Option<PathBuf>, source: String) -> Self {
        let digest = Sha256::digest(&source);
        Self {
            file,
            sha256: format!("{digest:x}"),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_a_template_is_taken_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("chat.jinja");
        std::fs::write(&file, "{{ messages }}").expect("written");
        let typed = file.to_str().expect("UTF-8");
        let read = ChatTemplateFlag::read(typed).expect("a template");
        assert_eq!(
            (read.source.as_str(), read.file),
            ("{{ messages }}", Some(file.clone()))
        );
        let taken = ChatTemplateFlag::read("{{ messages }}").expect("a template");
        assert_eq!(
            (taken.source.as_str(), taken.file),
            ("{{ messages }}", None)
        );
        assert_eq!(read.sha256, taken.sha256);
    }

    #[test]
    fn what_is_no_template_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        let empty = folder.path().join("empty");
        std::fs::write(&empty, " \n").expect("written");
        for (typed, reason) in [
            (empty.to_str().expect("UTF-8"), "is empty"),
            (folder.path().to_str().expect("UTF-8"), "must be a file"),
            ("chatml", "must be a file with a Jinja template"),
        ] {
            let error = ChatTemplateFlag::read(typed).expect_err(typed);
            assert_eq!(error.flag, FLAG);
            assert!(error.limit.contains(reason), "{error}");
        }
    }
}
