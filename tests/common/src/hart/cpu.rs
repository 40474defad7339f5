//! One hart: see [`MockCpu`].

use std::collections::{HashMap, VecDeque};

use axvm::arch::riscv64::{Csr, FpState, Frame, Trap};

use super::{
    Guest, HartConfig,
    csrs::{Csrs, FS, GVA, HU, SIE, SPIE, SPV, VS, VS_IRQS, VSXL_64},
};

/// How a register was touched from outside the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Touched {
    /// Read.
    Read(Csr),
    /// Written, or bits set or cleared.
    Changed(Csr),
}

type Script = Box<dyn FnOnce(&mut Guest<'_>) -> Trap + Send>;

/// What the registers of a trap hold that the hart did not write.
const STALE: u64 = 0xdead_dead_dead_dead;

/// One hart. It keeps count of what is touched, runs a [script](Self::script) in the guest's
/// place, and panics when the backend does what the manual or the contract of
/// [`Hart`](axvm::arch::riscv64::Hart) forbids: a register that does not exist, floating point
/// while FS is Off, an entry into a guest that is not confined.
pub struct MockCpu {
    /// What it has.
    pub config: HartConfig,
    /// Its floating-point registers.
    pub fp: FpState,
    /// How often these were saved, and loaded.
    pub fp_moves: (u64, u64),
    /// The guest's code: 16 bits at each address; the rest cannot be fetched.
    pub code: HashMap<u64, u16>,
    /// What was fetched: `hstatus` and address.
    pub fetches: Vec<(u64, u64)>,
    /// How often instructions, and translations, were fenced.
    pub fences: (u64, u64),
    /// How far `time` goes with each read.
    pub time_step: u64,
    csrs: Csrs,
    touched: Vec<Touched>,
    script: VecDeque<Script>,
}

impl MockCpu {
    pub(super) fn new(config: HartConfig) -> Self {
        Self {
            config,
            fp: FpState { regs: [0xf0f0; 32], fcsr: 0 },
            fp_moves: (0, 0),
            code: HashMap::new(),
            fetches: Vec::new(),
            fences: (0, 0),
            time_step: 0,
            csrs: Csrs::new(config),
            touched: Vec::new(),
            script: VecDeque::new(),
        }
    }

    /// A register; not counted.
    #[track_caller]
    pub fn get(&self, csr: Csr) -> u64 {
        self.csrs.get(csr)
    }

    /// Writes a register as the hardware would; not counted.
    #[track_caller]
    pub fn put(&mut self, csr: Csr, value: u64) {
        self.csrs.config = self.config;
        self.csrs.put(csr, value);
    }

    /// Sets `time`.
    pub fn set_time(&mut self, ticks: u64) {
        self.csrs.time = ticks;
    }

    /// What the guest does at the next entry for which there is no script yet, and why it comes
    /// out. Whatever it does to the trap's registers, for an interrupt only `cause` is valid.
    pub fn script(&mut self, act: impl FnOnce(&mut Guest<'_>) -> Trap + Send + 'static) {
        self.script.push_back(Box::new(act));
    }

    /// Whether every script has run.
    pub fn is_done(&self) -> bool {
        self.script.is_empty()
    }

    /// The registers that were touched from outside the guest since the last call.
    pub fn take_touched(&mut self) -> Vec<Touched> {
        std::mem::take(&mut self.touched)
    }

    /// Code at an address: `halves` in a row.
    pub fn put_code(&mut self, at: u64, halves: &[u16]) {
        self.code.extend((at..).step_by(2).zip(halves.iter().copied()));
    }
}

/// What the backend calls.
#[doc(hidden)]
#[allow(missing_docs, reason = "the functions are those of the trait")]
impl MockCpu {
    #[track_caller]
    pub fn read(&mut self, csr: Csr) -> u64 {
        self.touched.push(Touched::Read(csr));
        self.csrs.config = self.config;
        let value = self.csrs.get(csr);
        if csr == Csr::Time {
            self.csrs.time = self.csrs.time.wrapping_add(self.time_step);
        }
        value
    }

    #[track_caller]
    pub fn write(&mut self, csr: Csr, value: u64) {
        assert!(csr != Csr::Sstatus, "the host's sstatus is changed in FS only");
        self.change(csr, value);
    }

    #[track_caller]
    pub fn set(&mut self, csr: Csr, bits: u64) {
        assert!(csr != Csr::Sstatus || bits & !FS == 0, "of the host's sstatus only FS is set");
        let old = self.csrs.get(csr);
        self.change(csr, old | bits);
    }

    #[track_caller]
    pub fn clear(&mut self, csr: Csr, bits: u64) {
        assert!(csr != Csr::Sstatus || bits & !FS == 0, "of the host's sstatus only FS is cleared");
        let old = self.csrs.get(csr);
        self.change(csr, old & !bits);
    }

    #[track_caller]
    fn change(&mut self, csr: Csr, value: u64) {
        self.touched.push(Touched::Changed(csr));
        self.put(csr, value);
    }

    #[track_caller]
    pub fn enter(&mut self, frame: &mut Frame) {
        let host = self.csrs.get(Csr::Sstatus);
        assert_eq!(host & SIE, 0, "entry with the host's interrupts on");
        assert_eq!(frame.sstatus & (SIE | SPIE), 0, "the host's interrupts would be on after it");
        assert_eq!(frame.sstatus & VS, 0, "the guest would have the host's vector registers");
        assert_eq!(frame.hstatus & (SPV | HU | VSXL_64), SPV | VSXL_64, "hstatus");
        assert_eq!(frame.gprs[0], 0, "x0");
        assert_ne!(self.csrs.get(Csr::Hgatp) >> 60, 0, "a guest that is not confined");
        assert_eq!(self.csrs.get(Csr::Hideleg), VS_IRQS, "hideleg");
        if frame.sstatus & FS != 0 {
            assert_eq!(host & FS, 0, "the host may touch the guest's floating-point registers");
        }
        let script = self.script.pop_front().expect("an entry for which there is no script");
        let trap = script(&mut Guest { cpu: self, frame });
        frame.trap = Trap { cause: trap.cause, value: STALE, gpa: STALE, insn: STALE };
        frame.hstatus |= SPV;
        if trap.cause >> 63 == 0 {
            frame.trap = trap;
            // stval holds a guest-virtual address.
            frame.hstatus &= !GVA;
            if matches!(trap.cause, 0 | 1 | 4..=7 | 12..=15 | 20 | 21 | 23) {
                frame.hstatus |= GVA;
            }
        }
    }

    #[track_caller]
    pub fn fetch(&mut self, hstatus: u64, addr: u64) -> Option<u16> {
        assert_ne!(hstatus & SPV, 0, "hstatus is not the guest's");
        self.fetches.push((hstatus, addr));
        self.code.get(&addr).copied()
    }

    #[track_caller]
    pub fn save_fp(&mut self, fp: &mut FpState) {
        assert_ne!(self.csrs.get(Csr::Sstatus) & FS, 0, "save_fp while FS is Off");
        *fp = self.fp;
        self.fp_moves.0 += 1;
    }

    #[track_caller]
    pub fn load_fp(&mut self, fp: &FpState) {
        let sstatus = self.csrs.get(Csr::Sstatus);
        assert_ne!(sstatus & FS, 0, "load_fp while FS is Off");
        self.fp = *fp;
        self.csrs.put(Csr::Sstatus, sstatus | FS);
        self.fp_moves.1 += 1;
    }
}
