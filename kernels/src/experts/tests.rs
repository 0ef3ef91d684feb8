use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn choice(n_experts: usize, n_active: usize, normalise: bool) -> Choice {
    Choice {
        n_experts,
        n_active,
        normalise,
    }
}

fn routed(n_threads: usize, logits: &[f32], choice: Choice) -> Routing {
    let mut pool = WorkerPool::new(n_threads).expect("pool");
    let mut routing = Routing::default();
    routing.choose(&mut pool, logits, choice).expect("chosen");
    routing
}

#[test]
fn choices_and_weights_are_the_references() {
    let mut rng = StdRng::seed_from_u64(4);
    for (n_experts, n_active) in [(1, 1), (6, 3), (8, 8), (128, 8)] {
        for normalise in [false, true] {
            let choice = choice(n_experts, n_active, normalise);
            let logits: Vec<f32> = (0..37 * n_experts)
                .map(|_| rng.random_range(-4.0..4.0))
                .collect();
            let routing = routed(3, &logits, choice);
            for (token, logits) in logits.chunks(n_experts).enumerate() {
                let expected = reference::choose(logits, choice);
                for (slot, (expert, weight)) in expected.into_iter().enumerate() {
                    let i = token * n_active + slot;
                    assert_eq!(routing.experts()[i], expert, "{choice:?} token {token}");
                    let found = f64::from(routing.weights()[i]);
                    assert!((found - weight).abs() < 1e-6, "{found} for {weight}");
                }
            }
        }
    }
}

#[test]
fn of_equal_logits_the_lower_number_comes_first() {
    for n_threads in [1, 2, 5] {
        let all_equal = routed(n_threads, &[0.5; 40], choice(8, 3, true));
        assert_eq!(all_equal.experts(), [0, 1, 2].repeat(5));
        // Two zeros are one number.
        let logits = [-0.0, 1.0, 0.0, -3.0, 1.0, 0.0];
        let some = routed(n_threads, &logits, choice(6, 5, false));
        assert_eq!(some.experts(), [1, 4, 0, 2, 5]);
        assert!(some.weights()[0].to_bits() == some.weights()[1].to_bits());
    }
}

#[test]
fn places_are_expert_after_expert_and_token_after_token() {
    let logits = [
        [0.0, 2.0, 1.0, -1.0],
        [3.0, 2.0, 0.0, 0.0],
        [0.0, 0.0, 5.0, 6.0],
    ];
    let routing = routed(2, logits.as_flattened(), choice(4, 2, true));
    assert_eq!(routing.experts(), [1, 2, 0, 1, 3, 2]);
    let groups: Vec<_> = routing.groups().collect();
    assert_eq!(groups, [(0, 0..1), (1, 1..3), (2, 3..5), (3, 5..6)]);
    let mut pool = WorkerPool::new(2).expect("pool");
    let x = [10.0, 11.0, 20.0, 21.0, 30.0, 31.0];
    let mut placed = [0.0; 12];
    routing.gather(&mut pool, &x, 2, &mut placed).expect("ran");
    let expected: Vec<f32> = [1usize, 0, 1, 0, 2, 2]
        .iter()
        .flat_map(|token| x[2 * token..][..2].to_vec())
        .collect();
    assert_eq!(placed[..], expected);
    // With weights of sum 1, what was gathered comes back.
    let mut y = [1.0; 6];
    routing.add(&mut pool, &placed, 2, &mut y).expect("ran");
    for (found, expected) in y.iter().zip(&x) {
        assert!((found - 1.0 - expected).abs() < 1e-5, "{found} {expected}");
    }
}

#[test]
fn a_token_is_the_same_alone_and_beside_broken_ones() {
    let mut rng = StdRng::seed_from_u64(5);
    let logits: Vec<f32> = (0..9 * 16).map(|_| rng.random_range(-2.0..2.0)).collect();
    let mut broken = logits.clone();
    broken[0..16].fill(f32::NAN);
    broken[33] = f32::INFINITY;
    let choice = choice(16, 4, true);
    let (whole, beside) = (routed(1, &logits, choice), routed(4, &broken, choice));
    for token in [1, 3, 8] {
        let alone = routed(1, &logits[16 * token..][..16], choice);
        for routing in [&whole, &beside] {
            assert_eq!(alone.experts(), &routing.experts()[4 * token..][..4]);
            let bits = |weights: &[f32]| weights.iter().map(|w| w.to_bits()).collect::<Vec<_>>();
            assert_eq!(
                bits(alone.weights()),
                bits(&routing.weights()[4 * token..][..4])
            );
        }
    }
    for token in [0, 2] {
        let weights = &beside.weights()[4 * token..][..4];
        assert!(weights.iter().all(|w| w.is_nan()), "{weights:?}");
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let mut pool = WorkerPool::new(1).expect("pool");
    let mut routing = Routing::default();
    for (n_experts, n_active) in [(4, 0), (4, 5)] {
        let refused = routing.choose(&mut pool, &[0.0; 8], choice(n_experts, n_active, true));
        let message = refused.expect_err("refused").to_string();
        assert!(message.contains("1 to 4"), "{message}");
    }
    assert!(
        routing
            .choose(&mut pool, &[0.0; 9], choice(4, 2, true))
            .is_err()
    );
    let routing = routed(1, &[0.0; 8], choice(4, 2, true));
    assert!(
        routing
            .gather(&mut pool, &[0.0; 6], 3, &mut [0.0; 9])
            .is_err()
    );
    assert!(
        routing
            .add(&mut pool, &[0.0; 12], 3, &mut [0.0; 9])
            .is_err()
    );
}
