//! The TLB and the vCPU of the kit, on page tables built by hand.

use axerrno::AxErrorKind;
use axvm::{
    config::VMInterruptMode,
    irq::IrqHw,
    mm::{
        GpaRange, GuestPhysAddr, HostPhysAddr,
        tlb::{GuestTag, NestedTlb},
    },
    vcpu::{AccessWidth, AxArchVCpu, Completion, GuestFault, MemFault, VcpuExit, VcpuSpec},
};

use crate::*;

const PAGE: usize = 4096;
const GPA: usize = 0x8000_0000;

/// A table of one chain: root to page, for `GPA` and the 511 pages after it.
struct Chain<H: MockHal> {
    tables: Vec<HostPhysAddr>,
    hal: std::marker::PhantomData<H>,
}

fn cell<H: MockHal>(pa: HostPhysAddr, index: usize) -> *mut u64 {
    let va = H::machine().phys_to_virt(pa).as_usize() + index * 8;
    core::ptr::with_exposed_provenance_mut(va)
}

impl<H: MockHal> Chain<H> {
    fn new<F: HwNpt>() -> Self {
        let shape = F::shape(None);
        let frames = (shape.root_entries * 8).div_ceil(PAGE);
        let mut tables = Vec::new();
        for level in 0..shape.levels {
            let num = if level + 1 == shape.levels { frames } else { 1 };
            let table = H::machine().arena().alloc(num, num * PAGE).unwrap();
            // SAFETY: allocated just now.
            unsafe { cell::<H>(table, 0).write_bytes(0, num * 512) };
            if let Some(&below) = tables.last() {
                let entry = match F::HW {
                    HwFormat::Ept => HostPhysAddr::as_usize(below) as u64 | 7,
                    HwFormat::Stage2 => HostPhysAddr::as_usize(below) as u64 | 3,
                    HwFormat::GStage => (HostPhysAddr::as_usize(below) as u64 >> 2) | 1,
                };
                // SAFETY: as above.
                unsafe { cell::<H>(table, shape.index(GPA, level).unwrap()).write(entry) };
            }
            tables.push(table);
        }
        Self { tables, hal: std::marker::PhantomData }
    }

    fn root(&self) -> HostPhysAddr {
        *self.tables.last().unwrap()
    }

    fn map<F: HwNpt>(&self, page: usize, pa: Option<HostPhysAddr>) {
        let pa = pa.map(|pa| pa.as_usize() as u64);
        let entry = match F::HW {
            HwFormat::Ept => pa.map(|pa| pa | 0x37),
            HwFormat::Stage2 => pa.map(|pa| pa | 0x7ff),
            HwFormat::GStage => pa.map(|pa| pa >> 2 | 0xdf),
        };
        // SAFETY: the table is allocated.
        unsafe { cell::<H>(self.tables[0], page).write(entry.unwrap_or(0)) };
    }
}

fn frame<H: MockHal>() -> HostPhysAddr {
    H::machine().arena().alloc(1, PAGE).unwrap()
}

fn vcpu<H: MockHal, F: HwNpt, const B: bool>(root: HostPhysAddr) -> ScriptedVCpu<H, F, B> {
    let spec = VcpuSpec {
        vm_id: 1,
        vcpu_id: 0,
        guest_cpu_id: 0,
        boot_arg: None,
        interrupt_mode: VMInterruptMode::NoIrq,
    };
    std::mem::forget(enable_pcpus::<ScriptedVCpu<H, F, B>>(2));
    let mut vcpu = ScriptedVCpu::new(1, 0, ScriptedConfig::from(&spec)).unwrap();
    vcpu.set_entry(GuestPhysAddr::from_usize(GPA)).unwrap();
    vcpu.set_ept_root(root).unwrap();
    vcpu.setup(ScriptedConfig::from(&spec)).unwrap();
    vcpu.bind().unwrap();
    vcpu.set_vmid(3);
    vcpu
}

fn tag(root: HostPhysAddr) -> GuestTag {
    GuestTag { vmid: 3, root }
}

fn flush<V: AxArchVCpu>(root: HostPhysAddr) {
    let range = GpaRange::new(GuestPhysAddr::from_usize(GPA), PAGE).unwrap();
    V::Tlb::flush_range(tag(root), range);
}

fn fault_of(exit: VcpuExit) -> MemFault {
    match exit {
        VcpuExit::MemFault(fault) => fault,
        other => panic!("{other:?}"),
    }
}

fn loads_and_stores<H: MockHal, F: HwNpt, const B: bool>() {
    let chain = Chain::<H>::new::<F>();
    let (first, second) = (frame::<H>(), frame::<H>());
    let mut vcpu = vcpu::<H, F, B>(chain.root());
    let program = H::machine().program(1, 0);
    program.push(Step::store(GPA + 8, AccessWidth::Dword, 0x1234_5678)).push(Step::load(
        GPA + 8,
        AccessWidth::Word,
        5,
    ));
    let fault = fault_of(vcpu.run().unwrap());
    assert_eq!(fault.gpa.as_usize(), GPA + 8);
    chain.map::<F>(0, Some(first));
    assert_eq!(vcpu.complete(Completion::Retry), Ok(None));
    assert_eq!(vcpu.run(), Ok(VcpuExit::Halt));
    assert_eq!((vcpu.state().regs[5], vcpu.state().pc as usize), (0x5678, GPA + 8));
    // Remapped without a flush, the old frame alive: like hardware, the old translation serves,
    // except where a break was due before the make.
    if !F::HW.needs_break_before_make() {
        chain.map::<F>(0, Some(second));
        program.push(Step::load(GPA + 8, AccessWidth::Word, 6));
        assert_eq!(vcpu.run(), Ok(VcpuExit::Halt));
        assert_eq!(vcpu.state().regs[6], 0x5678);
    }
    // Unmapped, flushed, freed: absent.
    chain.map::<F>(0, None);
    flush::<ScriptedVCpu<H, F, B>>(chain.root());
    H::machine().arena().dealloc(first, 1);
    program.push(Step::load(GPA + 8, AccessWidth::Word, 6));
    fault_of(vcpu.run().unwrap());
    assert_eq!(vcpu.complete(Completion::Read(0xabcd_ef01)), Ok(None));
    assert_eq!(vcpu.state().regs[6], 0xef01);
    vcpu.unbind().unwrap();
    assert_eq!(H::machine().tlb().flushes(), 1);
}

#[test]
fn a_guest_reaches_memory_by_all_formats() {
    mock_hal!(struct X86 { arena: 4 << 20 });
    mock_hal!(struct Arm { arena: 4 << 20 });
    mock_hal!(struct Riscv { arena: 4 << 20 });
    loads_and_stores::<X86, Ept, false>();
    loads_and_stores::<Arm, Stage2, true>();
    loads_and_stores::<Riscv, GStage, false>();
}

/// Fills the TLB with page 0 and with `GPA`'s tables, then hands over chain, vCPU and frame.
fn warm<H: MockHal, F: HwNpt, const B: bool>() -> (Chain<H>, ScriptedVCpu<H, F, B>, HostPhysAddr) {
    let (chain, page) = (Chain::<H>::new::<F>(), frame::<H>());
    chain.map::<F>(0, Some(page));
    let mut vcpu = vcpu::<H, F, B>(chain.root());
    H::machine().program(1, 0).push(Step::load(GPA, AccessWidth::Byte, 1));
    assert_eq!(vcpu.run(), Ok(VcpuExit::Halt));
    H::machine().program(1, 0).push(Step::load(GPA, AccessWidth::Byte, 1));
    (chain, vcpu, page)
}

#[test]
#[should_panic = "stale TLB entry: Vmid(3)"]
fn a_hit_of_a_freed_frame_is_caught() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let (_, mut vcpu, page) = warm::<Hal, GStage, false>();
    Hal::machine().arena().dealloc(page, 1);
    let _ = vcpu.run();
}

#[test]
#[should_panic = "stale TLB entry: Root"]
fn a_hit_of_a_frame_that_was_handed_out_again_is_caught() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let (_, mut vcpu, page) = warm::<Hal, Ept, false>();
    Hal::machine().arena().dealloc(page, 1);
    while frame::<Hal>() != page {}
    let _ = vcpu.run();
}

#[test]
#[should_panic = "has the table for GPA"]
fn a_walk_from_a_freed_table_that_was_not_flushed_is_caught() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let (chain, mut vcpu, _) = warm::<Hal, Ept, false>();
    Hal::machine().program(1, 0).clear();
    // SAFETY: the table is allocated.
    unsafe { cell::<Hal>(chain.tables[1], 0).write(0) };
    Hal::machine().arena().dealloc(chain.tables[0], 1);
    Hal::machine().program(1, 0).push(Step::load(GPA + PAGE, AccessWidth::Byte, 1));
    let _ = vcpu.run();
}

#[test]
#[should_panic = "no break before make"]
fn a_missing_break_is_caught() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let (chain, mut vcpu, _) = warm::<Hal, Stage2, true>();
    chain.map::<Stage2>(0, Some(frame::<Hal>()));
    let _ = vcpu.run();
}

#[test]
fn a_flush_reaches_other_cpus_only_by_broadcast() {
    fn others<H: MockHal, F: HwNpt, const B: bool>() -> usize {
        let (chain, mut vcpu, _) = warm::<H, F, B>();
        on_pcpu(1, || flush::<ScriptedVCpu<H, F, B>>(chain.root()));
        vcpu.unbind().unwrap();
        H::machine().tlb().cached(0)
    }
    mock_hal!(struct Alone { arena: 4 << 20 });
    mock_hal!(struct Together { arena: 4 << 20 });
    assert_eq!(others::<Alone, GStage, false>(), 1);
    assert_eq!(others::<Together, Stage2, true>(), 0);
}

#[test]
fn absent_pages_are_cached_where_asked_for() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    Hal::machine().tlb().set_cache_negative(true);
    let (chain, mut vcpu, _) = warm::<Hal, GStage, false>();
    let program = Hal::machine().program(1, 0);
    program.clear();
    program.push(Step::load(GPA + PAGE, AccessWidth::Byte, 1));
    fault_of(vcpu.run().unwrap());
    chain.map::<GStage>(1, Some(frame::<Hal>()));
    vcpu.complete(Completion::Retry).unwrap();
    fault_of(vcpu.run().unwrap());
    <RiscvLike<Hal> as AxArchVCpu>::Tlb::flush_guest(tag(chain.root()));
    vcpu.complete(Completion::Retry).unwrap();
    assert_eq!(vcpu.run(), Ok(VcpuExit::Halt));
    assert_eq!(vcpu.state().regs[1], JUNK.into());
    vcpu.unbind().unwrap();
}

#[test]
fn a_pair_is_completed_access_by_access_and_late_ones_are_decoded() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let chain = Chain::<Hal>::new::<Ept>();
    let mut vcpu = vcpu::<Hal, Ept, false>(chain.root());
    let load = |at, reg| Step::load(GPA + at, AccessWidth::Dword, reg);
    let program = Hal::machine().program(1, 0);
    program.push(Step::pair(load(0, 1), load(4, 2)).late()).push(load(0, 3).undecodable());
    let first = fault_of(vcpu.run().unwrap());
    assert_eq!(first.insn, None);
    assert!(vcpu.decode().is_some());
    let second = vcpu.complete(Completion::Read(11)).unwrap().unwrap();
    assert_eq!(fault_of(second).gpa.as_usize(), GPA + 4);
    assert_eq!(vcpu.complete(Completion::Read(22)), Ok(None));
    fault_of(vcpu.run().unwrap());
    assert_eq!(vcpu.decode(), None);
    Hal::machine().set_lenient(true);
    let refused = vcpu.complete(Completion::Read(33));
    assert_eq!(refused, Err(AxErrorKind::InvalidInput.into()));
    assert_eq!(vcpu.complete(Completion::Fault(GuestFault::Bus)), Ok(None));
    assert_eq!(vcpu.complete(Completion::Written), Err(AxErrorKind::BadState.into()));
    assert_eq!(vcpu.run(), Ok(VcpuExit::Halt));
    assert_eq!(vcpu.state().regs[1..4], [11, 22, 0]);
    assert!(Hal::machine().events(1, 0).contains(&Event::FaultTaken(GuestFault::Bus)));
    vcpu.unbind().unwrap();
}

#[test]
fn kicks_timers_and_refused_interrupts_end_a_run() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let machine = Hal::machine();
    let chain = Chain::<Hal>::new::<Ept>();
    let mut vcpu = vcpu::<Hal, Ept, false>(chain.root());
    machine.program(1, 0).push(Step::SpinUntilKicked);
    let kicker = std::thread::spawn(|| {
        Hal::machine().wait_in_guest(1, 0);
        <Hal as axvm::AxVMHal>::kick_pcpu(0);
    });
    assert_eq!(vcpu.run(), Ok(VcpuExit::ExternalInterrupt { vector: KICK_VECTOR }));
    kicker.join().unwrap();
    assert_eq!(machine.take_kicks(), [0]);
    <Hal as axvm::AxVMHal>::set_timer(100);
    machine.program(1, 0).push(Step::call(|guest| guest.mmu.machine.advance(100)));
    assert_eq!(vcpu.run(), Ok(VcpuExit::ExternalInterrupt { vector: TIMER_VECTOR }));
    machine.set_irq_busy(1, 0, true);
    assert_eq!(vcpu.irq_hw().inject(7), Err(AxErrorKind::ResourceBusy.into()));
    machine.set_irq_busy(1, 0, false);
    assert_eq!(vcpu.run(), Ok(VcpuExit::Nothing));
    vcpu.inject_interrupt(7).unwrap();
    assert_eq!(vcpu.run(), Ok(VcpuExit::Halt));
    assert!(machine.events(1, 0).contains(&Event::IrqTaken(7)));
    vcpu.unbind().unwrap();
}

#[test]
fn failures_come_once_and_change_nothing() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let chain = Chain::<Hal>::new::<Ept>();
    let mut vcpu = vcpu::<Hal, Ept, false>(chain.root());
    vcpu.unbind().unwrap();
    Hal::machine().fail_nth(Call::Bind, 2, AxErrorKind::Io);
    vcpu.bind().unwrap();
    vcpu.unbind().unwrap();
    assert_eq!(vcpu.bind(), Err(AxErrorKind::Io.into()));
    assert_eq!(Hal::machine().bound_on(0), None);
    vcpu.bind().unwrap();
    vcpu.unbind().unwrap();
}

#[test]
#[should_panic = "run while not bound"]
fn a_run_without_bind_is_caught() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let chain = Chain::<Hal>::new::<Ept>();
    let mut vcpu = vcpu::<Hal, Ept, false>(chain.root());
    vcpu.unbind().unwrap();
    let _ = vcpu.run();
}

#[test]
#[should_panic = "run on pCPU 1, bound to Some(0)"]
fn a_run_on_another_cpu_is_caught() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let chain = Chain::<Hal>::new::<Ept>();
    let mut vcpu = vcpu::<Hal, Ept, false>(chain.root());
    let _ = on_pcpu(1, || vcpu.run());
}

#[test]
#[should_panic = "completes nothing"]
fn a_second_completion_is_caught() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let chain = Chain::<Hal>::new::<Ept>();
    let mut vcpu = vcpu::<Hal, Ept, false>(chain.root());
    let call = VcpuExit::Hypercall { nr: 1, args: [0; 6] };
    Hal::machine().program(1, 0).push(Step::Exit(call));
    assert_eq!(vcpu.run(), Ok(call));
    assert_eq!(vcpu.complete(Completion::Return(9)), Ok(None));
    let _ = vcpu.complete(Completion::Return(9));
}

#[test]
fn every_allocation_is_made_to_fail() {
    mock_hal!(struct Hal { arena: 4 << 20 });
    let arena = Hal::machine().arena();
    let three = || {
        let mut got = Vec::new();
        for _ in 0..3 {
            match arena.alloc(1, PAGE) {
                Some(pa) => got.push(pa),
                None => {
                    got.into_iter().for_each(|pa| arena.dealloc(pa, 1));
                    return Err(AxErrorKind::NoMemory.into());
                }
            }
        }
        Ok(got)
    };
    let undo = |got: Vec<_>| got.into_iter().for_each(|pa| arena.dealloc(pa, 1));
    assert_eq!(fail_every_allocation(Hal::machine(), three, undo), 6);
    Hal::machine().assert_balanced();
}
