//! The sum over ranks.

#[cfg(feature = "nccl")]
pub(crate) mod cube;
mod host;

pub use host::on_the_host;
