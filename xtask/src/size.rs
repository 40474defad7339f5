//! Sizes of memory, as one types them.

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// Guest memory comes in pieces of this size: that of a large page.
const PIECE: u64 = 2 * MIB;

/// Reads the size of a guest's memory: `256M`, `1G`, a number of bytes.
pub(crate) fn guest_memory(text: &str) -> Result<u64, String> {
    let size = parse(text)?;
    if size == 0 || !size.is_multiple_of(PIECE) {
        return Err("guest memory comes in multiples of 2M".to_owned());
    }
    Ok(size)
}

fn parse(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.chars().next_back() {
        Some('K' | 'k') => (text.get(..text.len() - 1), KIB),
        Some('M' | 'm') => (text.get(..text.len() - 1), MIB),
        Some('G' | 'g') => (text.get(..text.len() - 1), GIB),
        _ => (Some(text), 1),
    };
    let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|digits| digits.parse::<u64>().ok());
    let number = number.ok_or("a size is a number and K, M or G, such as 256M")?;
    number.checked_mul(unit).ok_or_else(|| "that is more than 64 bits can count".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_all_units() {
        assert_eq!(guest_memory("256M"), Ok(256 * MIB));
        assert_eq!(guest_memory("1G"), Ok(GIB));
        assert_eq!(guest_memory("2048k"), Ok(2 * MIB));
        assert_eq!(guest_memory("4194304"), Ok(4 * MIB));
    }

    #[test]
    fn what_is_no_size_of_guest_memory_is_refused() {
        for text in ["", "M", "+2M", "-2M", "2 M", "2.5G", "2T", "2MB", "0x200000", "1é", "é"] {
            assert!(parse(text).is_err(), "{text}");
        }
        for text in ["0", "1M", "3M", "17179869184G", "99999999999999999999"] {
            assert!(guest_memory(text).is_err(), "{text}");
        }
    }
}
