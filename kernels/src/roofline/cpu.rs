//! The same limits of a processor, over all threads of a pool: a plain read of memory, and
//! products out of registers, in f32 and in 8-bit integers.

use std::hint::black_box;

use host::pool::{WorkerPool, share};

use crate::KernelError;
use crate::isa::Isa;
use crate::lanes::{LANES, Lanes, at, for_isa};

/// Independent sums, to hide the latency of an addition.
const CHAINS: usize = 12;

/// Reads all of `words`, each thread its share, as whole registers.
///
/// ```
/// use kernels::Isa;
/// use host::pool::WorkerPool;
/// use kernels::roofline::cpu;
///
/// let mut pool = WorkerPool::new(1)?;
/// let memory = vec![1.0_f32; 1 << 16];
/// let started = std::time::Instant::now();
/// cpu::read(&mut pool, Isa::detect(), &memory)?;
/// let gb_per_s = memory.len() as f64 * 4.0 / started.elapsed().as_secs_f64() / 1e9;
/// assert!(gb_per_s > 0.0);
/// let one = cpu::multiply_f32(&mut pool, Isa::detect(), 1)?;
/// assert_eq!(cpu::multiply_f32(&mut pool, Isa::detect(), 3)?, 3 * one);
/// # Ok::<(), kernels::KernelError>(())
/// ```
///
/// # Errors
///
/// If a worker thread has died.
pub fn read(pool: &mut WorkerPool, isa: Isa, words: &[f32]) -> Result<(), KernelError> {
    let n_threads = pool.n_threads();
    pool.run(&|thread| {
        let own = share(words.len() / LANES, thread, n_threads);
        let words = &words[own.start * LANES..own.end * LANES];
        black_box(for_isa!(isa, largest(words: &[f32]) -> f32));
    })?;
    Ok(())
}

/// `rounds` times 16 × [`CHAINS`] multiply-adds in f32 on every thread; how many those are in all.
///
/// # Errors
///
/// [`KernelError::Host`] if a worker thread panicked.
pub fn multiply_f32(pool: &mut WorkerPool, isa: Isa, rounds: usize) -> Result<u64, KernelError> {
    pool.run(&|_| {
        let rounds = black_box(rounds);
        black_box(for_isa!(isa, products(rounds: usize) -> f32));
    })?;
    Ok((rounds * CHAINS * LANES * pool.n_threads()) as u64)
}

/// The same with 8-bit integers, by the instructions of `quant_linear`.
///
/// # Errors
///
/// [`KernelError::Host`] if a worker thread panicked.
pub fn multiply_int8(pool: &mut WorkerPool, isa: Isa, rounds: usize) -> Result<u64, KernelError> {
    pool.run(&|_| {
        let rounds = black_box(rounds);
        let sum = match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the instruction set was found on this processor when `isa` was made.
            Isa::Avx512 => unsafe { int8_avx512(rounds) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { int8_avx2(rounds) },
            _ => int8_portable(rounds),
        };
        black_box(sum);
    })?;
    let per_round = CHAINS * int8_products(isa);
    Ok((rounds * per_round * pool.n_threads()) as u64)
}

/// Products of one step of a chain.
fn int8_products(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 64,
        Isa::Avx2 => 32,
        Isa::Portable => LANES,
    }
}

#[inline(always)]
fn largest<L: Lanes>(words: &[f32]) -> f32 {
    let mut found = [L::splat(0.0); 4];
    let whole = words.len() / (4 * LANES) * (4 * LANES);
    for k in (0..whole).step_by(4 * LANES) {
        for i in 0..4 {
            found[i] = found[i].max(L::load(at(words, k + i * LANES)));
        }
    }
    for k in (whole..words.len()).step_by(LANES) {
        found[0] = found[0].max(L::load(at(words, k)));
    }
    found[0].max(found[1]).max(found[2].max(found[3])).largest()
}

#[inline(always)]
fn products<L: Lanes>(rounds: usize) -> f32 {
    let mut sums = [L::splat(black_box(0.5)); CHAINS];
    let factor = L::splat(black_box(0.999));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = sum.mul_add(factor, factor);
        }
    }
    let mut total = sums[0];
    for sum in &sums[1..] {
        total = total.add(*sum);
    }
    total.sum()
}

/// # Safety
/// Needs AVX-512 F and VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn int8_avx512(rounds: usize) -> i32 {
    use std::arch::x86_64::{
        _mm512_add_epi32, _mm512_dpbusd_epi32, _mm512_reduce_add_epi32, _mm512_set1_epi8,
        _mm512_setzero_si512,
    };
    let (w, x) = (
        _mm512_set1_epi8(black_box(3)),
        _mm512_set1_epi8(black_box(-2)),
    );
    let mut sums = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, w, x);
        }
    }
    let total = sums.into_iter().reduce(|a, b| _mm512_add_epi32(a, b));
    total.map_or(0, |total| _mm512_reduce_add_epi32(total))
}

/// # Safety
/// Needs AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn int8_avx2(rounds: usize) -> i32 {
    use std::arch::x86_64::{
        _mm256_add_epi32, _mm256_extract_epi32, _mm256_madd_epi16, _mm256_maddubs_epi16,
        _mm256_set1_epi8, _mm256_set1_epi16,
    };
    let (x, ones) = (
        _mm256_set1_epi8(black_box(-2)),
        _mm256_set1_epi16(black_box(1)),
    );
    let mut weights = [_mm256_set1_epi8(black_box(3)); CHAINS];
    for _ in 0..rounds {
        for w in &mut weights {
            // Each step needs the one before, so that none is taken out of the loop.
            *w = _mm256_madd_epi16(_mm256_maddubs_epi16(*w, x), ones);
        }
    }
    let total = weights.into_iter().reduce(|a, b| _mm256_add_epi32(a, b));
    total.map_or(0, |total| _mm256_extract_epi32::<0>(total))
}

fn int8_portable(rounds: usize) -> i32 {
    let (w, x) = (black_box([3u8; LANES]), black_box([-2i8; LANES]));
    let mut sums = [0i32; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            let w = black_box(w);
            for i in 0..LANES {
                *sum = sum.wrapping_add(i32::from(w[i]) * i32::from(x[i]));
            }
        }
    }
    sums.iter().fold(0, |total, sum| total.wrapping_add(*sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_counts_its_products() {
        let mut pool = WorkerPool::new(2).expect("pool");
        for isa in Isa::available() {
            let words = vec![1.0; 16 * 35 + 3];
            read(&mut pool, isa, &words).expect("read");
            assert_eq!(
                multiply_f32(&mut pool, isa, 10).expect("f32"),
                10 * 12 * 16 * 2
            );
            let expected = 10 * 12 * int8_products(isa) as u64 * 2;
            assert_eq!(multiply_int8(&mut pool, isa, 10).expect("int8"), expected);
        }
    }

    #[test]
    fn the_read_sees_every_register() {
        for i in 0..9 {
            let mut words = vec![0.0f32; 9 * LANES];
            words[i * LANES + 3] = 7.0;
            for isa in Isa::available() {
                let words: &[f32] = &words;
                let found = for_isa!(isa, largest(words: &[f32]) -> f32);
                assert!((found - 7.0).abs() < f32::EPSILON, "{isa:?} {i}");
            }
        }
    }
}
