//! Random bits of the kernel's: those of a copy are others than those of its source.
use std::fs::File;
use std::io::{self, Read as _};

/// 128 bits, as 32 hexadecimal digits.
pub(crate) fn hex() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_another_each_time() {
        let (one, other) = (super::hex().unwrap(), super::hex().unwrap());
        assert!(one.len() == 32 && one != other);
    }
}
