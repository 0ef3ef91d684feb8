//! SHA-256 of files: the digests of a folder's files, in its last file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

/// SHA-256 by the name of a file of the folder.
pub type Digests = BTreeMap<String, String>;

/// Of every file in the folder except those whose name begins with `but`, which will contain them.
///
/// # Errors
///
/// If the folder cannot be listed or a file in it cannot be read.
pub fn digests_of(dir: &Path, but: &str) -> io::Result<Digests> {
    let mut digests = Digests::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && !name.starts_with(but) {
            digests.insert(name, digest_of_file(&entry.path())?);
        }
    }
    Ok(digests)
}

/// # Errors
///
/// If the file cannot be opened or read to its end.
pub fn digest_of_file(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

/// SHA-256 in hexadecimal.
///
/// ```
/// let empty = records::digests::digest_of_bytes(b"");
/// assert!(empty.starts_with("e3b0c44298fc1c149afbf4c8996fb924"));
/// assert_eq!(empty.len(), 64);
/// ```
pub fn digest_of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether this is a name without a path, so that digests of an untrusted folder cannot lead
/// outside it.
pub(crate) fn is_file_name(name: &str) -> bool {
    !name.contains('/') && name != ".." && name != "."
}
