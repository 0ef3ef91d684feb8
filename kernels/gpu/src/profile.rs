//! Treats a device as another chip: runs what would run there.
//!
//! The profile has the other chip's limits, and therefore its kernels and launch shapes: shared
//! memory of a block and of a multiprocessor, the compute capability used for choices, and
//! optionally a number of multiprocessors. Sources whose code differs by chip (`// Profiles:
//! sm_120.` in their header) are compiled a second time with that chip's choices for the current
//! chip.
//!
//! It shows whether results are correct there, and how its kernels compare with each other on one
//! device. Rates, latencies, the size of the L2 and the threads of a multiprocessor stay the
//! device's own: times do not predict the other chip's.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::{CudaError, DeviceProperties};

/// Names a profile for [`Device::open`](super::Device::open).
pub const PROFILE_VARIABLE: &str = "ENGINE_CARD_PROFILE";
const MAX_MULTIPROCESSORS: usize = 1024;

/// `sm_120`, or `sm_120:170` for a pretended number of multiprocessors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CardProfile {
    chip: Chip,
    n_multiprocessors: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chip {
    Sm120,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "card profile `{text}`: must be sm_120, or sm_120:N with N from 1 to {MAX_MULTIPROCESSORS} \
     multiprocessors"
)]
pub struct ProfileError {
    text: String,
}

impl Chip {
    const fn name(self) -> &'static str {
        match self {
            Self::Sm120 => "sm_120",
        }
    }

    const fn compute_capability(self) -> (u32, u32) {
        match self {
            Self::Sm120 => (12, 0),
        }
    }

    const fn shared_bytes_per_block(self) -> usize {
        match self {
            Self::Sm120 => 99 << 10,
        }
    }

    const fn shared_bytes_per_multiprocessor(self) -> usize {
        match self {
            Self::Sm120 => 100 << 10,
        }
    }
}

impl CardProfile {
    /// The value of [`PROFILE_VARIABLE`], if it is set and not empty.
    ///
    /// # Errors
    ///
    /// If the value names no profile.
    pub fn from_environment() -> Result<Option<Self>, ProfileError> {
        match std::env::var_os(PROFILE_VARIABLE) {
            Some(text) if !text.is_empty() => text.to_string_lossy().parse().map(Some),
            _ => Ok(None),
        }
    }

    /// `properties` as of the other chip, or why the device cannot emulate it.
    pub(super) fn apply(
        self,
        properties: &DeviceProperties,
    ) -> Result<DeviceProperties, CudaError> {
        let refused = |what, needed, found| {
            let profile = self.to_string();
            Err(CudaError::Profile {
                profile,
                what,
                needed,
                found,
            })
        };
        let chip = self.chip;
        let needed = chip.shared_bytes_per_block();
        if properties.shared_bytes_per_block < needed {
            let found = properties.shared_bytes_per_block;
            return refused("bytes of shared memory a block", needed, found);
        }
        let needed = chip.shared_bytes_per_multiprocessor();
        if properties.shared_bytes_per_multiprocessor < needed {
            let found = properties.shared_bytes_per_multiprocessor;
            return refused("bytes of shared memory a multiprocessor", needed, found);
        }
        Ok(DeviceProperties {
            name: format!("{} (card profile {self})", properties.name),
            compute_capability: chip.compute_capability(),
            n_multiprocessors: self
                .n_multiprocessors
                .unwrap_or(properties.n_multiprocessors),
            shared_bytes_per_block: chip.shared_bytes_per_block(),
            shared_bytes_per_multiprocessor: chip.shared_bytes_per_multiprocessor(),
            profile: Some(self),
            ..properties.clone()
        })
    }

    /// Name of the fatbin of `source_name` with the other chip's choices, on a device of another
    /// compute capability; only sources with such choices have one.
    pub(super) fn fatbin_name(self, source_name: &str, of_device: (u32, u32)) -> Option<String> {
        (of_device != self.chip.compute_capability())
            .then(|| format!("{source_name}_as_{}", self.chip.name()))
    }
}

impl fmt::Display for CardProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.n_multiprocessors {
            None => write!(f, "{}", self.chip.name()),
            Some(n) => write!(f, "{}:{n}", self.chip.name()),
        }
    }
}

impl FromStr for CardProfile {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, ProfileError> {
        let refused = || ProfileError {
            text: text.to_owned(),
        };
        let (name, n) = match text.split_once(':') {
            None => (text, None),
            Some((name, n)) => (name, Some(n)),
        };
        if name != Chip::Sm120.name() {
            return Err(refused());
        }
        let n_multiprocessors = match n {
            None => None,
            Some(n) => {
                let n = n.parse().map_err(|_| refused())?;
                if !(1..=MAX_MULTIPROCESSORS).contains(&n) {
                    return Err(refused());
                }
                Some(n)
            }
        };
        Ok(Self {
            chip: Chip::Sm120,
            n_multiprocessors,
        })
    }
}

impl Serialize for CardProfile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h200() -> DeviceProperties {
        DeviceProperties {
            name: "NVIDIA H200".into(),
            compute_capability: (9, 0),
            n_multiprocessors: 132,
            l2_bytes: 50 << 20,
            total_bytes: 139 << 30,
            shared_bytes_per_block: 227 << 10,
            shared_bytes_per_multiprocessor: 228 << 10,
            reserved_shared_bytes_per_block: 1 << 10,
            clock_khz: 1_980_000,
            memory_clock_khz: 3_201_000,
            memory_bus_bits: 6144,
            driver_version: 13_000,
            profile: None,
        }
    }

    #[test]
    fn a_profile_is_read_and_written_alike_and_others_are_refused_by_name() {
        for text in ["sm_120", "sm_120:170", "sm_120:1"] {
            let profile: CardProfile = text.parse().expect("known");
            assert_eq!(profile.to_string(), text);
        }
        for text in [
            "",
            "sm_90",
            "sm_120:",
            "sm_120:0",
            "sm_120:2000",
            "sm_120:x",
            "SM_120",
        ] {
            let error = text
                .parse::<CardProfile>()
                .expect_err("refused")
                .to_string();
            assert!(
                error.contains(&format!("`{text}`: must be sm_120")),
                "{error}"
            );
        }
    }

    #[test]
    fn limits_are_the_other_chips_and_the_name_says_so() {
        let profile: CardProfile = "sm_120:170".parse().expect("known");
        let seen = profile.apply(&h200()).expect("large enough");
        assert_eq!(seen.architecture(), "sm_120");
        assert_eq!(seen.n_multiprocessors, 170);
        assert_eq!(seen.shared_bytes_per_block, 101_376);
        assert_eq!(seen.shared_bytes_per_multiprocessor, 102_400);
        assert_eq!(seen.name, "NVIDIA H200 (card profile sm_120:170)");
        assert_eq!(seen.profile, Some(profile));
        let plain: CardProfile = "sm_120".parse().expect("known");
        let seen = plain.apply(&h200()).expect("large enough");
        assert_eq!(seen.n_multiprocessors, 132);
        // Rates stay the device's own.
        assert!((seen.peak_gb_per_s() - 4916.7).abs() < 0.1);
    }

    #[test]
    fn a_smaller_device_cannot_stand_for_it() {
        let small = DeviceProperties {
            shared_bytes_per_block: 64 << 10,
            ..h200()
        };
        let profile: CardProfile = "sm_120".parse().expect("known");
        let error = profile.apply(&small).expect_err("refused").to_string();
        assert_eq!(
            error,
            "card profile sm_120 needs 101376 bytes of shared memory a block, the device has 65536"
        );
    }

    #[test]
    fn only_another_chip_needs_code_of_its_own() {
        let profile: CardProfile = "sm_120:60".parse().expect("known");
        let name = |capability| profile.fatbin_name("a/b_bf16", capability);
        assert_eq!(name((9, 0)).as_deref(), Some("a/b_bf16_as_sm_120"));
        assert_eq!(name((12, 0)), None);
    }
}
