//! Attention of many queries: the kernel compared with the tensor operations that it replaces.
//!
//! ```text
//! cargo bench --features autodiff --bench prefill
//! ```

use burn::tensor::{Distribution, Tensor};
use burn_deepspeed::ops::attention::{Attention, Visibility, reference};
use burn_deepspeed::{AttentionMask, CpuOps, Operations, Window};
use burn_ndarray::NdArray;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

struct Workload {
    name: &'static str,
    /// Rows, query heads, key/value heads, features of a head, queries, keys.
    sizes: [usize; 6],
    causal: bool,
    window: Option<usize>,
    alibi: bool,
}

#[rustfmt::skip]
const WORKLOADS: [Workload; 7] = [
    Workload { name: "P1 prompt of 512", sizes: [1, 12, 12, 64, 512, 512], causal: true, window: None, alibi: false },
    Workload { name: "P3 prompt of 1024, grouped heads", sizes: [1, 32, 8, 128, 1024, 1024], causal: true, window: None, alibi: false },
    Workload { name: "P4 eight prompts of 128", sizes: [8, 12, 12, 64, 128, 128], causal: true, window: None, alibi: false },
    Workload { name: "P5 prompt of 1024 with slopes", sizes: [1, 16, 16, 64, 1024, 1024], causal: true, window: None, alibi: true },
    Workload { name: "P6 prompt of 2048, window of 256", sizes: [1, 16, 16, 64, 2048, 2048], causal: true, window: Some(256), alibi: false },
    Workload { name: "X1 cross attention to 77 keys", sizes: [2, 8, 8, 40, 4096, 77], causal: false, window: None, alibi: false },
    Workload { name: "five tokens after 1024", sizes: [1, 12, 4, 64, 5, 1029], causal: true, window: None, alibi: false },
];

impl Workload {
    fn arguments(&self) -> Attention<NdArray> {
        let [batch, heads, kv_heads, head_dim, queries, keys] = self.sizes;
        let random = |heads: usize, tokens: usize| {
            Tensor::random([batch, heads, tokens, head_dim], Distribution::Default, &Default::default())
        };
        Attention {
            query: random(heads, queries),
            key: random(kv_heads, keys),
            value: random(kv_heads, keys),
            scale: 1.0 / (head_dim as f64).sqrt(),
            softcap: None,
            sinks: None,
            slopes: self.alibi.then(|| burn_deepspeed::position::alibi::slopes(heads)),
            visibility: Visibility {
                causal: self.causal,
                window: self.window.map(Window::Back),
                starts: vec![keys.saturating_sub(queries)],
                ends: vec![keys],
            },
            mask: AttentionMask::none(),
        }
    }
}

fn prefill(criterion: &mut Criterion) {
    for workload in WORKLOADS {
        let arguments = workload.arguments();
        let mut group = criterion.benchmark_group(workload.name);
        group.bench_function(BenchmarkId::from_parameter("kernel"), |bencher| {
            bencher.iter(|| CpuOps::masked_attention(arguments.clone()));
        });
        group.bench_function(BenchmarkId::from_parameter("reference"), |bencher| {
            bencher.iter(|| reference(arguments.clone()));
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(std::time::Duration::from_secs(3));
    targets = prefill
}
criterion_main!(benches);
