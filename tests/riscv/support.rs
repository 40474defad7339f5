//! A vCPU that is bound to this thread's hart.

use axvm::{
    arch::riscv64::{Csr, Frame, RiscvConfig, RiscvPerCpu, RiscvVCpu, Trap},
    config::VMInterruptMode,
    mm::{GuestPhysAddr, HostPhysAddr},
    vcpu::{AxArchPerCpu, AxArchVCpu, Completion, VcpuExit, VcpuSpec},
};
use axvm_testkit::{Guest, MockCpu, MockHal, MockHart, mock_hal, mock_hart};
pub use axvm_testkit::{exception, guest_page_fault, interrupt};

mock_hal!(
    /// Its clock stands still, and `time` ticks every 100 ns.
    pub struct Hal { counter_hz: 10_000_000 }
);
mock_hart!(
    /// A hart with everything.
    pub struct Sstc on Hal {}
);
mock_hart!(
    /// A hart whose guests set their timers by calls.
    pub struct NoSstc on Hal { stce: false, vstimecmp: false }
);

pub const ENTRY: u64 = 0x8020_0000;
pub const DTB: usize = 0x8f00_0000;
pub const HART: u64 = 5;
/// Of the page table, which is only a number here.
pub const ROOT: usize = 0x10_0004_0000;
/// Where the guest's exceptions go.
pub const STVEC: u64 = 0xffff_ffc0_0000_1000;

pub const SIE: u64 = 1 << 1;
pub const SPIE: u64 = 1 << 5;
pub const SPP: u64 = 1 << 8;
pub const FS: u64 = 3 << 13;
pub const FS_INITIAL: u64 = 1 << 13;
pub const FS_CLEAN: u64 = 2 << 13;
pub const VSSI: u64 = 1 << 2;
pub const VSTI: u64 = 1 << 6;
pub const VSEI: u64 = 1 << 10;
pub const STCE: u64 = 1 << 63;
pub const A0: usize = 10;
pub const A1: usize = 11;

pub type Vcpu<P, H = Hal> = RiscvVCpu<H, P>;

/// What vCPU 3 of VM 1 is made from.
pub fn config() -> RiscvConfig {
    RiscvConfig::from(&VcpuSpec {
        vm_id: 1,
        vcpu_id: 3,
        guest_cpu_id: HART,
        boot_arg: Some(GuestPhysAddr::from_usize(DTB)),
        interrupt_mode: VMInterruptMode::default(),
    })
}

/// Switches virtualization on, on this thread's hart.
#[track_caller]
pub fn enable<H: MockHal, P: MockHart>() -> RiscvPerCpu<H, P> {
    let mut cpu = RiscvPerCpu::new(0).unwrap();
    cpu.hardware_enable().unwrap();
    cpu
}

/// A vCPU that was never bound.
#[track_caller]
pub fn created<H: MockHal, P: MockHart>() -> Vcpu<P, H> {
    let mut vcpu = Vcpu::<P, H>::new(1, 3, config()).unwrap();
    vcpu.set_entry(GuestPhysAddr::from_usize(ENTRY as usize)).unwrap();
    vcpu.set_ept_root(HostPhysAddr::from_usize(ROOT)).unwrap();
    vcpu.setup(config()).unwrap();
    vcpu
}

/// A vCPU that is bound to this thread's hart, with virtualization on.
#[track_caller]
pub fn bound_on<H: MockHal, P: MockHart>() -> Vcpu<P, H> {
    enable::<H, P>();
    let mut vcpu = created();
    bind(&mut vcpu);
    vcpu
}

/// The same on [`Hal`]; its guest's exceptions go to [`STVEC`].
#[track_caller]
pub fn bound<P: MockHart>() -> Vcpu<P> {
    let vcpu = bound_on::<Hal, P>();
    P::with(|cpu| cpu.put(Csr::Vstvec, STVEC));
    vcpu
}

#[track_caller]
pub fn bind<H: MockHal, P: MockHart>(vcpu: &mut Vcpu<P, H>) {
    vcpu.bind().unwrap();
    vcpu.set_vmid(1);
}

/// A register of the hart.
#[track_caller]
pub fn get<P: MockHart>(csr: Csr) -> u64 {
    P::with(|cpu| cpu.get(csr))
}

/// Writes a register of the hart.
#[track_caller]
pub fn put<P: MockHart>(csr: Csr, value: u64) {
    P::with(|cpu: &mut MockCpu| cpu.put(csr, value));
}

/// Has the guest do something and come out.
#[track_caller]
pub fn run<H: MockHal, P: MockHart>(
    vcpu: &mut Vcpu<P, H>,
    act: impl FnOnce(&mut Guest<'_>) -> Trap + Send + 'static,
) -> VcpuExit {
    P::with(|cpu| cpu.script(act));
    vcpu.run().unwrap()
}

/// The guest's registers, as it finds them at an entry, at which it then comes out again for a
/// physical interrupt.
#[track_caller]
pub fn look<H: MockHal, P: MockHart>(vcpu: &mut Vcpu<P, H>) -> Frame {
    let (tell, told) = std::sync::mpsc::channel();
    run(vcpu, move |guest| {
        tell.send(guest.frame.clone()).unwrap();
        interrupt(5)
    });
    told.recv().unwrap()
}

/// Calls the firmware, and shows what the call is as an exit.
#[track_caller]
pub fn ecall<P: MockHart>(
    vcpu: &mut Vcpu<P>,
    extension: u64,
    function: u64,
    args: [u64; 3],
) -> VcpuExit {
    run(vcpu, move |guest| {
        for (reg, value) in
            [10, 11, 12, 16, 17].into_iter().zip([args[0], args[1], args[2], function, extension])
        {
            guest.set_reg(reg, value);
        }
        exception(10, 0)
    })
}

/// Answers the exit; the instruction must have no more to do.
#[track_caller]
pub fn complete<P: MockHart>(vcpu: &mut Vcpu<P>, done: Completion) {
    assert_eq!(vcpu.complete(done), Ok(None));
}
