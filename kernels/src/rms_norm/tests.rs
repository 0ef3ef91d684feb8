use super::*;

#[test]
fn agrees_with_the_reference_on_every_instruction_set() {
    let mut pool = WorkerPool::new(2).expect("pool");
    for (n_rows, n) in [(1, 1), (3, 16), (5, 37), (70, 576)] {
        let x: Vec<f32> = (0..n_rows * n)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.07)
            .collect();
        let weight: Vec<f32> = (0..n).map(|i| 0.5 + (i % 5) as f32 * 0.3).collect();
        let expected = reference::forward(&x, &weight, 1e-5);
        for isa in Isa::available() {
            let mut y = vec![f32::NAN; x.len()];
            forward(&mut pool, isa, &x, &weight, 1e-5, &mut y).expect("forward");
            let mut z = x.clone();
            in_place(&mut pool, isa, &mut z, &weight, 1e-5).expect("in place");
            assert_eq!(y, z);
            for (f, e) in y.iter().zip(&expected) {
                assert!(
                    (f - e).abs() <= 2e-6 * e.abs().max(1.0),
                    "{isa:?} {n_rows}x{n}: {f} {e}"
                );
            }
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let mut pool = WorkerPool::new(1).expect("pool");
    let isa = Isa::Portable;
    assert!(forward(&mut pool, isa, &[0.0; 5], &[1.0; 2], 0.0, &mut [0.0; 5]).is_err());
    assert!(forward(&mut pool, isa, &[0.0; 4], &[1.0; 2], 0.0, &mut [0.0; 3]).is_err());
    assert!(in_place(&mut pool, isa, &mut [0.0; 4], &[], 0.0).is_err());
}
