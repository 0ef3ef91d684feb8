//! One layer's paged keys and values, in one of two formats.
//!
//! FP8: each token's keys (values) of a head are divided by a power of two that brings the largest
//! of them into the upper half of e4m3's range. So a token is stored in the same way whatever else
//! is in its page and whenever it came, and scaling itself is exact. The scales of a page's 16
//! tokens are one vector; attention multiplies scores and weights with them, never the elements.
//!
//! Only finite values are stored, so that a page left by one sequence has no effect on the next:
//! what is masked has weight 0, and 0 times a finite number is 0. A value too large for fp16 (FP8:
//! an infinite one) becomes ±65504, NaN becomes 0, and [`KvPages::store`] returns how many there
//! were.

use std::sync::atomic::{AtomicU64, Ordering};

use half::{bf16, f16};
use host::HostError;
use host::memory::AlignedBytes;
use host::pool::{DisjointMut, WorkerPool};

use super::{AttentionShape, MAX_HEAD_DIM, OP, PAGE_TOKENS, check_below};
use crate::KernelError;
use crate::error::check_shape;
use crate::isa::Isa;
use crate::lanes::{LANES, Lanes, at, at_mut, e4m3, for_isa};

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvFormat {
    F16,
    /// 4 exponent and 3 mantissa bits, times a scale.
    Fp8E4m3,
}

impl KvFormat {
    pub const fn bytes_per_value(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::Fp8E4m3 => 1,
        }
    }
}

/// The storage format of an element.
pub(super) trait KvElement {
    type Bits: bytemuck::Pod + Send;
    /// Whether tokens have a scale.
    const IS_SCALED: bool;
    /// The largest value that can be stored.
    const LARGEST: f32;
    fn load<L: Lanes>(bits: &[Self::Bits; LANES]) -> L;
    fn store<L: Lanes>(lanes: L, out: &mut [Self::Bits; LANES]);
    /// [`store_head`] with the instruction set.
    fn store_head(
        isa: Isa,
        k: &[f32],
        v: &[f32],
        keys: &mut [Self::Bits],
        values: &mut [Self::Bits],
    ) -> (u16, u16);
}

const LARGEST_F16: f32 = f16::MAX.to_f32_const();

pub(super) struct F16;
pub(super) struct Fp8E4m3;

impl KvElement for F16 {
    type Bits = u16;
    const IS_SCALED: bool = false;
    const LARGEST: f32 = LARGEST_F16;
    #[inline(always)]
    fn load<L: Lanes>(bits: &[u16; LANES]) -> L {
        L::load_f16(bits)
    }
    #[inline(always)]
    fn store<L: Lanes>(lanes: L, out: &mut [u16; LANES]) {
        lanes.store_f16(out);
    }
    fn store_head(
        isa: Isa,
        k: &[f32],
        v: &[f32],
        keys: &mut [u16],
        values: &mut [u16],
    ) -> (u16, u16) {
        for_isa!(isa, store_f16(
            k: &[f32],
            v: &[f32],
            keys: &mut [u16],
            values: &mut [u16],
        ) -> (u16, u16))
    }
}

impl KvElement for Fp8E4m3 {
    type Bits = u8;
    const IS_SCALED: bool = true;
    const LARGEST: f32 = f32::MAX;
    #[inline(always)]
    fn load<L: Lanes>(bits: &[u8; LANES]) -> L {
        L::load_e4m3(bits)
    }
    #[inline(always)]
    fn store<L: Lanes>(lanes: L, out: &mut [u8; LANES]) {
        lanes.store_e4m3(out);
    }
    fn store_head(
        isa: Isa,
        k: &[f32],
        v: &[f32],
        keys: &mut [u8],
        values: &mut [u8],
    ) -> (u16, u16) {
        for_isa!(isa, store_fp8(
            k: &[f32],
            v: &[f32],
            keys: &mut [u8],
            values: &mut [u8],
        ) -> (u16, u16))
    }
}

/// One layer's keys and values, allocated once.
///
/// Keys: `[n_pages, n_kv_heads, head_dim, PAGE_TOKENS]`, so that one load has a dimension of every
/// token of a page. Values: `[n_pages, n_kv_heads, PAGE_TOKENS, head_dim]`.
#[derive(Debug)]
pub struct KvPages {
    shape: AttentionShape,
    format: KvFormat,
    n_pages: usize,
    keys: AlignedBytes,
    values: AlignedBytes,
    /// bf16 `[n_pages, n_kv_heads, PAGE_TOKENS]`, including [`e4m3::UNIT`]; empty if elements have
    /// no scale.
    key_scales: AlignedBytes,
    value_scales: AlignedBytes,
}

impl KvPages {
    /// Zeroed pages.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] as [`AttentionShape::checked`], [`KernelError::Host`] if the
    /// memory cannot be had.
    pub fn new(
        shape: AttentionShape,
        n_pages: usize,
        format: KvFormat,
    ) -> Result<Self, KernelError> {
        let shape = shape.checked()?;
        let zeroed = |bytes_of_page: usize| {
            let too_large = HostError::Memory { bytes: usize::MAX };
            AlignedBytes::zeroed(n_pages.checked_mul(bytes_of_page).ok_or(too_large)?)
        };
        let n_bytes = shape.page_elements() * format.bytes_per_value();
        let n_scale_bytes = match format {
            KvFormat::F16 => 0,
            KvFormat::Fp8E4m3 => shape.n_kv_heads * PAGE_TOKENS * size_of::<u16>(),
        };
        Ok(Self {
            shape,
            format,
            n_pages,
            keys: zeroed(n_bytes)?,
            values: zeroed(n_bytes)?,
            key_scales: zeroed(n_scale_bytes)?,
            value_scales: zeroed(n_scale_bytes)?,
        })
    }

    pub fn shape(&self) -> AttentionShape {
        self.shape
    }

    pub fn format(&self) -> KvFormat {
        self.format
    }

    pub fn n_pages(&self) -> usize {
        self.n_pages
    }

    /// Size of keys, values and their scales.
    pub fn bytes(&self) -> usize {
        [
            &self.keys,
            &self.values,
            &self.key_scales,
            &self.value_scales,
        ]
        .map(|part| part.as_slice().len())
        .iter()
        .sum()
    }

    /// Copies page `from_page` of `from`, which has the same shape and format, to `page`.
    ///
    /// # Errors
    ///
    /// If shape or format differ, or one of the pages does not exist.
    pub fn copy_page(&mut self, page: u32, from: &Self, from_page: u32) -> Result<(), KernelError> {
        if self.shape != from.shape || self.format != from.format {
            return Err(KernelError::Value {
                op: OP,
                message: format!(
                    "pages of {:?} in {:?} are not those of {:?} in {:?}",
                    from.shape, from.format, self.shape, self.format
                ),
            });
        }
        check_below("page", page as usize, self.n_pages)?;
        check_below("page", from_page as usize, from.n_pages)?;
        let (to_pages, from_pages) = (self.n_pages, from.n_pages);
        for (to, from) in [
            (&mut self.keys, &from.keys),
            (&mut self.values, &from.values),
            (&mut self.key_scales, &from.key_scales),
            (&mut self.value_scales, &from.value_scales),
        ] {
            let n_bytes = to.as_slice().len() / to_pages;
            debug_assert_eq!(n_bytes, from.as_slice().len() / from_pages);
            let from = &from.as_slice()[from_page as usize * n_bytes..][..n_bytes];
            to.as_mut_slice()[page as usize * n_bytes..][..n_bytes].copy_from_slice(from);
        }
        Ok(())
    }

    /// Stores tokens' `k, v: [n_tokens, n_kv_heads, head_dim]`, each in its slot. Returns the
    /// number of values that were too large or NaN and therefore changed.
    ///
    /// # Errors
    ///
    /// If `k` or `v` is not as long as the slots need, or a slot's page or place does not exist;
    /// [`KernelError::Host`] if a worker thread panicked.
    pub fn store(
        &mut self,
        pool: &mut WorkerPool,
        isa: Isa,
        slots: &[Slot],
        k: &[f32],
        v: &[f32],
    ) -> Result<u64, KernelError> {
        let AttentionShape {
            n_kv_heads,
            head_dim,
            ..
        } = self.shape;
        check_shape(
            OP,
            "length of k",
            k.len(),
            slots.len() * n_kv_heads * head_dim,
        )?;
        check_shape(OP, "length of v", v.len(), k.len())?;
        for slot in slots {
            check_below("page", slot.page as usize, self.n_pages)?;
            check_below("slot", slot.slot as usize, PAGE_TOKENS)?;
        }
        match self.format {
            KvFormat::F16 => self.store_as::<F16>(pool, isa, slots, k, v),
            KvFormat::Fp8E4m3 => self.store_as::<Fp8E4m3>(pool, isa, slots, k, v),
        }
    }

    fn store_as<E: KvElement>(
        &mut self,
        pool: &mut WorkerPool,
        isa: Isa,
        slots: &[Slot],
        k: &[f32],
        v: &[f32],
    ) -> Result<u64, KernelError> {
        let AttentionShape {
            n_kv_heads,
            head_dim,
            ..
        } = self.shape;
        let n_saturated = AtomicU64::new(0);
        let keys: DisjointMut<'_, E::Bits> =
            DisjointMut::new(bytemuck::cast_slice_mut(self.keys.as_mut_slice()));
        let values: DisjointMut<'_, E::Bits> =
            DisjointMut::new(bytemuck::cast_slice_mut(self.values.as_mut_slice()));
        let key_scales = DisjointMut::new(self.key_scales.as_u16_mut());
        let value_scales = DisjointMut::new(self.value_scales.as_u16_mut());
        let page_len = head_dim * PAGE_TOKENS;
        // Threads divide the heads, not the tokens: two tokens with the same slot would race.
        let min_heads = 4096usize.div_ceil(slots.len().max(1) * head_dim);
        pool.for_ranges(n_kv_heads, min_heads, &|heads| {
            for head in heads {
                for (token, slot) in slots.iter().enumerate() {
                    let page_head = slot.page as usize * n_kv_heads + head;
                    let page = page_head * page_len;
                    // SAFETY: only one thread accesses a head's part of a page.
                    let (keys, values) = unsafe {
                        let row = page + slot.slot as usize * head_dim;
                        (keys.slice(page, page_len), values.slice(row, head_dim))
                    };
                    let keys = &mut keys[slot.slot as usize..];
                    let from = (token * n_kv_heads + head) * head_dim;
                    let (k, v) = (&k[from..][..head_dim], &v[from..][..head_dim]);
                    let mut room = [[0.0; MAX_HEAD_DIM]; 2];
                    let [k_room, v_room] = &mut room;
                    let (k, n_keys) = held_inside::<E>(k, k_room);
                    let (v, n_values) = held_inside::<E>(v, v_room);
                    if n_keys + n_values > 0 {
                        n_saturated.fetch_add(n_keys + n_values, Ordering::Relaxed);
                    }
                    let (key_scale, value_scale) = E::store_head(isa, k, v, keys, values);
                    if E::IS_SCALED {
                        let at = page_head * PAGE_TOKENS + slot.slot as usize;
                        // SAFETY: as above.
                        unsafe {
                            key_scales.slice(at, 1)[0] = key_scale;
                            value_scales.slice(at, 1)[0] = value_scale;
                        }
                    }
                }
            }
        })?;
        Ok(n_saturated.into_inner())
    }

    /// `[head_dim, PAGE_TOKENS]`
    #[inline(always)]
    pub(super) fn key_page<E: KvElement>(&self, page: usize, kv_head: usize) -> &[E::Bits] {
        let n = self.shape.head_dim * PAGE_TOKENS;
        let keys: &[E::Bits] = bytemuck::cast_slice(self.keys.as_slice());
        &keys[(page * self.shape.n_kv_heads + kv_head) * n..][..n]
    }

    /// `[PAGE_TOKENS, head_dim]`
    #[inline(always)]
    pub(super) fn value_page<E: KvElement>(&self, page: usize, kv_head: usize) -> &[E::Bits] {
        let n = self.shape.head_dim * PAGE_TOKENS;
        let values: &[E::Bits] = bytemuck::cast_slice(self.values.as_slice());
        &values[(page * self.shape.n_kv_heads + kv_head) * n..][..n]
    }

    /// bf16 scales of a page's tokens; only if elements are scaled.
    #[inline(always)]
    pub(super) fn key_scales(&self, page: usize, kv_head: usize) -> &[u16; PAGE_TOKENS] {
        at(
            self.key_scales.as_u16(),
            (page * self.shape.n_kv_heads + kv_head) * PAGE_TOKENS,
        )
    }

    #[inline(always)]
    pub(super) fn value_scales(&self, page: usize, kv_head: usize) -> &[u16; PAGE_TOKENS] {
        at(
            self.value_scales.as_u16(),
            (page * self.shape.n_kv_heads + kv_head) * PAGE_TOKENS,
        )
    }
}

/// The slot of one token's keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub page: u32,
    /// Below [`PAGE_TOKENS`].
    pub slot: u32,
}

/// A head's values as they can be stored, in `room` if they differ from `x`, and how many differ.
fn held_inside<'a, E: KvElement>(
    x: &'a [f32],
    room: &'a mut [f32; MAX_HEAD_DIM],
) -> (&'a [f32], u64) {
    // Without a branch in the loop; false for NaN.
    let n_inside: usize = x.iter().map(|x| usize::from(x.abs() <= E::LARGEST)).sum();
    if n_inside == x.len() {
        return (x, 0);
    }
    let held = &mut room[..x.len()];
    for (held, x) in held.iter_mut().zip(x) {
        *held = match x {
            x if x.abs() <= E::LARGEST => *x,
            x if x.is_nan() => 0.0,
            x => LARGEST_F16.copysign(*x),
        };
    }
    (held, (x.len() - n_inside) as u64)
}

/// `keys` starts at the token's slot, `values` is the token's row. Returns the bits of their
/// scales.
#[inline(always)]
fn store_head<L: Lanes, E: KvElement>(
    k: &[f32],
    v: &[f32],
    keys: &mut [E::Bits],
    values: &mut [E::Bits],
) -> (u16, u16) {
    let [(k_factor, k_scale), (v_factor, v_scale)] = [k, v].map(|x| {
        if E::IS_SCALED {
            scale_of::<L>(x)
        } else {
            (1.0, 0)
        }
    });
    for d in (0..k.len()).step_by(LANES) {
        let v = L::load(at(v, d)).mul(L::splat(v_factor));
        E::store(v, at_mut(values, d));
        let k = L::load(at(k, d)).mul(L::splat(k_factor));
        let mut bits = [<E::Bits as bytemuck::Zeroable>::zeroed(); LANES];
        E::store(k, &mut bits);
        for (i, bits) in bits.iter().enumerate() {
            keys[(d + i) * PAGE_TOKENS] = *bits;
        }
    }
    (k_scale, v_scale)
}

#[inline(always)]
fn store_f16<L: Lanes>(k: &[f32], v: &[f32], keys: &mut [u16], values: &mut [u16]) -> (u16, u16) {
    store_head::<L, F16>(k, v, keys, values)
}

#[inline(always)]
fn store_fp8<L: Lanes>(k: &[f32], v: &[f32], keys: &mut [u8], values: &mut [u8]) -> (u16, u16) {
    store_head::<L, Fp8E4m3>(k, v, keys, values)
}

/// The factor for one token's elements, which are finite, before they are stored, and the bits of
/// their scale, which reverses it and the codes' [`e4m3::UNIT`].
#[inline(always)]
fn scale_of<L: Lanes>(x: &[f32]) -> (f32, u16) {
    let mut largest = L::splat(0.0);
    for d in (0..x.len()).step_by(LANES) {
        largest = largest.max(L::load(at(x, d)).abs());
    }
    // The smallest power of two that brings the largest element below `LARGEST`.
    let ratio = (largest.largest() / e4m3::LARGEST).to_bits();
    let rounded_up = (ratio >> 23) as i32 + i32::from(ratio & 0x7f_ffff != 0);
    let exponent = (rounded_up - 127).clamp(-118, 118);
    let power = |exponent: i32| f32::from_bits(((exponent + 127) as u32) << 23);
    let scale = power(exponent) * e4m3::UNIT;
    (power(-exponent), bf16::from_f32(scale).to_bits())
}
