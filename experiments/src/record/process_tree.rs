//! The processes that a process has started.

use std::collections::BTreeMap;
use std::fs;

/// The process itself first, then its children, theirs, and so on, as they are now.
pub fn with_descendants(pid: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some(parent) = parent_in(&stat) {
            children.entry(parent).or_default().push(child);
        }
    }
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(parent) = found.get(at) {
        found.extend(children.remove(parent).unwrap_or_default());
        at += 1;
    }
    found
}

/// Field 4 of `/proc/<pid>/stat`; the second may hold spaces and brackets.
fn parent_in(stat: &str) -> Option<u32> {
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn grandchildren_are_found() {
        assert_eq!(parent_in("7 (a b) c) S 42 3 4"), Some(42));
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & echo; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        let stdout = shell.stdout.take().expect("a pipe");
        // From then on the shell has its child.
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)
            .expect("a line");
        let found = with_descendants(std::process::id());
        let of_shell = with_descendants(shell.id());
        for pid in of_shell.iter().skip(1) {
            let pid = rustix::process::Pid::from_raw(*pid as i32).expect("a pid");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        }
        shell.wait().expect("ended");
        assert_eq!(of_shell.len(), 2, "{of_shell:?}");
        assert!(of_shell.iter().all(|pid| found.contains(pid)), "{found:?}");
    }
}
