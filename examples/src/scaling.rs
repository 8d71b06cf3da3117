//! A cost model of a decoding step of one layer on several ranks: the bytes that each rank reads from its memory, and the bytes
//! that the ranks send each other.
//!
//! A step reads every weight and every cached token once. On one device it takes `bytes / bandwidth`, plus a fixed time. Each
//! rank reads its part; then the ranks add up `batch · hidden_size` numbers of four bytes:
//!
//! ```text
//! step(n)        = fixed + largest part(n) · ranks on a device / bandwidth + sums · sum(n, 4 · batch · hidden_size)
//! sum(n, bytes)  = ⌈log2 n⌉ · latency + 2 · (n − 1) / n · bytes / link
//! over m hosts   = sum(n / m, bytes) inside + sum(m, bytes · m / n) between
//! ```
//!
//! The sum is the recursive halving and doubling of Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication
//! Operations in MPICH" (2005), whose second term no all-reduce can beat.

use burn_deepspeed::{ConfigError, TpPlan};

/// A layer in decoding.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// E: width of the residual stream, in elements.
    pub hidden_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Inner features of the MLP, which has three matrices; 0 for attention alone.
    pub mlp_size: usize,
    /// Bytes of a weight, and of a cached element.
    pub element: usize,
    /// Rows.
    pub batch: usize,
    /// Cached tokens of each row.
    pub history: usize,
}

impl Layer {
    /// Bytes that the busiest of `ranks` reads in a step.
    pub fn largest_part(&self, ranks: usize) -> Result<f64, ConfigError> {
        let plan = TpPlan::uneven(self.heads, self.kv_heads, ranks)?;
        let mlp = 3 * self.mlp_size.div_ceil(ranks) * self.hidden_size;
        let elements = plan.shards().map(|shard| {
            let weights = 2 * (shard.len + shard.kv_len) * self.head_dim * self.hidden_size;
            let cached = 2 * shard.kv_len * self.head_dim * self.batch * self.history;
            weights + cached
        });
        Ok(((elements.max().unwrap_or(0) + mlp) * self.element) as f64)
    }

    /// Number of sums over ranks in a step: one after attention, one after the MLP.
    pub fn sums(&self) -> f64 {
        if self.mlp_size == 0 { 1.0 } else { 2.0 }
    }

    /// Bytes that each sum adds up.
    pub fn summed(&self) -> f64 {
        (4 * self.batch * self.hidden_size) as f64
    }
}

/// A connection between ranks.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Seconds of a round in which almost nothing is sent.
    pub latency: f64,
    /// Bytes per second that a rank sends.
    pub bandwidth: f64,
}

impl Link {
    /// Seconds that `ranks` take to add up this number of bytes.
    pub fn sum(&self, ranks: usize, bytes: f64) -> f64 {
        let n = ranks as f64;
        n.log2().ceil() * self.latency + 2.0 * (n - 1.0) / n * bytes / self.bandwidth
    }
}

/// Devices and their connections.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Seconds of a step that more ranks do not shorten: launches.
    pub fixed: f64,
    /// Bytes per second that a device reads.
    pub bandwidth: f64,
    /// Number of devices with separate memory. If there are more ranks, they share the devices.
    pub devices: usize,
    /// Between the devices of a host.
    pub inside: Link,
    /// The number of hosts, and the connection between them.
    pub between: Option<(usize, Link)>,
}

impl Machine {
    /// Seconds of a step on `ranks`, and the seconds of its sums.
    pub fn step(&self, layer: &Layer, ranks: usize) -> Result<(f64, f64), ConfigError> {
        let crowd = ranks.div_ceil(self.devices) as f64;
        let compute = self.fixed * crowd + layer.largest_part(ranks)? * crowd / self.bandwidth;
        let bytes = layer.summed();
        let sum = match self.between {
            Some((hosts, between)) if hosts > 1 && ranks > hosts => {
                let within = ranks / hosts;
                self.inside.sum(within, bytes) + between.sum(hosts, bytes / within as f64)
            }
            _ => self.inside.sum(ranks, bytes),
        };
        let sums = layer.sums() * sum;
        Ok((compute + sums, sums))
    }
}

/// The link that explains two measured sums `(bytes, seconds)` of `ranks`.
pub fn fitted(ranks: usize, [short, long]: [(f64, f64); 2]) -> Link {
    let n = ranks as f64;
    let sent = |bytes: f64| 2.0 * (n - 1.0) / n * bytes;
    let bandwidth = (sent(long.0) - sent(short.0)) / (long.1 - short.1).max(1e-12);
    let latency = (short.1 - sent(short.0) / bandwidth).max(0.0) / n.log2().ceil();
    Link { latency, bandwidth }
}

/// Microseconds per second.
pub const MICROSECONDS: f64 = 1e6;

/// The rows of the table in `docs/tensor-parallel.md`: a step, and the sums in it, on one GPU, on eight GPUs of a
/// host, and on two such hosts.
pub fn predictions() -> Result<Vec<String>, ConfigError> {
    let row = |(name, layer): (&str, Layer)| {
        let mut row = format!("| {name} |");
        for (hosts, ranks) in [(1, 1), (1, 8), (2, 16)] {
            let (step, sums) = h200(hosts).step(&layer, ranks)?;
            row.push_str(&format!(" {:.0} ({:.0}) |", step * MICROSECONDS, sums * MICROSECONDS));
        }
        Ok(row)
    };
    layers_of_70b().into_iter().map(row).collect()
}

/// Layers of the size of LLaMA 2 70B (<https://arxiv.org/abs/2307.09288>) in 16-bit elements, attention alone and whole, with
/// 4096 tokens in each row.
pub fn layers_of_70b() -> [(&'static str, Layer); 4] {
    let attention = Layer {
        hidden_size: 8192,
        heads: 64,
        kv_heads: 8,
        head_dim: 128,
        mlp_size: 0,
        element: 2,
        batch: 1,
        history: 4096,
    };
    let whole = Layer { mlp_size: 28672, ..attention };
    [
        ("attention, 1 row", attention),
        ("attention, 32 rows", Layer { batch: 32, ..attention }),
        ("attention and MLP, 1 row", whole),
        ("attention and MLP, 32 rows", Layer { batch: 32, ..whole }),
    ]
}

/// Hosts of eight H200: three quarters of 4.8 TB/s, 10 µs of launches, NVLink at the 370 GB/s and 6 µs per round
/// that others measured (<https://github.com/NVIDIA/nccl/issues/1442>, <https://github.com/NVIDIA/nccl/issues/1259>), and
/// between hosts 90 % of 400 Gb/s per GPU and 15 µs per round. None of these numbers was measured here.
pub fn h200(hosts: usize) -> Machine {
    Machine {
        fixed: 10e-6,
        bandwidth: 0.75 * 4.8e12,
        devices: 8 * hosts,
        inside: Link { latency: 6e-6, bandwidth: 370e9 },
        between: Some((hosts, Link { latency: 15e-6, bandwidth: 0.9 * 50e9 })),
    }
}
