//! Calls to the firmware: what the guest is told, what is printed and typed, what is forgotten.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use arbitrary::Arbitrary;
use axvm::{
    device::CharBackend,
    mm::PAGE_SIZE_4K,
    vcpu::{
        AxVCpuExitReason, ConsoleCall, CpuMask, CpuPower, CpuUpError, ExitKind, GuestFence,
        IpiTargets, VcpuExit,
    },
};
use axvm_testkit::{MockHal, NO_SUCH_CPU, Step, cpu_status_code, cpu_up_code};

use crate::{Hal, Kind, RAM, RAM_END, ROM_END, Test, common::Place};

#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Call {
    Status {
        target: u64,
    },
    Suspend {
        resume: Option<(Place, u64)>,
    },
    Fence {
        targets: Targets,
        translations: bool,
    },
    Write {
        at: Place,
        len: Len,
    },
    WriteByte(u8),
    Read {
        at: Place,
        len: Len,
    },
    ReadByte,
    /// Not the guest's: something is typed.
    Type {
        first: u8,
        len: u16,
    },
}

#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Targets {
    Set(u64),
    Named { base: u8, mask: u64 },
    AllButSelf,
    All,
    Itself,
}

#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Len {
    Short(u16),
    Any(u64),
}

impl Len {
    fn get(self) -> u64 {
        match self {
            Self::Short(len) => len.into(),
            Self::Any(len) => len,
        }
    }
}

/// The console's other end, and the model of it.
#[derive(Default)]
pub struct Terminal {
    printed: Mutex<Vec<u8>>,
    typed: Mutex<VecDeque<u8>>,
}

impl CharBackend for Terminal {
    fn write(&self, bytes: &[u8]) {
        self.printed.lock().expect("no panic").extend(bytes);
    }

    fn read(&self, buf: &mut [u8]) -> usize {
        let mut typed = self.typed.lock().expect("no panic");
        let len = buf.len().min(typed.len());
        buf.iter_mut().zip(typed.drain(..len)).for_each(|(to, from)| *to = from);
        len
    }
}

#[derive(Default)]
pub struct Console {
    real: Arc<Terminal>,
    printed: Vec<u8>,
    typed: VecDeque<u8>,
}

impl Console {
    pub fn backend(&self) -> Arc<Terminal> {
        self.real.clone()
    }

    fn compare(&mut self) {
        let printed = std::mem::take(&mut *self.real.printed.lock().expect("no panic"));
        assert_eq!(printed, std::mem::take(&mut self.printed));
        assert_eq!(*self.real.typed.lock().expect("no panic"), self.typed);
    }
}

impl Test {
    pub fn call(&mut self, call: Call) {
        let exit = match call {
            Call::Type { first, len } => {
                let bytes = (0..len).map(|at| first.wrapping_add(at as u8));
                self.console.typed.extend(bytes.clone());
                self.console.real.typed.lock().expect("no panic").extend(bytes);
                return;
            }
            Call::Status { target } => VcpuExit::CpuStatus { target_cpu: target },
            Call::Suspend { resume } => {
                let to = |(at, arg)| (self.resolve(Kind::Mmio, at).into(), arg);
                VcpuExit::CpuSuspend { resume: resume.map(to) }
            }
            Call::Fence { targets, translations } => {
                let targets = match targets {
                    Targets::Set(bits) => IpiTargets::Set(CpuMask::from_bits(bits)),
                    Targets::Named { base, mask } => IpiTargets::Named { base: base.into(), mask },
                    Targets::AllButSelf => IpiTargets::AllButSelf,
                    Targets::All => IpiTargets::All,
                    Targets::Itself => IpiTargets::Itself,
                };
                let fence = match translations {
                    true => GuestFence::Translations,
                    false => GuestFence::Instructions,
                };
                VcpuExit::RemoteFence { targets, fence }
            }
            Call::Write { at, len } => VcpuExit::Console(ConsoleCall::Write {
                gpa: self.resolve(Kind::Mmio, at).into(),
                len: len.get(),
            }),
            Call::WriteByte(byte) => VcpuExit::Console(ConsoleCall::WriteByte(byte)),
            Call::Read { at, len } => VcpuExit::Console(ConsoleCall::Read {
                gpa: self.resolve(Kind::Mmio, at).into(),
                len: len.get(),
            }),
            Call::ReadByte => VcpuExit::Console(ConsoleCall::ReadByte),
        };
        self.exits[ExitKind::from(&exit) as usize] += 1;
        if let Some(answer) = self.told(exit) {
            self.regs[0] = answer;
        }
        Hal::machine().program(1, 0).push(Step::Exit(exit));
        // A suspension ends in a halt of its own; nothing is left to do behind it.
        assert_eq!(self.vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
        self.console.compare();
        self.compare();
    }

    /// What register 0 holds after a call; none where it stays.
    fn told(&mut self, exit: VcpuExit) -> Option<u64> {
        match exit {
            VcpuExit::CpuStatus { target_cpu } => {
                Some(cpu_status_code((target_cpu == 0).then_some(CpuPower::On)))
            }
            // The guest has no memory to execute.
            VcpuExit::CpuSuspend { resume } => {
                resume.map(|_| cpu_up_code(Err(CpuUpError::InvalidAddress)))
            }
            VcpuExit::RemoteFence { targets, fence } => {
                // There is one vCPU, and it has the name 0.
                let itself = match targets {
                    IpiTargets::Set(set) => set.contains(0),
                    IpiTargets::Named { base: 0, mask: 1 } => true,
                    IpiTargets::Named { mask: 0, .. } | IpiTargets::AllButSelf => false,
                    IpiTargets::Named { .. } => return Some(NO_SUCH_CPU),
                    IpiTargets::All | IpiTargets::Itself => true,
                };
                self.fences.extend(itself.then_some(fence));
                None
            }
            VcpuExit::Console(ConsoleCall::WriteByte(byte)) => {
                self.console.printed.push(byte);
                Some(0)
            }
            VcpuExit::Console(ConsoleCall::ReadByte) => {
                let typed = &mut self.console.typed;
                Some(typed.pop_front().map_or(u64::MAX, u64::from))
            }
            VcpuExit::Console(ConsoleCall::Write { gpa, len }) => {
                Some(self.moves(gpa.as_usize(), len, ROM_END, |test, at| {
                    test.console.printed.push(test.ram.get(&at).copied().unwrap_or(0));
                    true
                }))
            }
            VcpuExit::Console(ConsoleCall::Read { gpa, len }) => {
                Some(self.moves(gpa.as_usize(), len, RAM_END, |test, at| {
                    let byte = test.console.typed.pop_front();
                    test.ram.extend(byte.map(|byte| (at, byte)));
                    byte.is_some()
                }))
            }
            _ => unreachable!("no call"),
        }
    }

    /// Moves bytes one by one, up to 4096, to where `one` has none or memory ends.
    fn moves(
        &mut self,
        gpa: usize,
        len: u64,
        end: usize,
        one: impl Fn(&mut Self, usize) -> bool,
    ) -> u64 {
        let len = len.min(4096);
        for done in 0..len {
            let at = gpa.wrapping_add(done as usize);
            if !(RAM..end).contains(&at) {
                return if done == 0 { u64::MAX } else { done };
            }
            self.populated.insert(at / PAGE_SIZE_4K);
            if !one(self, at) {
                return done;
            }
        }
        len
    }
}
