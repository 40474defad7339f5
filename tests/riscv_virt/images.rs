//! Where the guest's images go, and what the guest is told of them.

use std::sync::Arc;

use axvm::{
    arch::riscv64::Hart as _,
    machine::{Images, riscv_virt},
    vm::VMStatus,
};
use axvm_testkit::{MockHart, mock_hart};
use fdt::Fdt;

use crate::{
    files::{elf, filler, load as segment, riscv_image},
    support::*,
};

fn bytes<P: MockHart>(machine: &Virt<P>, gpa: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    machine.vm.memory().read(gpa.into(), &mut bytes).unwrap();
    bytes
}

/// The device tree that a1 points to.
fn tree_at<P: MockHart>(machine: &Virt<P>, gpa: u64) -> Vec<u8> {
    let head = bytes(machine, gpa as usize, 8);
    let len = u32::from_be_bytes(head[4..].try_into().unwrap());
    bytes(machine, gpa as usize, len as usize)
}

fn cells(tree: &Fdt<'_>, node: &str, name: &str) -> Vec<u32> {
    let value = tree.find_node(node).unwrap().property(name).unwrap().value;
    value.chunks(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect()
}

fn text<'a>(tree: &Fdt<'a>, node: &str, name: &str) -> &'a str {
    let value = tree.find_node(node).unwrap().property(name).unwrap().value;
    std::str::from_utf8(value).unwrap().trim_end_matches('\0')
}

/// A kernel's file, and what is to be found where.
struct Kernel {
    format: &'static str,
    file: Vec<u8>,
    at: usize,
    content: Vec<u8>,
    entry: usize,
}

/// One of each format.
fn kernels() -> [Kernel; 3] {
    let image = riscv_image(0x3000, 0x20_0000, 0x8000);
    let flat = vec![0x13; 0x1801];
    let at = RAM + 0x10_0000;
    let entry = at + 0x40;
    let program = elf(entry as u64, &[segment(at as u64, 0x1234, 0x2000)]);
    let same = |format, file: Vec<u8>| Kernel {
        format,
        at: KERNEL,
        content: file.clone(),
        entry: KERNEL,
        file,
    };
    [
        same("Image", image),
        same("flat", flat),
        // The file says where; the configuration does not count.
        Kernel { format: "ELF", file: program, at, content: vec![filler(0); 0x1234], entry },
    ]
}

#[test]
fn images_of_every_format_are_loaded_and_told_to_the_guest() {
    for Kernel { format, file, at, content, entry } in kernels() {
        let initrd: &'static [u8] = vec![0x1d; 0x2345].leak();
        let images = Images { kernel: file.leak(), initrd: Some(initrd), dtb: None };
        let mut config = config(2);
        config.image.cmdline = Some("console=ttyS0".into());
        let (machine, _) = booted_on::<Hal, Hart>(config, images);
        assert!(bytes(&machine, at, content.len()) == content, "{format}");
        let frame = look(&machine, 0);
        assert_eq!((frame.pc, frame.gprs[10]), (entry as u64, 0), "{format}");
        let blob = tree_at(&machine, frame.gprs[11]);
        let tree = Fdt::new(&blob).unwrap();
        assert_eq!(text(&tree, "/chosen", "bootargs"), "console=ttyS0", "{format}");
        let start = cells(&tree, "/chosen", "linux,initrd-start");
        let end = cells(&tree, "/chosen", "linux,initrd-end");
        let (start, end) = (start[1] as usize, end[1] as usize);
        assert_eq!(end - start, initrd.len(), "{format}");
        assert!(bytes(&machine, start, initrd.len()) == initrd, "{format}");
    }
}

#[test]
fn the_device_tree_is_that_of_the_machine() {
    let (machine, _) = booted(config(3));
    let blob = tree_at(&machine, look(&machine, 0).gprs[11]);
    let tree = Fdt::new(&blob).unwrap();
    let memory = [0, RAM as u32, 0, RAM_SIZE as u32];
    assert_eq!(cells(&tree, "/memory@80000000", "reg"), memory);
    assert_eq!(cells(&tree, "/cpus", "timebase-frequency"), [10_000_000]);
    for hart in 0..3 {
        let node = format!("/cpus/cpu@{hart}");
        assert_eq!(cells(&tree, &node, "reg"), [hart]);
        assert_eq!(text(&tree, &node, "mmu-type"), "riscv,sv57");
        let isa = text(&tree, &node, "riscv,isa");
        assert!(isa.starts_with("rv64imafdc_") && isa.contains("_sstc"), "{isa}");
        // Hidden: the hypervisor extension and vectors.
        let single = isa.split('_').next().unwrap().trim_start_matches("rv64");
        assert!(!single.contains(['h', 'v']), "{isa}");
    }
    assert_eq!(tree.cpus().count(), 3);
    assert_eq!(cells(&tree, "/soc/plic@c000000", "reg"), [0, PLIC as u32, 0, 0x60_0000]);
    assert_eq!(cells(&tree, "/soc/plic@c000000", "riscv,ndev"), [riscv_virt::SOURCES]);
    assert_eq!(cells(&tree, "/soc/serial@10000000", "reg"), [0, UART as u32, 0, 0x100]);
    assert_eq!(cells(&tree, "/soc/serial@10000000", "interrupts"), [UART_IRQ as u32]);
    assert_eq!(text(&tree, "/chosen", "stdout-path"), "/soc/serial@10000000");
}

#[test]
fn the_device_tree_says_what_the_harts_can_do() {
    fn told<P: MockHart>() -> (String, bool) {
        let (machine, _) = booted_on::<Hal, P>(bare(1), flat());
        let blob = tree_at(&machine, look(&machine, 0).gprs[11]);
        let tree = Fdt::new(&blob).unwrap();
        let mmu = text(&tree, "/cpus/cpu@0", "mmu-type").to_owned();
        (mmu, text(&tree, "/cpus/cpu@0", "riscv,isa").contains("sstc"))
    }
    mock_hart!(struct Sv48 on Hal { satp_mode: 9 });
    mock_hart!(struct Sv39 on Hal { satp_mode: 8, stce: false });
    assert_eq!(told::<Sv48>(), ("riscv,sv48".into(), true));
    assert_eq!(told::<Sv39>(), ("riscv,sv39".into(), false));
}

#[test]
fn a_device_tree_that_the_host_gives_is_passed_on_as_it_is() {
    let dtb: &'static [u8] = vec![0xd7; 0x321].leak();
    let (machine, _) = booted_on::<Hal, Hart>(config(1), Images { dtb: Some(dtb), ..flat() });
    let at = look(&machine, 0).gprs[11] as usize;
    assert_eq!(bytes(&machine, at, dtb.len()), dtb);
}

#[test]
fn addresses_of_the_configuration_are_kept() {
    let mut config = config(1);
    config.image.dtb_load_gpa = Some((RAM + 0x300_0000).into());
    config.image.ramdisk_load_gpa = Some((RAM + 0x200_0000).into());
    let images = Images { initrd: Some(&[0x77; 0x1000]), ..flat() };
    let (machine, _) = booted_on::<Hal, Hart>(config, images);
    assert_eq!(look(&machine, 0).gprs[11] as usize, RAM + 0x300_0000);
    assert_eq!(bytes(&machine, RAM + 0x200_0000, 0x1000), [0x77; 0x1000]);
    let blob = tree_at(&machine, RAM as u64 + 0x300_0000);
    let start = cells(&Fdt::new(&blob).unwrap(), "/chosen", "linux,initrd-start");
    assert_eq!(start, [0, RAM as u32 + 0x200_0000]);
}

#[test]
fn a_reset_loads_again_what_the_guest_has_overwritten() {
    let (machine, _) = booted(config(2));
    let vm = &machine.vm;
    let first = look(&machine, 0);
    let (dtb, kernel) = (first.gprs[11], bytes(&machine, KERNEL, 4096));
    let tree = tree_at(&machine, dtb);
    once(&machine, 0, |guest| {
        (1..32).for_each(|reg| guest.set_reg(reg, 0xbad));
        guest.cpu.put(axvm::arch::riscv64::Csr::Vsatp, 8 << 60);
        axvm_testkit::interrupt(1)
    });
    vm.memory().write(KERNEL.into(), &[0; 4096]).unwrap();
    vm.memory().write((dtb as usize).into(), &[0; 64]).unwrap();
    vm.shutdown().unwrap();
    assert_eq!(vm.status(), VMStatus::Terminated);
    vm.reset().unwrap();
    assert!(bytes(&machine, KERNEL, 4096) == kernel);
    assert!(tree_at(&machine, dtb) == tree);
    vm.boot().unwrap();
    let again = look(&machine, 0);
    assert_eq!((again.gprs, again.pc), (first.gprs, first.pc));
    assert_eq!(Hart::with(|cpu| cpu.get(axvm::arch::riscv64::Csr::Vsatp)), 0);
}

#[test]
fn harts_are_found_out_before_the_first_is_enabled() {
    mock_hart!(struct Fresh on Hal {});
    let terminal = Arc::new(Terminal::default());
    let machine = riscv_virt::new_vm::<Hal, Fresh>(bare(1), flat(), terminal);
    assert_eq!(machine.unwrap().vm.status(), VMStatus::Created);
    assert!(Fresh::machine().features().is_some());
}
