use super::*;
use crate::linear::{self, LinearInput, LinearPart, LinearWeights};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub(super) fn pool() -> WorkerPool {
    WorkerPool::new(3).expect("pool")
}

/// Where a block has f16.
fn scales_of(format: BlockFormat) -> &'static [usize] {
    match format {
        BlockFormat::Q4_0
        | BlockFormat::Q5_0
        | BlockFormat::Q8_0
        | BlockFormat::Iq4Nl
        | BlockFormat::Iq4Xs => &[0],
        BlockFormat::Q2K => &[80, 82],
        BlockFormat::Q3K => &[108],
        BlockFormat::Q6K => &[208],
        BlockFormat::Mxfp4 => &[],
        BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4K | BlockFormat::Q5K => &[0, 2],
    }
}

/// Random block bytes with scales in a sane range.
fn random_blocks(format: BlockFormat, n_blocks: usize, rng: &mut StdRng) -> Vec<u8> {
    let scale_at = scales_of(format);
    let mut bytes = Vec::new();
    for _ in 0..n_blocks {
        let mut block: Vec<u8> = (0..format.block_bytes()).map(|_| rng.random()).collect();
        for at in scale_at {
            let scale = f16::from_f32(rng.random_range(-0.02..0.02));
            block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
        if format == BlockFormat::Mxfp4 {
            block[0] = rng.random_range(115..125);
        }
        bytes.extend(block);
    }
    bytes
}

pub(super) fn random_vector(n: usize, rng: &mut StdRng) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn random_matrix(
    pool: &mut WorkerPool,
    format: BlockFormat,
    n_out: usize,
    n_in: usize,
    rng: &mut StdRng,
) -> QuantMatrix {
    let bytes = random_blocks(format, n_out * n_in / format.block_len(), rng);
    QuantMatrix::pack(
        pool,
        &mut Arena::default(),
        n_out,
        n_in,
        QuantSource::Blocks {
            format,
            bytes: &bytes,
        },
    )
    .expect("pack")
}

fn run(
    pool: &mut WorkerPool,
    isa: Isa,
    w: QuantMatrix,
    x: &[f32],
    int8: Option<&QuantActivations>,
) -> (Vec<f32>, QuantMatrix) {
    let n_tokens = x.len() / w.n_in();
    let mut y = vec![f32::NAN; n_tokens * w.n_out()];
    let weights = LinearWeights::Quant(w);
    let part = LinearPart {
        weights: &weights,
        tokens: 0..n_tokens,
        y: &mut y,
        accumulate: false,
        bias: None,
    };
    linear::forward(pool, isa, n_tokens, LinearInput { x, int8 }, &mut [part]).expect("forward");
    match weights {
        LinearWeights::Quant(w) => (y, w),
        LinearWeights::Dense(_) => unreachable!("made above"),
    }
}

pub(super) const TERMS: [Terms; 2] = [Terms::One, Terms::Two];

fn quantized(
    pool: &mut WorkerPool,
    isa: Isa,
    x: &[f32],
    n_in: usize,
    terms: Terms,
) -> QuantActivations {
    let mut int8 = QuantActivations::default();
    int8.quantize(pool, isa, x, n_in, terms).expect("quantize");
    int8
}

/// Products with integers in either number of terms, and with f32, compared with the reference on
/// the same inputs.
fn check_products(
    pool: &mut WorkerPool,
    isa: Isa,
    mut w: QuantMatrix,
    x: &[f32],
    what: &str,
) -> QuantMatrix {
    for terms in TERMS {
        let int8 = quantized(pool, isa, x, w.n_in(), terms);
        let expected = reference::forward(&w, &int8.dequantize()).expect("reference");
        let (y, back) = run(pool, isa, w, x, Some(&int8));
        assert_close(&y, &expected, &format!("int8, {terms:?}, {isa:?}, {what}"));
        w = back;
    }
    let expected = reference::forward(&w, x).expect("reference");
    let (y, w) = run(pool, isa, w, x, None);
    assert_close(&y, &expected, &format!("f32, {isa:?}, {what}"));
    w
}

/// The same for random inputs of these numbers of tokens, on every instruction set.
pub(super) fn check_batches(
    pool: &mut WorkerPool,
    mut w: QuantMatrix,
    n_tokens: &[usize],
    rng: &mut StdRng,
    what: &str,
) {
    for n in n_tokens {
        let x = random_vector(n * w.n_in(), rng);
        for isa in Isa::available() {
            w = check_products(pool, isa, w, &x, &format!("{what} tokens {n}"));
        }
    }
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1e-6f32, |m, e| m.max(e.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f - e).abs() <= 2e-5 * scale,
            "{what}, element {i}: {f} vs {e}"
        );
    }
}

#[test]
fn every_format_agrees_with_the_reference_on_every_instruction_set() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut pool = pool();
    for format in BlockFormat::ALL {
        for (n_out, blocks_per_row) in [(1, 1), (16, 2), (37, 3), (100, 1)] {
            let n_in = format.block_len() * blocks_per_row;
            let w = random_matrix(&mut pool, format, n_out, n_in, &mut rng);
            check_batches(
                &mut pool,
                w,
                &[1, 2, 3, 7, 15, 17],
                &mut rng,
                &format!("{format:?} {n_out}x{n_in}"),
            );
        }
    }
}

/// The largest products possible in the integer paths.
#[test]
fn extreme_codes_do_not_saturate() {
    let mut pool = pool();
    let n_in = 256;
    for format in BlockFormat::ALL {
        for fill in [0x00, 0x7f, 0x80, 0xff] {
            let mut bytes = vec![fill; 16 * n_in / format.block_len() * format.block_bytes()];
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                let one = f16::from_f32(0.25).to_le_bytes();
                for at in scales_of(format) {
                    block[*at..at + 2].copy_from_slice(&one);
                }
                if format == BlockFormat::Mxfp4 {
                    // Of 0x7f the two halves cancel.
                    block[0] = 107;
                }
            }
            let source = QuantSource::Blocks {
                format,
                bytes: &bytes,
            };
            let mut w = QuantMatrix::pack(&mut pool, &mut Arena::default(), 16, n_in, source)
                .expect("pack");
            for sign in [1.0, -1.0] {
                let x = vec![sign; n_in];
                for isa in Isa::available() {
                    let what = format!("{format:?} {fill:#x} {sign}");
                    w = check_products(&mut pool, isa, w, &x, &what);
                }
            }
        }
    }
}

#[test]
fn a_token_does_not_see_its_neighbours_nor_the_number_of_threads() {
    let mut rng = StdRng::seed_from_u64(2);
    let mut pools = [1, 2, 3].map(|n| WorkerPool::new(n).expect("pool"));
    let n_in = 512;
    for isa in Isa::available() {
        let mut w = random_matrix(&mut pools[2], BlockFormat::Q4_1, 50, n_in, &mut rng);
        let x = random_vector(13 * n_in, &mut rng);
        for terms in [Some(Terms::One), Some(Terms::Two), None] {
            let mut results = Vec::new();
            for pool in &mut pools {
                let int8 = terms.map(|terms| quantized(pool, isa, &x, n_in, terms));
                let (together, back) = run(pool, isa, w, &x, int8.as_ref());
                w = back;
                let mut alone = Vec::new();
                for x in x.chunks_exact(n_in) {
                    let int8 = terms.map(|terms| quantized(pool, isa, x, n_in, terms));
                    let (y, back) = run(pool, isa, w, x, int8.as_ref());
                    w = back;
                    alone.extend(y);
                }
                results.extend([together, alone]);
            }
            for y in &results[1..] {
                assert_eq!(*y, results[0], "{isa:?}, {terms:?}");
            }
        }
    }
}

/// Largest value of each 16.
fn largest_of_groups(x: &[f32]) -> Vec<f64> {
    x.chunks_exact(ACTIVATION_GROUP)
        .map(|group| f64::from(group.iter().fold(0.0f32, |m, v| m.max(v.abs()))))
        .collect()
}

/// Maximum error of one activation as a share of the largest of its group: half a step of the last
/// term, and f32's rounding of scales and remainders.
fn activation_limit(terms: Terms) -> f64 {
    let rounding = 2.0 * f64::from(f32::EPSILON);
    match terms {
        Terms::One => 1.0 / 254.0 + rounding,
        Terms::Two => 1.0 / (254.0 * 254.0) + rounding,
    }
}

/// Random values, with an outlier in one group, a group of zeros, one with a single value and one
/// that is too small for a scale.
fn varied_vector(n: usize, rng: &mut StdRng) -> Vec<f32> {
    let mut x = random_vector(n, rng);
    x[3] = -300.0;
    x[16..32].fill(0.0);
    x[32..48].fill(0.7);
    x[48..64].fill(1e-36);
    x
}

#[test]
fn two_terms_lose_a_254th_of_what_one_loses() {
    let mut rng = StdRng::seed_from_u64(6);
    let mut pool = pool();
    let n_in = 320;
    let x = varied_vector(5 * n_in, &mut rng);
    let largest = largest_of_groups(&x);
    for isa in Isa::available() {
        let mut errors = [0.0f64; 2];
        for (terms, error) in TERMS.into_iter().zip(&mut errors) {
            let found = quantized(&mut pool, isa, &x, n_in, terms).dequantize();
            assert_eq!(found.len(), x.len());
            for (i, (found, x)) in found.iter().zip(&x).enumerate() {
                let off = (f64::from(*found) - f64::from(*x)).abs();
                let limit = activation_limit(terms) * largest[i / ACTIVATION_GROUP];
                assert!(
                    off <= limit + 1e-28,
                    "{terms:?}, {isa:?}, element {i}: {x} became {found}"
                );
                *error += off * off;
            }
        }
        let ratio = (errors[0] / errors[1]).sqrt();
        assert!(ratio >= 150.0, "{isa:?}: {ratio} times less error");
    }
}

/// Compared with the exact product in f64, not that of the rounded inputs.
#[test]
fn products_of_two_terms_are_as_exact_as_their_inputs() {
    let mut rng = StdRng::seed_from_u64(7);
    let mut pool = pool();
    for format in BlockFormat::ALL {
        let (n_out, n_in) = (37, 512);
        let mut w = random_matrix(&mut pool, format, n_out, n_in, &mut rng);
        let mut weights = vec![0.0; n_out * n_in];
        for (row, out) in weights.chunks_exact_mut(n_in).enumerate() {
            w.dequantize_row(row, out).expect("row");
        }
        for n_tokens in [1, 2, 3, 4, 5, 9] {
            let x = varied_vector(n_tokens * n_in, &mut rng);
            for (isa, terms) in Isa::available()
                .into_iter()
                .flat_map(|isa| TERMS.map(|terms| (isa, terms)))
            {
                let int8 = quantized(&mut pool, isa, &x, n_in, terms);
                let (y, back) = run(&mut pool, isa, w, &x, Some(&int8));
                w = back;
                let rows = y.chunks_exact(n_out).zip(x.chunks_exact(n_in));
                for (token, (y, x)) in rows.enumerate() {
                    let largest = largest_of_groups(x);
                    for (found, weights) in y.iter().zip(weights.chunks_exact(n_in)) {
                        let (mut exact, mut limit, mut size) = (0.0, 1e-28, 0.0);
                        for (k, (w, x)) in weights.iter().zip(x).enumerate() {
                            let (w, x) = (f64::from(*w), f64::from(*x));
                            exact += w * x;
                            size += (w * x).abs();
                            limit +=
                                activation_limit(terms) * w.abs() * largest[k / ACTIVATION_GROUP];
                        }
                        // Codes and offsets are summed separately, which may cost f32 some digits.
                        limit += 4e-6 * size;
                        let off = (f64::from(*found) - exact).abs();
                        assert!(
                            off <= limit,
                            "{format:?}, {terms:?}, {isa:?}, token {token} of {n_tokens}: {found} \
                             instead of {exact}, limit {limit}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn parts_biases_and_accumulation() {
    let mut rng = StdRng::seed_from_u64(3);
    let mut pool = pool();
    let (n_in, n_tokens) = (64, 5);
    let sizes = [40, 3, 16];
    let weights = sizes.map(|n| {
        LinearWeights::Quant(random_matrix(
            &mut pool,
            BlockFormat::Q8_0,
            n,
            n_in,
            &mut rng,
        ))
    });
    let x = random_vector(n_tokens * n_in, &mut rng);
    let biases = sizes.map(|n| random_vector(n, &mut rng));
    let before = sizes.map(|n| random_vector(n * n_tokens, &mut rng));
    let mut y = before.clone();
    let mut parts: Vec<_> = weights
        .iter()
        .zip(&mut y)
        .zip(&biases)
        .map(|((weights, y), bias)| LinearPart {
            weights,
            tokens: 0..n_tokens,
            y,
            accumulate: true,
            bias: Some(bias),
        })
        .collect();
    let input = LinearInput { x: &x, int8: None };
    linear::forward(&mut pool, Isa::detect(), n_tokens, input, &mut parts).expect("forward");
    for i in 0..sizes.len() {
        let LinearWeights::Quant(w) = &weights[i] else {
            unreachable!("made above")
        };
        let mut expected = reference::forward(w, &x).expect("reference");
        for (j, e) in expected.iter_mut().enumerate() {
            *e += before[i][j] + biases[i][j % sizes[i]];
        }
        assert_close(&y[i], &expected, &format!("part {i}"));
    }
}

/// Parts of some of the input's tokens, in 8 bits and in f32, have the bits that these tokens have
/// alone, whatever else is in the region.
#[test]
fn parts_of_some_tokens_are_those_of_these_tokens_alone() {
    let (mut pool, mut rng) = (WorkerPool::new(3).expect("pool"), StdRng::seed_from_u64(11));
    let (n_in, n_tokens) = (96, 21);
    let ranges = [0..1, 1..1, 1..10, 5..21, 20..21];
    let sizes = [40, 16, 33, 5, 64];
    let weights = sizes.map(|n| {
        LinearWeights::Quant(random_matrix(
            &mut pool,
            BlockFormat::Q4_0,
            n,
            n_in,
            &mut rng,
        ))
    });
    let x = random_vector(n_tokens * n_in, &mut rng);
    for isa in Isa::available() {
        for is_int8 in [false, true] {
            let whole = quantized(&mut pool, isa, &x, n_in, Terms::One);
            let mut y: Vec<Vec<f32>> = ranges
                .iter()
                .zip(sizes)
                .map(|(range, n_out)| vec![f32::NAN; range.len() * n_out])
                .collect();
            let mut parts: Vec<_> = weights
                .iter()
                .zip(&mut y)
                .zip(&ranges)
                .map(|((weights, y), tokens)| LinearPart {
                    weights,
                    tokens: tokens.clone(),
                    y,
                    accumulate: false,
                    bias: None,
                })
                .collect();
            let int8 = is_int8.then_some(&whole);
            let input = LinearInput { x: &x, int8 };
            linear::forward(&mut pool, isa, n_tokens, input, &mut parts).expect("forward");
            for (i, range) in ranges.iter().enumerate() {
                let x = &x[range.start * n_in..range.end * n_in];
                let own = quantized(&mut pool, isa, x, n_in, Terms::One);
                let mut alone = vec![f32::NAN; y[i].len()];
                let part = LinearPart {
                    weights: &weights[i],
                    tokens: 0..range.len(),
                    y: &mut alone,
                    accumulate: false,
                    bias: None,
                };
                let int8 = is_int8.then_some(&own);
                let input = LinearInput { x, int8 };
                linear::forward(&mut pool, isa, range.len(), input, &mut [part]).expect("forward");
                assert_eq!(y[i], alone, "{isa:?} int8 {is_int8} part {i}");
            }
        }
    }
    let part = LinearPart {
        weights: &weights[0],
        tokens: 20..22,
        y: &mut [0.0; 80],
        accumulate: false,
        bias: None,
    };
    let input = LinearInput { x: &x, int8: None };
    let refused = linear::forward(&mut pool, Isa::Portable, n_tokens, input, &mut [part]);
    assert!(refused.expect_err("refused").to_string().contains("22"));
}
