//! Our engine: the experiment's flags are its own.

use std::path::Path;
use std::time::Duration;

use crate::spec::Experiment;

/// Loading, hashing and packing a model of a hundred gigabytes, and timing its kernels.
pub const READY_LIMIT: Duration = Duration::from_mins(30);

pub fn command(binary: &Path, experiment: &Experiment, port: u16) -> Vec<String> {
    let mut command = vec![binary.to_string_lossy().into_owned(), "serve".into()];
    if experiment.models.is_empty() {
        command.extend(["--model-path".into(), experiment.model.clone()]);
    }
    command.extend(["--host", "127.0.0.1", "--port"].map(String::from));
    command.push(port.to_string());
    command.extend(experiment.flags.to_args());
    // The flags after a model are its own.
    for model in &experiment.models {
        command.extend(["--model-path".into(), model.model.clone()]);
        command.extend(["--served-model-name".into(), model.name.clone()]);
        command.extend(model.flags.to_args());
    }
    command
}
