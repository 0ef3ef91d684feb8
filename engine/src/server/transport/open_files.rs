//! Connections need open files, of which a process has a limited number. The soft limit is raised
//! to the hard one at the start, and `--max-connections` is cut to what it leaves, since a server
//! without a file for the next connection cannot even refuse it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are no connection within the limit: model, log, event queues, Redis, what is refused
/// and what probes have beyond the limit.
const RESERVED: u64 = 128;

/// Raises the soft limit as far as it goes. How many files may be open then; `None` is no limit.
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

/// The limit as it is now.
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// How many of `asked` connections have a file. Says so where they are fewer.
pub fn connections_within(limit: Option<u64>, asked: usize) -> usize {
    let Some(limit) = limit else { return asked };
    // Where there is hardly any file, connections have half of them.
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
