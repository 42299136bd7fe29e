//! Merges packets for the host into super-packets: one TUN write instead of up to 64.
//!
//! Packets of a turn are pushed as places in driver buffers; groups of consecutive segments of a
//! flow grow until they cannot, and are then written as parts: the first packet whole, of the
//! others the payload. No byte moves; only the first packet's headers are patched, in its buffer.
//!
//! Invariants: packets of a flow are written in the order in which they were pushed. A packet that
//! does not join its flow's open group writes that group first; one without ports (a fragment, say)
//! writes every open group between its two addresses.
//!
//! One per worker. It keeps no packet beyond [`Coalescer::flush`], which ends every turn, before
//! the buffers of the turn are released.

use hyphae_shm::stats::DropReason;

use super::checksum;
use super::group::{Candidate, Flow, Group};
use super::header::TunHeader;
use super::packet::{self, Ipv6Header};

/// Flows merged at a time; one more writes the group that is next in turn.
const OPEN_MAX: usize = 8;

/// A place in a driver buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The driver's number of the buffer.
    pub buffer: u16,
    /// First byte in it.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

/// Where the packets lie and where they go: the driver, seen from here.
pub trait TunSink {
    /// The bytes of a [`Part`].
    fn slice(&mut self, buffer: u16, offset: u32, len: u32) -> &mut [u8];

    /// Writes one packet or super-packet: `header`, then at most 64 parts. The parts are only read
    /// from now on.
    fn write(&mut self, header: &TunHeader, parts: &[Part]);
}

/// The open groups.
pub struct Coalescer {
    groups: Box<[Group; OPEN_MAX]>,
    /// The group to write when one more is needed.
    victim: usize,
    udp: bool,
}

impl Coalescer {
    /// Merges TCP, and UDP as well if the device takes [`TunHeader::GSO_UDP_L4`].
    pub fn new(udp: bool) -> Self {
        Self {
            groups: Box::new(std::array::from_fn(|_| Group::default())),
            victim: 0,
            udp,
        }
    }

    /// Takes the inner packet at `part`, whose headers are final but for a partial checksum. Writes
    /// it, or keeps it to be merged until [`Self::flush`] at the latest.
    ///
    /// # Errors
    /// [`DropReason::InnerMalformed`] when it is not IPv6 of exactly this length, or when its
    /// checksum is partial and not to be found.
    pub fn push<S: TunSink>(
        &mut self,
        sink: &mut S,
        part: Part,
        partial_checksum: bool,
    ) -> Result<(), DropReason> {
        let bytes = sink.slice(part.buffer, part.offset, part.len);
        let ipv6 = *packet::ipv6(bytes).map_err(|_| DropReason::InnerMalformed)?;
        let checksum_at = match packet::partial_checksum_at(&ipv6, bytes) {
            _ if !partial_checksum => None,
            Some(at) => Some(at),
            None => return Err(DropReason::InnerMalformed),
        };
        let flow = Flow::of(&ipv6, bytes);
        let candidate = checksum_at
            .and_then(|_| Candidate::parse(&ipv6, bytes))
            .filter(|candidate| self.udp || candidate.is_tcp());
        match candidate {
            Some(candidate) => self.merge(sink, &candidate, part),
            None => {
                self.write_before(sink, &ipv6, flow);
                write_alone(sink, &ipv6, part, checksum_at);
            }
        }
        Ok(())
    }

    /// Writes every open group.
    pub fn flush<S: TunSink>(&mut self, sink: &mut S) {
        self.groups.iter_mut().for_each(|group| group.write(sink));
    }

    fn merge<S: TunSink>(&mut self, sink: &mut S, candidate: &Candidate, part: Part) {
        let at = self
            .groups
            .iter()
            .position(|group| group.is_of(&candidate.flow))
            .or_else(|| self.groups.iter().position(Group::is_free))
            .unwrap_or_else(|| {
                self.victim = (self.victim + 1) % OPEN_MAX;
                self.victim
            });
        let group = &mut self.groups[at];
        // A free place refuses, and writes nothing.
        if !(group.is_of(&candidate.flow) && group.join(candidate, part)) {
            group.write(sink);
            group.begin(candidate, part);
        }
        if group.is_complete() {
            group.write(sink);
        }
    }

    /// Writes what must not be overtaken by a packet that is written alone.
    fn write_before<S: TunSink>(&mut self, sink: &mut S, ipv6: &Ipv6Header, flow: Option<Flow>) {
        let waits = |group: &Group| match &flow {
            Some(flow) => group.is_of(flow),
            None => group.is_between(ipv6),
        };
        self.groups
            .iter_mut()
            .filter(|group| waits(group))
            .for_each(|group| group.write(sink));
    }
}

/// Writes a packet as it is, with the pseudo-header sum where its checksum is partial.
fn write_alone<S: TunSink>(
    sink: &mut S,
    ipv6: &Ipv6Header,
    part: Part,
    checksum_at: Option<(u16, u16)>,
) {
    let mut header = TunHeader::default();
    if let Some((start, offset)) = checksum_at {
        let sum = checksum::pseudo_header(ipv6, ipv6.next_header, ipv6.payload_len.get());
        let at = usize::from(start) + usize::from(offset);
        if let Some(field) = sink
            .slice(part.buffer, part.offset, part.len)
            .get_mut(at..at + 2)
        {
            field.copy_from_slice(&sum.to_be_bytes());
        }
        header.flags = TunHeader::NEEDS_CSUM;
        (header.csum_start, header.csum_offset) = (start.into(), offset.into());
    }
    sink.write(&header, &[part]);
}

#[cfg(test)]
mod tests;
