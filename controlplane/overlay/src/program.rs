//! What the engine wants done: records for workers and events, in order.

use std::collections::VecDeque;
use std::fmt;

use hyphae_shm::record::Program;
use hyphae_wire::WorkerId;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::Event;

/// A program record that owns its bytes; wiped on drop, because some carry keys.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct OwnedProgram {
    code: u16,
    bytes: Vec<u8>,
}

impl OwnedProgram {
    /// Copies a record.
    pub fn new(program: &Program<'_>) -> Self {
        let (code, body, tail) = program.parts();
        // One allocation of the final size: growing would leave copies of keys behind.
        let mut bytes = Vec::with_capacity(body.len() + tail.len());
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(tail);
        Self { code, bytes }
    }

    /// Code of the record, as a ring wants it.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// Bytes of the record, as a ring wants them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The record.
    ///
    /// # Panics
    /// Never: it was made from a record.
    pub fn program(&self) -> Program<'_> {
        match Program::parse(self.code, &self.bytes) {
            Some(program) => program,
            None => unreachable!("an owned record was made from a record"),
        }
    }
}

impl fmt::Debug for OwnedProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.program().fmt(f)
    }
}

/// Capacity for programs that is retained when all are polled.
const PROGRAMS_KEPT: usize = 256;

/// Outputs that wait to be polled. Bounded by the work of one call, because callers drain it after
/// each.
#[derive(Debug, Default)]
pub(crate) struct Output {
    programs: VecDeque<(WorkerId, OwnedProgram)>,
    events: VecDeque<Event>,
}

impl Output {
    pub(crate) fn program(&mut self, worker: WorkerId, program: &Program<'_>) {
        self.programs
            .push_back((worker, OwnedProgram::new(program)));
    }

    pub(crate) fn program_all(&mut self, workers: u16, program: &Program<'_>) {
        (0..workers).for_each(|worker| self.program(WorkerId(worker), program));
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(crate) fn poll_program(&mut self) -> Option<(WorkerId, OwnedProgram)> {
        let program = self.programs.pop_front();
        if self.programs.is_empty() {
            self.programs.shrink_to(PROGRAMS_KEPT);
        }
        program
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}
