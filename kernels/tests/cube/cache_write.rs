//! Splitting, turning and appending.

use burn_deepspeed_kernels::cube::cache_write::{CacheWrite, RotaryPairs, Rotation, launch};

use crate::lab::{Element, lab};
use crate::oracle::{assert_near, noise};

struct Case {
    /// Query heads, key heads, new tokens, capacity, head size.
    sizes: [usize; 5],
    /// First new slot and end of each row.
    rows: Vec<[usize; 2]>,
    rotary: Option<(RotaryPairs, usize)>,
    /// Whether each row has angles of its own.
    own_angles: bool,
}

impl Case {
    fn check(&self, element: Element) {
        let lab = lab(true);
        let [heads, kv_heads, tokens, capacity, head_dim] = self.sizes;
        let batch = self.rows.len();
        let all_heads = heads + 2 * kv_heads;
        let qkv: Vec<f32> = noise(batch * tokens * all_heads * head_dim, 1).iter().map(|x| element.round(*x)).collect();
        let old = |seed| -> Vec<f32> {
            noise(batch * kv_heads * capacity * head_dim, seed).iter().map(|x| element.round(*x)).collect()
        };
        let (old_key, old_value) = (old(2), old(3));
        let half = self.rotary.map_or(0, |(_, dim)| dim / 2);
        let table_rows = if self.own_angles { batch } else { 1 };
        let angles = noise(table_rows * tokens * half, 4);
        let rotation = self.rotary.map(|(pairs, _)| {
            let part = |part: fn(f32) -> f32| {
                let values: Vec<f32> = angles.iter().map(|angle| part(*angle * 3.0)).collect();
                lab.floats(&values, &[table_rows, tokens, half], Element::F32, 4)
            };
            Rotation { pairs, cos: part(f32::cos), sin: part(f32::sin) }
        });
        let query = lab.output(&[batch, heads, tokens, head_dim], element, 16);
        let shape = [batch, kv_heads, capacity, head_dim];
        let (key, value) = (lab.floats(&old_key, &shape, element, 32), lab.floats(&old_value, &shape, element, 64));
        let uniform = self.rows.windows(2).all(|pair| pair[0] == pair[1]);
        let bounds: Vec<u32> = self.rows.iter().flatten().map(|bound| *bound as u32).collect();
        let bounds = lab.integers(&bounds, &[batch, 2]);
        let arguments = CacheWrite {
            qkv: &lab.floats(&qkv, &[batch, tokens, all_heads * head_dim], element, 16),
            query: &query,
            key: &key,
            value: &value,
            rotation: rotation.as_ref(),
            bounds: (!uniform).then_some(&bounds),
            start: self.rows[0][0] as u32,
            end: self.rows[0][1] as u32,
        };
        assert_eq!(launch(&lab.client, &lab.machine, arguments), Ok(()));

        let feature = |b: usize, t: usize, head: usize, d: usize| {
            f64::from(qkv[((b * tokens + t) * all_heads + head) * head_dim + d])
        };
        let turned = |b: usize, t: usize, head: usize, d: usize| {
            let own = feature(b, t, head, d);
            let Some((pairs, _)) = self.rotary else { return own };
            if d >= 2 * half {
                return own;
            }
            let (at, partner, sign) = match pairs {
                RotaryPairs::Half if d < half => (d, d + half, -1.0),
                RotaryPairs::Half => (d - half, d - half, 1.0),
                RotaryPairs::Interleaved if d.is_multiple_of(2) => (d / 2, d + 1, -1.0),
                RotaryPairs::Interleaved => (d / 2, d - 1, 1.0),
            };
            let angle = angles[(b % table_rows * tokens + t) * half + at] * 3.0;
            own * f64::from(angle.cos()) + sign * feature(b, t, head, partner) * f64::from(angle.sin())
        };
        let mut expected_query = Vec::new();
        let (mut expected_key, mut expected_value): (Vec<f64>, Vec<f64>) =
            (old_key.iter().map(|x| f64::from(*x)).collect(), old_value.iter().map(|x| f64::from(*x)).collect());
        for (b, [start, end]) in self.rows.iter().enumerate() {
            for head in 0..heads {
                expected_query.extend((0..tokens * head_dim).map(|at| turned(b, at / head_dim, head, at % head_dim)));
            }
            for head in 0..kv_heads {
                for t in 0..end - start {
                    for d in 0..head_dim {
                        let at = ((b * kv_heads + head) * capacity + start + t) * head_dim + d;
                        expected_key[at] = turned(b, t, heads + head, d);
                        expected_value[at] = feature(b, t, heads + kv_heads + head, d);
                    }
                }
            }
        }
        let what = format!("{element:?} {:?} {:?} {:?}", self.sizes, self.rows, self.rotary);
        assert_near(&format!("query, {what}"), &lab.read(&query), &expected_query, element.tolerance());
        assert_near(&format!("key, {what}"), &lab.read(&key), &expected_key, element.tolerance());
        assert_near(&format!("value, {what}"), &lab.read(&value), &expected_value, 0.0);
    }
}

#[test]
fn both_layouts_turn_what_they_should_and_append_in_place() {
    use RotaryPairs::{Half, Interleaved};
    let rotaries =
        [None, Some((Half, 8)), Some((Half, 6)), Some((Half, 40)), Some((Interleaved, 40)), Some((Interleaved, 6))];
    for &element in Element::ALL {
        for rotary in rotaries {
            let rows = vec![[0, 3], [5, 8]];
            Case { sizes: [6, 2, 3, 11, 40], rows, rotary, own_angles: true }.check(element);
        }
    }
    for (rotary, head_dim) in [(Some((Half, 2)), 7), (Some((Interleaved, 6)), 7), (Some((Half, 128)), 128), (None, 1)] {
        let rows = vec![[4, 5], [4, 5], [4, 5]];
        Case { sizes: [3, 3, 1, 5, head_dim], rows, rotary, own_angles: false }.check(Element::F32);
    }
}

#[test]
fn rows_with_fewer_new_tokens_keep_their_other_slots() {
    let rows = vec![[0, 4], [6, 6], [2, 3]];
    let rotary = Some((RotaryPairs::Half, 16));
    Case { sizes: [2, 1, 4, 9, 16], rows, rotary, own_angles: true }.check(Element::F32);
}
