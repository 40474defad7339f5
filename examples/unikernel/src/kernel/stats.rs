//! What a VM's vCPUs did, as a table.

use alloc::{format, string::String};

use axvm::{
    AxVMRef,
    vcpu::{ExitKind, VcpuEvent},
};

use super::{console::say, hal::Host};

/// Prints a row for each kind of exit and event that there was, with a column for each vCPU.
pub fn print(vm: &AxVMRef<Host>, reboots: usize) {
    let name = &vm.config().name;
    let vcpus = vm.vcpu_list();
    let columns: String =
        vcpus.iter().map(|vcpu| format!("{:>10} {:<3}", "vCPU", vcpu.id())).collect();
    say!("stats {name}: {:<20}{columns}", "");
    let row = |what: &str, counts: &dyn Fn(usize) -> u64| {
        if (0..vcpus.len()).any(|vcpu| counts(vcpu) != 0) {
            let columns: String =
                (0..vcpus.len()).map(|vcpu| format!("{:>14}", counts(vcpu))).collect();
            say!("stats {name}: {what:<20}{columns}");
        }
    };
    for kind in ExitKind::ALL {
        row(&format!("{kind:?}"), &|vcpu| vcpus[vcpu].stats().exits(kind));
    }
    row("all exits", &|vcpu| vcpus[vcpu].stats().total_exits());
    for event in VcpuEvent::ALL {
        row(&format!("{event:?}"), &|vcpu| vcpus[vcpu].stats().events(event));
    }
    let tables = vm.memory().table_frames();
    say!("stats {name}: {tables} pages of page tables, {reboots} reboots");
}
