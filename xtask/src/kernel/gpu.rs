//! The GPU of this machine, as its driver's `nvidia-smi` names it.

use duct::cmd;

#[derive(Debug, PartialEq, Eq)]
pub struct Gpu {
    pub name: String,
    /// `sm_90`.
    pub architecture: String,
}

/// GPU 0; `None` where there is none or no driver.
pub fn find() -> Option<Gpu> {
    let query = ["--query-gpu=name,compute_cap", "--format=csv,noheader"];
    let text = cmd("nvidia-smi", query).stderr_null().read().ok()?;
    read(&text)
}

fn read(text: &str) -> Option<Gpu> {
    let (name, capability) = text.lines().next()?.rsplit_once(", ")?;
    let (major, minor) = capability.trim().split_once('.')?;
    let number: u32 = format!("{major}{minor}").parse().ok()?;
    Some(Gpu {
        name: name.to_owned(),
        architecture: format!("sm_{number}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_first_gpu() {
        let gpu = read("NVIDIA H100 80GB HBM3, 9.0\nNVIDIA H100 80GB HBM3, 9.0\n");
        let expected = Gpu {
            name: "NVIDIA H100 80GB HBM3".into(),
            architecture: "sm_90".into(),
        };
        assert_eq!(gpu, Some(expected));
        let rtx = read("NVIDIA GeForce RTX 5090, 12.0\n").expect("one GPU");
        assert_eq!(rtx.architecture, "sm_120");
        assert_eq!(read("No devices were found\n"), None);
        assert_eq!(read(""), None);
    }
}
