//! Which VM the keyboard belongs to.

/// The key that begins a command, as in many consoles.
const CTRL_A: u8 = 1;

/// Sorts what is typed: to a VM, or to us. With several VMs Ctrl-A and a digit choose the VM
/// (`0` the first one), Ctrl-A twice types it; with one VM every key is the VM's.
#[derive(Debug)]
pub struct Focus {
    vms: usize,
    focused: usize,
    command: bool,
}

/// Where a key goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// To this VM, as this byte.
    Type(usize, u8),
    /// Nowhere: from now on, keys go to this VM.
    Switch(usize),
    /// Nowhere.
    Nothing,
}

impl Focus {
    /// The first of `vms` VMs has the keyboard.
    pub const fn new(vms: usize) -> Self {
        Self { vms, focused: 0, command: false }
    }

    /// Takes one key.
    pub fn key(&mut self, byte: u8) -> Key {
        let command = core::mem::take(&mut self.command);
        match (command, byte) {
            (false, CTRL_A) if self.vms > 1 => {
                self.command = true;
                Key::Nothing
            }
            (true, b'0'..=b'9') if usize::from(byte - b'0') < self.vms => {
                self.focused = usize::from(byte - b'0');
                Key::Switch(self.focused)
            }
            (true, byte) if byte != CTRL_A => Key::Nothing,
            _ if self.vms == 0 => Key::Nothing,
            _ => Key::Type(self.focused, byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_and_a_digit_switch_and_nobody_sees_them() {
        let mut focus = Focus::new(2);
        let keys = [b'a', CTRL_A, b'1', b'b', CTRL_A, CTRL_A, CTRL_A, b'2', CTRL_A, b'x', b'c'];
        use Key::*;
        let want = [
            Type(0, b'a'),
            Nothing,
            Switch(1),
            Type(1, b'b'),
            Nothing,
            Type(1, CTRL_A),
            Nothing,
            Nothing, // There is no VM 2.
            Nothing,
            Nothing,
            Type(1, b'c'),
        ];
        assert_eq!(keys.map(|key| focus.key(key)), want);
    }

    #[test]
    fn a_single_vm_gets_every_key() {
        let mut focus = Focus::new(1);
        for key in 0..=255 {
            assert_eq!(focus.key(key), Key::Type(0, key));
        }
        assert_eq!(Focus::new(0).key(b'a'), Key::Nothing);
    }
}
