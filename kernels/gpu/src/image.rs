//! Which code of this binary a GPU runs: machine code of its own architecture, machine code of an
//! earlier minor version, or PTX, which the driver compiles when it loads it.

use std::fmt;

use super::CudaError;

/// The oldest compute capability that the sources are written for: bulk copies, clusters and
/// dependent launches begin there.
pub const MIN_CAPABILITY: (u32, u32) = (9, 0);

/// What a GPU runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// Machine code of this architecture, for example `sm_90`.
    Code(String),
    /// PTX of this architecture, for example `compute_120`: the driver compiles it for a chip that
    /// is newer than this binary.
    Ptx(String),
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(name) => f.write_str(name),
            Self::Ptx(name) => write!(f, "{name}, compiled by the driver"),
        }
    }
}

/// The image for a GPU of this name and compute capability, from the architectures in the binary
/// (`sm_90`, `compute_120`). Machine code is preferred, and the newest that runs.
///
/// # Errors
///
/// If the GPU is older than [`MIN_CAPABILITY`], the binary holds no kernels, or none that run on it.
pub fn choose(built: &[&str], name: &str, capability: (u32, u32)) -> Result<Image, CudaError> {
    if capability < MIN_CAPABILITY {
        return Err(CudaError::TooOld {
            name: name.to_owned(),
            found: version(capability),
            needed: version(MIN_CAPABILITY),
        });
    }
    let wanted = format!("sm_{}{}", capability.0, capability.1);
    if built.is_empty() {
        return Err(CudaError::NoKernels { wanted });
    }
    let newest = |prefix: &str, runs: &dyn Fn((u32, u32)) -> bool| {
        let of_kind = built.iter().filter(|name| name.starts_with(prefix));
        let that_run = of_kind.filter_map(|name| {
            let of_name = capability_of(name.strip_prefix(prefix)?)?;
            runs(of_name).then_some((of_name, *name))
        });
        that_run.max().map(|(_, name)| name.to_owned())
    };
    // Machine code runs on later minor versions of its major version, PTX on everything later.
    let code = newest("sm_", &|of: (u32, u32)| {
        of.0 == capability.0 && of.1 <= capability.1
    });
    if let Some(name) = code {
        return Ok(Image::Code(name));
    }
    if let Some(name) = newest("compute_", &|of| of <= capability) {
        return Ok(Image::Ptx(name));
    }
    Err(CudaError::OtherArchitecture {
        built: built.join(", "),
        wanted,
    })
}

/// `120` → (12, 0). A name with a suffix (`90a`) is of code that runs on nothing else; such code is
/// only ever compiled beside the plain kind, so it decides nothing.
fn capability_of(digits: &str) -> Option<(u32, u32)> {
    let number: u32 = digits.parse().ok()?;
    Some((number / 10, number % 10))
}

fn version(capability: (u32, u32)) -> String {
    format!("{}.{}", capability.0, capability.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: [&str; 3] = ["sm_90", "sm_120", "compute_120"];

    fn chosen(built: &[&str], capability: (u32, u32)) -> Image {
        choose(built, "a card", capability).expect("an image")
    }

    fn refused(built: &[&str], capability: (u32, u32)) -> String {
        let error = choose(built, "NVIDIA A100", capability).expect_err("refused");
        error.to_string()
    }

    #[test]
    fn a_known_card_runs_machine_code() {
        let code = |name: &str| Image::Code(name.to_owned());
        assert_eq!(chosen(&RELEASE, (9, 0)), code("sm_90"));
        assert_eq!(chosen(&RELEASE, (12, 0)), code("sm_120"));
        // A later minor version runs the code of an earlier one.
        assert_eq!(chosen(&RELEASE, (12, 1)), code("sm_120"));
        assert_eq!(chosen(&["sm_120", "sm_121"], (12, 1)), code("sm_121"));
        assert_eq!(chosen(&["sm_120", "sm_121"], (12, 0)), code("sm_120"));
    }

    #[test]
    fn an_unknown_newer_card_runs_ptx_where_there_is_some() {
        let ptx = Image::Ptx("compute_120".to_owned());
        assert_eq!(chosen(&RELEASE, (13, 0)), ptx);
        assert_eq!(chosen(&RELEASE, (14, 7)), ptx);
        assert_eq!(ptx.to_string(), "compute_120, compiled by the driver");
        let error = refused(&["sm_90", "sm_120"], (13, 0));
        assert!(
            error.contains("kernels for sm_90, sm_120, the device is sm_130"),
            "{error}"
        );
    }

    /// Data-centre Blackwell lies between the two: neither sm_90's code nor sm_120's PTX runs there.
    #[test]
    fn a_card_between_two_architectures_is_refused() {
        let error = refused(&RELEASE, (10, 0));
        assert!(error.contains("the device is sm_100"), "{error}");
        let ptx = Image::Ptx("compute_90".to_owned());
        assert_eq!(chosen(&["sm_90", "compute_90"], (10, 0)), ptx);
    }

    #[test]
    fn an_older_card_is_named_with_its_capability_and_the_limit() {
        for capability in [(7, 5), (8, 0), (8, 9)] {
            assert_eq!(
                refused(&RELEASE, capability),
                format!(
                    "NVIDIA A100 has compute capability {}.{}; this engine's kernels need 9.0 or \
                     newer (H100, H200, RTX 50)",
                    capability.0, capability.1
                )
            );
        }
        // Also where no kernels were built in: another build would not help.
        assert!(refused(&[], (8, 0)).contains("need 9.0"));
        assert!(refused(&[], (9, 0)).contains("holds no CUDA kernels"));
    }
}
