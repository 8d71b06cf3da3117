//! Divisors of sizes.

/// The greatest common divisor. With 0, the other number.
pub fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
