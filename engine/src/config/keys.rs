//! API keys from a flag or a file, since every user of a machine can read its command lines.
//!
//! No message contains a key, and records have the file's name. Deliberately absent: several keys,
//! and reloading the file while the server runs.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::resolved::ConfigError;

const MAX_BYTES: usize = 4096;

/// The two flags of one key, and their values.
pub(super) struct KeyFlags<'a> {
    pub flag: &'static str,
    pub key: Option<&'a str>,
    pub file_flag: &'static str,
    pub file: Option<&'a Path>,
}

impl KeyFlags<'_> {
    pub(super) fn resolve(&self) -> Result<Option<String>, ConfigError> {
        match (self.key, self.file) {
            (None, None) => Ok(None),
            (Some(_), Some(file)) => {
                let clash = format!("not allowed together with {}", self.flag);
                Err(ConfigError::new(self.file_flag, file.display(), clash))
            }
            (Some(key), None) if key.trim().is_empty() => {
                Err(ConfigError::new(self.flag, "\"\"", "must not be empty"))
            }
            (Some(key), None) => Ok(Some(key.to_owned())),
            (None, Some(file)) => {
                let key = read(file);
                key.map(Some)
                    .map_err(|limit| ConfigError::new(self.file_flag, file.display(), limit))
            }
        }
    }
}

/// The file's only line; an error describes what is expected.
fn read(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let opened = File::open(file).map_err(|error| error.to_string())?;
    opened
        .take(MAX_BYTES as u64 + 1)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    if text.len() > MAX_BYTES {
        return Err(format!("must not have more than {MAX_BYTES} bytes"));
    }
    let key = text.trim();
    if key.is_empty() || key.contains(['\n', '\r']) {
        return Err("must hold a key, in a single line".to_owned());
    }
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(key: Option<&str>, file: Option<&Path>) -> Result<Option<String>, String> {
        let flags = KeyFlags {
            flag: "--api-key",
            key,
            file_flag: "--api-key-file",
            file,
        };
        flags.resolve().map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_is_typed_or_the_only_line_of_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        let of_file = |text: &[u8]| {
            std::fs::write(&path, text).expect("written");
            resolve(None, Some(&path))
        };
        assert_eq!(resolve(None, None), Ok(None));
        assert_eq!(resolve(Some("k3y"), None), Ok(Some("k3y".to_owned())));
        for text in ["k3y", "k3y\n", " k3y\r\n"] {
            assert_eq!(of_file(text.as_bytes()), Ok(Some("k3y".to_owned())));
        }
        let long = "k3y".repeat(MAX_BYTES);
        for (text, part) in [
            ("", "single line"),
            ("\n", "single line"),
            ("k3y\nk3z\n", "single line"),
            (long.as_str(), "4096 bytes"),
        ] {
            let message = of_file(text.as_bytes()).expect_err(part);
            let is_named = message.contains("--api-key-file") && message.contains(part);
            assert!(is_named && !message.contains("k3"), "{message}");
        }
        let message = of_file(b"k3y\xff").expect_err("no text");
        assert!(message.contains("UTF-8"), "{message}");
        let message = resolve(Some("k3y"), Some(&path)).expect_err("both");
        assert!(message.contains("together with --api-key"), "{message}");
        let message = resolve(None, Some(folder.path())).expect_err("a folder");
        assert!(message.contains("--api-key-file"), "{message}");
        let message = resolve(Some(" "), None).expect_err("empty");
        assert!(message.contains("--api-key "), "{message}");
    }
}
