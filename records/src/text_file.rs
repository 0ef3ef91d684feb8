//! Text files that may lie compressed: raw figures of benches and long prompts are tracked as `.gz`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

/// The text of `path`, or of `path` with `.gz` at its end where there is no such file.
///
/// # Errors
///
/// If neither file is there (the error is that of `path`), or one cannot be read, decompressed or
/// is not UTF-8.
pub fn read(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let file = File::open(compressed(path)).map_err(|_| error)?;
            let mut text = String::new();
            MultiGzDecoder::new(file).read_to_string(&mut text)?;
            Ok(text)
        }
        plain => plain,
    }
}

/// Whether [`read`] finds the file, plain or compressed.
pub fn exists(path: &Path) -> bool {
    path.is_file() || compressed(path).is_file()
}

fn compressed(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".gz");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn a_plain_file_is_read_first_and_a_compressed_one_in_its_place() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("a.jsonl");
        let missing = read(&path).expect_err("none is there");
        assert!(!exists(&path));
        assert_eq!(missing.kind(), ErrorKind::NotFound);

        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder
            .write_all("{\"text\":\"시작\"}\n".as_bytes())
            .expect("encoded");
        let packed = encoder.finish().expect("encoded");
        let beside = dir.path().join("a.jsonl.gz");
        fs::write(&beside, &packed).expect("written");
        assert!(exists(&path) && !path.exists());
        assert_eq!(read(&path).expect("readable"), "{\"text\":\"시작\"}\n");

        fs::write(&beside, &packed[..packed.len() - 5]).expect("written");
        assert!(read(&path).is_err(), "it is cut off");
        fs::write(&path, "plain").expect("written");
        assert_eq!(read(&path).expect("readable"), "plain");
    }
}
