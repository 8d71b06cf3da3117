//! What an x86-64 processor has.

use std::arch::is_x86_feature_detected;

/// Whether it has AVX-512.
#[inline]
pub(super) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
}

/// Whether it multiplies bytes and adds them in fours in registers of AVX-512.
pub(super) fn has_avx512_vnni() -> bool {
    has_avx512() && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni")
}

/// Whether it does so in registers of AVX2, with its fused multiply-adds.
pub(super) fn has_avx_vnni() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("avxvnni")
}
