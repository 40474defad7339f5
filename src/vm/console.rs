//! The firmware's console: what a guest prints and reads by calls (SBI DBCN, for one).

#![forbid(unsafe_code)]

use alloc::sync::Arc;

use axerrno::{AxError, AxResult, ax_err};

use super::AxVM;
use crate::{
    device::CharBackend,
    hal::AxVMHal,
    mm::{GuestPhysAddr, MappingFlags},
    sync::Mutex,
    vcpu::{AxArchVCpu, ConsoleCall},
};

/// What one call prints or reads at most; a guest that wants more calls again.
const MOST: u64 = 4096;
/// How much is copied in one go, on the stack.
const CHUNK: usize = 256;

impl<H: AxVMHal, A: AxArchVCpu> AxVM<H, A> {
    /// Gives the firmware's console a backend; without one, what the guest prints is lost. It is
    /// called by one vCPU at a time, for the whole of what that one prints.
    ///
    /// # Errors
    /// `AlreadyExists` when it has one.
    pub fn set_firmware_console(&self, backend: Arc<dyn CharBackend>) -> AxResult {
        let mut taken = true;
        self.console.call_once(|| {
            taken = false;
            Mutex::new(backend)
        });
        if taken {
            return ax_err!(AlreadyExists, "the firmware's console has a backend");
        }
        Ok(())
    }

    /// Serves a call: the number of bytes, the byte that was read, or 0 (SBI 2.0 §12); none when its
    /// memory is not there, or there is no byte to read.
    pub(super) fn console_call(&self, call: ConsoleCall) -> AxResult<Option<u64>> {
        let backend = self.console.get().map(|backend| {
            loop {
                match backend.try_lock() {
                    Some(backend) => break backend,
                    None => H::relax(),
                }
            }
        });
        let backend = backend.as_deref();
        match call {
            ConsoleCall::WriteByte(byte) => {
                if let Some(backend) = backend {
                    backend.write(&[byte]);
                }
                Ok(Some(0))
            }
            ConsoleCall::ReadByte => {
                let mut byte = [0];
                let read = backend.map_or(0, |backend| backend.read(&mut byte));
                Ok((read == 1).then_some(byte[0].into()))
            }
            ConsoleCall::Write { gpa, len } => self.console_chunks(gpa, len, |at, buf| {
                self.memory().read(at, buf)?;
                if let Some(backend) = backend {
                    backend.write(buf);
                }
                Ok(buf.len())
            }),
            ConsoleCall::Read { gpa, len } => self.console_chunks(gpa, len, |at, buf| {
                // Not read before there is memory to put it: it would be lost.
                self.memory().populate_for_host(at, MappingFlags::WRITE)?;
                let read = backend.map_or(0, |backend| backend.read(buf)).min(buf.len());
                self.memory().write(at, buf.get(..read).unwrap_or_default())?;
                Ok(read)
            }),
        }
    }

    /// Moves at most [`MOST`] bytes by `chunk`, until it moves less than it could. What was moved
    /// before bad memory is reached counts.
    fn console_chunks(
        &self,
        gpa: GuestPhysAddr,
        len: u64,
        mut chunk: impl FnMut(GuestPhysAddr, &mut [u8]) -> AxResult<usize>,
    ) -> AxResult<Option<u64>> {
        let len = len.min(MOST) as usize;
        let (mut done, mut buf) = (0, [0; CHUNK]);
        while done < len {
            let Some(at) = gpa.checked_add(done) else { break };
            // To the end of the page at most: what is behind it may not be there.
            let most = CHUNK - at.as_usize() % CHUNK;
            let part = buf.get_mut(..most.min(len - done)).unwrap_or_default();
            let room = part.len();
            match chunk(at, part) {
                Ok(moved) => {
                    done += moved;
                    if moved < room {
                        return Ok(Some(done as u64));
                    }
                }
                // The guest calls again for the rest, and the error comes then.
                Err(error) if done == 0 && error != AxError::InvalidInput => return Err(error),
                Err(_) => break,
            }
        }
        Ok((done > 0 || len == 0).then_some(done as u64))
    }
}
