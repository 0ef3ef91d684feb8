//! Experts on a GPU against f64.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

#[path = "../stream_linear/tests_cuda/case.rs"]
mod case;

use gpu::{Buffer, Graph};
use kernels::cuda::{Element, ElementBuffer};
use kernels::experts::cuda::{ExpertBuffers, ExpertWeights, Experts, ExpertsShape};
use kernels::experts::{Choice, reference};
use kernels::stream_linear::{Arrangement, Format};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::case::{Case, Gpu, gpu, random_case};

const EPS: f32 = 1e-6;

/// Of the largest of some 10^5 sums, each of products of weights and gated values that are rounded once.
fn limit(element: Element) -> f64 {
    match element {
        Element::F16 => 8e-3,
        Element::Bf16 => 6.4e-2,
    }
}

/// A layer of random experts.
struct Layer {
    shape: ExpertsShape,
    gate_up: Case,
    down: Case,
    norm: Vec<f32>,
    router: Vec<f32>,
    on_device: (ElementBuffer, ElementBuffer),
    experts: Experts,
    buffers: ExpertBuffers,
}

/// What a launch left on the device.
#[derive(PartialEq)]
struct Made {
    h: Vec<f32>,
    x: Vec<f32>,
    experts: Vec<i32>,
    weights: Vec<f32>,
}

impl Layer {
    fn random(
        gpu: &Gpu,
        rng: &mut StdRng,
        shape: ExpertsShape,
        format: Format,
        max_tokens: usize,
    ) -> Self {
        let (element, n) = (gpu.kernels.element(), shape.choice.n_experts);
        let mut case =
            |arrangement, parts: &[usize], k| random_case(gpu, rng, format, arrangement, parts, k);
        let gate_up = case(
            Arrangement::GateUp,
            &vec![shape.intermediate; 2 * n],
            shape.hidden,
        );
        let down = case(
            Arrangement::Stacked,
            &vec![shape.hidden; n],
            shape.intermediate,
        );
        let mut values = |n: usize, most: f32| -> Vec<f32> {
            (0..n)
                .map(|_| element.round(rng.random_range(-most..most)))
                .collect()
        };
        let norm = values(shape.hidden, 1.5);
        let router = values(n * shape.hidden, 0.1);
        let upload =
            |values: &[f32]| ElementBuffer::from_f32(&gpu.stream, element, values).unwrap();
        Self {
            on_device: (upload(&norm), upload(&router)),
            experts: Experts::new(&gpu.device, element, shape, &[format]).unwrap(),
            buffers: ExpertBuffers::new(&gpu.stream, element, &shape, max_tokens).unwrap(),
            shape,
            gate_up,
            down,
            norm,
            router,
        }
    }

    fn weights(&self) -> ExpertWeights<'_> {
        ExpertWeights {
            norm: self.on_device.0.all(),
            router: self.on_device.1.all(),
            gate_up: &self.gate_up.linear,
            down: &self.down.linear,
        }
    }

    fn launched(&self, gpu: &Gpu, h: &[f32]) -> Made {
        let m = h.len() / self.shape.hidden;
        let (stream, on_device) = (&gpu.stream, Buffer::from_slice(&gpu.stream, h).unwrap());
        self.experts
            .launch(
                stream,
                on_device.all(),
                &self.weights(),
                &self.buffers,
                m,
                EPS,
            )
            .unwrap();
        self.made(gpu, &on_device, m)
    }

    fn made(&self, gpu: &Gpu, h: &Buffer<f32>, m: usize) -> Made {
        let (stream, element) = (&gpu.stream, gpu.kernels.element());
        let n = m * self.shape.choice.n_active;
        let x = self.buffers.x().words().download(stream).unwrap();
        let stride = self.shape.hidden.next_multiple_of(256);
        let x = x.chunks(stride).take(m).flat_map(|row| {
            let row = row[..self.shape.hidden].iter();
            row.map(|bits| element.value(*bits))
        });
        Made {
            h: h.download(stream).unwrap(),
            x: x.collect(),
            experts: self
                .buffers
                .experts()
                .view(0..n)
                .unwrap()
                .download(stream)
                .unwrap(),
            weights: self
                .buffers
                .weights()
                .view(0..n)
                .unwrap()
                .download(stream)
                .unwrap(),
        }
    }

    fn hidden_rows(&self, rng: &mut StdRng, m: usize) -> Vec<f32> {
        (0..m * self.shape.hidden)
            .map(|_| rng.random_range(-3.0..3.0))
            .collect()
    }

    /// The normalised row in f64.
    fn normalised(&self, h: &[f32]) -> Vec<f64> {
        let squares: f64 = h.iter().map(|v| f64::from(*v).powi(2)).sum();
        let r = 1.0 / (squares / h.len() as f64 + f64::from(EPS)).sqrt();
        let pairs = h.iter().zip(&self.norm);
        pairs
            .map(|(h, w)| f64::from(*h) * r * f64::from(*w))
            .collect()
    }

    fn logits(&self, x: &[f32]) -> Vec<f32> {
        let dot = |row: &[f32]| -> f64 {
            row.iter()
                .zip(x)
                .map(|(w, x)| f64::from(*w) * f64::from(*x))
                .sum()
        };
        let rows = self.router.chunks_exact(self.shape.hidden);
        rows.map(|row| dot(row) as f32).collect()
    }

    /// What an expert makes of a row.
    fn of_expert(&self, expert: usize, x: &[f32]) -> Vec<f64> {
        let (hidden, width) = (self.shape.hidden, self.shape.intermediate);
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let product = |w: &[f64], x: &[f64], n: usize| -> Vec<f64> {
            let rows = w.chunks_exact(x.len()).take(n);
            rows.map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
                .collect()
        };
        let gate = product(&self.gate_up.weights[2 * expert], &x, width);
        let up = product(&self.gate_up.weights[2 * expert + 1], &x, width);
        let gated = gate.iter().zip(up);
        let gated: Vec<f64> = gated.map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        product(&self.down.weights[expert], &gated, hidden)
    }

    /// Compares every number of a launch; the largest error of a sum, relative to its row's mean square.
    fn largest_error(&self, element: Element, h: &[f32], made: &Made) -> f64 {
        let (hidden, choice) = (self.shape.hidden, self.shape.choice);
        let n_active = choice.n_active;
        let of_element = if element == Element::F16 { 1e-3 } else { 8e-3 };
        let mut largest: f64 = 0.0;
        for (token, h) in h.chunks_exact(hidden).enumerate() {
            let x = &made.x[token * hidden..][..hidden];
            for (x, expected) in x.iter().zip(self.normalised(h)) {
                let error = (f64::from(*x) - expected).abs();
                assert!(
                    error <= of_element * (expected.abs() + 1e-3),
                    "token {token}: {x} for {expected}"
                );
            }
            let found = &made.experts[token * n_active..][..n_active];
            let weights = &made.weights[token * n_active..][..n_active];
            let expected = reference::choose(&self.logits(x), choice);
            for ((expert, weight), (found, found_weight)) in
                expected.iter().zip(found.iter().zip(weights))
            {
                assert_eq!(*found, *expert as i32, "token {token}");
                let error = (f64::from(*found_weight) - weight).abs();
                assert!(
                    error <= 1e-4 * weight,
                    "token {token}: {found_weight} for {weight}"
                );
            }
            let mut sum = vec![0.0; hidden];
            for (expert, weight) in &expected {
                let of_expert = self.of_expert(*expert as usize, x);
                sum.iter_mut()
                    .zip(of_expert)
                    .for_each(|(sum, y)| *sum += weight * y);
            }
            let scale = (sum.iter().map(|y| y * y).sum::<f64>() / hidden as f64).sqrt();
            for (column, sum) in sum.iter().enumerate() {
                let found = f64::from(made.h[token * hidden + column]);
                let error = (found - f64::from(h[column]) - sum).abs() / scale;
                largest = if error < largest { largest } else { error };
            }
        }
        largest
    }
}

/// Widths that fill neither a chunk of k nor a block's columns.
fn small(n_experts: usize, n_active: usize, normalise: bool) -> ExpertsShape {
    ExpertsShape {
        hidden: 384,
        intermediate: 128,
        choice: Choice {
            n_experts,
            n_active,
            normalise,
        },
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn every_format_agrees_with_f64() {
    let mut rng = StdRng::seed_from_u64(31);
    for element in Element::ALL {
        let gpu = gpu(element);
        for format in Format::ALL
            .into_iter()
            .filter(|format| format.has_element(element))
        {
            let layer = Layer::random(&gpu, &mut rng, small(6, 2, true), format, 300);
            for m in [1, 2, 8, 9, 24, 25, 70, 300] {
                let h = layer.hidden_rows(&mut rng, m);
                let error = layer.largest_error(element, &h, &layer.launched(&gpu, &h));
                assert!(
                    error < limit(element),
                    "{element:?} {format:?}, {m} tokens: {error}"
                );
            }
        }
    }
}

/// The shape of Qwen3-30B-A3B with fewer experts, and choices of other sizes.
#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn other_shapes_and_choices_agree_with_f64() {
    let mut rng = StdRng::seed_from_u64(32);
    let gpu = gpu(Element::F16);
    let served = ExpertsShape {
        hidden: 2048,
        intermediate: 768,
        ..small(16, 8, true)
    };
    let shapes = [
        served,
        small(1, 1, false),
        small(33, 10, false),
        small(128, 8, true),
        ExpertsShape {
            hidden: 1056,
            intermediate: 144,
            ..small(5, 3, true)
        },
    ];
    for shape in shapes {
        let format = if shape.hidden % 128 == 0 {
            Format::AwqG128
        } else {
            Format::Half
        };
        let layer = Layer::random(&gpu, &mut rng, shape, format, 150);
        for m in [1, 5, 20, 150] {
            let h = layer.hidden_rows(&mut rng, m);
            let error = layer.largest_error(Element::F16, &h, &layer.launched(&gpu, &h));
            assert!(
                error < limit(Element::F16),
                "{shape:?}, {m} tokens: {error}"
            );
        }
    }
}

/// Bits do not depend on the run, on a graph, or on what other tokens are in the batch (as long as it is multiplied by
/// the same kernel).
#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn a_tokens_bits_are_its_own() {
    let mut rng = StdRng::seed_from_u64(33);
    let gpu = gpu(Element::F16);
    let layer = Layer::random(&gpu, &mut rng, small(32, 4, true), Format::AwqG128, 300);
    let hidden = layer.shape.hidden;
    for m in [40, 300] {
        let h = layer.hidden_rows(&mut rng, m);
        let all = layer.launched(&gpu, &h);
        for _ in 0..20 {
            assert!(
                layer.launched(&gpu, &h) == all,
                "{m} tokens: another run, other bits"
            );
        }
        let on_device = Buffer::from_slice(&gpu.stream, &h).unwrap();
        let graph = Graph::capture(&gpu.stream, || {
            let weights = layer.weights();
            layer.experts.launch(
                &gpu.stream,
                on_device.all(),
                &weights,
                &layer.buffers,
                m,
                EPS,
            )
        })
        .unwrap();
        graph.launch(&gpu.stream).unwrap();
        assert!(
            layer.made(&gpu, &on_device, m) == all,
            "{m} tokens: a graph has other bits"
        );
        for (first, n) in [(0, 1), (7, 1), (3, 9), (m - 20, 20)] {
            // Of 300 tokens an expert's places are multiplied by the other kernel.
            if m == 300 {
                continue;
            }
            let part = layer.launched(&gpu, &h[first * hidden..][..n * hidden]);
            assert!(
                part.h == all.h[first * hidden..][..n * hidden],
                "{n} of {m} tokens"
            );
        }
    }
}

/// A row that is not finite spoils itself alone, whichever experts it is sent to.
#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn a_broken_row_is_alone() {
    let mut rng = StdRng::seed_from_u64(34);
    let gpu = gpu(Element::F16);
    let layer = Layer::random(&gpu, &mut rng, small(8, 4, true), Format::AwqG128, 200);
    let hidden = layer.shape.hidden;
    for (m, broken) in [(1, 0), (12, 3), (200, 77)] {
        let mut h = layer.hidden_rows(&mut rng, m);
        let whole = layer.launched(&gpu, &h);
        for value in [f32::NAN, f32::INFINITY] {
            h[broken * hidden + 5] = value;
            let made = layer.launched(&gpu, &h);
            for (row, (found, expected)) in made
                .h
                .chunks_exact(hidden)
                .zip(whole.h.chunks_exact(hidden))
                .enumerate()
            {
                if row == broken {
                    assert!(found.iter().all(|v| v.is_nan()), "{m} tokens, {value}");
                } else {
                    assert!(found == expected, "row {row} of {m}, {value}");
                }
            }
        }
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn wrong_arguments_are_errors() {
    let mut rng = StdRng::seed_from_u64(35);
    let gpu = gpu(Element::F16);
    let layer = Layer::random(&gpu, &mut rng, small(6, 2, true), Format::AwqG128, 4);
    let h = Buffer::<f32>::zeroed(&gpu.stream, 4 * 384).unwrap();
    let launch = |weights: &ExpertWeights<'_>, m| {
        let launched = layer
            .experts
            .launch(&gpu.stream, h.all(), weights, &layer.buffers, m, EPS);
        launched.map_err(|error| error.to_string())
    };
    let weights = layer.weights();
    launch(&weights, 4).unwrap();
    assert!(
        launch(&weights, 0)
            .unwrap_err()
            .contains("number of tokens is 0")
    );
    assert!(
        launch(&weights, 5)
            .unwrap_err()
            .contains("number of tokens is 5")
    );
    let exchanged = ExpertWeights {
        gate_up: weights.down,
        down: weights.gate_up,
        ..weights
    };
    assert!(launch(&exchanged, 1).unwrap_err().contains("laid out as"));
    let short = ExpertWeights {
        router: weights.norm,
        ..weights
    };
    assert!(
        launch(&short, 1)
            .unwrap_err()
            .contains("length of router is 384")
    );
    let other = random_case(
        &gpu,
        &mut rng,
        Format::Half,
        Arrangement::Stacked,
        &[384; 6],
        128,
    );
    let other = ExpertWeights {
        down: &other.linear,
        ..weights
    };
    assert!(
        launch(&other, 1)
            .unwrap_err()
            .contains("no kernels for experts in Half")
    );
    let too_many = ExpertsShape {
        choice: Choice {
            n_experts: 1024,
            ..layer.shape.choice
        },
        ..layer.shape
    };
    let error = Experts::new(&gpu.device, Element::F16, too_many, &[Format::Half]);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("number of experts is 1024")
    );
    let error = Experts::new(&gpu.device, Element::Bf16, layer.shape, &[Format::Fp8]);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("no kernels with bf16")
    );
}
