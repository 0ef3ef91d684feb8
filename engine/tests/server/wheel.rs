//! A package with a model in it, in a folder that pip takes packages from.

use std::path::Path;
use std::process::Command;

pub const MODEL: &str = "pypi:a-model==1.0/w.gguf";
/// Where it lies in the cache.
pub const CACHED: &str = "pypi/a-model-1.0/w.gguf";
/// Zeros: small in the wheel, since it is compressed.
pub const N_BYTES: usize = 1 << 20;

const MAKE: &str = "
import sys, zipfile
info = 'a_model-1.0.dist-info/'
with zipfile.ZipFile(sys.argv[1], 'w', zipfile.ZIP_DEFLATED) as wheel:
    wheel.writestr('a_model/w.gguf', bytes(1 << 20))
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: a-model\\nVersion: 1.0\\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(info + 'RECORD', '')
";

/// Makes the wheel below `folder`; the variables that make pip find it, and nothing else.
pub fn environment(folder: &Path) -> [(&'static str, String); 2] {
    let wheels = folder.join("wheels");
    std::fs::create_dir(&wheels).expect("made");
    let made = Command::new("python3")
        .args(["-I", "-c", MAKE])
        .arg(wheels.join("a_model-1.0-py3-none-any.whl"))
        .status();
    assert!(made.expect("python3 runs").success());
    [
        ("PIP_NO_INDEX", "1".to_owned()),
        ("PIP_FIND_LINKS", wheels.display().to_string()),
    ]
}
