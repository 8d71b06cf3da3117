//! The messages of a sum: what ranks send each other, and how they add.

use std::ops::Range;
use std::sync::Arc;

use super::communicator::{ExchangeState, HEADER, MpiCommunicator};
use super::message::Message;
use super::patience::Patience;
use crate::error::CommunicationError;
use crate::parallel::agreement::Agreement;
use crate::parallel::communicator::Communicator;

/// Up to this number of values from all other ranks together, values are sent with the agreements and every rank computes the
/// whole sum. For more values it is faster if each rank adds a part and distributes it.
const ADDED_BY_EACH: usize = 64 * 1024;

/// Values of a long sum that are added at a time, so that they stay in the processor cache.
const STRETCH: usize = 2048;

type Sent = Message<Arc<Vec<u32>>>;
type Received = Message<Vec<u32>>;

impl MpiCommunicator {
    /// Replaces `values` by their sum over all ranks.
    pub(super) fn sum(
        &self,
        state: &mut ExchangeState,
        agreement: &Agreement,
        values: &mut [f32],
    ) -> Result<(), CommunicationError> {
        let blocks = self.show(state, agreement, values)?;
        let end = HEADER + values.len();
        if values.len() <= self.most_sent_at_once() {
            add(blocks.iter().map(|block| &block[HEADER..end]), values);
        } else {
            self.add_by_parts(state, values)?;
        }
        state.blocks = blocks;
        Ok(())
    }

    /// Sends all ranks what this one is about to do, with `values` if they are few, and returns the block of each rank.
    pub(super) fn show(
        &self,
        state: &mut ExchangeState,
        agreement: &Agreement,
        values: &[f32],
    ) -> Result<Vec<Vec<u32>>, CommunicationError> {
        let mut spare = std::mem::take(&mut state.blocks);
        let mut own = if spare.is_empty() { Vec::new() } else { spare.remove(self.rank) };
        let mut spare = spare.into_iter();
        own.clear();
        own.extend(
            agreement
                .words()
                .iter()
                .chain([&(values.len() as u64)])
                .flat_map(|&word| [word as u32, (word >> 32) as u32]),
        );
        if values.len() <= self.most_sent_at_once() {
            own.extend(values.iter().map(|value| value.to_bits()));
        }
        let arriving = self.others().map(|rank| {
            let mut block = spare.next().unwrap_or_default();
            block.resize(HEADER + self.most_sent_at_once(), 0);
            self.receive(block, rank)
        });
        let arriving = arriving.collect::<Result<_, _>>()?;
        let own = Arc::new(own);
        let leaving = self.others().map(|rank| self.send(own.clone(), rank)).collect::<Result<_, _>>()?;
        let mut blocks = self.complete(state, arriving)?;
        drop(self.complete(state, leaving)?);
        blocks.insert(self.rank, Arc::unwrap_or_clone(own));

        let number = |block: &[u32], at: usize| u64::from(block[2 * at]) | u64::from(block[2 * at + 1]) << 32;
        let words: Vec<_> = blocks.iter().map(|block| std::array::from_fn(|at| number(block, at))).collect();
        agreement.check(&words)?;
        Agreement::check_counts(blocks.iter().map(|block| number(block, Agreement::WORDS) as usize))?;
        Ok(blocks)
    }

    /// Every rank adds a part and sends it to the others.
    fn add_by_parts(&self, state: &mut ExchangeState, values: &mut [f32]) -> Result<(), CommunicationError> {
        let start = |rank: usize| values.len() * rank / self.size();
        let part = |rank: usize| start(rank)..start(rank + 1);
        let parts: Vec<Range<usize>> = (0..self.size()).map(part).collect();
        let own = parts[self.rank].clone();

        let arriving = self.others().map(|rank| self.receive(state.part(own.len()), rank)).collect::<Result<_, _>>()?;
        let leaving = self.others().map(|rank| {
            let mut part = state.part(0);
            part.extend(values[parts[rank].clone()].iter().map(|value| value.to_bits()));
            self.send(Arc::new(part), rank)
        });
        let leaving = leaving.collect::<Result<_, _>>()?;
        let arrived = self.complete(state, arriving)?;
        let (mut sum, mut kept) = (state.part(0), Vec::with_capacity(STRETCH));
        for start in own.clone().step_by(STRETCH) {
            let stretch = start..own.end.min(start + STRETCH);
            let place = start - own.start..stretch.end - own.start;
            let values = &mut values[stretch];
            kept.clear();
            kept.extend(values.iter().map(|value| value.to_bits()));
            let mut others = arrived.iter().map(|part| &part[place.clone()]);
            let parts =
                (0..self.size()).filter_map(|rank| if rank == self.rank { Some(&kept[..]) } else { others.next() });
            add(parts, values);
            sum.extend(values.iter().map(|value| value.to_bits()));
        }
        state.parts.extend(arrived);

        let sum = Arc::new(sum);
        let arriving = self.others().map(|rank| self.receive(state.part(parts[rank].len()), rank));
        let arriving = arriving.collect::<Result<_, _>>()?;
        let handed = self.others().map(|rank| self.send(sum.clone(), rank)).collect::<Result<_, _>>()?;
        for (rank, sum) in self.others().zip(self.complete(state, arriving)?) {
            for (value, bits) in values[parts[rank].clone()].iter_mut().zip(&sum) {
                *value = f32::from_bits(*bits);
            }
            state.parts.push(sum);
        }
        let left = self.complete(state, leaving)?;
        state.parts.extend(left.into_iter().map(Arc::unwrap_or_clone));
        drop(self.complete(state, handed)?);
        state.parts.push(Arc::unwrap_or_clone(sum));
        Ok(())
    }

    /// Waits until all messages are done, and returns their buffers.
    fn complete<B>(
        &self,
        state: &mut ExchangeState,
        mut messages: Vec<(usize, Message<B>)>,
    ) -> Result<Vec<B>, CommunicationError> {
        let mut patience = Patience::new(self.limit);
        for at in 0..messages.len() {
            while !messages[at].1.is_done()? {
                self.receive_notices(state)?;
                if !patience.pause() {
                    let missing =
                        messages.iter_mut().filter_map(|(rank, message)| (!message.is_done().ok()?).then_some(*rank));
                    let (missing, ranks, limit) = (missing.collect(), self.size(), self.limit);
                    return Err(CommunicationError::TimedOut { missing, ranks, limit });
                }
            }
        }
        Ok(messages.into_iter().filter_map(|(_, message)| message.into_buffer()).collect())
    }

    /// The largest number of values that are sent with the agreement; a rank that is alone sends nothing.
    fn most_sent_at_once(&self) -> usize {
        ADDED_BY_EACH.checked_div(self.size() - 1).unwrap_or(usize::MAX)
    }

    fn send(&self, buffer: Arc<Vec<u32>>, rank: usize) -> Result<(usize, Sent), CommunicationError> {
        Ok((rank, Message::send(self.process.link, buffer, self.members[rank], self.values_tag())?))
    }

    fn receive(&self, buffer: Vec<u32>, rank: usize) -> Result<(usize, Received), CommunicationError> {
        Ok((rank, Message::receive(self.process.link, buffer, self.members[rank], self.values_tag())?))
    }
}

impl ExchangeState {
    /// Memory for a part of `values` values.
    fn part(&mut self, values: usize) -> Vec<u32> {
        let mut part = self.parts.pop().unwrap_or_default();
        part.resize(values, 0);
        part
    }
}

/// The sum of parts, in the order of ranks.
fn add<'a>(mut parts: impl Iterator<Item = &'a [u32]>, sum: &mut [f32]) {
    for (sum, bits) in sum.iter_mut().zip(parts.next().unwrap_or_default()) {
        *sum = f32::from_bits(*bits);
    }
    for part in parts {
        for (sum, bits) in sum.iter_mut().zip(part) {
            *sum += f32::from_bits(*bits);
        }
    }
}
