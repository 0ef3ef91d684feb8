use super::*;

#[test]
fn agrees_with_the_reference_on_every_instruction_set() {
    let mut pool = WorkerPool::new(2).expect("pool");
    for n in [1, 16, 45, 20_001] {
        let gate: Vec<f32> = (0..n)
            .map(|i| ((i * 31 % 211) as f32 - 105.0) * 0.3)
            .collect();
        let up: Vec<f32> = (0..n)
            .map(|i| ((i * 17 % 31) as f32 - 15.0) * 0.2)
            .collect();
        let expected = reference::forward(&gate, &up);
        for isa in Isa::available() {
            let mut y = gate.clone();
            in_place(&mut pool, isa, &mut y, &up).expect("run");
            for (i, (f, e)) in y.iter().zip(&expected).enumerate() {
                assert!(
                    (f - e).abs() <= 2e-6 * e.abs().max(1.0),
                    "{isa:?} {n} at {i}: {f} {e}"
                );
            }
        }
    }
}

#[test]
fn lengths_must_match() {
    let mut pool = WorkerPool::new(1).expect("pool");
    assert!(in_place(&mut pool, Isa::Portable, &mut [0.0; 3], &[0.0; 4]).is_err());
}
