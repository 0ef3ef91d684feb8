//! What the GPU tests share: the device, random inputs, a paged KV cache with its plain meaning.
#![allow(dead_code, reason = "every test binary uses its own part")]

use gpu::{Buffer, Device, Stream, use_kernels_of_environment};
use kernels::cuda::{Element, HeadShape, KvFormat, PAGE_TOKENS, PagedKv};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// GPU 0 and a stream; fails loudly where there is none.
pub fn open() -> (Device, Stream) {
    use_kernels_of_environment().expect("a folder of compiled kernels");
    let device = Device::open(0).expect("this test needs a GPU and a build with CUDA kernels");
    let stream = Stream::new(&device).expect("a stream");
    (device, stream)
}

pub fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// About normal, mean 0.
pub fn normal(rng: &mut StdRng, deviation: f32) -> f32 {
    let sum: f32 = (0..4).map(|_| rng.random::<f32>()).sum();
    (sum - 2.0) * 3f32.sqrt() * deviation
}

pub fn normals(rng: &mut StdRng, n: usize, deviation: f32) -> Vec<f32> {
    (0..n).map(|_| normal(rng, deviation)).collect()
}

/// As [`normals`], each an exact element.
pub fn elements(rng: &mut StdRng, element: Element, n: usize, deviation: f32) -> Vec<f32> {
    (0..n)
        .map(|_| element.round(normal(rng, deviation)))
        .collect()
}

/// What an fp16 result may be off becomes this with `element`: bf16 has three bits less.
pub fn tolerance(element: Element, of_f16: f64) -> f64 {
    match element {
        Element::F16 => of_f16,
        Element::Bf16 => 8.0 * of_f16,
    }
}

/// Bits of stored values that are no numbers: NaN, and infinities where there are such.
pub fn broken_bits(format: KvFormat) -> &'static [u16] {
    match format {
        KvFormat::F16 => &[0x7e00, 0x7c00, 0xfc00],
        KvFormat::Bf16 => &[0x7fc0, 0x7f80, 0xff80],
        KvFormat::Fp8E4m3 => &[0x7f, 0xff],
    }
}

/// The formats of KV pages beside these activations.
pub fn kv_formats(element: Element) -> [KvFormat; 2] {
    [KvFormat::of(element), KvFormat::Fp8E4m3]
}

/// ‖found - expected‖ / ‖expected‖; infinite where a value is not finite.
pub fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let (mut difference, mut norm) = (0.0, 1e-30);
    for (found, expected) in found.iter().zip(expected) {
        difference += (f64::from(*found) - expected).powi(2);
        norm += expected * expected;
    }
    if difference.is_finite() {
        (difference / norm).sqrt()
    } else {
        f64::INFINITY
    }
}

/// The value of an e4m3 byte (no infinities; 0x7f and 0xff are NaN).
pub fn e4m3_value(byte: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    if byte & 0x7f == 0x7f {
        return f64::NAN;
    }
    if exponent == 0 {
        sign * mantissa / 8.0 * 2f64.powi(-6)
    } else {
        sign * (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7)
    }
}

/// The nearest e4m3 byte, saturating.
pub fn e4m3_byte(value: f64) -> u8 {
    let magnitude = value.abs();
    let nearest = (0..=0x7eu8)
        .min_by(|a, b| {
            let distance = |byte: u8| (e4m3_value(byte) - magnitude).abs();
            distance(*a).total_cmp(&distance(*b))
        })
        .expect("the range is not empty");
    if value < 0.0 { nearest | 0x80 } else { nearest }
}

/// Where (token, dim) of V lies in a page of one head, spelled out: a tile of 16 dimensions is 32
/// lanes of 8 values.
pub fn v_index(token: usize, dim: usize) -> usize {
    let (tile, dim) = (dim / 16, dim % 16);
    let lane = 4 * (dim % 8) + token % 8 / 2;
    let value = [[0, 2], [4, 6]][token / 8][dim / 8] + token % 2;
    tile * 256 + lane * 8 + value
}

/// Of a 16-bit format.
fn element_of(format: KvFormat) -> Element {
    match format {
        KvFormat::Bf16 => Element::Bf16,
        _ => Element::F16,
    }
}

/// A cache on the device and the bytes it was filled with.
pub struct KvPool {
    pub shape: HeadShape,
    pub format: KvFormat,
    pub n_pages: usize,
    pub k_scale: f32,
    pub v_scale: f32,
    pub k: Buffer<u8>,
    pub v: Buffer<u8>,
}

impl KvPool {
    pub fn random(
        stream: &Stream,
        rng: &mut StdRng,
        shape: HeadShape,
        format: KvFormat,
        n_pages: usize,
    ) -> Self {
        let n_values = n_pages * shape.n_kv * PAGE_TOKENS * shape.head_dim;
        let mut bytes = || -> Vec<u8> {
            match format {
                KvFormat::F16 | KvFormat::Bf16 => (0..n_values)
                    .flat_map(|_| element_of(format).bits(normal(rng, 1.0)).to_le_bytes())
                    .collect(),
                // Bytes of about -2 to 2 before the scale, none a NaN.
                KvFormat::Fp8E4m3 => (0..n_values)
                    .map(|_| rng.random_range(0x20..0x42u8) | (rng.random::<u8>() & 0x80))
                    .collect(),
            }
        };
        let (k_bytes, v_bytes) = (bytes(), bytes());
        let (k_scale, v_scale) = if format == KvFormat::Fp8E4m3 {
            (0.75, 1.375)
        } else {
            (1.0, 1.0)
        };
        Self {
            shape,
            format,
            n_pages,
            k_scale,
            v_scale,
            k: Buffer::from_slice(stream, &k_bytes).unwrap(),
            v: Buffer::from_slice(stream, &v_bytes).unwrap(),
        }
    }

    pub fn view(&self) -> PagedKv<'_> {
        PagedKv {
            k: self.k.all(),
            v: self.v.all(),
            k_scale: self.k_scale,
            v_scale: self.v_scale,
            n_pages: self.n_pages,
        }
    }

    /// Puts `bits` in the place of every key and value that `pages` has from token `context` on.
    pub fn fill_after(&self, stream: &Stream, pages: &[i32], context: usize, bits: u16) {
        let HeadShape { n_kv, head_dim, .. } = self.shape;
        let size = self.format.bytes_per_value();
        let (mut k, mut v) = (
            self.k.download(stream).unwrap(),
            self.v.download(stream).unwrap(),
        );
        for token in context..pages.len() * PAGE_TOKENS {
            let (page, token) = (pages[token / PAGE_TOKENS] as usize, token % PAGE_TOKENS);
            for (head, dim) in (0..n_kv).flat_map(|head| (0..head_dim).map(move |dim| (head, dim)))
            {
                let base = (page * n_kv + head) * PAGE_TOKENS * head_dim;
                for (bytes, at) in [
                    (&mut k, base + token * head_dim + dim),
                    (&mut v, base + v_index(token, dim)),
                ] {
                    bytes[at * size..][..size].copy_from_slice(&bits.to_le_bytes()[..size]);
                }
            }
        }
        self.k.upload(stream, &k).unwrap();
        self.v.upload(stream, &v).unwrap();
    }

    /// What the device holds now.
    pub fn download(&self, stream: &Stream) -> KvValues {
        let decode = |bytes: Vec<u8>, scale: f32| -> Vec<f64> {
            match self.format {
                KvFormat::F16 | KvFormat::Bf16 => bytes
                    .chunks_exact(2)
                    .map(|b| u16::from_le_bytes([b[0], b[1]]))
                    .map(|bits| f64::from(element_of(self.format).value(bits)))
                    .collect(),
                KvFormat::Fp8E4m3 => bytes
                    .iter()
                    .map(|b| e4m3_value(*b) * f64::from(scale))
                    .collect(),
            }
        };
        KvValues {
            shape: self.shape,
            k: decode(self.k.download(stream).unwrap(), self.k_scale),
            v: decode(self.v.download(stream).unwrap(), self.v_scale),
        }
    }
}

/// The cache's values, decoded.
pub struct KvValues {
    shape: HeadShape,
    k: Vec<f64>,
    v: Vec<f64>,
}

impl KvValues {
    pub fn k(&self, page: usize, head: usize, token: usize, dim: usize) -> f64 {
        self.k[self.base(page, head) + token * self.shape.head_dim + dim]
    }

    pub fn v(&self, page: usize, head: usize, token: usize, dim: usize) -> f64 {
        self.v[self.base(page, head) + v_index(token, dim)]
    }

    fn base(&self, page: usize, head: usize) -> usize {
        (page * self.shape.n_kv + head) * PAGE_TOKENS * self.shape.head_dim
    }

    /// softmax(q Kᵀ / √d) V of one query head over the first `context` tokens of `pages`.
    pub fn attention(&self, q: &[f32], q_head: usize, context: usize, pages: &[i32]) -> Vec<f64> {
        let (head, hd) = (q_head / self.shape.group(), self.shape.head_dim);
        let place = |t: usize| (pages[t / PAGE_TOKENS] as usize, t % PAGE_TOKENS);
        let q: Vec<f64> = q.iter().map(|x| f64::from(*x)).collect();
        let scores: Vec<f64> = (0..context)
            .map(|t| {
                let (page, token) = place(t);
                let at = self.base(page, head) + token * hd;
                let dot: f64 = q.iter().zip(&self.k[at..at + hd]).map(|(a, b)| a * b).sum();
                dot / (hd as f64).sqrt()
            })
            .collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut out = vec![0.0; hd];
        for (t, weight) in weights.iter().enumerate() {
            let (page, token) = place(t);
            for (dim, out) in out.iter_mut().enumerate() {
                *out += weight / total * self.v(page, head, token, dim);
            }
        }
        out
    }
}

/// Page tables `[n_rows, max_pages]` that name every page once, in random order.
pub fn page_tables(rng: &mut StdRng, n_rows: usize, max_pages: usize) -> Vec<i32> {
    let mut pages: Vec<i32> = (0..(n_rows * max_pages) as i32).collect();
    pages.shuffle(rng);
    pages
}
