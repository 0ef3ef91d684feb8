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

#[inline(always)]
fn e4m3_round_trip<L: Lanes>(x: &[f32; LANES]) -> ([u8; LANES], [f32; LANES]) {
    let (mut codes, mut values) = ([0; LANES], [0.0; LANES]);
    L::load(x).store_e4m3(&mut codes);
    L::load_e4m3(&codes).store(&mut values);
    (codes, values.map(|value| value * e4m3::UNIT))
}

/// The value of a code, by the definition of the format.
fn e4m3_value(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
    let size = match exponent {
        0 => mantissa * 2f32.powi(-6),
        _ => (1.0 + mantissa) * 2f32.powi(exponent - 7),
    };
    if code < 128 { size } else { -size }
}

#[test]
fn e4m3_rounds_to_the_nearest_code_on_every_instruction_set() {
    let positive: Vec<f32> = (0..=0x7e).map(e4m3_value).collect();
    // Every code, values halfway between two codes and close to it, and values beyond the range.
    let mut inputs = vec![
        0.0,
        1e-30,
        447.9,
        464.0,
        1e9,
        f32::INFINITY,
        f32::MIN_POSITIVE,
    ];
    for pair in positive.windows(2) {
        let middle = f32::midpoint(pair[0], pair[1]);
        inputs.extend([
            pair[0],
            middle,
            middle.next_down(),
            middle.next_up(),
            pair[1],
        ]);
    }
    inputs.extend(inputs.clone().into_iter().map(|x: f32| -x));
    inputs.resize(inputs.len().next_multiple_of(LANES), 0.5);
    let nearest = |x: f32| {
        let distance = |code: &u8| (e4m3_value(*code) - x.abs().min(448.0)).abs();
        let code = (0..=0x7eu8)
            .min_by(|a, b| {
                distance(a)
                    .total_cmp(&distance(b))
                    .then((a & 1).cmp(&(b & 1)))
            })
            .expect("not empty");
        if x.is_sign_negative() {
            code | 0x80
        } else {
            code
        }
    };
    for x in inputs.chunks_exact(LANES) {
        let x: &[f32; LANES] = x.try_into().expect("a chunk");
        for isa in Isa::available() {
            let (codes, values) =
                for_isa!(isa, e4m3_round_trip(x: &[f32; LANES]) -> ([u8; LANES], [f32; LANES]));
            for i in 0..LANES {
                assert_eq!(codes[i], nearest(x[i]), "{isa:?}: the code of {}", x[i]);
                assert_eq!(
                    values[i].to_bits(),
                    e4m3_value(codes[i]).to_bits(),
                    "{isa:?}: code {}",
                    codes[i]
                );
            }
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
