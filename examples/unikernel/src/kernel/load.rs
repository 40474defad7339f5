//! From the files of the bundle to a VM that can boot.

use alloc::{format, string::String, sync::Arc, vec::Vec};

use axerrno::AxResult;
use axvm::{
    config::toml::VmFile,
    device::CharBackend,
    machine::{Images, Machine, new_vm},
};
use unikernel::bundle::Bundle;

use super::hal::Host;

/// A guest: its configuration and its images.
pub struct Guest {
    file: VmFile,
    images: Images,
}

/// Reads all `vm*.toml` of a bundle, and finds the images that they name. The first thing that is
/// wrong is told.
///
/// # Errors
/// A text for the user that begins with the file's name.
pub fn read(bundle: &'static [u8]) -> Result<Vec<Guest>, String> {
    let bundle = Bundle::parse(bundle).map_err(|error| format!("bundle: {error}"))?;
    let mut guests: Vec<Guest> = Vec::new();
    for (name, text) in bundle.vms() {
        let guest = Guest::read(&bundle, text).map_err(|error| format!("{name}: {error}"))?;
        let config = &guest.file.config;
        if guests.iter().any(|other| other.file.config.id == config.id) {
            return Err(format!("{name}: another VM has id {} too", config.id));
        }
        guests.push(guest);
    }
    Ok(guests)
}

impl Guest {
    fn read(bundle: &Bundle<'static>, text: &[u8]) -> Result<Self, String> {
        let text = core::str::from_utf8(text).map_err(|error| format!("{error}"))?;
        let file = VmFile::parse(text).map_err(|error| format!("{error}"))?;
        let find = |key: &str, name: &str| {
            bundle.file(name).ok_or_else(|| format!("{key}: the bundle has no file {name:?}"))
        };
        let may_find =
            |key, name: &Option<String>| name.as_deref().map(|name| find(key, name)).transpose();
        let named = &file.images;
        let images = Images {
            kernel: find("kernel_path", &named.kernel_path)?,
            initrd: may_find("ramdisk_path", &named.ramdisk_path)?,
            dtb: may_find("dtb_path", &named.dtb_path)?,
        };
        for (key, unused) in [("bios_path", &named.bios_path), ("disk_path", &named.disk_path)] {
            if unused.is_some() {
                return Err(format!("{key}: this host has no use for it"));
            }
        }
        Ok(Self { file, images })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.file.config.name
    }

    /// Creates its VM, with this console.
    ///
    /// # Errors
    /// Those of the library.
    pub fn create(self, console: Arc<dyn CharBackend>) -> AxResult<Machine<Host>> {
        new_vm(self.file.config, self.images, console)
    }
}
