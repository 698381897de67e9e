use super::*;

#[test]
fn a_small_volume_keeps_a_tenth() {
    assert_eq!(reserve(5 << 30), (5 << 30) / 10);
    assert_eq!(reserve(1 << 40), RESERVE_BYTES_MAX);
}

#[test]
fn an_image_in_use_is_waited_for_and_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("1.img");
    fs::write(&image, "disk").unwrap();
    assert!(wait_until_released(&image, Duration::ZERO).is_ok());
    let held = File::open(&image).unwrap();
    rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    let refused = wait_until_released(&image, Duration::from_millis(20)).unwrap_err();
    assert_eq!(refused.source.raw_os_error(), Some(Errno::BUSY.raw_os_error()));
    drop(held);
    assert!(wait_until_released(&image, Duration::ZERO).is_ok());
}
