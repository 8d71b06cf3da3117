//! Products of bytes on x86-64, which are added in fours.

use std::arch::is_x86_feature_detected;

/// Whether the processor has them in registers of AVX-512.
pub(super) fn has_avx512_vnni() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// Whether it has them in registers of AVX2, with its fused multiply-adds.
pub(super) fn has_avx_vnni() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("avxvnni")
}
