//! Autotuning (`--autotune`): at start-up, the kernels of every projection are timed with the
//! model's own weights for batch sizes up to `--autotune-max-bs`, and the fastest are used.
//!
//! The kernel templates are compiled ahead of time; autotuning selects the kernel, its launch
//! shape, and the splits of decode attention ([`Variant`]). Compiling at run time with the model's
//! shapes as constants would take seconds for each kernel and need a compiler at run time; since
//! these kernels are memory-bound, index arithmetic does not matter and there is no such step.
//!
//! Launches go over successive layers, so that weights come from memory as in a real step. They run
//! as captured graphs, and candidates are interleaved, so that clock changes affect all alike. The
//! default stays unless a candidate is faster by [`MARGIN`]. Results are stored on disk
//! ([`cache`]); the next start reads them and times nothing. Variants sum in different orders:
//! results agree within fp16's tolerance, and are reproducible for one choice.

mod cache;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use gpu::{Buffer, CudaError, Event, Graph, Stream};
use kernels::roofline::cuda::ReadMemory;
use kernels::stream_linear::{StreamLinear, Variant};
use serde::{Deserialize, Serialize};

use self::cache::{Kept, TuningKey};
use super::forward::{AttentionOptions, Forward, Projection};
use super::inputs::{Inputs, MAX_ROWS, SequenceTokens};
use crate::kv::{PAGE_TOKENS, PageIdx};

/// Batch sizes with their own choices: those of the graphs, and some between.
const BUCKETS: [usize; 12] = [1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 48, 64];
/// Minimum gain for replacing a default: more than two measurements of one variant differ by.
const MARGIN: f64 = 0.01;
/// Replays of a candidate, of which the fastest counts.
const ROUNDS: usize = 5;
/// Launches in a replay, each with another layer's weights.
const LAUNCHES: usize = 16;
/// Time limit; batch sizes not reached keep the defaults until the next start.
const MAX_DURATION: Duration = Duration::from_secs(5);
/// Context length for timing attention, if the pool has room.
const ATTENTION_TOKENS: usize = 512;

/// The settings of `--autotune`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TuningOptions {
    /// Largest batch size to time; limited to 64, the rows of a decode pass.
    pub max_rows: usize,
    /// The engine's cache folder; `None` stores nothing.
    pub cache_dir: Option<PathBuf>,
}

/// The choices for batches of up to `rows` rows that exceed the previous bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Bucket {
    rows: usize,
    projections: Vec<Choice>,
    /// `None`: attention was not timed, because KV pages are missing.
    splits: Option<Splits>,
}

/// A projection in a group of layers with equal shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Site {
    group: usize,
    projection: Projection,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Choice {
    #[serde(flatten)]
    site: Site,
    variant: Variant,
    /// The default first. Microseconds for each launch.
    timed_us: Vec<(Variant, f64)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Splits {
    n_splits: usize,
    timed_us: Vec<(usize, f64)>,
}

/// What autotuning did, for the log and the record.
#[derive(Debug)]
pub(super) struct Tuned {
    pub max_rows: usize,
    pub n_choices: usize,
    /// Choices that differ from the default.
    pub n_replaced: usize,
    /// Batch sizes that were not reached in time.
    pub n_missing: usize,
    pub is_from_cache: bool,
    pub duration: Duration,
}

impl Tuned {
    /// Without the time taken: the same for every start from the cache.
    pub fn describe(&self) -> String {
        let Self {
            max_rows,
            n_choices,
            n_replaced,
            ..
        } = self;
        let origin = if self.is_from_cache {
            "from cache"
        } else {
            "timed"
        };
        let missing = match self.n_missing {
            0 => String::new(),
            n => {
                let limit_s = MAX_DURATION.as_secs();
                format!(", {n} batch sizes not reached in {limit_s} s")
            }
        };
        format!(
            "up to {max_rows} rows: {n_choices} choices, {n_replaced} other than the default, \
             {origin}{missing}"
        )
    }
}

/// Batch sizes to time: the usual ones below `max_rows`, and `max_rows`.
fn bucket_rows(max_rows: usize) -> Vec<usize> {
    let max_rows = max_rows.min(MAX_ROWS);
    let mut rows: Vec<usize> = BUCKETS.into_iter().filter(|r| *r < max_rows).collect();
    rows.extend((max_rows > 0).then_some(max_rows));
    rows
}

/// Each bucket with its smallest number of rows.
fn with_first_rows(buckets: &[Bucket]) -> impl Iterator<Item = (usize, &Bucket)> {
    let ends = buckets.iter().map(|bucket| bucket.rows);
    let firsts = std::iter::once(1).chain(ends.map(|rows| rows + 1));
    firsts.zip(buckets)
}

/// The fastest, or the default (the first) if nothing is faster by [`MARGIN`].
fn fastest<T: Copy>(timed_us: &[(T, f64)]) -> Option<T> {
    let (default, default_us) = *timed_us.first()?;
    let (best, best_us) = *timed_us.iter().min_by(|(_, a), (_, b)| a.total_cmp(b))?;
    Some(if best_us < default_us * (1.0 - MARGIN) {
        best
    } else {
        default
    })
}

/// Gate-up and down together, since gate-up writes the input of down: tiled only if both are.
fn fastest_pair(gate_up: &[(Variant, f64)], down: &[(Variant, f64)]) -> Option<(Variant, Variant)> {
    let fits = |gate_up: Variant, down: Variant| gate_up.is_tiled() || !down.is_tiled();
    let pairs = gate_up
        .iter()
        .flat_map(|a| down.iter().map(move |b| (a, b)));
    let (mut a, mut b) = pairs
        .filter(|(a, b)| fits(a.0, b.0))
        .min_by(|(a, b), (c, d)| (a.1 + b.1).total_cmp(&(c.1 + d.1)))
        .map(|(a, b)| (*a, *b))?;
    // Go back to each default that is as good.
    let (default_a, default_b) = (*gate_up.first()?, *down.first()?);
    let is_as_good = |default: f64, best: f64| best >= default * (1.0 - MARGIN);
    if is_as_good(default_a.1, a.1) && fits(default_a.0, b.0) {
        a = default_a;
    }
    if is_as_good(default_b.1, b.1) && fits(a.0, default_b.0) {
        b = default_b;
    }
    Some((a.0, b.0))
}

/// Times the kernels, or reads the choices from the cache, and applies them to `forward`, if
/// autotuning is enabled. Blocks of a projection wait for each other, so the caller holds the
/// device guard.
pub(super) fn tune(
    stream: &Stream,
    forward: &mut Forward,
    inputs: &mut Inputs,
    n_pages: usize,
    attention: &AttentionOptions,
    options: Option<&TuningOptions>,
) -> Result<Option<Tuned>, CudaError> {
    let Some(options) = options else {
        return Ok(None);
    };
    let started = Instant::now();
    let max_rows = options.max_rows.min(MAX_ROWS);
    let groups = forward.layer_groups();
    let sites = sites(groups.iter().map(|layers| forward.is_sparse(layers[0])));
    let context = attention_tokens(n_pages, max_rows, inputs.max_pages());
    let key = TuningKey::of(
        stream.device(),
        forward,
        &groups,
        attention,
        context,
        max_rows,
    );
    let path = options.cache_dir.as_ref().map(|dir| key.path(dir));
    let kept = path.as_ref().map(|path| Kept::read(path, &key));
    let mut buckets = match kept {
        Some(Ok(Some(buckets))) => match check(forward, &groups, &sites, max_rows, &buckets) {
            Ok(()) => buckets,
            Err(reason) => {
                tracing::warn!(reason, ?path, "timed kernels in the cache are not used");
                Vec::new()
            }
        },
        Some(Err(reason)) => {
            tracing::warn!(reason, ?path, "timed kernels in the cache are not used");
            Vec::new()
        }
        Some(Ok(None)) | None => Vec::new(),
    };
    let all_rows = bucket_rows(max_rows);
    let is_from_cache = buckets.len() == all_rows.len();
    if !is_from_cache {
        let bench = Bench::new(stream)?;
        forward.fill_activations(stream)?;
        for rows in all_rows.iter().skip(buckets.len()) {
            if started.elapsed() > MAX_DURATION {
                break;
            }
            buckets.push(bench.bucket(forward, inputs, &groups, &sites, *rows, context)?);
        }
        forward.clear_activations(stream)?;
        stream.synchronize()?;
        if let Some(path) = &path
            && let Err(reason) = Kept::write(path, &key, &buckets)
        {
            tracing::warn!(reason, ?path, "timed kernels cannot be kept");
        }
    }
    apply(forward, &groups, &buckets)?;
    let choices = || buckets.iter().flat_map(|bucket| &bucket.projections);
    let splits = || buckets.iter().filter_map(|bucket| bucket.splits.as_ref());
    let replaced = choices().filter(|c| c.timed_us.first().is_some_and(|d| d.0 != c.variant));
    let replaced_splits =
        splits().filter(|s| s.timed_us.first().is_some_and(|d| d.0 != s.n_splits));
    let tuned = Tuned {
        max_rows,
        n_choices: choices().count() + splits().count(),
        n_replaced: replaced.count() + replaced_splits.count(),
        n_missing: all_rows.len() - buckets.len(),
        is_from_cache,
        duration: started.elapsed(),
    };
    tracing::info!(
        what = tuned.describe(),
        seconds = tuned.duration.as_secs_f64(),
        file = path.map_or_else(String::new, |path| path.display().to_string()),
        "kernels chosen for the model's shapes"
    );
    Ok(Some(tuned))
}

/// The matrices of every layer group, and the head.
fn sites(are_sparse: impl IntoIterator<Item = bool>) -> Vec<Site> {
    let of_group = |(group, is_sparse): (usize, bool)| {
        let projections = Projection::of_layer_with(is_sparse).iter();
        projections.map(move |projection| Site {
            group,
            projection: *projection,
        })
    };
    let head = Site {
        group: 0,
        projection: Projection::LmHead,
    };
    let of_groups = are_sparse.into_iter().enumerate().flat_map(of_group);
    of_groups.chain([head]).collect()
}

/// Context length of each of `max_rows` sequences, in whole pages; 0 if the pool is too small.
fn attention_tokens(n_pages: usize, max_rows: usize, max_sequence_pages: usize) -> usize {
    let pages = (n_pages / max_rows.max(1)).min(max_sequence_pages);
    ATTENTION_TOKENS.min(pages * PAGE_TOKENS)
}

/// Why choices from a file cannot be used: they must be among the current candidates.
fn check(
    forward: &Forward,
    groups: &[Vec<usize>],
    sites: &[Site],
    max_rows: usize,
    buckets: &[Bucket],
) -> Result<(), String> {
    let all_rows = bucket_rows(max_rows);
    let rows: Vec<usize> = buckets.iter().map(|bucket| bucket.rows).collect();
    if !all_rows.starts_with(&rows) {
        return Err(format!("batch sizes {rows:?} instead of {all_rows:?}"));
    }
    for bucket in buckets {
        let found: Vec<Site> = bucket.projections.iter().map(|c| c.site).collect();
        if found != sites {
            let n = sites.len();
            return Err(format!("{} projections instead of {n}", found.len()));
        }
        for choice in &bucket.projections {
            let layer = groups[choice.site.group][0];
            let candidates = forward
                .linear(choice.site.projection, layer)
                .candidates(bucket.rows)
                .map_err(|error| error.to_string())?;
            if !candidates.contains(&choice.variant) {
                let (variant, rows) = (choice.variant, bucket.rows);
                return Err(format!("`{variant}` is no candidate for {rows} rows"));
            }
        }
        for pair in bucket.projections.windows(2) {
            let is_pair = pair[1].site.projection == Projection::Down;
            if is_pair && pair[1].variant.is_tiled() && !pair[0].variant.is_tiled() {
                return Err("down reads tiles that gate and up do not write".to_owned());
            }
        }
        if let Some(splits) = &bucket.splits
            && !(1..=forward.max_splits()).contains(&splits.n_splits)
        {
            return Err(format!("{} splits of a context", splits.n_splits));
        }
    }
    Ok(())
}

/// The default, then 1, 2, 4 and 8 up to `max`.
fn split_candidates(default: usize, max: usize) -> Vec<usize> {
    let known = [1, 2, 4, 8].into_iter();
    let others = known.filter(|n| *n <= max && *n != default);
    std::iter::once(default).chain(others).collect()
}

fn apply(
    forward: &mut Forward,
    groups: &[Vec<usize>],
    buckets: &[Bucket],
) -> Result<(), CudaError> {
    for (first, bucket) in with_first_rows(buckets) {
        for choice in &bucket.projections {
            let Site { group, projection } = choice.site;
            let layers = &groups[group];
            let n_layers = if projection == Projection::LmHead {
                1
            } else {
                layers.len()
            };
            for layer in &layers[..n_layers] {
                forward.set_variant(projection, *layer, first..=bucket.rows, choice.variant)?;
            }
        }
        if let Some(splits) = &bucket.splits {
            forward.set_splits(first..=bucket.rows, splits.n_splits);
        }
    }
    Ok(())
}

/// State shared by the measurements.
struct Bench<'a> {
    stream: &'a Stream,
    read: ReadMemory,
    sink: Buffer<u32>,
    start: Event,
    end: Event,
}

impl<'a> Bench<'a> {
    fn new(stream: &'a Stream) -> Result<Self, CudaError> {
        let device = stream.device();
        Ok(Self {
            stream,
            read: ReadMemory::new(device)?,
            sink: Buffer::zeroed(stream, 1)?,
            start: Event::new(device)?,
            end: Event::new(device)?,
        })
    }

    fn bucket(
        &self,
        forward: &Forward,
        inputs: &mut Inputs,
        groups: &[Vec<usize>],
        sites: &[Site],
        rows: usize,
        context: usize,
    ) -> Result<Bucket, CudaError> {
        let mut projections = Vec::with_capacity(sites.len());
        for site in sites {
            let timed_us = self.projection(forward, &groups[site.group], site.projection, rows)?;
            projections.push(Choice {
                site: *site,
                variant: fastest(&timed_us).ok_or_else(|| no_candidate(rows))?,
                timed_us,
            });
        }
        for i in 1..projections.len() {
            if projections[i].site.projection == Projection::Down {
                let (gate_up, down) = (&projections[i - 1].timed_us, &projections[i].timed_us);
                let pair = fastest_pair(gate_up, down).ok_or_else(|| no_candidate(rows))?;
                (projections[i - 1].variant, projections[i].variant) = pair;
            }
        }
        Ok(Bucket {
            rows,
            projections,
            splits: self.splits(forward, inputs, rows, context)?,
        })
    }

    fn projection(
        &self,
        forward: &Forward,
        layers: &[usize],
        projection: Projection,
        rows: usize,
    ) -> Result<Vec<(Variant, f64)>, CudaError> {
        let candidates = forward.linear(projection, layers[0]).candidates(rows)?;
        // There is only one head; launched twice, a small one would be in the cache.
        let n_launches = if projection == Projection::LmHead {
            1
        } else {
            LAUNCHES
        };
        self.time(forward, &candidates, n_launches, |variant, i| {
            let layer = layers[i % layers.len()];
            forward.launch_projection(self.stream, projection, layer, rows, variant)
        })
    }

    /// Times decode attention over sequences of `context` tokens, each with its own pages.
    fn splits(
        &self,
        forward: &Forward,
        inputs: &mut Inputs,
        rows: usize,
        context: usize,
    ) -> Result<Option<Splits>, CudaError> {
        let candidates = split_candidates(forward.n_splits(rows), forward.max_splits());
        if context == 0 || candidates.len() < 2 {
            return Ok(None);
        }
        let n_pages = context / PAGE_TOKENS;
        let pages: Vec<PageIdx> = (0..(rows * n_pages) as u32).map(PageIdx).collect();
        let sequences: Vec<SequenceTokens<'_>> = pages
            .chunks_exact(n_pages)
            .map(|pages| SequenceTokens {
                tokens: &[0],
                start: context - 1,
                pages,
            })
            .collect();
        inputs.upload(self.stream, &sequences, rows, &[])?;
        self.stream.synchronize()?;
        let n_layers = forward.n_layers();
        let timed_us = self.time(forward, &candidates, LAUNCHES, |n_splits, i| {
            forward.launch_decode_attention(self.stream, inputs, i % n_layers, rows, n_splits)
        })?;
        Ok(fastest(&timed_us).map(|n_splits| Splits { n_splits, timed_us }))
    }

    /// The fastest replay of each candidate, in microseconds for each launch. `launch` gets the
    /// candidate and the index of the launch.
    fn time<T: Copy>(
        &self,
        forward: &Forward,
        candidates: &[T],
        n_launches: usize,
        launch: impl Fn(T, usize) -> Result<(), CudaError>,
    ) -> Result<Vec<(T, f64)>, CudaError> {
        let stream = self.stream;
        let l2_bytes = stream.device().properties().l2_bytes;
        let mut graphs = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let graph = Graph::capture(stream, || {
                (0..n_launches).try_for_each(|i| launch(*candidate, i))
            })?;
            graph.upload(stream)?;
            graphs.push((graph, *candidate, f64::INFINITY));
        }
        for _ in 0..ROUNDS {
            for (graph, _, least_us) in &mut graphs {
                forward.push_weights_out(stream, &self.read, 2 * l2_bytes, self.sink.all())?;
                self.start.record(stream)?;
                graph.launch(stream)?;
                self.end.record(stream)?;
                let us = f64::from(self.end.elapsed_ms(&self.start)?) * 1e3 / n_launches as f64;
                *least_us = least_us.min(us);
            }
        }
        Ok(graphs.into_iter().map(|(_, c, us)| (c, us)).collect())
    }
}

fn no_candidate(rows: usize) -> CudaError {
    CudaError::from(kernels::KernelError::Value {
        op: "stream_linear",
        message: format!("there is nothing to time for {rows} rows"),
    })
}

/// Format and choices by rows, for the log: `AwqG128, 1 row: stream 132x1 stages 3 phases 1, 17 to
/// 24 rows: wgmma 24`. Without autotuning, the choice for one row stands for the rule.
pub(super) fn describe_linear(linear: &StreamLinear, tuned: Option<&Tuned>) -> String {
    let max_rows = tuned.map_or(1, |tuned| tuned.max_rows);
    let choices = by_rows(max_rows, |m| match linear.variant(m) {
        Ok(variant) => variant.to_string(),
        Err(error) => error.to_string(),
    });
    format!("{:?}, {choices}", linear.layout().format)
}

/// Splits of a context by rows, in the same form.
pub(super) fn describe_splits(forward: &Forward, tuned: &Tuned) -> String {
    by_rows(tuned.max_rows, |m| forward.n_splits(m).to_string())
}

/// The names for 1 to `max_rows` rows, with equal neighbours merged.
fn by_rows(max_rows: usize, name: impl Fn(usize) -> String) -> String {
    let mut runs: Vec<(usize, usize, String)> = Vec::new();
    for m in 1..=max_rows {
        let name = name(m);
        match runs.last_mut() {
            Some((_, last, known)) if *known == name => *last = m,
            _ => runs.push((m, m, name)),
        }
    }
    let runs: Vec<String> = runs
        .into_iter()
        .map(|(first, last, name)| match (first, last) {
            (1, 1) => format!("1 row: {name}"),
            _ if first == last => format!("{first} rows: {name}"),
            _ => format!("{first} to {last} rows: {name}"),
        })
        .collect();
    runs.join(", ")
}
