//! One loop, compiled for several instruction sets, chosen at run time.
//!
//! The bodies are plain Rust that the compiler vectorizes. None uses a fused multiply-add and every sum has
//! sixteen lanes of its own, so each instruction set gives the same bits.

/// Defines a function whose body is compiled for AVX-512, AVX2 and the target's baseline.
macro_rules! dispatched {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn generic($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    generic($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    generic($($arg),*)
                }
                if $crate::dispatch::has_avx512() {
                    // SAFETY: the CPU has what the function is compiled for.
                    #[allow(unsafe_code)]
                    return unsafe { avx512($($arg),*) };
                }
                if $crate::dispatch::has_avx2() {
                    // SAFETY: the CPU has what the function is compiled for.
                    #[allow(unsafe_code)]
                    return unsafe { avx2($($arg),*) };
                }
            }
            generic($($arg),*)
        }
    };
}
pub(crate) use dispatched;

#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_avx512() -> bool {
    use std::arch::is_x86_feature_detected as has;
    allowed(2) && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")
}

#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_avx2() -> bool {
    allowed(1) && std::arch::is_x86_feature_detected!("avx2")
}

/// What the products with packed weights use: byte products by VNNI. Whatever tests allow: those name the set.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_avx512_vnni() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") && has!("avx512vnni")
}

/// What the products with packed weights use without AVX-512: sums rounded once, and f16 loads.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_avx2_fma() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx2") && has!("fma") && has!("f16c")
}

/// What the products with packed weights use on ARM: byte products by dot products, of bytes in memory's order.
#[cfg(target_arch = "aarch64")]
#[inline]
pub(crate) fn has_neon_dotprod() -> bool {
    use std::arch::is_aarch64_feature_detected as has;
    cfg!(target_endian = "little") && has!("neon") && has!("dotprod")
}

/// Whether a level of instruction sets (1: AVX2 or NEON, 2: AVX-512) may be used: tests lower the highest.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline]
pub(crate) fn allowed(_level: u8) -> bool {
    #[cfg(test)]
    return _level <= HIGHEST.load(std::sync::atomic::Ordering::Relaxed);
    #[cfg(not(test))]
    true
}

/// The highest level that tests allow. Changing it while others run is harmless: the levels give the same bits.
#[cfg(test)]
static HIGHEST: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(2);

/// Lanes of a sum: the numbers of the widest register.
pub(crate) const LANES: usize = 16;

/// The lanes' sum, in a fixed tree.
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The lanes' maximum.
#[inline(always)]
pub(crate) fn max_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = if lanes[i] > lanes[i + width] { lanes[i] } else { lanes[i + width] };
        }
        width /= 2;
    }
    lanes[0]
}

/// `Σ f(a, b)` over pairs, sixteen lanes at a time.
#[inline(always)]
pub(crate) fn sum_pairs(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for (i, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] += f(a, b);
    }
    sum_lanes(lanes)
}

/// The largest number; negative infinity of nothing.
#[inline(always)]
pub(crate) fn maximum(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for i in 0..LANES {
            lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        lanes[i] = if x > lanes[i] { x } else { lanes[i] };
    }
    max_lanes(lanes)
}

#[cfg(test)]
mod tests {
    use super::HIGHEST;
    use crate::{
        AdamWStep, AttentionShape, Distillation, adamw, attention, attention_backward, cross_entropy,
        distillation, rms_norm, rms_norm_backward, sum_of_squares, swiglu, swiglu_backward, testing::numbers,
    };

    /// Every kernel once, at sizes that are no multiple of a register; all results, one after the other.
    fn everything() -> Vec<u32> {
        let (rows, d) = (5, 37);
        let (x, gain, d_out) = (numbers(rows * d, 1), numbers(d, 2), numbers(rows * d, 3));
        let [mut out, mut d_x] = [(); 2].map(|()| vec![0.0; rows * d]);
        let (mut inverse, mut d_gain) = (vec![0.0; rows], vec![0.0; d]);
        rms_norm(&x, &gain, 1e-5, &mut out, &mut inverse);
        rms_norm_backward(&x, &gain, &inverse, &d_out, &mut d_x, &mut d_gain);

        let (mut gate_up, mut product) = (numbers(2 * rows * d, 4), vec![0.0; rows * d]);
        swiglu(&gate_up, &mut product, d);
        let mut d_product = d_out.clone();
        swiglu_backward(&mut gate_up, &mut d_product, d);

        let shape = AttentionShape { batch: 1, n_heads: 2, n_kv_heads: 1, seq: 67, d_head: 8 };
        let n = shape.seq * shape.d_head;
        let (q, k, v, d_mix) = (numbers(2 * n, 5), numbers(n, 6), numbers(n, 7), numbers(2 * n, 8));
        let [mut mix, mut d_q] = [(); 2].map(|()| vec![0.0; 2 * n]);
        let [mut d_k, mut d_v] = [(); 2].map(|()| vec![0.0; n]);
        let mut log_sums = vec![0.0; 2 * shape.seq];
        attention(shape, None, &q, &k, &v, &mut mix, &mut log_sums);
        attention_backward(shape, None, &q, &k, &v, &mix, &log_sums, &d_mix, &mut d_q, &mut d_k, &mut d_v);

        let (targets, weights) = ([0, 36, 4, 9, 1], [0.25; 5]);
        let (mut student, teacher) = (numbers(rows * d, 9), numbers(rows * d, 10));
        let (mut logits, mut losses, mut pairs) = (student.clone(), [0.0; 5], [[0.0; 2]; 5]);
        cross_entropy(&mut logits, &targets, &weights, &mut losses);
        let settings = Distillation { temperature: 2.0, alpha: 0.5 };
        distillation(&mut student, &teacher, &targets, &weights, settings, &mut pairs);

        let (mut w, mut first, mut second) = (x.clone(), d_out.clone(), vec![0.5; rows * d]);
        let step = AdamWStep {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            gradient_scale: 0.5,
            n: 3,
        };
        adamw(step, &mut w, &out, &mut first, &mut second);
        let squares = [sum_of_squares(&x) as f32];
        let all: [&[f32]; 21] = [
            &out,
            &inverse,
            &d_x,
            &d_gain,
            &product,
            &gate_up,
            &d_product,
            &mix,
            &log_sums,
            &d_q,
            &d_k,
            &d_v,
            &logits,
            &losses,
            &student,
            pairs.as_flattened(),
            &w,
            &first,
            &second,
            &squares,
            &teacher,
        ];
        all.concat().iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let highest = everything();
        for level in [1, 0] {
            HIGHEST.store(level, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(everything(), highest, "level {level}");
        }
        HIGHEST.store(2, std::sync::atomic::Ordering::Relaxed);
    }
}
