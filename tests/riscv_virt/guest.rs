//! What a guest can do to itself, its other harts, and the host: the backend under the whole VM.

use axvm::{arch::riscv64::Csr, vcpu::AxVCpuExitReason, vm::VMStatus};
use axvm_testkit::{
    MockHal, MockHart, exception, guest_page_fault, interrupt, mock_hal, mock_hart,
};

use crate::support::*;

const TIME: u64 = 0x5449_4d45;
const IPI: u64 = 0x73_5049;
const RFENCE: u64 = 0x5246_4e43;
const HSM: u64 = 0x48_534d;
const INVALID_PARAM: u64 = -3i64 as u64;
const INVALID_ADDRESS: u64 = -5i64 as u64;
const NOWHERE: u64 = 0x4000_0008;
const STVEC: u64 = RAM as u64 + 0x100;

/// Has vCPU 0 do something; the guest's exception registers when it runs again.
#[track_caller]
fn raised(
    machine: &Virt,
    trap: impl FnOnce(&mut axvm_testkit::Guest<'_>) -> axvm::arch::riscv64::Trap + Send + 'static,
) -> (u64, u64, u64) {
    let (tell, told) = std::sync::mpsc::channel();
    Hart::with(|cpu| {
        cpu.script(|guest| {
            guest.cpu.put(Csr::Vstvec, STVEC);
            trap(guest)
        });
        cpu.script(move |guest| {
            let [cause, value] = [Csr::Vscause, Csr::Vstval].map(|csr| guest.cpu.get(csr));
            tell.send((cause, value, guest.frame.pc)).unwrap();
            interrupt(5)
        });
    });
    machine.vm.run_vcpu(0).unwrap();
    told.recv().unwrap()
}

/// Upstream: panics, all of them.
#[test]
fn what_a_guest_may_not_do_is_an_exception_of_the_guests() {
    let (machine, _) = booted(config(1));
    // Fetching from nothing, or from a device; its page table in nothing, or in a device.
    for (trap, want) in [
        (guest_page_fault(20, NOWHERE, 0), 1),
        (guest_page_fault(20, UART, 0), 1),
        (guest_page_fault(21, NOWHERE, 0x3000), 5),
        (guest_page_fault(23, NOWHERE, 0x3020), 7),
        (guest_page_fault(20, UART, 0x3000), 1),
        // An atomic, a floating-point store and load, half of a load, on a device.
        (guest_page_fault(23, UART, 0x00c0_252f), 7),
        (guest_page_fault(23, UART, 0x2027), 7),
        (guest_page_fault(21, UART, 0x2507), 5),
        (guest_page_fault(21, UART, 0x2503 | 1 << 15), 5),
    ] {
        let got = raised(&machine, move |_| trap);
        assert_eq!(got, (want, trap.value, STVEC), "{trap:x?}");
    }
    // A register of the hypervisor extension.
    assert_eq!(raised(&machine, |_| exception(22, 0x6000_2573)), (2, 0x6000_2573, STVEC));
}

#[test]
fn an_access_to_nothing_is_all_ones_and_ignored() {
    let (machine, _) = booted(config(1));
    assert_eq!(load(&machine, NOWHERE, false), 0xffff_ffff);
    store(&machine, NOWHERE, 1, false);
    assert_eq!(machine.vm.status(), VMStatus::Running);
}

/// Upstream: every fault of a load or store was taken for a device's.
#[test]
fn memory_is_there_when_it_is_first_touched() {
    let (machine, _) = booted(config(1));
    // sd a2; amoadd.w; a walk; a fetch.
    for (n, (cause, insn)) in
        [(23, 0x00c0_3023), (23, 0x00c0_252f), (21, 0x3000), (20, 0)].into_iter().enumerate()
    {
        let gpa = RAM as u64 + 0x100_0008 + 0x1000 * n as u64;
        let frame = act(&machine, 0, move |_| guest_page_fault(cause, gpa, insn));
        assert_eq!(frame.pc, KERNEL as u64, "executed again");
    }
    assert_eq!(machine.vm.vcpu(0).unwrap().stats().events(axvm::vcpu::VcpuEvent::PagePopulated), 4);
}

/// Upstream: no TIME.
#[test]
fn a_timer_without_sstc_is_the_hosts_until_it_is_due() {
    mock_hal!(struct Own { counter_hz: 10_000_000 });
    mock_hart!(struct Kind on Own { stce: false });
    let (machine, _) = booted_on::<Own, Kind>(config(1), flat());
    let frame = act(&machine, 0, |guest| calling(guest, [TIME, 0, 1_000, 0, 0]));
    assert_eq!(frame.gprs[10], 0);
    assert_eq!(Own::machine().take_timers(), [(0, 100_000)]);
    Kind::with(|cpu| cpu.set_time(1_000));
    act(&machine, 0, |guest| {
        assert_eq!(guest.cpu.get(Csr::Hip), 1 << 6);
        calling(guest, [TIME, 0, u64::MAX, 0, 0])
    });
    Own::machine().take_timers();
    once(&machine, 0, |guest| {
        assert_eq!(guest.cpu.get(Csr::Hip), 0);
        interrupt(1)
    });
}

#[test]
fn a_halted_guest_is_called_back_for_its_timer_alone() {
    let (machine, _) = booted(config(1));
    let halted = once(&machine, 0, |guest| {
        guest.cpu.put(Csr::Vsie, 1 << 5);
        guest.cpu.put(Csr::Vstimecmp, 5_000);
        exception(22, 0x1050_0073)
    });
    assert_eq!(halted, AxVCpuExitReason::Halt);
    assert_eq!(machine.vm.next_deadline(0), Some(500_000));
    assert!(!machine.vm.has_work(0));
    // It is due: the guest does not halt.
    Hart::with(|cpu| {
        cpu.set_time(5_000);
        cpu.script(|_| exception(22, 0x1050_0073));
    });
    assert_eq!(look(&machine, 0).pc, KERNEL as u64 + 8);
}

/// Upstream: no IPI, no RFENCE, and HSM status was a panic.
#[test]
fn harts_start_interrupt_fence_and_stop_each_other() {
    let (machine, _) = booted(config(2));
    let second = RAM as u64 + 0x40_0000;
    assert_eq!(ecall(&machine, 0, [HSM, 2, 1, 0, 0]), (0, 1), "it is off");
    assert_eq!(ecall(&machine, 0, [HSM, 2, 2, 0, 0]), (INVALID_PARAM, 0), "it does not exist");
    assert_eq!(ecall(&machine, 0, [HSM, 0, 1, UART, 0]), (INVALID_ADDRESS, 0));
    let started = once(&machine, 0, move |guest| calling(guest, [HSM, 0, 1, second, 99]));
    assert!(matches!(started, AxVCpuExitReason::CpuUp { target_cpu: 1, arg: 99, .. }));
    assert_eq!(look(&machine, 0).gprs[10], 0);
    assert_eq!(ecall(&machine, 0, [HSM, 2, 1, 0, 0]), (0, 2), "on its way");
    let frame = look(&machine, 1);
    assert_eq!((frame.pc, frame.gprs[10], frame.gprs[11]), (second, 1, 99));
    assert_eq!(ecall(&machine, 0, [HSM, 2, 1, 0, 0]), (0, 0), "on");
    // An interrupt: the other one finds it pending.
    assert_eq!(ecall(&machine, 0, [IPI, 0, 1, 1, 0]), (0, 0));
    once(&machine, 1, |guest| {
        assert_eq!(guest.cpu.get(Csr::Hip), 1 << 2);
        guest.cpu.put(Csr::Hvip, 0);
        interrupt(1)
    });
    assert_eq!(ecall(&machine, 0, [IPI, 0, 4, 0, 0]), (INVALID_PARAM, 0), "no such hart");
    // A fence of both: this one now, the other one before it runs again.
    let before = Hart::with(|cpu| cpu.fences.0);
    assert_eq!(ecall(&machine, 0, [RFENCE, 0, 3, 0, 0]), (0, 0));
    assert_eq!(Hart::with(|cpu| cpu.fences.0), before + 1);
    look(&machine, 1);
    assert_eq!(Hart::with(|cpu| cpu.fences.0), before + 2);
    let before = Hart::with(|cpu| cpu.fences.1);
    assert_eq!(ecall(&machine, 0, [RFENCE, 1, 3, 0, 0]), (0, 0));
    assert!(Hart::with(|cpu| cpu.fences.1) > before);
    let stopped = once(&machine, 1, |guest| calling(guest, [HSM, 1, 0, 0, 0]));
    assert_eq!(stopped, AxVCpuExitReason::CpuDown);
    assert_eq!(ecall(&machine, 0, [HSM, 2, 1, 0, 0]), (0, 1), "off again");
}

#[test]
fn a_guest_that_turns_itself_off_is_off() {
    for (kind, want) in [(0, AxVCpuExitReason::SystemDown), (1, AxVCpuExitReason::SystemReset)] {
        let (machine, _) = booted(config(1));
        let end = once(&machine, 0, move |guest| calling(guest, [0x5352_5354, 0, kind, 0, 0]));
        assert_eq!(end, want);
        assert_ne!(machine.vm.status(), VMStatus::Running);
    }
}

#[test]
fn a_cause_that_nobody_knows_ends_the_vm_and_not_the_host() {
    let (machine, _) = booted(config(1));
    let failed = AxVCpuExitReason::FailEntry { hardware_entry_failure_reason: 42 };
    assert_eq!(once(&machine, 0, |_| exception(42, 0)), failed);
    assert_eq!(machine.vm.status(), VMStatus::Failed);
    let (other, _) = booted(config(1));
    assert_eq!(look(&other, 0).pc, KERNEL as u64);
}

/// Two VMs take turns on a hart: neither sees the other's registers.
#[test]
fn guests_on_one_hart_keep_apart() {
    let (first, _) = booted(config(1));
    let (second, _) = booted(config(1));
    let guests = [(&first, 0x1111), (&second, 0x2222)];
    for (machine, secret) in guests {
        Hart::with(|cpu| {
            cpu.script(move |guest| {
                guest.cpu.put(Csr::Vsstatus, 1 << 13);
                guest.cpu.put(Csr::Vsscratch, secret);
                // The first use of floating point.
                exception(2, 0)
            });
            cpu.script(move |guest| {
                (0..32).for_each(|reg| guest.set_fp(reg, secret));
                interrupt(1)
            });
        });
        machine.vm.run_vcpu(0).unwrap();
    }
    for (machine, secret) in guests {
        Hart::with(|cpu| {
            cpu.script(move |guest| {
                assert_eq!(guest.cpu.get(Csr::Vsscratch), secret);
                exception(2, 0)
            });
            cpu.script(move |guest| {
                assert!((0..32).all(|reg| guest.fp(reg) == secret));
                interrupt(1)
            });
        });
        machine.vm.run_vcpu(0).unwrap();
    }
}
