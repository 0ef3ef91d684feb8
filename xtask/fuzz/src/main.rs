//! `fuzz seeds <target> <folder>` writes a fuzzer's seeds; `fuzz run <target> <folder>` is the
//! program under test: input after input under AFL++, otherwise one from standard input.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fuzz::{Target, on_a_servers_stack, target, write_seeds};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [command, name, folder] = args.as_slice() else {
        bail!("usage: fuzz seeds|run <target> <folder>");
    };
    let target = target(name).with_context(|| format!("no target is called {name:?}"))?;
    match command.as_str() {
        "seeds" => write_seeds(name, Path::new(folder)),
        "run" => {
            // Exclusive to this process: several may run.
            let own = PathBuf::from(folder).join(std::process::id().to_string());
            std::fs::create_dir_all(&own)?;
            run(&own, target)
        }
        other => bail!("unknown command {other:?}"),
    }
}

#[cfg(feature = "afl")]
fn run(folder: &Path, target: Target) -> Result<()> {
    // The parser handles the panics that it catches, and their messages have no reader.
    std::panic::set_hook(Box::new(|_| {}));
    let folder = folder.to_owned();
    let loop_ended = on_a_servers_stack(move || {
        afl::fuzz_nohook!(|bytes: &[u8]| target(&folder, bytes));
        // Inputs run in forks of this thread, without a main thread that could wait for it.
        std::process::exit(0);
    })?;
    match loop_ended {
        Some(()) => Ok(()),
        None => bail!("the target panicked"),
    }
}

#[cfg(not(feature = "afl"))]
fn run(folder: &Path, target: Target) -> Result<()> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes)?;
    let folder = folder.to_owned();
    match on_a_servers_stack(move || target(&folder, &bytes))? {
        Some(()) => Ok(()),
        None => bail!("the target panicked"),
    }
}
