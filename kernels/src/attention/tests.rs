use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

struct Case {
    kv: KvPages,
    /// First packed token, number of tokens, start, pages.
    sequences: Vec<(usize, usize, usize, Vec<u32>)>,
    q: Vec<f32>,
}

fn random(n: usize, rng: &mut StdRng) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.5..1.5)).collect()
}

const FORMATS: [KvFormat; 2] = [KvFormat::F16, KvFormat::Fp8E4m3];

/// Sequences of (start, n_tokens) with shuffled pages, and keys and values for every position.
fn case(
    shape: AttentionShape,
    format: KvFormat,
    lengths: &[(usize, usize)],
    pool: &mut WorkerPool,
) -> Case {
    let mut rng = StdRng::seed_from_u64(5);
    let n_pages: usize = lengths
        .iter()
        .map(|(s, n)| (s + n).div_ceil(PAGE_TOKENS))
        .sum();
    let mut free: Vec<u32> = (0..n_pages as u32 + 3).collect();
    let mut kv = KvPages::new(shape, free.len(), format).expect("kv");
    let mut sequences = Vec::new();
    let mut first = 0;
    let width = shape.n_kv_heads * shape.head_dim;
    for (start, n_tokens) in lengths {
        let total = start + n_tokens;
        let pages: Vec<u32> = (0..total.div_ceil(PAGE_TOKENS))
            .map(|_| free.swap_remove(rng.random_range(0..free.len())))
            .collect();
        let slots: Vec<Slot> = (0..total)
            .map(|p| Slot {
                page: pages[p / PAGE_TOKENS],
                slot: (p % PAGE_TOKENS) as u32,
            })
            .collect();
        let (k, v) = (
            random(total * width, &mut rng),
            random(total * width, &mut rng),
        );
        kv.store(pool, Isa::detect(), &slots, &k, &v)
            .expect("store");
        sequences.push((first, *n_tokens, *start, pages));
        first += n_tokens;
    }
    let q = random(first * shape.n_q_heads * shape.head_dim, &mut rng);
    Case { kv, sequences, q }
}

fn views(sequences: &[(usize, usize, usize, Vec<u32>)]) -> Vec<Sequence<'_>> {
    sequences
        .iter()
        .map(|(first, n_tokens, start, pages)| Sequence {
            first: *first,
            n_tokens: *n_tokens,
            start: *start,
            pages,
        })
        .collect()
}

fn run(pool: &mut WorkerPool, isa: Isa, case: &Case, sequences: &[Sequence<'_>]) -> Vec<f32> {
    let mut plan = AttentionPlan::default();
    plan.prepare(case.kv.shape(), sequences, pool.n_threads())
        .expect("plan");
    let mut out = vec![0.0; case.q.len()];
    forward(pool, isa, &case.kv, &plan, sequences, &case.q, &mut out).expect("forward");
    out
}

#[test]
fn ragged_batches_agree_with_the_reference_on_every_instruction_set() {
    let mut pool = WorkerPool::new(3).expect("pool");
    for (n_q_heads, n_kv_heads, head_dim) in [(1, 1, 16), (4, 2, 32), (9, 3, 64), (6, 1, 80)] {
        let shape = AttentionShape {
            n_q_heads,
            n_kv_heads,
            head_dim,
        };
        for lengths in [
            &[(0, 1)][..],
            &[(15, 1), (16, 1), (300, 1)],
            &[(0, 37), (5, 1), (120, 20), (0, 16)],
            &[(0, 150)],
        ] {
            for format in FORMATS {
                let case = case(shape, format, lengths, &mut pool);
                let sequences = views(&case.sequences);
                let expected = reference::forward(&case.kv, &sequences, &case.q);
                for isa in Isa::available() {
                    let found = run(&mut pool, isa, &case, &sequences);
                    for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
                        assert!(
                            (f - e).abs() <= 1e-5,
                            "{shape:?} {format:?} {lengths:?} {isa:?} at {i}: {f} {e}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_reference_is_the_same_on_threads_and_refuses_what_is_outside() {
    let mut pool = WorkerPool::new(3).expect("pool");
    let shape = AttentionShape {
        n_q_heads: 6,
        n_kv_heads: 2,
        head_dim: 32,
    };
    for format in FORMATS {
        let case = case(shape, format, &[(0, 37), (5, 1), (40, 3)], &mut pool);
        let sequences = views(&case.sequences);
        let mut out = vec![0.0; case.q.len()];
        reference::forward_on(&mut pool, &case.kv, &sequences, &case.q, &mut out).expect("runs");
        assert_eq!(out, reference::forward(&case.kv, &sequences, &case.q));
        let mut wrong = sequences[0];
        wrong.start += 100;
        let run = reference::forward_on(&mut pool, &case.kv, &[wrong], &case.q, &mut out);
        assert!(run.is_err_and(|error| error.to_string().contains("pages")));
        let far = [1000; 3];
        let wrong = Sequence {
            pages: &far,
            ..sequences[0]
        };
        assert!(reference::forward_on(&mut pool, &case.kv, &[wrong], &case.q, &mut out).is_err());
    }
}

#[test]
fn a_copied_page_holds_the_same_and_the_others_stay() {
    let mut pool = WorkerPool::new(1).expect("pool");
    let shape = AttentionShape {
        n_q_heads: 4,
        n_kv_heads: 2,
        head_dim: 32,
    };
    for format in FORMATS {
        let case = case(shape, format, &[(0, 48)], &mut pool);
        let sequences = views(&case.sequences);
        let expected = run(&mut pool, Isa::detect(), &case, &sequences);
        // Out to another pool in another order, and back to different pages.
        let mut host = KvPages::new(shape, 4, format).expect("pages");
        let mut back = KvPages::new(shape, 9, format).expect("pages");
        let places = [7u32, 2, 5];
        for (i, page) in sequences[0].pages.iter().enumerate() {
            host.copy_page(3 - i as u32, &case.kv, *page).expect("out");
            back.copy_page(places[i], &host, 3 - i as u32)
                .expect("back");
        }
        let moved = Case {
            kv: back,
            sequences: vec![(0, 48, 0, places.to_vec())],
            q: case.q.clone(),
        };
        let found = run(&mut pool, Isa::detect(), &moved, &views(&moved.sequences));
        assert_eq!(found, expected, "{format:?}");
        assert!(host.copy_page(4, &case.kv, 0).is_err(), "outside");
        let other = AttentionShape {
            n_kv_heads: 4,
            ..shape
        };
        let other = KvPages::new(other, 4, format).expect("pages");
        let copied = host.copy_page(0, &other, 0);
        assert!(copied.is_err_and(|error| error.to_string().contains("are not those of")));
    }
}

#[test]
fn a_query_does_not_see_its_neighbours() {
    let mut pool = WorkerPool::new(2).expect("pool");
    let shape = AttentionShape {
        n_q_heads: 6,
        n_kv_heads: 2,
        head_dim: 32,
    };
    for (format, isa) in FORMATS
        .into_iter()
        .flat_map(|format| Isa::available().into_iter().map(move |isa| (format, isa)))
    {
        let case = case(shape, format, &[(0, 200)], &mut pool);
        let whole = views(&case.sequences);
        let together = run(&mut pool, isa, &case, &whole);
        let one_by_one: Vec<Sequence<'_>> = (0..200)
            .map(|t| Sequence {
                first: t,
                n_tokens: 1,
                start: t,
                pages: whole[0].pages,
            })
            .collect();
        for sequence in one_by_one.iter().step_by(13) {
            let alone = run(&mut pool, isa, &case, &[*sequence]);
            let range = sequence.first * 6 * 32..(sequence.first + 1) * 6 * 32;
            assert_eq!(
                alone[range.clone()],
                together[range],
                "{isa:?} {}",
                sequence.first
            );
        }
    }
}

#[test]
fn large_scores_stay_finite() {
    let mut pool = WorkerPool::new(1).expect("pool");
    let shape = AttentionShape {
        n_q_heads: 1,
        n_kv_heads: 1,
        head_dim: 16,
    };
    let mut case = case(shape, KvFormat::F16, &[(40, 1)], &mut pool);
    case.q.fill(3e4);
    let sequences = views(&case.sequences);
    let expected = reference::forward(&case.kv, &sequences, &case.q);
    for isa in Isa::available() {
        let found = run(&mut pool, isa, &case, &sequences);
        for (f, e) in found.iter().zip(&expected) {
            assert!((f - e).abs() <= 1e-3, "{isa:?}: {f} {e}");
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let mut pool = WorkerPool::new(2).expect("pool");
    let isa = Isa::Portable;
    for (n_q_heads, n_kv_heads, head_dim) in [(3, 2, 16), (0, 1, 16), (2, 0, 16), (2, 1, 24)] {
        assert!(
            KvPages::new(
                AttentionShape {
                    n_q_heads,
                    n_kv_heads,
                    head_dim
                },
                1,
                KvFormat::F16
            )
            .is_err()
        );
    }
    let shape = AttentionShape {
        n_q_heads: 2,
        n_kv_heads: 1,
        head_dim: 16,
    };
    let mut kv = KvPages::new(shape, 2, KvFormat::F16).expect("kv");
    let row = [0.0; 16];
    for slot in [Slot { page: 2, slot: 0 }, Slot { page: 0, slot: 16 }] {
        assert!(kv.store(&mut pool, isa, &[slot], &row, &row).is_err());
    }
    assert!(
        kv.store(
            &mut pool,
            isa,
            &[Slot { page: 0, slot: 0 }],
            &row[1..],
            &row
        )
        .is_err()
    );
    let mut plan = AttentionPlan::default();
    let short = Sequence {
        first: 0,
        n_tokens: 1,
        start: 16,
        pages: &[0],
    };
    assert!(plan.prepare(shape, &[short], 2).is_err());
    let beyond = Sequence {
        first: 0,
        n_tokens: 1,
        start: 0,
        pages: &[2],
    };
    plan.prepare(shape, &[beyond], 2).expect("plan");
    let mut out = [0.0; 32];
    assert!(forward(&mut pool, isa, &kv, &plan, &[beyond], &[0.0; 32], &mut out).is_err());
    assert!(forward(&mut pool, isa, &kv, &plan, &[], &[0.0; 32], &mut out).is_err());
}

#[test]
fn fp8_pages_take_half_the_bytes_and_their_scales() {
    let shape = AttentionShape {
        n_q_heads: 8,
        n_kv_heads: 2,
        head_dim: 128,
    };
    let bytes = |format| KvPages::new(shape, 7, format).expect("kv").bytes();
    let n_elements = 2 * 7 * 2 * 16 * 128;
    assert_eq!(bytes(KvFormat::F16), 2 * n_elements);
    // One bf16 scale for each token and head, for keys and for values: 2 bytes for 128.
    assert_eq!(bytes(KvFormat::Fp8E4m3), n_elements + n_elements / 64);
}

/// Stores tokens whose elements have the magnitudes `sizes` and returns keys and values as read
/// back, the `[n_tokens, head_dim]` of one head.
fn stored(isa: Isa, tokens: &[Vec<f32>]) -> Vec<(Vec<f64>, Vec<f64>)> {
    let head_dim = tokens[0].len();
    let shape = AttentionShape {
        n_q_heads: 1,
        n_kv_heads: 1,
        head_dim,
    };
    let mut pool = WorkerPool::new(1).expect("pool");
    let mut kv = KvPages::new(shape, 1, KvFormat::Fp8E4m3).expect("kv");
    let slots: Vec<Slot> = (0..tokens.len() as u32)
        .map(|slot| Slot { page: 0, slot })
        .collect();
    let flat = tokens.concat();
    kv.store(&mut pool, isa, &slots, &flat, &flat)
        .expect("stored");
    (0..tokens.len())
        .map(|slot| {
            let read = |f: fn(&KvPages, usize, usize, usize, usize) -> f64| {
                (0..head_dim).map(|d| f(&kv, 0, 0, d, slot)).collect()
            };
            (read(reference::key), read(reference::value))
        })
        .collect()
}

#[test]
fn fp8_elements_are_within_a_sixteenth_whatever_their_size() {
    let mut rng = StdRng::seed_from_u64(9);
    let tokens: Vec<Vec<f32>> = [1e-30, 1e-6, 0.02, 1.0, 447.0, 450.0, 1e5, 1e30]
        .into_iter()
        .map(|size: f32| random(32, &mut rng).iter().map(|x| x * size).collect())
        .collect();
    for isa in Isa::available() {
        for (token, (keys, values)) in tokens.iter().zip(stored(isa, &tokens)) {
            let largest = token.iter().fold(0.0f32, |a, x| a.max(x.abs()));
            for (x, found) in token.iter().zip(keys).chain(token.iter().zip(values)) {
                let error = (found - f64::from(*x)).abs();
                // Half a step of 3 mantissa bits, or of the smallest numbers under the scale.
                let limit = (f64::from(x.abs()) / 16.0).max(f64::from(largest) * 2f64.powi(-17));
                assert!(error <= limit, "{isa:?}: {x} became {found}");
            }
        }
    }
}

#[test]
fn fp8_keeps_zeros() {
    for isa in Isa::available() {
        let found = stored(isa, &[vec![0.0; 16]]);
        assert!(
            found[0].0.iter().chain(&found[0].1).all(|x| *x == 0.0),
            "{isa:?}"
        );
    }
}

const NOT_STORABLE: [f32; 4] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e6];

#[test]
fn what_a_format_cannot_hold_is_stored_as_its_largest_or_zero_and_counted() {
    for (isa, format) in Isa::available()
        .into_iter()
        .flat_map(|isa| [(isa, KvFormat::F16), (isa, KvFormat::Fp8E4m3)])
    {
        let shape = AttentionShape {
            n_q_heads: 2,
            n_kv_heads: 2,
            head_dim: 32,
        };
        let mut pool = WorkerPool::new(2).expect("pool");
        let mut kv = KvPages::new(shape, 1, format).expect("kv");
        let mut k = vec![1.0; 2 * 2 * 32];
        let mut v = k.clone();
        // Token 1, head 0: keys that are not storable; token 0, head 1: a value.
        k[64 + 4..][..4].copy_from_slice(&NOT_STORABLE);
        v[32 + 9] = f32::NAN;
        let slots = [0, 1].map(|slot| Slot { page: 0, slot });
        let n = kv.store(&mut pool, isa, &slots, &k, &v).expect("stored");
        // e4m3 has a scale: -1e6 fits.
        let expected: [f64; 4] = match format {
            KvFormat::F16 => [0.0, 65504.0, -65504.0, -65504.0],
            KvFormat::Fp8E4m3 => [0.0, 65504.0, -65504.0, -1e6],
        };
        assert_eq!(
            n,
            if format == KvFormat::F16 { 5 } else { 4 },
            "{isa:?} {format:?}"
        );
        for (i, expected) in expected.into_iter().enumerate() {
            let found = reference::key(&kv, 0, 0, 4 + i, 1);
            let limit = expected.abs() / 16.0;
            assert!(
                (found - expected).abs() <= limit,
                "{isa:?} {format:?}: {found} {expected}"
            );
        }
        assert!(reference::value(&kv, 0, 1, 9, 0).abs() < 1e-9);
        assert!((reference::value(&kv, 0, 1, 8, 0) - 1.0).abs() < 1e-9);
        assert!((reference::key(&kv, 0, 1, 4, 1) - 1.0).abs() < 1e-9);
        let n = kv.store(&mut pool, isa, &slots, &[1.0; 128], &[65504.0; 128]);
        assert_eq!(n.expect("stored"), 0, "{isa:?} {format:?}");
    }
}

/// A page left by a broken sequence, reused by a shorter sequence.
#[test]
fn values_after_a_context_change_nothing() {
    let shape = AttentionShape {
        n_q_heads: 2,
        n_kv_heads: 1,
        head_dim: 32,
    };
    let mut rng = StdRng::seed_from_u64(12);
    let (row, q) = (random(32, &mut rng), random(64, &mut rng));
    for (isa, format) in Isa::available()
        .into_iter()
        .flat_map(|isa| [(isa, KvFormat::F16), (isa, KvFormat::Fp8E4m3)])
    {
        let mut pool = WorkerPool::new(1).expect("pool");
        let mut attended = |before: Option<f32>| {
            let mut kv = KvPages::new(shape, 1, format).expect("kv");
            if let Some(x) = before {
                let slots: Vec<Slot> = (0..16).map(|slot| Slot { page: 0, slot }).collect();
                let broken = vec![x; 16 * 32];
                kv.store(&mut pool, isa, &slots, &broken, &broken)
                    .expect("stored");
            }
            let slot = Slot { page: 0, slot: 0 };
            kv.store(&mut pool, isa, &[slot], &row, &row)
                .expect("stored");
            let sequence = Sequence {
                first: 0,
                n_tokens: 1,
                start: 0,
                pages: &[0],
            };
            let mut plan = AttentionPlan::default();
            plan.prepare(shape, &[sequence], 1).expect("plan");
            let mut out = vec![0.0; 64];
            forward(&mut pool, isa, &kv, &plan, &[sequence], &q, &mut out).expect("attended");
            out
        };
        let clean = attended(None);
        assert!(clean.iter().all(|x| x.is_finite()));
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(attended(Some(x)), clean, "{isa:?} {format:?} {x}");
        }
    }
}

#[test]
fn a_token_is_stored_the_same_whatever_shares_its_page() {
    let mut rng = StdRng::seed_from_u64(4);
    let token = random(64, &mut rng);
    let huge: Vec<f32> = token.iter().map(|x| x * 1e6).collect();
    for isa in Isa::available() {
        let alone = stored(isa, std::slice::from_ref(&token));
        let together = stored(isa, &[token.clone(), huge.clone()]);
        assert_eq!(alone[0], together[0], "{isa:?}");
    }
}
