//! Each connection needs an open file, and a process has a limited number of them. The soft limit
//! is raised to the hard one at start-up, and `--max-connections` is reduced to what is left, since
//! a server without a free file cannot even refuse a connection.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files not used for connections within the limit: model, log, event queues, Redis, and
/// connections that are refused or belong to probes.
const RESERVED: u64 = 128;

/// Raises the soft limit to the hard one. Returns the number of files that may be open; `None` is
/// no limit.
pub fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, ?current, ?maximum, "the limit of open files cannot be raised");
            current
        }
    }
}

/// The current limit.
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// How many of `asked` connections can have a file. Logs a warning if they are fewer.
pub fn connections_within(limit: Option<u64>, asked: usize) -> usize {
    let Some(limit) = limit else { return asked };
    // If there are very few files, connections get half of them.
    let most = limit.saturating_sub(RESERVED).max(limit / 2).max(1);
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    if asked <= most {
        return asked;
    }
    tracing::warn!(
        "--max-connections {asked} is cut to {most}: this process may have {limit} files open, and \
         {RESERVED} are kept for other uses; raise the hard limit (`ulimit -Hn`, LimitNOFILE of \
         systemd, `ulimits` of compose)"
    );
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        for (limit, asked, given) in [
            (None, 4096, 4096),
            (Some(16_384), 4096, 4096),
            (Some(4096 + 128), 4096, 4096),
            (Some(4096 + 127), 4096, 4095),
            (Some(1024), 4096, 896),
            (Some(1024), 256, 256),
            (Some(64), 4096, 32),
            (Some(1), 4096, 1),
        ] {
            assert_eq!(connections_within(limit, asked), given, "{limit:?} {asked}");
        }
    }
}
