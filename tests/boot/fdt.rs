//! Device trees, as an independent parser reads them.

use axerrno::AxError;
use axvm::boot::fdt::{Chosen, FdtError, Isa, Mmu, Plic, RiscvMachine, Uart};
use axvm_testkit::gpa_range;
use fdt::{Fdt, node::FdtNode};

/// A machine of two harts.
fn with_machine<R>(test: impl FnOnce(RiscvMachine<'_>) -> R) -> R {
    let uart = |base, irq| Uart { range: gpa_range(base, 0x100), irq, clock: 3_686_400 };
    test(RiscvMachine {
        harts: &[0, 10],
        timebase: 10_000_000,
        isa: Isa { base: "rv64i", extensions: &["i", "m", "a", "c", "zicsr", "sstc"] },
        mmu: Mmu::Sv48,
        memory: &[gpa_range(0x8000_0000, 256 << 20), gpa_range(0x1_0000_0000, 1 << 30)],
        reserved: &[gpa_range(0x8000_0000, 0x20_0000)],
        plic: Some(Plic { range: gpa_range(0xc00_0000, 0x60_0000), sources: 95 }),
        uarts: &[uart(0x1000_0000, 10), uart(0x1000_1000, 11)],
        chosen: Chosen {
            bootargs: Some("console=ttyS0 quiet"),
            initrd: Some(gpa_range(0x8800_0000, 0x12_3456)),
            rng_seed: Some(&[1, 2, 3]),
        },
    })
}

fn cells(node: &FdtNode<'_, '_>, name: &str) -> Vec<u32> {
    let value = node.property(name).unwrap_or_else(|| panic!("{} has no {name}", node.name)).value;
    value.chunks(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect()
}

fn text<'a>(node: &FdtNode<'_, 'a>, name: &str) -> Vec<&'a str> {
    let value = node.property(name).unwrap_or_else(|| panic!("{} has no {name}", node.name)).value;
    let value = std::str::from_utf8(value).unwrap();
    value.strip_suffix('\0').unwrap().split('\0').collect()
}

#[test]
fn the_kernel_is_told_what_it_was_given() {
    let blob = with_machine(|machine| machine.device_tree()).unwrap();
    let tree = Fdt::new(&blob).unwrap();
    assert_eq!(tree.total_size(), blob.len());
    let chosen = tree.find_node("/chosen").unwrap();
    assert_eq!(text(&chosen, "bootargs"), ["console=ttyS0 quiet"]);
    assert_eq!(text(&chosen, "stdout-path"), ["/soc/serial@10000000"]);
    assert_eq!(cells(&chosen, "linux,initrd-start"), [0, 0x8800_0000]);
    assert_eq!(cells(&chosen, "linux,initrd-end"), [0, 0x8812_3456]);
    assert_eq!(chosen.property("rng-seed").unwrap().value, [1, 2, 3]);
    let reserved: Vec<_> =
        tree.memory_reservations().map(|r| (r.address() as usize, r.size())).collect();
    assert_eq!(reserved, [(0x8000_0000, 0x20_0000)]);
    // What it was not given is not there.
    let blob = with_machine(|machine| {
        RiscvMachine { chosen: Chosen::default(), uarts: &[], plic: None, ..machine }.device_tree()
    });
    let blob = blob.unwrap();
    let tree = Fdt::new(&blob).unwrap();
    assert_eq!(tree.find_node("/chosen").unwrap().properties().count(), 0);
    assert_eq!(tree.find_node("/soc").unwrap().children().count(), 0);
}

#[test]
fn every_hart_has_its_node_and_its_place_in_the_topology() {
    let blob = with_machine(|machine| machine.device_tree()).unwrap();
    let tree = Fdt::new(&blob).unwrap();
    let root = tree.find_node("/").unwrap();
    assert_eq!(text(&root, "compatible"), ["axvm,virt", "riscv-virtio"]);
    let cpus = tree.find_node("/cpus").unwrap();
    assert_eq!(cells(&cpus, "timebase-frequency"), [10_000_000]);
    assert_eq!((cells(&cpus, "#address-cells"), cells(&cpus, "#size-cells")), (vec![1], vec![0]));
    for (index, (name, id)) in [("cpu@0", 0), ("cpu@a", 10)].into_iter().enumerate() {
        let cpu = tree.find_node(&format!("/cpus/{name}")).unwrap();
        assert_eq!(cells(&cpu, "reg"), [id]);
        assert_eq!((text(&cpu, "device_type"), text(&cpu, "status")), (vec!["cpu"], vec!["okay"]));
        assert_eq!(text(&cpu, "riscv,isa"), ["rv64imac_zicsr_sstc"]);
        assert_eq!(text(&cpu, "riscv,isa-base"), ["rv64i"]);
        let extensions = ["i", "m", "a", "c", "zicsr", "sstc"];
        assert_eq!(text(&cpu, "riscv,isa-extensions"), extensions);
        assert_eq!(text(&cpu, "mmu-type"), ["riscv,sv48"]);
        let intc = tree.find_node(&format!("/cpus/{name}/interrupt-controller")).unwrap();
        assert_eq!(text(&intc, "compatible"), ["riscv,cpu-intc"]);
        assert_eq!(cells(&intc, "#interrupt-cells"), [1]);
        let core = tree.find_node(&format!("/cpus/cpu-map/cluster0/core{index}")).unwrap();
        assert_eq!(cells(&core, "cpu"), cells(&cpu, "phandle"));
    }
    assert_eq!(cpus.children().count(), 3);
}

#[test]
fn memory_and_devices_are_where_the_machine_has_them() {
    let blob = with_machine(|machine| machine.device_tree()).unwrap();
    let tree = Fdt::new(&blob).unwrap();
    let memory = |name: &str| cells(&tree.find_node(name).unwrap(), "reg");
    assert_eq!(memory("/memory@80000000"), [0, 0x8000_0000, 0, 256 << 20]);
    assert_eq!(memory("/memory@100000000"), [1, 0, 0, 1 << 30]);
    let plic = tree.find_node("/soc/plic@c000000").unwrap();
    assert_eq!(text(&plic, "compatible"), ["sifive,plic-1.0.0", "riscv,plic0"]);
    assert_eq!(cells(&plic, "reg"), [0, 0xc00_0000, 0, 0x60_0000]);
    assert_eq!(cells(&plic, "riscv,ndev"), [95]);
    let intc = |hart: &str| {
        let path = format!("/cpus/{hart}/interrupt-controller");
        cells(&tree.find_node(&path).unwrap(), "phandle")[0]
    };
    let (first, second) = (intc("cpu@0"), intc("cpu@a"));
    let contexts = [first, u32::MAX, first, 9, second, u32::MAX, second, 9];
    assert_eq!(cells(&plic, "interrupts-extended"), contexts);
    for (name, base, irq) in
        [("serial@10000000", 0x1000_0000, 10), ("serial@10001000", 0x1000_1000, 11)]
    {
        let uart = tree.find_node(&format!("/soc/{name}")).unwrap();
        assert_eq!(text(&uart, "compatible"), ["ns16550a"]);
        assert_eq!(cells(&uart, "reg"), [0, base, 0, 0x100]);
        assert_eq!(cells(&uart, "clock-frequency"), [3_686_400]);
        assert_eq!(cells(&uart, "interrupt-parent"), cells(&plic, "phandle"));
        assert_eq!(cells(&uart, "interrupts"), [irq]);
    }
    let aliases = tree.find_node("/aliases").unwrap();
    assert_eq!(text(&aliases, "serial1"), ["/soc/serial@10001000"]);
}

#[test]
fn what_cannot_be_described_is_refused() {
    let refused = |change: fn(&mut RiscvMachine<'_>), error: FdtError| {
        with_machine(|mut machine| {
            change(&mut machine);
            assert_eq!(machine.device_tree(), Err(error));
        });
    };
    refused(|m| m.harts = &[], FdtError::NoCpu);
    refused(|m| m.harts = &[1, 1 << 32], FdtError::CpuId(1 << 32));
    refused(|m| m.harts = &[1, 2, 1], FdtError::SameCpuId(1));
    refused(|m| m.memory = &[], FdtError::NoMemory);
    refused(|m| m.plic = m.plic.map(|p| Plic { sources: 0, ..p }), FdtError::PlicSources(0));
    refused(|m| m.plic = m.plic.map(|p| Plic { sources: 1024, ..p }), FdtError::PlicSources(1024));
    refused(|m| m.plic = m.plic.map(|p| Plic { sources: 10, ..p }), FdtError::NoSuchSource(11));
    with_machine(|mut machine| {
        machine.chosen.bootargs = Some("a\0b");
        let error = machine.device_tree().unwrap_err();
        assert!(matches!(error, FdtError::Writer(_)) && error.to_string().contains("NUL"));
    });
    assert_eq!(AxError::from(FdtError::NoCpu), AxError::InvalidInput);
}
