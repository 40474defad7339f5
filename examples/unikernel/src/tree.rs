//! What the machine's device tree says. It comes from the firmware, which is trusted; what is
//! missing is still told and not assumed.

use core::ops::Range;

use dtoolkit::{
    Cells, Node, Property, ToCellInt,
    fdt::{Fdt, FdtNode},
    standard::{NodeStandard, Status},
};

/// A range of physical addresses.
pub type PhysRange = Range<u64>;

/// The interrupt of a RISC-V hart that is its supervisor's external one (Privileged 1.12 §4.1.3).
const SUPERVISOR_EXTERNAL: u32 = 9;

/// The device tree of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Tree<'a>(Fdt<'a>);

/// A CPU of the device tree.
#[derive(Clone, Copy, Debug)]
pub struct CpuNode<'a>(FdtNode<'a>);

/// A device of the device tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Where its registers are.
    pub registers: PhysRange,
    /// Its first interrupt, if it has one.
    pub irq: Option<u32>,
}

impl<'a> Tree<'a> {
    /// Reads a device tree.
    pub const fn new(fdt: Fdt<'a>) -> Self {
        Self(fdt)
    }

    /// The machine's memory. Allocates nothing.
    pub fn memory(self) -> impl Iterator<Item = PhysRange> + 'a {
        let nodes = self.0.root().children();
        nodes.filter(|node| node.name_without_address() == "memory").flat_map(ranges)
    }

    /// The parts of it that are in use already, by the firmware for example. Allocates nothing.
    pub fn reserved(self) -> impl Iterator<Item = PhysRange> + 'a {
        let table = self.0.memory_reservations();
        let table = table.map(|entry| entry.address()..entry.address() + entry.size());
        let nodes = self.0.find_node("/reserved-memory");
        table.chain(nodes.into_iter().flat_map(|node| node.children()).flat_map(ranges))
    }

    /// The boot arguments.
    pub fn bootargs(self) -> &'a str {
        self.chosen("bootargs").unwrap_or_default()
    }

    /// Where the boot loader has put the initial RAM disk, which is the bundle.
    pub fn initrd(self) -> Option<PhysRange> {
        let address = |name| self.chosen::<Cells<'_>>(name)?.to_int::<u64>().ok();
        let initrd = address("linux,initrd-start")?..address("linux,initrd-end")?;
        (initrd.start < initrd.end).then_some(initrd)
    }

    fn chosen<T: dtoolkit::FromPropertyValue<'a> + 'a>(self, name: &str) -> Option<T> {
        self.0.find_node("/chosen")?.property(name)?.value_as().ok()
    }

    /// The CPUs that may be used.
    pub fn cpus(self) -> impl Iterator<Item = CpuNode<'a>> {
        let cpus = self.0.find_node("/cpus").into_iter().flat_map(|cpus| cpus.children());
        let cpus = cpus.filter(|node| node.name_without_address() == "cpu");
        cpus.filter(|node| matches!(node.status(), Ok(Status::Okay))).map(CpuNode)
    }

    /// Ticks per second of a RISC-V machine's `time`.
    pub fn timebase(self) -> Option<u32> {
        self.0.find_node("/cpus")?.property("timebase-frequency")?.value_as().ok()
    }

    /// The first device that is compatible with `model`.
    pub fn device(self, model: &str) -> Option<Device> {
        let node = self.node(model)?;
        let irq = node.property("interrupts").and_then(|irqs| {
            let mut cells = irqs.as_prop_encoded_array([1]).ok()?;
            cells.next()?[0].to_int::<u32>().ok()
        });
        Some(Device { registers: ranges(node).next()?, irq })
    }

    /// The number under which a PLIC knows the supervisor of a hart.
    pub fn plic_context(self, plic: &str, hart: u64) -> Option<usize> {
        let hart = self.cpus().find(|cpu| cpu.id() == Some(hart))?;
        let wanted = hart.0.child("interrupt-controller")?.phandle().ok()??;
        let contexts = self.node(plic)?.property("interrupts-extended")?;
        let mut contexts = contexts.as_prop_encoded_array([1, 1]).ok()?;
        contexts.position(|[controller, irq]| {
            controller.to_int() == Ok(wanted) && irq.to_int() == Ok(SUPERVISOR_EXTERNAL)
        })
    }

    /// Devices lie on the root or on a bus below it, where addresses are the same.
    fn node(self, model: &str) -> Option<FdtNode<'a>> {
        let fits = |node: &FdtNode<'a>| {
            node.is_compatible(model) && matches!(node.status(), Ok(Status::Okay))
        };
        let buses = || self.0.root().children();
        buses().find(fits).or_else(|| buses().flat_map(|bus| bus.children()).find(fits))
    }
}

impl<'a> CpuNode<'a> {
    /// The hardware's name for it: hart id, MPIDR affinity.
    pub fn id(self) -> Option<u64> {
        let mut ids = self.0.property("reg")?.value_as::<Cells<'a>>().ok().into_iter();
        ids.next()?.to_int().ok()
    }

    /// The ISA string of a hart, `rv64imafdch_sstc` for example.
    pub fn isa(self) -> &'a str {
        let isa = self.0.property("riscv,isa");
        isa.and_then(|isa| isa.value_as().ok()).unwrap_or_default()
    }

    /// Whether a hart has an extension: a letter, or a name such as `sstc`.
    pub fn has_extension(self, name: &str) -> bool {
        let mut names = self.isa().split('_');
        let letters = names.next().and_then(|base| base.get("rv64".len()..)).unwrap_or_default();
        names.any(|other| other == name) || name.len() == 1 && letters.contains(name)
    }
}

fn ranges(node: FdtNode<'_>) -> impl Iterator<Item = PhysRange> {
    let registers = node.reg().ok().flatten().into_iter().flatten();
    registers.filter_map(|reg| {
        let start: u64 = reg.address().ok()?;
        Some(start..start.checked_add(reg.size().ok()?)?)
    })
}

#[cfg(test)]
mod tests {
    use std::{format, vec, vec::Vec};

    use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

    use super::*;

    fn node<const N: usize>(
        name: &str,
        properties: [DeviceTreeProperty; N],
        children: Vec<DeviceTreeNode>,
    ) -> DeviceTreeNode {
        let mut node = DeviceTreeNode::new(name).unwrap();
        properties.into_iter().for_each(|property| node.add_property(property));
        children.into_iter().for_each(|child| node.add_child(child));
        node
    }

    fn text(name: &str, value: &str) -> DeviceTreeProperty {
        DeviceTreeProperty::new(name, value).unwrap()
    }

    fn cells(name: &str, value: &[u32]) -> DeviceTreeProperty {
        DeviceTreeProperty::new(name, value).unwrap()
    }

    fn cpu(hart: u32, status: &'static str) -> DeviceTreeNode {
        let intc = node("interrupt-controller", [cells("phandle", &[100 + hart])], vec![]);
        node(
            &format!("cpu@{hart:x}"),
            [
                cells("reg", &[hart]),
                text("status", status),
                text("riscv,isa", "rv64imafdch_zicsr_sstc"),
            ],
            vec![intc],
        )
    }

    /// Like QEMU's `virt` with harts 4, 5 (switched off) and 6, where firmware has reserved memory.
    fn blob() -> Vec<u8> {
        let mut tree = DeviceTree::new();
        let plic: &[u32] = &[104, 11, 104, 9, 105, 11, 106, 11, 106, 9];
        let children = vec![
            node("memory@80000000", [cells("reg", &[0, 0x8000_0000, 0, 0x4000_0000])], vec![]),
            node("memory@100000000", [cells("reg", &[1, 0, 0, 0x1000_0000])], vec![]),
            node(
                "reserved-memory",
                [cells("#address-cells", &[2]), cells("#size-cells", &[2])],
                vec![node("resv@80000000", [cells("reg", &[0, 0x8000_0000, 0, 0x8_0000])], vec![])],
            ),
            node(
                "chosen",
                [
                    text("bootargs", "stats log=info"),
                    cells("linux,initrd-start", &[0x8800_0000]),
                    cells("linux,initrd-end", &[0, 0x8900_0000]),
                ],
                vec![],
            ),
            node(
                "cpus",
                [
                    cells("#address-cells", &[1]),
                    cells("#size-cells", &[0]),
                    cells("timebase-frequency", &[10_000_000]),
                ],
                vec![
                    cpu(4, "okay"),
                    cpu(5, "disabled"),
                    cpu(6, "okay"),
                    node("cpu-map", [], vec![]),
                ],
            ),
            node(
                "soc",
                [
                    cells("#address-cells", &[2]),
                    cells("#size-cells", &[2]),
                    text("compatible", "simple-bus"),
                ],
                vec![
                    node(
                        "serial@10000000",
                        [
                            text("compatible", "ns16550a"),
                            cells("reg", &[0, 0x1000_0000, 0, 0x100]),
                            cells("interrupts", &[10]),
                        ],
                        vec![],
                    ),
                    node(
                        "plic@c000000",
                        [
                            text("compatible", "sifive,plic-1.0.0\0riscv,plic0"),
                            cells("reg", &[0, 0xc00_0000, 0, 0x60_0000]),
                            cells("interrupts-extended", plic),
                        ],
                        vec![],
                    ),
                ],
            ),
        ];
        tree.root = node("", [cells("#address-cells", &[2]), cells("#size-cells", &[2])], children);
        tree.to_dtb()
    }

    #[test]
    fn memory_and_what_is_taken_of_it_are_found() {
        let blob = blob();
        let tree = Tree::new(Fdt::new(&blob).unwrap());
        let memory: Vec<_> = tree.memory().collect();
        assert_eq!(memory, [0x8000_0000..0xc000_0000, 0x1_0000_0000..0x1_1000_0000]);
        let mut reserved = tree.reserved();
        assert_eq!((reserved.next(), reserved.next()), (Some(0x8000_0000..0x8008_0000), None));
        assert_eq!(tree.initrd(), Some(0x8800_0000..0x8900_0000), "in one cell or two");
        assert_eq!(tree.bootargs(), "stats log=info");
    }

    #[test]
    fn harts_that_are_switched_off_are_left_out_and_ids_need_not_begin_at_zero() {
        let blob = blob();
        let tree = Tree::new(Fdt::new(&blob).unwrap());
        assert_eq!(tree.cpus().map(|cpu| cpu.id().unwrap()).collect::<Vec<_>>(), [4, 6]);
        assert_eq!(tree.timebase(), Some(10_000_000));
        let cpu = tree.cpus().next().unwrap();
        for (name, has) in [("h", true), ("sstc", true), ("c", true), ("v", false), ("zicsr", true)]
        {
            assert_eq!(cpu.has_extension(name), has, "{name}");
        }
        assert!(!cpu.has_extension("r"), "the r of rv64 is no extension");
    }

    #[test]
    fn devices_are_found_by_what_they_are_compatible_with() {
        let blob = blob();
        let tree = Tree::new(Fdt::new(&blob).unwrap());
        let uart = Device { registers: 0x1000_0000..0x1000_0100, irq: Some(10) };
        assert_eq!(tree.device("ns16550a"), Some(uart));
        let plic = Device { registers: 0xc00_0000..0xc60_0000, irq: None };
        assert_eq!(tree.device("riscv,plic0"), Some(plic));
        assert_eq!(tree.device("sifive,test0"), None);
        assert_eq!(tree.plic_context("riscv,plic0", 4), Some(1));
        assert_eq!(tree.plic_context("riscv,plic0", 6), Some(4));
        assert_eq!(tree.plic_context("riscv,plic0", 5), None);
        assert_eq!(tree.plic_context("ns16550a", 4), None);
    }
}
