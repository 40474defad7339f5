//! Sleep against attention, and ownership of a vCPU, checked by loom in every order.

use core::marker::PhantomData;

use axerrno::AxResult;
use loom::{
    cell::UnsafeCell,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    thread,
};

use super::{Attention, AxArchVCpu, AxVCpu, Completion, Hardware, VCpuState, VcpuExit, VcpuSpec};
use crate::{
    arch::{NoConfig, NoTlb, UnsupportedPerCpu},
    irq::IrqHw,
    mm::{
        GuestPhysAddr, HostPhysAddr,
        npt::{Ept, Geometry},
    },
};

/// The halt of `AxVM::halt` against injectors: `pending` first, then the mark; the vCPU looks
/// the other way round.
#[test]
fn loom_no_vcpu_sleeps_with_a_reason_pending_and_one_call_wakes_it() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let attention = Arc::new(Attention::new());
        let (pending, wakes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let injectors = [Attention::IRQ, Attention::LIFECYCLE].map(|reason| {
            let (attention, pending, wakes) = (attention.clone(), pending.clone(), wakes.clone());
            thread::spawn(move || {
                pending.fetch_or(reason as usize, Ordering::AcqRel);
                if attention.raise(reason) {
                    wakes.fetch_add(1, Ordering::AcqRel);
                }
            })
        });
        // The last entry before the halt.
        let seen = attention.take();
        let asleep =
            pending.load(Ordering::Acquire) & Attention::IRQ as usize == 0 && attention.try_sleep();
        for injector in injectors {
            injector.join().unwrap();
        }
        let wakes = wakes.load(Ordering::Acquire);
        assert!(wakes <= 1, "{wakes} wake-ups");
        if asleep {
            let late = (Attention::IRQ | Attention::LIFECYCLE) & !seen;
            assert_eq!(wakes, usize::from(late != 0), "seen before the halt: {seen}");
            assert_eq!(attention.is_raised(), late != 0);
        } else {
            assert_eq!(wakes, 0);
        }
    });
}

static HARDWARE: Hardware = Hardware::new(4);

/// A backend that is one cell, which loom watches.
struct Tiny(UnsafeCell<usize>, PhantomData<()>);

impl Tiny {
    fn add(&mut self) -> usize {
        // SAFETY: `&mut self` is the only way in; loom reports it if that is not so.
        self.0.with_mut(|value| unsafe {
            *value += 1;
            *value
        })
    }
}

impl AxArchVCpu for Tiny {
    type CreateConfig = NoConfig;
    type SetupConfig = NoConfig;
    type PerCpu = UnsupportedPerCpu;
    type Npt = Ept;
    type Tlb = NoTlb;
    type IrqHw = Self;
    type State = usize;
    const IRQ_PRIORITY: crate::irq::Priority = crate::irq::Priority::HighestFirst;

    fn has_hardware_support() -> bool {
        true
    }

    fn npt_geometry() -> AxResult<Geometry> {
        Ok(Geometry::EPT)
    }

    fn hardware() -> &'static Hardware {
        &HARDWARE
    }

    fn new(_: usize, _: usize, _: NoConfig) -> AxResult<Self> {
        Ok(Self(UnsafeCell::new(0), PhantomData))
    }

    fn set_entry(&mut self, _: GuestPhysAddr) -> AxResult {
        Ok(())
    }

    fn set_ept_root(&mut self, _: HostPhysAddr) -> AxResult {
        Ok(())
    }

    fn setup(&mut self, _: NoConfig) -> AxResult {
        Ok(())
    }

    fn bind(&mut self) -> AxResult {
        self.add();
        Ok(())
    }

    fn unbind(&mut self) -> AxResult {
        Ok(())
    }

    fn set_vmid(&mut self, _: u16) {}

    fn run(&mut self) -> AxResult<VcpuExit> {
        self.add();
        Ok(VcpuExit::Nothing)
    }

    fn complete(&mut self, _: Completion) -> AxResult<Option<VcpuExit>> {
        Ok(None)
    }

    fn set_gpr(&mut self, _: usize, _: usize) {}

    fn set_return_value(&mut self, _: usize) {}

    fn irq_hw(&mut self) -> &mut Self {
        self
    }

    fn power_on(&mut self, _: GuestPhysAddr, _: u64) -> AxResult {
        Ok(())
    }

    fn state(&mut self) -> usize {
        // SAFETY: as in `add`.
        self.0.with(|value| unsafe { *value })
    }

    fn set_state(&mut self, _: &usize) -> AxResult {
        Ok(())
    }
}

impl IrqHw for Tiny {
    fn inject(&mut self, _: usize) -> AxResult {
        Ok(())
    }
}

fn vcpu() -> Arc<AxVCpu<Tiny>> {
    let vcpu = AxVCpu::new(VcpuSpec {
        vm_id: 0,
        vcpu_id: 0,
        guest_cpu_id: 0,
        boot_arg: None,
        interrupt_mode: crate::config::VMInterruptMode::NoIrq,
    });
    let vcpu = vcpu.unwrap();
    vcpu.setup(0.into(), 0.into()).unwrap();
    Arc::new(vcpu)
}

#[test]
fn loom_of_two_binds_at_once_one_succeeds_and_the_next_owner_sees_what_it_wrote() {
    loom::model(|| {
        let vcpu = vcpu();
        let use_it = |vcpu: &AxVCpu<Tiny>| match vcpu.bind() {
            Ok(mut bound) => {
                bound.run().unwrap();
                1
            }
            Err(_) => 0,
        };
        let other = vcpu.clone();
        let thread = thread::spawn(move || use_it(&other));
        let owners = use_it(&vcpu) + thread.join().unwrap();
        assert!(owners >= 1);
        assert_eq!(vcpu.state(), VCpuState::Free);
        assert_eq!(vcpu.bind().unwrap().arch().state(), 2 * owners + 1);
    });
}
