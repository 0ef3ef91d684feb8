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

/// Sequences of (start, n_tokens) with shuffled pages, and keys and values for every position.
fn case(shape: AttentionShape, lengths: &[(usize, usize)], pool: &mut WorkerPool) -> Case {
    let mut rng = StdRng::seed_from_u64(5);
    let n_pages: usize = lengths
        .iter()
        .map(|(s, n)| (s + n).div_ceil(PAGE_TOKENS))
        .sum();
    let mut free: Vec<u32> = (0..n_pages as u32 + 3).collect();
    let mut kv = KvPages::new(shape, free.len()).expect("kv");
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
    plan.prepare(case.kv.shape, sequences, pool.n_threads())
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
            let case = case(shape, lengths, &mut pool);
            let sequences = views(&case.sequences);
            let expected = reference::forward(&case.kv, &sequences, &case.q);
            for isa in Isa::available() {
                let found = run(&mut pool, isa, &case, &sequences);
                for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
                    assert!(
                        (f - e).abs() <= 1e-5,
                        "{shape:?} {lengths:?} {isa:?} at {i}: {f} {e}"
                    );
                }
            }
        }
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
    let case = case(shape, &[(0, 200)], &mut pool);
    let whole = views(&case.sequences);
    for isa in Isa::available() {
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
    let mut case = case(shape, &[(40, 1)], &mut pool);
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
                1
            )
            .is_err()
        );
    }
    let shape = AttentionShape {
        n_q_heads: 2,
        n_kv_heads: 1,
        head_dim: 16,
    };
    let mut kv = KvPages::new(shape, 2).expect("kv");
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
