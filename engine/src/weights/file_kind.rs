//! Identifies a file that is not a model by its first bytes, for error messages.

/// A description of the file for the user; `None` if it is unknown.
pub fn of(first_bytes: &[u8]) -> Option<&'static str> {
    let text = first_bytes
        .iter()
        .position(|byte| !byte.is_ascii_whitespace())
        .map_or(&[][..], |at| &first_bytes[at..]);
    let begins = |with: &str| {
        let found = text.get(..with.len());
        found.is_some_and(|found| found.eq_ignore_ascii_case(with.as_bytes()))
    };
    if first_bytes.is_empty() {
        Some("an empty file")
    } else if begins("version https://git-lfs") {
        Some("a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")
    } else if begins("<!doctype html") || begins("<html") || begins("<?xml") {
        Some("a web page, not the file itself; the download was answered with an error or a login")
    } else if first_bytes.starts_with(b"GGUF") {
        Some("a GGUF file")
    } else if first_bytes.starts_with(b"PK\x03\x04") || first_bytes.starts_with(&[0x80, 2]) {
        Some("a PyTorch file; convert the model to safetensors or GGUF")
    } else if [&b"ggml"[..], b"lmgg", b"fmgg", b"tjgg"].contains(&first_bytes.get(..4)?) {
        Some("a file of GGUF's predecessors; convert the original model to GGUF again")
    } else if first_bytes.get(8) == Some(&b'{') {
        Some("a safetensors file; give the folder that has it together with config.json")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_mistakes_are_named() {
        for (bytes, expected) in [
            (&b""[..], "empty"),
            (b"<!DOCTYPE html><html>", "web page"),
            (b"\n  <html lang=\"en\">", "web page"),
            (
                b"version https://git-lfs.github.com/spec/v1\n",
                "git lfs pull",
            ),
            (b"PK\x03\x04\x00\x00", "PyTorch"),
            (b"ggml\x01\x00", "predecessors"),
            (b"\x40\x00\x00\x00\x00\x00\x00\x00{\"a\":", "safetensors"),
        ] {
            let found = of(bytes);
            assert!(
                found.is_some_and(|text| text.contains(expected)),
                "{bytes:?}: {found:?}"
            );
        }
        assert_eq!(of(b"\x01\x02\x03\x04\x05\x06\x07\x08\x09"), None);
    }
}
