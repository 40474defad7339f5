//! Device trees (Devicetree Specification 0.4) for guests. Here is what machines of every
//! architecture have; each architecture's machine has a module.

mod riscv;

use alloc::{format, string::String, vec::Vec};
use core::fmt;

use axerrno::AxError;
use vm_fdt::{FdtReserveEntry, FdtWriter};

pub use riscv::{Isa, Mmu, Plic, RiscvMachine};

use crate::mm::GpaRange;

/// What a kernel is told at its start: the node `/chosen`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chosen<'a> {
    /// The command line.
    pub bootargs: Option<&'a str>,
    /// Where the initial RAM disk is.
    pub initrd: Option<GpaRange>,
    /// Random bytes for the kernel's generator, if the host has any.
    pub rng_seed: Option<&'a [u8]>,
}

/// A serial port: a 16550.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uart {
    /// Its registers.
    pub range: GpaRange,
    /// Its interrupt, a source of the machine's interrupt controller.
    pub irq: u32,
    /// The frequency of its clock in Hz: 16 times the highest baud rate.
    pub clock: u32,
}

/// Why there is no device tree.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FdtError {
    /// There is no CPU.
    NoCpu,
    /// A CPU's id does not fit its 32 bits.
    CpuId(u64),
    /// Two CPUs have this id.
    SameCpuId(u64),
    /// There is no memory.
    NoMemory,
    /// A PLIC has 1 to 1023 sources.
    PlicSources(u32),
    /// A serial port's interrupt is no source of the PLIC.
    NoSuchSource(u32),
    /// A string has a NUL in it, or is no name, or reservations overlap.
    Writer(vm_fdt::Error),
}

impl fmt::Display for FdtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("device tree: ")?;
        match self {
            Self::NoCpu => f.write_str("no CPU"),
            Self::CpuId(id) => write!(f, "CPU id {id:#x} is beyond 32 bits"),
            Self::SameCpuId(id) => write!(f, "two CPUs have id {id:#x}"),
            Self::NoMemory => f.write_str("no memory"),
            Self::PlicSources(count) => write!(f, "a PLIC with {count} sources, not 1 to 1023"),
            Self::NoSuchSource(irq) => write!(f, "interrupt {irq} is no source of the PLIC"),
            Self::Writer(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for FdtError {}

impl From<vm_fdt::Error> for FdtError {
    fn from(error: vm_fdt::Error) -> Self {
        Self::Writer(error)
    }
}

/// Always `InvalidInput`.
impl From<FdtError> for AxError {
    fn from(_: FdtError) -> Self {
        Self::InvalidInput
    }
}

/// What writing a part of a tree gives.
type Written = Result<(), vm_fdt::Error>;

/// A tree with these memory reservations (5.3), in which the root node is to be written.
fn writer(reserved: &[GpaRange]) -> Result<FdtWriter, vm_fdt::Error> {
    let entry = |range: &GpaRange| {
        FdtReserveEntry::new(range.start().as_usize() as u64, range.size() as u64)
    };
    let entries: Result<Vec<_>, _> = reserved.iter().map(entry).collect();
    FdtWriter::new_with_mem_reserv(&entries?)
}

/// Writes a node with what `body` writes in it.
fn node(fdt: &mut FdtWriter, name: &str, body: impl FnOnce(&mut FdtWriter) -> Written) -> Written {
    let node = fdt.begin_node(name)?;
    body(fdt)?;
    fdt.end_node(node)
}

/// A node's name with its unit address.
fn at(name: &str, range: GpaRange) -> String {
    format!("{name}@{:x}", range.start())
}

/// How a node's children write addresses and lengths.
fn cells(fdt: &mut FdtWriter, address: u32, size: u32) -> Written {
    fdt.property_u32("#address-cells", address)?;
    fdt.property_u32("#size-cells", size)
}

fn strings(fdt: &mut FdtWriter, name: &str, values: &[&str]) -> Written {
    fdt.property_string_list(name, values.iter().map(|&value| value.into()).collect())
}

/// A node's registers, by two cells for the address and two for the length.
fn reg(fdt: &mut FdtWriter, range: GpaRange) -> Written {
    fdt.property_array_u64("reg", &[range.start().as_usize() as u64, range.size() as u64])
}

/// Writes `/chosen` (3.6); `console` is the path of the node for the console.
fn chosen(fdt: &mut FdtWriter, chosen: &Chosen<'_>, console: Option<&str>) -> Written {
    node(fdt, "chosen", |fdt| {
        if let Some(bootargs) = chosen.bootargs {
            fdt.property_string("bootargs", bootargs)?;
        }
        if let Some(path) = console {
            fdt.property_string("stdout-path", path)?;
        }
        if let Some(initrd) = chosen.initrd {
            fdt.property_u64("linux,initrd-start", initrd.start().as_usize() as u64)?;
            fdt.property_u64("linux,initrd-end", initrd.end().as_usize() as u64)?;
        }
        if let Some(seed) = chosen.rng_seed {
            fdt.property("rng-seed", seed)?;
        }
        Ok(())
    })
}

/// Writes a node for each region of memory (3.4).
fn memory(fdt: &mut FdtWriter, regions: &[GpaRange]) -> Written {
    for &region in regions {
        node(fdt, &at("memory", region), |fdt| {
            fdt.property_string("device_type", "memory")?;
            reg(fdt, region)
        })?;
    }
    Ok(())
}

/// The name of a serial port's node.
fn uart_name(uart: &Uart) -> String {
    at("serial", uart.range)
}

/// Writes `/aliases` (3.3): `serial0` and so on, for the nodes in `/soc`.
fn aliases(fdt: &mut FdtWriter, uarts: &[Uart]) -> Written {
    node(fdt, "aliases", |fdt| {
        for (index, uart) in uarts.iter().enumerate() {
            fdt.property_string(&format!("serial{index}"), &in_soc(&uart_name(uart)))?;
        }
        Ok(())
    })
}

/// The path of a device's node.
fn in_soc(name: &str) -> String {
    format!("/soc/{name}")
}

/// Writes a serial port (4.2.2). Its interrupt goes to the controller with this phandle, if there
/// is one, as `interrupts` says.
fn serial(fdt: &mut FdtWriter, uart: &Uart, controller: Option<(u32, &[u32])>) -> Written {
    node(fdt, &uart_name(uart), |fdt| {
        fdt.property_string("compatible", "ns16550a")?;
        reg(fdt, uart.range)?;
        fdt.property_u32("clock-frequency", uart.clock)?;
        if let Some((phandle, interrupts)) = controller {
            fdt.property_u32("interrupt-parent", phandle)?;
            fdt.property_array_u32("interrupts", interrupts)?;
        }
        Ok(())
    })
}
