//! Captured decode steps, one for each batch size.

use gpu::{CudaError, Graph, Stream};

use super::GraphSizes;
use super::forward::{Forward, PassSize};
use super::inputs::{Inputs, MAX_ROWS};

/// Default sizes to capture: finer where step times differ, since the kernels' row variants are 8,
/// 16, 24, 32 and 64.
const DEFAULT_SIZES: [usize; 10] = [1, 2, 4, 8, 16, 20, 24, 32, 48, 64];

/// The batch sizes to capture, ascending, within the size of a pass.
pub(crate) fn sizes(asked: &GraphSizes) -> Vec<usize> {
    match asked {
        GraphSizes::Off => Vec::new(),
        GraphSizes::UpTo(limit) => DEFAULT_SIZES
            .into_iter()
            .filter(|size| size <= limit)
            .collect(),
        GraphSizes::Exactly(sizes) => sizes
            .iter()
            .copied()
            .filter(|size| (1..=MAX_ROWS).contains(size))
            .collect(),
    }
}

pub(super) struct Graphs {
    by_size: Vec<(usize, Graph)>,
}

impl Graphs {
    pub fn capture(
        stream: &Stream,
        forward: &Forward,
        inputs: &mut Inputs,
        sizes: &[usize],
    ) -> Result<Self, CudaError> {
        let mut graphs = Self {
            by_size: Vec::with_capacity(sizes.len()),
        };
        for &size in sizes {
            // Run once outside the capture, so that everything created on first use exists.
            inputs.upload(stream, &[], size, &[])?;
            decode_step(stream, forward, inputs, size)?;
            stream.synchronize()?;
            let graph = Graph::capture(stream, || decode_step(stream, forward, inputs, size))?;
            graph.upload(stream)?;
            graphs.by_size.push((size, graph));
        }
        stream.synchronize()?;
        Ok(graphs)
    }

    /// The smallest graph for at least `n_rows` rows, with its size.
    pub fn at_least(&self, n_rows: usize) -> Option<(usize, &Graph)> {
        self.by_size
            .iter()
            .find(|(size, _)| *size >= n_rows)
            .map(|(size, graph)| (*size, graph))
    }

    pub fn describe(&self) -> String {
        if self.by_size.is_empty() {
            return "off".to_owned();
        }
        let sizes: Vec<String> = self
            .by_size
            .iter()
            .map(|(size, _)| size.to_string())
            .collect();
        sizes.join(" ")
    }
}

/// The contents of a graph: a greedy step that prepares the inputs of the next one.
pub(super) fn decode_step(
    stream: &Stream,
    forward: &Forward,
    inputs: &Inputs,
    n_rows: usize,
) -> Result<(), CudaError> {
    let size = PassSize {
        n_tokens: n_rows,
        n_sequences: n_rows,
    };
    forward.layers(stream, inputs, size)?;
    forward.head(stream, inputs, n_rows)?;
    forward.argmax(stream, inputs, n_rows, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_flags_and_the_pass() {
        assert_eq!(sizes(&GraphSizes::Off), Vec::<usize>::new());
        assert_eq!(sizes(&GraphSizes::UpTo(4)), [1, 2, 4]);
        assert_eq!(sizes(&GraphSizes::UpTo(1000)), DEFAULT_SIZES);
        assert_eq!(sizes(&GraphSizes::Exactly(vec![1, 2, 4, 100])), [1, 2, 4]);
    }
}
