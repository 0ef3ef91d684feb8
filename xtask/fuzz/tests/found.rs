//! Runs inputs found by the fuzzer, and its seeds, through their parsers: nothing panics or hangs.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use fuzz::{TARGETS, Target, on_a_servers_stack, write_seeds};

/// Far above the time of any input, also on a busy machine without optimisation.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn seeds_and_found_inputs_do_no_harm() {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("found");
    for (name, target) in TARGETS {
        let scratch = tempfile::tempdir().expect("a folder");
        let seeds = scratch.path().join("seeds");
        write_seeds(name, &seeds).expect("seeds");
        let own = scratch.path().join("own");
        fs::create_dir(&own).expect("a folder");
        let mut n_inputs = 0;
        for folder in [seeds, found.join(name)] {
            let Ok(entries) = fs::read_dir(&folder) else {
                continue;
            };
            for entry in entries {
                let path = entry.expect("an entry").path();
                let bytes = fs::read(&path).expect("an input");
                assert_harmless(target, &own, bytes, &path);
                n_inputs += 1;
            }
        }
        assert!(n_inputs > 0, "{name} has no seeds");
    }
}

/// Runs on its own thread, which is abandoned if it never returns.
fn assert_harmless(target: Target, own: &Path, bytes: Vec<u8>, input: &Path) {
    let own = own.to_owned();
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        let outcome = on_a_servers_stack(move || target(&own, &bytes)).expect("a thread");
        // A panic ends this thread too, without a message.
        outcome.expect("no panic");
        // The receiver is gone if it took too long.
        let _ = done.send(());
    });
    match is_done.recv_timeout(LIMIT) {
        Ok(()) => {}
        Err(RecvTimeoutError::Timeout) => panic!("{} hangs", input.display()),
        Err(RecvTimeoutError::Disconnected) => panic!("{} panics", input.display()),
    }
}
