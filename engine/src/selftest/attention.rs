//! Head norms, rotation, KV pages and attention against f64, as a step has them: keys and values go
//! into the pool through `qkv_prepare.cu` and come out through the attention kernels, so the layout
//! of a page plays no part here.

use ::gpu::{Buffer, CudaError, Stream};
use kernels::attention::cuda::{
    DecodeAttention, DecodeAttentionArgs, PlainAttention, PrefillAttention, PrefillAttentionArgs,
};
use kernels::cuda::{
    Activation, Element, ElementBuffer, HeadShape, KvFormat, PAGE_TOKENS, PagedKv,
};
use kernels::qkv_prepare::cuda::{QkvPrepare, QkvPrepareArgs};
use rand::seq::SliceRandom;

use super::checks::{Checks, relative_error};
use super::random::{elements, rng};

/// Tokens of the sequences: around the borders of pages, tiles and splits.
const SEQUENCES: [usize; 6] = [1, 17, 64, 129, 400, 2049];
const SHAPES: [HeadShape; 2] = [
    HeadShape {
        n_q: 9,
        n_kv: 3,
        head_dim: 64,
    },
    HeadShape {
        n_q: 64,
        n_kv: 8,
        head_dim: 128,
    },
];
const EPS: f32 = 1e-6;
const THETA: f64 = 10_000.0;
/// Of fp16 outputs: probabilities and results are 16-bit, and so are the keys and values that the
/// device has rounded itself.
const LIMIT: f64 = 4e-3;
/// With e4m3 keys and values, compared with those that were not rounded.
const LIMIT_FP8: f64 = 8e-2;
/// Tokens whose attention is compared, of each sequence.
const SAMPLED_TOKENS: usize = 5;

pub fn check(stream: &Stream, checks: &mut Checks) -> Result<(), CudaError> {
    for element in Element::ALL {
        for shape in SHAPES {
            for format in [KvFormat::of(element), KvFormat::Fp8E4m3] {
                Case::new(stream, element, shape, format)?.check(stream, checks);
            }
        }
    }
    Ok(())
}

struct Case {
    element: Element,
    shape: HeadShape,
    format: KvFormat,
    name: String,
    /// `[n_tokens][stride]`, as the device has it: queries are normalised and rotated after `prepare`.
    qkv: ElementBuffer,
    stride: usize,
    n_tokens: usize,
    /// What the heads are, `[token][head][dim]`.
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    pool: [Buffer<u8>; 2],
    n_pages: usize,
    page_table: Buffer<i32>,
    max_pages: usize,
    norms: [ElementBuffer; 2],
    cos_sin: Buffer<f32>,
    positions: Buffer<i32>,
    slots: Buffer<i32>,
}

impl Case {
    fn new(
        stream: &Stream,
        element: Element,
        shape: HeadShape,
        format: KvFormat,
    ) -> Result<Self, CudaError> {
        let mut rng = rng(31);
        let HeadShape {
            n_q,
            n_kv,
            head_dim,
        } = shape;
        let n_tokens: usize = SEQUENCES.iter().sum();
        let stride = (n_q + 2 * n_kv) * head_dim;
        let qkv = elements(&mut rng, element, n_tokens * stride, 2.0);
        let norms = [(); 2].map(|()| elements(&mut rng, element, head_dim, 1.5));
        let longest = SEQUENCES.iter().copied().max().unwrap_or(1);
        let max_pages = longest.div_ceil(PAGE_TOKENS);
        let n_pages = SEQUENCES.len() * max_pages;
        let mut page_table: Vec<i32> = (0..n_pages as i32).collect();
        page_table.shuffle(&mut rng);
        let places = || {
            let sequences = SEQUENCES.iter().enumerate();
            sequences.flat_map(|(sequence, n)| (0..*n).map(move |position| (sequence, position)))
        };
        let positions: Vec<i32> = places().map(|(_, position)| position as i32).collect();
        let slots: Vec<i32> = places()
            .map(|(sequence, position)| {
                let page = page_table[sequence * max_pages + position / PAGE_TOKENS];
                page * PAGE_TOKENS as i32 + (position % PAGE_TOKENS) as i32
            })
            .collect();
        let cos_sin = cos_sin(longest, head_dim);
        let heads = |first: usize, n: usize, norm: Option<&[f32]>| -> Vec<f64> {
            let tokens = qkv.chunks_exact(stride).zip(&positions);
            tokens
                .flat_map(|(token, position)| {
                    let angles = &cos_sin[*position as usize * head_dim..][..head_dim];
                    let heads = token[first * head_dim..][..n * head_dim].chunks_exact(head_dim);
                    heads.flat_map(move |head| match norm {
                        Some(norm) => norm_and_rotate(head, norm, angles),
                        None => head.iter().map(|v| f64::from(*v)).collect(),
                    })
                })
                .collect()
        };
        let q = heads(0, n_q, Some(&norms[0]));
        let k = heads(n_q, n_kv, Some(&norms[1]));
        let v = heads(n_q + n_kv, n_kv, None);
        let pool_bytes = n_pages * shape.page_bytes(format);
        let name = format!(
            "{} {} KV, {n_q} and {n_kv} heads of {head_dim}",
            element.name(),
            if format == KvFormat::Fp8E4m3 {
                "e4m3"
            } else {
                element.name()
            },
        );
        Ok(Self {
            element,
            shape,
            format,
            name,
            qkv: ElementBuffer::from_f32(stream, element, &qkv)?,
            stride,
            n_tokens,
            q,
            k,
            v,
            pool: [
                Buffer::zeroed(stream, pool_bytes)?,
                Buffer::zeroed(stream, pool_bytes)?,
            ],
            n_pages,
            page_table: Buffer::from_slice(stream, &page_table)?,
            max_pages,
            norms: [
                ElementBuffer::from_f32(stream, element, &norms[0])?,
                ElementBuffer::from_f32(stream, element, &norms[1])?,
            ],
            cos_sin: Buffer::from_slice(stream, &cos_sin)?,
            positions: Buffer::from_slice(stream, &positions)?,
            slots: Buffer::from_slice(stream, &slots)?,
        })
    }

    fn check(&self, stream: &Stream, checks: &mut Checks) {
        let of_element = if self.element == Element::F16 {
            1.0
        } else {
            8.0
        };
        let limit = of_element * LIMIT;
        checks.run(
            "qkv_prepare.cu",
            format!("{}: queries", self.name),
            limit,
            || {
                self.prepare(stream)?;
                let rows = self.qkv.download(stream)?;
                let width = self.shape.n_q * self.shape.head_dim;
                let found = rows
                    .chunks_exact(self.stride)
                    .flat_map(|row| row[..width].to_vec());
                Ok::<_, CudaError>(relative_error(found, self.q.iter().copied()))
            },
        );
        let limit = if self.format == KvFormat::Fp8E4m3 {
            limit.max(LIMIT_FP8)
        } else {
            limit
        };
        checks.run("attention/prefill.cu", &*self.name, limit, || {
            self.prefill(stream, false)
        });
        checks.run("attention/plain.cu", &*self.name, limit, || {
            self.prefill(stream, true)
        });
        for (n_splits, reduce_in_fp32) in [(1, true), (4, false), (8, true)] {
            let case = format!("{}, {n_splits} splits", self.name);
            checks.run("attention/decode.cu", case, limit, || {
                self.decode(stream, n_splits, reduce_in_fp32)
            });
        }
    }

    fn kv(&self) -> PagedKv<'_> {
        PagedKv {
            k: self.pool[0].all(),
            v: self.pool[1].all(),
            k_scale: 1.0,
            v_scale: 1.0,
            n_pages: self.n_pages,
        }
    }

    fn prepare(&self, stream: &Stream) -> Result<(), CudaError> {
        let kernel = QkvPrepare::new(stream.device(), self.element, self.shape, self.format)?;
        kernel.launch(
            stream,
            &QkvPrepareArgs {
                qkv: self.qkv.all(),
                row_stride: self.stride,
                q_norm: Some(self.norms[0].all()),
                k_norm: Some(self.norms[1].all()),
                cos_sin: self.cos_sin.all(),
                n_positions: self.cos_sin.len() / self.shape.head_dim,
                positions: self.positions.all(),
                slots: self.slots.all(),
                kv: self.kv(),
                saturated: None,
                eps: EPS,
                n_rows: self.n_tokens,
            },
        )
    }

    fn width(&self) -> usize {
        self.shape.n_q * self.shape.head_dim
    }

    fn prefill(&self, stream: &Stream, is_plain: bool) -> Result<f64, CudaError> {
        let mut q_start = vec![0_i32];
        for n in SEQUENCES {
            q_start.push(q_start[q_start.len() - 1] + n as i32);
        }
        let q_start = Buffer::from_slice(stream, &q_start)?;
        let context_len = Buffer::from_slice(stream, &SEQUENCES.map(|n| n as i32))?;
        let out = ElementBuffer::zeroed(stream, self.element, self.n_tokens * self.width())?;
        let args = PrefillAttentionArgs {
            q: self.qkv.all(),
            q_stride: self.stride,
            kv: self.kv(),
            page_table: self.page_table.all(),
            max_pages: self.max_pages,
            q_start: q_start.all(),
            context_len: context_len.all(),
            out: Activation::plain(out.all(), self.width()),
            n_tokens: self.n_tokens,
            n_seqs: SEQUENCES.len(),
        };
        let device = stream.device();
        if is_plain {
            PlainAttention::new(device, self.element, self.shape, self.format)?
                .launch(stream, &args)?;
        } else {
            PrefillAttention::new(device, self.element, self.shape, self.format)?
                .launch(stream, &args)?;
        }
        let out = out.download(stream)?;
        let mut largest: f64 = 0.0;
        let mut first = 0;
        for n in SEQUENCES {
            for token in (0..n).step_by(n.div_ceil(SAMPLED_TOKENS)).chain([n - 1]) {
                let found = &out[(first + token) * self.width()..][..self.width()];
                largest = largest.max(self.error(first, token, found));
            }
            first += n;
        }
        Ok(largest)
    }

    /// The last token of every sequence, as decode rows.
    fn decode(
        &self,
        stream: &Stream,
        n_splits: usize,
        reduce_in_fp32: bool,
    ) -> Result<f64, CudaError> {
        let rows = self.qkv.download(stream)?;
        let mut q = Vec::new();
        let mut firsts = Vec::new();
        let mut end = 0;
        for n in SEQUENCES {
            firsts.push(end);
            end += n;
            q.extend_from_slice(&rows[(end - 1) * self.stride..][..self.width()]);
        }
        let n_rows = SEQUENCES.len();
        let q = ElementBuffer::from_f32(stream, self.element, &q)?;
        let context_len = Buffer::from_slice(stream, &SEQUENCES.map(|n| n as i32))?;
        let out = ElementBuffer::zeroed(stream, self.element, n_rows * self.width())?;
        let kernel = DecodeAttention::new(
            stream.device(),
            self.element,
            self.shape,
            self.format,
            8,
            reduce_in_fp32,
        )?;
        kernel.launch(
            stream,
            &DecodeAttentionArgs {
                q: q.all(),
                q_stride: self.width(),
                kv: self.kv(),
                page_table: self.page_table.all(),
                max_pages: self.max_pages,
                context_len: context_len.all(),
                out: Activation::plain(out.all(), self.width()),
                n_rows,
                n_splits,
                parts: None,
                fresh: 1,
            },
        )?;
        let out = out.download(stream)?;
        let found = out.chunks_exact(self.width()).zip(firsts).zip(SEQUENCES);
        Ok(found
            .map(|((found, first), n)| self.error(first, n - 1, found))
            .fold(0.0, f64::max))
    }

    /// The largest error of a head: `found` is the output of token `token` of the sequence that
    /// begins at `first`. Every third head is compared.
    fn error(&self, first: usize, token: usize, found: &[f32]) -> f64 {
        let head_dim = self.shape.head_dim;
        let heads = found.chunks_exact(head_dim).enumerate().step_by(3);
        heads
            .map(|(head, found)| {
                relative_error(found.iter().copied(), self.attended(first, token, head))
            })
            .fold(0.0, f64::max)
    }

    /// softmax(q Kᵀ / √d) V in f64.
    fn attended(&self, first: usize, token: usize, head: usize) -> Vec<f64> {
        let HeadShape {
            n_q,
            n_kv,
            head_dim,
        } = self.shape;
        let kv_head = head / self.shape.group();
        let q = &self.q[((first + token) * n_q + head) * head_dim..][..head_dim];
        let place = |t: usize| {
            let at = ((first + t) * n_kv + kv_head) * head_dim;
            at..at + head_dim
        };
        let scores: Vec<f64> = (0..=token)
            .map(|t| {
                let k = &self.k[place(t)];
                let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                dot / (head_dim as f64).sqrt()
            })
            .collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut out = vec![0.0; head_dim];
        for (t, weight) in weights.iter().enumerate() {
            for (out, v) in out.iter_mut().zip(&self.v[place(t)]) {
                *out += weight / total * v;
            }
        }
        out
    }
}

/// `[n_positions][head_dim]`: cosines, then sines, of head_dim / 2 angles.
fn cos_sin(n_positions: usize, head_dim: usize) -> Vec<f32> {
    let half = head_dim / 2;
    (0..n_positions * head_dim)
        .map(|i| {
            let (position, column) = (i / head_dim, i % head_dim);
            let angle = position as f64 * THETA.powf(-((column % half) as f64) / half as f64);
            (if column < half {
                angle.cos()
            } else {
                angle.sin()
            }) as f32
        })
        .collect()
}

fn norm_and_rotate(head: &[f32], norm: &[f32], angles: &[f32]) -> Vec<f64> {
    let (n, half) = (head.len(), head.len() / 2);
    let mean = head.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64;
    let inverse = 1.0 / (mean + f64::from(EPS)).sqrt();
    let x: Vec<f64> = head
        .iter()
        .zip(norm)
        .map(|(x, w)| f64::from(*x) * inverse * f64::from(*w))
        .collect();
    (0..n)
        .map(|i| {
            let (cos, sin) = (
                f64::from(angles[i % half]),
                f64::from(angles[half + i % half]),
            );
            if i < half {
                x[i] * cos - x[i + half] * sin
            } else {
                x[i] * cos + x[i - half] * sin
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_head_keeps_its_length_and_position_zero_its_values() {
        let head: Vec<f32> = (0..8).map(|i| i as f32 - 3.0).collect();
        let angles = cos_sin(3, 8);
        let plain = norm_and_rotate(&head, &[1.0; 8], &angles[..8]);
        let squares = head.iter().map(|x| f64::from(x * x)).sum::<f64>() / 8.0;
        assert!((plain[7] - 4.0 / (squares + f64::from(EPS)).sqrt()).abs() < 1e-6);
        let rotated = norm_and_rotate(&head, &[1.0; 8], &angles[16..]);
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
        assert!((norm(&rotated) - norm(&plain)).abs() < 1e-5);
        assert!((rotated[0] - plain[0]).abs() > 0.1);
    }
}
