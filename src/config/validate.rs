//! The checks behind [`AxVMConfig::validate`].

use alloc::vec::Vec;

use super::{
    AxVMConfig, ConfigError, ConfigField,
    ConfigValue::{Count, Hex},
};
use crate::{
    device::EmuDeviceType,
    mm::{ADDRESS_LIMIT, GpaRange, HostPhysAddr, MappingFlags, PAGE_SIZE_4K},
    vcpu::MAX_VCPUS,
};

const fn field(name: &'static str) -> ConfigField {
    ConfigField { entry: None, name }
}

const fn entry(list: &'static str, index: usize, name: &'static str) -> ConfigField {
    ConfigField { entry: Some((list, index)), name }
}

impl AxVMConfig {
    /// Checks the whole configuration.
    ///
    /// # Errors
    /// The first error found; it names the field and the value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_cpus()?;
        let mut taken = self.memory_ranges()?;
        let pass_through = pass_through_ranges(self)?;
        self.validate_pass_through(&taken)?;
        taken.extend(pass_through.into_iter().map(|pages| pages.range));
        for (index, device) in self.emu_devices.iter().enumerate() {
            let at = |name| entry("emu_devices", index, name);
            if EmuDeviceType::try_from(device.emu_type).is_err() {
                let rule = "no such kind of device";
                return Err(ConfigError::invalid(at("emu_type"), Hex(device.emu_type), rule));
            }
            // A device without registers in memory (ports only) has length 0.
            if device.length != 0 {
                let range = guest_range(at, BASE_GPA, device.base_gpa, device.length)?;
                insert(&mut taken, at(""), range)?;
            }
            let pages = device.emu_type == EmuDeviceType::IvcChannel as usize;
            for (name, value) in [("base_gpa", device.base_gpa), ("length", device.length)] {
                if pages && value % PAGE_SIZE_4K != 0 {
                    let rule = "must be a multiple of 4 KiB";
                    return Err(ConfigError::invalid(at(name), Hex(value), rule));
                }
            }
        }
        for (index, &range) in self.forward.mmio.iter().enumerate() {
            insert(&mut taken, entry("forward.mmio", index, ""), range)?;
        }
        self.validate_forward()
    }

    /// Physical devices share pages with each other, but not with memory.
    fn validate_pass_through(&self, memory: &[GpaRange]) -> Result<(), ConfigError> {
        let devices = self.pass_through_devices.iter().map(|d| (d.base_gpa, d.length));
        let devices = devices.enumerate().map(|named| ("pass_through_devices", named));
        let addresses = self.pass_through_addresses.iter().copied().enumerate();
        let addresses = addresses.map(|named| ("pass_through_addresses", named));
        for (list, (index, (base, length))) in devices.chain(addresses) {
            let pages = GpaRange::new(base.into(), length).and_then(GpaRange::page_cover);
            if let Some(pages) = pages
                && memory.iter().any(|region| region.overlaps(pages))
            {
                let rule = "shares pages with memory";
                return Err(ConfigError::overlap(entry(list, index, ""), pages, rule));
            }
        }
        Ok(())
    }

    fn validate_cpus(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_VCPUS).contains(&self.cpu_num) {
            let rule = "a VM has 1 to 64 vCPUs";
            return Err(ConfigError::invalid(field("cpu_num"), Count(self.cpu_num), rule));
        }
        let rule = "there must be one entry for each of cpu_num";
        for (name, list) in
            [("phys_cpu_ids", &self.phys_cpu_ids), ("phys_cpu_sets", &self.phys_cpu_sets)]
        {
            if let Some(list) = list
                && list.len() != self.cpu_num
            {
                return Err(ConfigError::invalid(field(name), Count(list.len()), rule));
            }
        }
        for (index, &id) in self.phys_cpu_ids.iter().flatten().enumerate() {
            if self.phys_cpu_ids.iter().flatten().take(index).any(|&other| other == id) {
                let at = entry("phys_cpu_ids", index, "");
                return Err(ConfigError::invalid(at, Hex(id), "another vCPU has this id"));
            }
        }
        for (index, &set) in self.phys_cpu_sets.iter().flatten().enumerate() {
            if set == 0 {
                let at = entry("phys_cpu_sets", index, "");
                return Err(ConfigError::invalid(at, Hex(set), "no physical CPU is in the set"));
            }
        }
        Ok(())
    }

    fn memory_ranges(&self) -> Result<Vec<GpaRange>, ConfigError> {
        let mut taken = Vec::new();
        for (index, region) in self.memory_regions.iter().enumerate() {
            let at = |name| entry("memory_regions", index, name);
            for (name, value) in [("gpa", region.gpa), ("size", region.size)] {
                if value % PAGE_SIZE_4K != 0 {
                    let rule = "must be a multiple of 4 KiB";
                    return Err(ConfigError::invalid(at(name), Hex(value), rule));
                }
            }
            let known = MappingFlags::from_bits(region.flags);
            if !known.is_some_and(|flags| flags.contains(MappingFlags::READ)) {
                let rule = "must be bits of MappingFlags, READ among them";
                return Err(ConfigError::invalid(at("flags"), Hex(region.flags), rule));
            }
            let range = guest_range(at, ("gpa", "size"), region.gpa, region.size)?;
            insert(&mut taken, at(""), range)?;
        }
        Ok(taken)
    }

    fn validate_forward(&self) -> Result<(), ConfigError> {
        let rule = "the first is behind the last";
        for (index, &(first, last)) in self.forward.ports.iter().enumerate() {
            if first > last {
                let at = entry("forward.ports", index, "");
                return Err(ConfigError::invalid(at, Hex(first.into()), rule));
            }
        }
        for (index, &(first, last)) in self.forward.sys_regs.iter().enumerate() {
            if first > last {
                let at = entry("forward.sys_regs", index, "");
                return Err(ConfigError::invalid(at, Hex(first), rule));
            }
        }
        Ok(())
    }
}

/// How a device's fields for base and length are called.
const BASE_GPA: (&str, &str) = ("base_gpa", "length");

/// A range that lies below the address limit; `at` and `names` name its fields.
fn guest_range(
    at: impl Fn(&'static str) -> ConfigField,
    names: (&'static str, &'static str),
    base: usize,
    length: usize,
) -> Result<GpaRange, ConfigError> {
    if length == 0 {
        return Err(ConfigError::invalid(at(names.1), Hex(0), "must not be 0"));
    }
    if base >= ADDRESS_LIMIT {
        return Err(ConfigError::invalid(at(names.0), Hex(base), "is beyond the address space"));
    }
    GpaRange::new(base.into(), length)
        .filter(|range| range.end().as_usize() <= ADDRESS_LIMIT)
        .ok_or(ConfigError::invalid(at(names.1), Hex(length), "ends beyond the address space"))
}

/// Adds a range that must not overlap those before it.
fn insert(
    taken: &mut Vec<GpaRange>,
    field: ConfigField,
    range: GpaRange,
) -> Result<(), ConfigError> {
    if taken.iter().any(|other| other.overlaps(range)) {
        return Err(ConfigError::overlap(field, range, "overlaps another region or device"));
    }
    taken.push(range);
    Ok(())
}

/// What the guest sees of its physical devices: whole pages.
pub(crate) struct PassThrough {
    pub(crate) range: GpaRange,
    /// The host address behind the range's start.
    pub(crate) hpa: HostPhysAddr,
}

impl PassThrough {
    fn offset(&self) -> usize {
        self.hpa.as_usize().wrapping_sub(self.range.start().as_usize())
    }
}

/// The pages of all physical devices; those that touch at the same offset are joined, as two
/// devices may share a page.
pub(crate) fn pass_through_ranges(config: &AxVMConfig) -> Result<Vec<PassThrough>, ConfigError> {
    let mut ranges = Vec::new();
    for (index, device) in config.pass_through_devices.iter().enumerate() {
        let at = |name| entry("pass_through_devices", index, name);
        let range = guest_range(at, BASE_GPA, device.base_gpa, device.length)?;
        if device.base_gpa % PAGE_SIZE_4K != device.base_hpa % PAGE_SIZE_4K {
            let rule = "must have the same offset within its 4 KiB page as base_gpa";
            return Err(ConfigError::invalid(at("base_hpa"), Hex(device.base_hpa), rule));
        }
        add_pages(&mut ranges, at(""), at("base_hpa"), range, device.base_hpa)?;
    }
    for (index, &(base, length)) in config.pass_through_addresses.iter().enumerate() {
        let at = |name| entry("pass_through_addresses", index, name);
        let range = guest_range(at, ("base", "length"), base, length)?;
        add_pages(&mut ranges, at(""), at("base"), range, base)?;
    }
    Ok(ranges)
}

fn add_pages(
    ranges: &mut Vec<PassThrough>,
    field: ConfigField,
    host_field: ConfigField,
    range: GpaRange,
    hpa: usize,
) -> Result<(), ConfigError> {
    let beyond = ConfigError::invalid(host_field, Hex(hpa), "ends beyond the host's address space");
    let range = range.page_cover().ok_or(beyond)?;
    let hpa = hpa - hpa % PAGE_SIZE_4K;
    hpa.checked_add(range.size()).ok_or(beyond)?;
    let mut joined = PassThrough { range, hpa: hpa.into() };
    let touches = |a: GpaRange, b: GpaRange| a.start() <= b.end() && b.start() <= a.end();
    while let Some(index) = ranges
        .iter()
        .position(|other| other.offset() == joined.offset() && touches(other.range, joined.range))
    {
        let other = ranges.swap_remove(index);
        let start = other.range.start().min(joined.range.start());
        let end = other.range.end().max(joined.range.end());
        joined = PassThrough {
            range: GpaRange::from_bounds(start, end).unwrap_or(joined.range),
            hpa: other.hpa.min(joined.hpa),
        };
    }
    if ranges.iter().any(|other| other.range.overlaps(joined.range)) {
        let rule = "shares pages with another device at another offset";
        return Err(ConfigError::overlap(field, range, rule));
    }
    ranges.push(joined);
    Ok(())
}
