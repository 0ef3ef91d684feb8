use super::*;
use crate::Isa;

/// Runs every operation of `L` over a few inputs and returns all results in one list.
#[inline(always)]
fn every_operation<L: Lanes>(x: &[f32; LANES], y: &[f32; LANES]) -> Vec<f32> {
    let (a, b) = (L::load(x), L::load(y));
    let mut out = Vec::new();
    for v in [
        a.add(b),
        a.sub(b),
        a.mul(b),
        a.div(b),
        a.max(b),
        a.min(b),
        a.abs(),
        a.mul_add(b, a),
        a.mul(L::splat(9.7)).round(),
        a.scale_by_power(b.round()),
        exp(a),
    ] {
        let mut lanes = [0.0; LANES];
        v.store(&mut lanes);
        out.extend(lanes);
    }
    let mut half = [0u16; LANES];
    a.store_f16(&mut half);
    out.extend(half.map(f32::from));
    let mut lanes = [0.0; LANES];
    L::load_f16(&half).store(&mut lanes);
    out.extend(lanes);
    L::load_bf16(&half).store(&mut lanes);
    out.extend(lanes);
    L::load_field(&x.map(f32::to_bits), 11, 0x3f).store(&mut lanes);
    out.extend(lanes);
    let mut bytes = [0i8; LANES];
    out.push(a.mul(L::splat(7.3)).store_i8(&mut bytes) as f32);
    out.extend(bytes.map(f32::from));
    out.extend([a.sum(), a.largest()]);
    out
}

#[test]
fn all_instruction_sets_agree() {
    let x: [f32; LANES] = std::array::from_fn(|i| (i as f32 - 7.3) * 1.37);
    let y: [f32; LANES] = std::array::from_fn(|i| ((i * 7) % 11) as f32 * 0.81 - 3.9);
    let expected = every_operation::<Portable>(&x, &y);
    for isa in Isa::available() {
        let (x, y) = (&x, &y);
        let found = for_isa!(isa, every_operation(x: &[f32; LANES], y: &[f32; LANES]) -> Vec<f32>);
        assert_eq!(found.len(), expected.len());
        for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
            assert!(
                (f - e).abs() <= 2e-6 * e.abs().max(1e-6),
                "{isa:?} value {i}: {f} vs {e}"
            );
        }
    }
}

#[test]
fn exp_is_accurate() {
    for step in -870..880 {
        let x = step as f32 * 0.1 + 0.013;
        let mut out = [0.0; LANES];
        exp(Portable::splat(x)).store(&mut out);
        let exact = f64::from(x.clamp(-87.0, 88.0)).exp();
        assert!(
            (f64::from(out[3]) - exact).abs() <= 3e-7 * exact,
            "exp({x}) = {}",
            out[3]
        );
    }
}
