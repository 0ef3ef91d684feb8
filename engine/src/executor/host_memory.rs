//! Free host memory.

use std::path::Path;

/// The system's free memory, or that of this process's control group (a container's limit),
/// whichever is less. `None` if the system does not report it.
pub fn free_bytes() -> Option<u64> {
    let system = system_free_bytes();
    match (system, group_free_bytes(Path::new("/sys/fs/cgroup"))) {
        (Some(system), Some(group)) => Some(system.min(group)),
        (system, group) => system.or(group),
    }
}

/// Free memory of the control group whose files are in `folder`, as a container sees its own;
/// reclaimable file pages count as free. `None` without a limit.
fn group_free_bytes(folder: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    let statistics = read("memory.stat").unwrap_or_default();
    let of_files = ["active_file ", "inactive_file "]
        .iter()
        .filter_map(|name| {
            let line = statistics.lines().find_map(|line| line.strip_prefix(name));
            line?.trim().parse::<u64>().ok()
        });
    Some(limit.saturating_sub(used.saturating_sub(of_files.sum())))
}

fn system_free_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_limit_counts_without_its_file_pages() {
        let group = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(group.path().join(name), text).expect("written");
        };
        assert_eq!(group_free_bytes(group.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(group_free_bytes(group.path()), None, "there is no limit");
        write("memory.max", "1000\n");
        assert_eq!(group_free_bytes(group.path()), Some(300));
        write(
            "memory.stat",
            "anon 500\ninactive_file 150\nactive_file 50\n",
        );
        assert_eq!(group_free_bytes(group.path()), Some(500));
    }
}
