//! The processor's name, for logs and records.

/// As reported by the operating system; otherwise the architecture.
pub(crate) fn processor_name() -> String {
    let architecture = std::env::consts::ARCH.to_owned();
    let Ok(text) = std::fs::read_to_string("/proc/cpuinfo") else {
        return architecture;
    };
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "model name")
        .map_or(architecture, |(_, name)| name.trim().to_owned())
}
