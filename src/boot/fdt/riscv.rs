//! The device tree of a RISC-V machine in the layout of QEMU's `virt` (Linux'
//! Documentation/devicetree/bindings/riscv, interrupt-controller and serial).

use alloc::{format, string::String, vec::Vec};

use vm_fdt::FdtWriter;

use super::{
    Chosen, FdtError, Uart, Written, aliases, at, cells, chosen, in_soc, memory, node, reg, serial,
    strings, uart_name, writer,
};
use crate::mm::GpaRange;

/// What the harts execute.
#[derive(Clone, Copy, Debug)]
pub struct Isa<'a> {
    /// The base: `rv64i`.
    pub base: &'a str,
    /// The extensions by name, in lower case: `i`, `m`, `a`, …, then those of several letters.
    pub extensions: &'a [&'a str],
}

impl Isa<'_> {
    /// As one string: `rv64imac_zicsr_sstc`.
    fn string(&self) -> String {
        let mut isa = String::from(self.base.strip_suffix('i').unwrap_or(self.base));
        let single = |name: &&&str| name.len() == 1;
        self.extensions.iter().filter(single).for_each(|name| isa.push_str(name));
        for name in self.extensions.iter().filter(|name| !single(name)) {
            isa.push('_');
            isa.push_str(name);
        }
        isa
    }
}

/// The largest page-table format of the harts (Privileged 1.13, "Sv39" and after).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mmu {
    /// 39 bits.
    Sv39,
    /// 48 bits.
    Sv48,
    /// 57 bits.
    Sv57,
}

/// A platform-level interrupt controller (RISC-V PLIC 1.0). Hart number N of the machine has
/// contexts 2N (M-mode, which guests do not have) and 2N + 1 (S-mode).
#[derive(Clone, Copy, Debug)]
pub struct Plic {
    /// Its registers.
    pub range: GpaRange,
    /// Its sources are 1 to this, 1023 at most.
    pub sources: u32,
}

/// A RISC-V machine.
#[derive(Clone, Copy, Debug)]
pub struct RiscvMachine<'a> {
    /// The id of each hart, below 2^32.
    pub harts: &'a [u64],
    /// The frequency of the time CSR in Hz.
    pub timebase: u32,
    /// What the harts execute.
    pub isa: Isa<'a>,
    /// How they translate.
    pub mmu: Mmu,
    /// RAM.
    pub memory: &'a [GpaRange],
    /// Parts of it that the guest must leave alone.
    pub reserved: &'a [GpaRange],
    /// The interrupt controller.
    pub plic: Option<Plic>,
    /// Serial ports; the first is the console.
    pub uarts: &'a [Uart],
    /// What the kernel is told.
    pub chosen: Chosen<'a>,
}

/// The cause of S-mode's external interrupts (Privileged 1.13, "scause").
const SUPERVISOR_EXTERNAL: u32 = 9;

/// No interrupt, for a context that does not exist.
const NO_CONTEXT: u32 = u32::MAX;

const PLIC_PHANDLE: u32 = 1;

/// The interrupt controllers of the harts, and the harts, have phandles in pairs after it.
fn intc_phandle(hart: usize) -> u32 {
    cpu_phandle(hart).saturating_add(1)
}

fn cpu_phandle(hart: usize) -> u32 {
    u32::try_from(hart).unwrap_or(u32::MAX).saturating_mul(2).saturating_add(PLIC_PHANDLE + 1)
}

impl RiscvMachine<'_> {
    /// The machine's device tree as a blob.
    ///
    /// # Errors
    /// What of the machine cannot be described.
    pub fn device_tree(&self) -> Result<Vec<u8>, FdtError> {
        self.check()?;
        let mut fdt = writer(self.reserved)?;
        let console = self.uarts.first().map(|uart| in_soc(&uart_name(uart)));
        node(&mut fdt, "", |fdt| {
            cells(fdt, 2, 2)?;
            strings(fdt, "compatible", &["axvm,virt", "riscv-virtio"])?;
            fdt.property_string("model", "axvm,virt")?;
            chosen(fdt, &self.chosen, console.as_deref())?;
            aliases(fdt, self.uarts)?;
            memory(fdt, self.memory)?;
            self.cpus(fdt)?;
            self.soc(fdt)
        })?;
        Ok(fdt.finish()?)
    }

    fn check(&self) -> Result<(), FdtError> {
        if self.harts.is_empty() {
            return Err(FdtError::NoCpu);
        }
        for (index, &id) in self.harts.iter().enumerate() {
            if u32::try_from(id).is_err() {
                return Err(FdtError::CpuId(id));
            }
            if self.harts.iter().take(index).any(|&other| other == id) {
                return Err(FdtError::SameCpuId(id));
            }
        }
        if self.memory.is_empty() {
            return Err(FdtError::NoMemory);
        }
        if let Some(plic) = self.plic {
            if !(1..=1023).contains(&plic.sources) {
                return Err(FdtError::PlicSources(plic.sources));
            }
            let source = |uart: &&Uart| (1..=plic.sources).contains(&uart.irq);
            if let Some(uart) = self.uarts.iter().find(|uart| !source(uart)) {
                return Err(FdtError::NoSuchSource(uart.irq));
            }
        }
        Ok(())
    }

    fn cpus(&self, fdt: &mut FdtWriter) -> Written {
        node(fdt, "cpus", |fdt| {
            cells(fdt, 1, 0)?;
            fdt.property_u32("timebase-frequency", self.timebase)?;
            for (index, &id) in self.harts.iter().enumerate() {
                self.cpu(fdt, index, id)?;
            }
            node(fdt, "cpu-map", |fdt| {
                node(fdt, "cluster0", |fdt| {
                    (0..self.harts.len()).try_for_each(|index| {
                        node(fdt, &format!("core{index}"), |fdt| {
                            fdt.property_u32("cpu", cpu_phandle(index))
                        })
                    })
                })
            })
        })
    }

    fn cpu(&self, fdt: &mut FdtWriter, index: usize, id: u64) -> Written {
        node(fdt, &format!("cpu@{id:x}"), |fdt| {
            fdt.property_string("device_type", "cpu")?;
            // `check` has seen that it fits.
            fdt.property_u32("reg", id as u32)?;
            fdt.property_string("status", "okay")?;
            fdt.property_string("compatible", "riscv")?;
            fdt.property_string("riscv,isa", &self.isa.string())?;
            fdt.property_string("riscv,isa-base", self.isa.base)?;
            strings(fdt, "riscv,isa-extensions", self.isa.extensions)?;
            let mmu = match self.mmu {
                Mmu::Sv39 => "riscv,sv39",
                Mmu::Sv48 => "riscv,sv48",
                Mmu::Sv57 => "riscv,sv57",
            };
            fdt.property_string("mmu-type", mmu)?;
            fdt.property_phandle(cpu_phandle(index))?;
            node(fdt, "interrupt-controller", |fdt| {
                fdt.property_u32("#address-cells", 0)?;
                fdt.property_u32("#interrupt-cells", 1)?;
                fdt.property_null("interrupt-controller")?;
                fdt.property_string("compatible", "riscv,cpu-intc")?;
                fdt.property_phandle(intc_phandle(index))
            })
        })
    }

    /// The devices. More kinds go here.
    fn soc(&self, fdt: &mut FdtWriter) -> Written {
        node(fdt, "soc", |fdt| {
            cells(fdt, 2, 2)?;
            fdt.property_string("compatible", "simple-bus")?;
            fdt.property_null("ranges")?;
            if let Some(plic) = self.plic {
                self.plic(fdt, plic)?;
            }
            for uart in self.uarts {
                let irq = [uart.irq];
                serial(fdt, uart, self.plic.map(|_| (PLIC_PHANDLE, &irq[..])))?;
            }
            Ok(())
        })
    }

    fn plic(&self, fdt: &mut FdtWriter, plic: Plic) -> Written {
        node(fdt, &at("plic", plic.range), |fdt| {
            strings(fdt, "compatible", &["sifive,plic-1.0.0", "riscv,plic0"])?;
            reg(fdt, plic.range)?;
            fdt.property_u32("#address-cells", 0)?;
            fdt.property_u32("#interrupt-cells", 1)?;
            fdt.property_null("interrupt-controller")?;
            let contexts: Vec<u32> = (0..self.harts.len())
                .flat_map(|hart| [NO_CONTEXT, SUPERVISOR_EXTERNAL].map(|irq| (hart, irq)))
                .flat_map(|(hart, irq)| [intc_phandle(hart), irq])
                .collect();
            fdt.property_array_u32("interrupts-extended", &contexts)?;
            fdt.property_u32("riscv,ndev", plic.sources)?;
            fdt.property_phandle(PLIC_PHANDLE)
        })
    }
}
