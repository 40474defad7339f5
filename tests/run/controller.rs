//! An interrupt controller of the host's: what the exit loop promises it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use axerrno::{AxError, AxResult};
use axvm::{
    AxVM,
    irq::{EntryState, InterruptController, IrqInput, VcpuNotifier},
    vcpu::{AxVCpuExitReason, VcpuExit},
};
use axvm_testkit::{MockHal, ScriptedIrq, Step, VM, X86Like, enable_pcpus, mock_hal, test_config};

mock_hal!(struct Hal { arena: 4 << 20 });

/// Says of each entry and exit that it was asked, and holds something in the hardware.
struct Lists {
    notifier: Arc<dyn VcpuNotifier>,
    calls: Mutex<Vec<&'static str>>,
    fails: AtomicBool,
}

impl IrqInput for Lists {
    fn set_level(&self, _irq: usize, _asserted: bool) -> AxResult {
        Ok(())
    }

    fn pulse(&self, _irq: usize) -> AxResult {
        self.notifier.notify(0);
        Ok(())
    }
}

impl InterruptController<ScriptedIrq<Hal>> for Lists {
    fn inject(&self, vcpu: usize, _irq: usize) -> AxResult {
        self.notifier.notify(vcpu);
        Ok(())
    }

    fn pending(&self, _vcpu: usize) -> bool {
        false
    }

    fn before_entry(&self, _vcpu: usize, _hw: &mut ScriptedIrq<Hal>) -> AxResult<EntryState> {
        if self.fails.swap(false, SeqCst) {
            return Err(AxError::Io);
        }
        self.calls.lock().unwrap().push("before");
        Ok(EntryState { in_hardware: true, more: false })
    }

    fn after_exit(&self, _vcpu: usize, _hw: &mut ScriptedIrq<Hal>) {
        self.calls.lock().unwrap().push("after");
    }

    fn reset(&self) {
        self.calls.lock().unwrap().push("reset");
    }
}

#[test]
fn what_is_in_the_hardware_is_read_back_after_every_exit_of_every_run() {
    enable_pcpus::<X86Like<Hal>>(1);
    let mut lists = None;
    let vm = AxVM::<Hal, X86Like<Hal>>::with_controller(test_config(1), |notifier| {
        let (calls, fails) = (Mutex::default(), AtomicBool::new(false));
        let controller = Arc::new(Lists { notifier, calls, fails });
        lists = Some(controller.clone());
        Ok(controller)
    })
    .unwrap();
    let lists = lists.unwrap();
    let calls = || std::mem::take(&mut *lists.calls.lock().unwrap());
    vm.boot().unwrap();
    let interrupt = VcpuExit::ExternalInterrupt { vector: 9 };
    let program = Hal::machine().program(VM, 0);
    for _ in 0..3 {
        // The controller is asked once for a run, and again when it says that it has something.
        program.extend([Step::Exit(VcpuExit::Nothing), Step::Exit(interrupt)]);
        let exit = AxVCpuExitReason::ExternalInterrupt { vector: 9 };
        assert_eq!(vm.run_vcpu(0), Ok(exit));
        assert_eq!(calls(), ["before", "after", "after"]);
    }
    let input = vm.irq_input();
    program.push(Step::call(move |_| input.pulse(1).unwrap()));
    program.extend([Step::Exit(VcpuExit::Nothing), Step::Exit(VcpuExit::Halt)]);
    while vm.run_vcpu(0) != Ok(AxVCpuExitReason::Halt) {}
    let asked = calls();
    assert!(asked.iter().filter(|call| **call == "before").count() >= 2, "{asked:?}");
    // A controller that fails ends the run, and is asked again in the next.
    lists.fails.store(true, SeqCst);
    assert_eq!(vm.run_vcpu(0), Err(AxError::Io));
    assert_eq!(vm.run_vcpu(0), Ok(AxVCpuExitReason::Halt));
    assert_eq!(calls(), ["before", "after"]);
    vm.shutdown().unwrap();
    vm.reset().unwrap();
    assert_eq!(calls(), ["reset"]);
}
