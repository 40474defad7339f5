//! A device that tells what was done to it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};

use axerrno::{AxError, AxResult};
use axvm::{
    device::{BaseDeviceOps, DeviceAddrRange, EmuDeviceType, WidthSet},
    vcpu::AccessWidth,
};

use crate::Lock;

/// An access that reached a [`TestDevice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// A read.
    Read(usize, AccessWidth),
    /// A write of a value.
    Write(usize, AccessWidth, usize),
}

type Hook = Arc<dyn Fn(Touch) + Send + Sync>;

/// A device that reads as one value, records every access, and fails when told to.
pub struct TestDevice<R> {
    range: R,
    widths: WidthSet,
    value: AtomicU64,
    error: Mutex<Option<AxError>>,
    hook: Mutex<Option<Hook>>,
    touches: Mutex<Vec<Touch>>,
    resets: AtomicUsize,
}

impl<R: DeviceAddrRange + Send + Sync> TestDevice<R> {
    /// A device that takes every width and reads as `value`.
    pub fn new(range: R, value: u64) -> Arc<Self> {
        Self::with_widths(range, value, WidthSet::ALL)
    }

    /// A device that takes some widths and reads as `value`.
    pub fn with_widths(range: R, value: u64, widths: WidthSet) -> Arc<Self> {
        Arc::new(Self {
            range,
            widths,
            value: AtomicU64::new(value),
            error: Mutex::default(),
            hook: Mutex::default(),
            touches: Mutex::default(),
            resets: AtomicUsize::new(0),
        })
    }

    /// Sets what it reads as.
    pub fn set(&self, value: u64) {
        self.value.store(value, SeqCst);
    }

    /// Makes every access fail, or none any more.
    pub fn fail(&self, error: Option<AxError>) {
        *self.error.locked() = error;
    }

    /// Sets what is done in each handler, after the access is recorded.
    pub fn on_touch(&self, hook: impl Fn(Touch) + Send + Sync + 'static) {
        *self.hook.locked() = Some(Arc::new(hook));
    }

    /// The accesses since the last call.
    pub fn take(&self) -> Vec<Touch> {
        std::mem::take(&mut self.touches.locked())
    }

    /// How often it was reset.
    pub fn resets(&self) -> usize {
        self.resets.load(SeqCst)
    }

    fn touch(&self, touch: Touch) -> AxResult {
        self.touches.locked().push(touch);
        let hook = self.hook.locked().clone();
        if let Some(hook) = hook {
            hook(touch);
        }
        self.error.locked().map_or(Ok(()), Err)
    }
}

impl<R: DeviceAddrRange + Send + Sync> BaseDeviceOps<R> for TestDevice<R> {
    fn emu_type(&self) -> EmuDeviceType {
        EmuDeviceType::Dummy
    }

    fn address_range(&self) -> R {
        self.range
    }

    fn handle_read(&self, addr: R::Addr, width: AccessWidth) -> AxResult<usize> {
        self.touch(Touch::Read(R::number(addr), width))?;
        Ok(self.value.load(SeqCst) as usize)
    }

    fn handle_write(&self, addr: R::Addr, width: AccessWidth, value: usize) -> AxResult {
        self.touch(Touch::Write(R::number(addr), width, value))
    }

    fn legal_widths(&self) -> WidthSet {
        self.widths
    }

    fn reset(&self) {
        self.resets.fetch_add(1, SeqCst);
    }
}
