use super::*;

fn angles_of(rope: &Rope, position: usize, head_dim: usize) -> Vec<f32> {
    let mut out = vec![0.0; head_dim];
    rope.angles(position, &mut out).expect("angles");
    out
}

#[test]
fn agrees_with_the_reference_on_every_instruction_set() {
    let mut pool = WorkerPool::new(2).expect("pool");
    for (n_tokens, n_heads, head_dim) in [(1, 1, 2), (3, 2, 20), (40, 5, 64)] {
        let rope = Rope::new(head_dim, 10_000.0, Scaling::None).expect("rope");
        let angles: Vec<f32> = (0..n_tokens)
            .flat_map(|t| angles_of(&rope, 3 * t, head_dim))
            .collect();
        let x: Vec<f32> = (0..n_tokens * n_heads * head_dim)
            .map(|i| ((i * 29 % 83) as f32 - 41.0) * 0.05)
            .collect();
        for isa in Isa::available() {
            let mut y = x.clone();
            rotate(&mut pool, isa, head_dim, &angles, &mut y).expect("rotate");
            for (i, head) in x.chunks_exact(head_dim).enumerate() {
                let expected = reference::rotate(head, 3 * (i / n_heads), 10_000.0);
                for (f, e) in y[i * head_dim..].iter().zip(&expected) {
                    assert!(
                        (f - e).abs() <= 3e-5,
                        "{isa:?} {head_dim} head {i}: {f} {e}"
                    );
                }
            }
        }
    }
}

/// Frequencies by the definition of each type in the Hugging Face documentation.
#[test]
fn scaling_types() {
    let (dim, theta) = (64, 10_000.0);
    let plain = Rope::new(dim, theta, Scaling::None)
        .expect("rope")
        .frequencies;
    let linear = Rope::new(dim, theta, Scaling::Linear { factor: 4.0 }).expect("rope");
    for (l, p) in linear.frequencies.iter().zip(&plain) {
        assert!((l * 4.0 - p).abs() <= 1e-6 * p);
    }

    let llama3 = Scaling::Llama3 {
        factor: 8.0,
        low_freq: 1.0,
        high_freq: 4.0,
        original: 8192,
    };
    let llama3 = Rope::new(dim, 500_000.0, llama3).expect("rope").frequencies;
    let plain_llama = Rope::new(dim, 500_000.0, Scaling::None)
        .expect("rope")
        .frequencies;
    // Short waves are kept, long ones slowed by the factor, the others are in between.
    assert!((llama3[0] - plain_llama[0]).abs() < 1e-9);
    assert!((llama3[31] * 8.0 - plain_llama[31]).abs() <= 1e-6 * plain_llama[31]);
    for (l, p) in llama3.iter().zip(&plain_llama) {
        assert!(*l <= *p * 1.000_001 && *l >= *p / 8.000_01);
    }

    let yarn = Scaling::Yarn {
        factor: 4.0,
        original: 32_768,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 1.138_629_4,
    };
    let yarn = Rope::new(dim, theta, yarn).expect("rope");
    assert!((yarn.frequencies[0] - plain[0]).abs() < 1e-9);
    assert!((yarn.frequencies[31] * 4.0 - plain[31]).abs() <= 1e-6 * plain[31]);
    assert!((angles_of(&yarn, 0, dim)[0] - 1.138_629_4).abs() < 1e-6);

    let dynamic = Rope::new(
        dim,
        theta,
        Scaling::Dynamic {
            factor: 2.0,
            original: 100,
        },
    );
    let dynamic = dynamic.expect("rope");
    let unscaled = Rope::new(dim, theta, Scaling::None).expect("rope");
    assert_eq!(angles_of(&dynamic, 99, dim), angles_of(&unscaled, 99, dim));
    // At twice the original length the base is theta * 3^(dim / (dim - 2)).
    let base = theta * 3f32.powf(64.0 / 62.0);
    let stretched = Rope::new(dim, base, Scaling::None).expect("rope");
    let (found, expected) = (
        angles_of(&dynamic, 199, dim),
        angles_of(&stretched, 199, dim),
    );
    for (f, e) in found.iter().zip(&expected) {
        assert!((f - e).abs() < 1e-3, "{f} {e}");
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let mut pool = WorkerPool::new(1).expect("pool");
    assert!(Rope::new(63, 1e4, Scaling::None).is_err());
    let rope = Rope::new(8, 1e4, Scaling::None).expect("rope");
    assert!(rope.angles(0, &mut [0.0; 7]).is_err());
    assert!(rotate(&mut pool, Isa::Portable, 7, &[0.0; 7], &mut [0.0; 7]).is_err());
    assert!(rotate(&mut pool, Isa::Portable, 8, &[0.0; 8], &mut [0.0; 12]).is_err());
}
