use super::*;

struct Scene(tempfile::TempDir);

impl Scene {
    fn new() -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        let package = scene.package();
        fs::create_dir_all(package.join("boot")).unwrap();
        fs::write(package.join("boot/vmlinuz-6.1-x"), "kernel").unwrap();
        fs::write(
            package.join("boot/config-6.1-x"),
            "CONFIG_A=y\nCONFIG_VMGENID=y\n",
        )
        .unwrap();
        module::tests::kernel(&package.join("lib/modules/6.1-x"), |_| "");
        for program in ["atoll-guest", "atoll-envd", "atoll-sudo"] {
            fs::write(scene.0.path().join(program), program).unwrap();
        }
        scene
    }

    fn package(&self) -> PathBuf {
        self.0.path().join("package")
    }

    fn make(&self) -> Result<Bundle, BundleError> {
        Bundle::make(
            &self.package(),
            &Programs::of(self.0.path()),
            &self.0.path().join("out"),
        )
    }
}

#[test]
fn the_same_inputs_make_the_same_bundle_and_others_another() {
    let scene = Scene::new();
    let first = scene.make().unwrap();
    assert_eq!(scene.make().unwrap(), first);
    assert_eq!(first.release(), "6.1-x");
    assert_eq!(fs::read(first.kernel()).unwrap(), b"kernel");
    fs::write(scene.0.path().join("atoll-envd"), "newer").unwrap();
    let second = scene.make().unwrap();
    assert_ne!(second.id(), first.id());
    let left: Vec<_> = fs::read_dir(scene.0.path().join("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn what_is_not_what_its_name_says_is_refused_and_made_again() {
    let scene = Scene::new();
    let bundle = scene.make().unwrap();
    for name in [KERNEL, INITRD, MANIFEST] {
        let path = bundle.dir().join(name);
        let mut content = fs::read(&path).unwrap();
        let at = content.len() / 2;
        content[at] ^= 1;
        fs::write(&path, &content).unwrap();
        let refused = Bundle::load(bundle.dir()).unwrap_err();
        assert!(
            matches!(refused, BundleError::Tampered { .. }),
            "{name}: {refused}"
        );
        assert_eq!(scene.make().unwrap(), bundle);
    }
    let elsewhere = scene.0.path().join("out/other");
    fs::rename(bundle.dir(), &elsewhere).unwrap();
    let refused = Bundle::load(&elsewhere).unwrap_err();
    assert!(refused.to_string().contains(&bundle.id()), "{refused}");
}

#[test]
fn a_kernel_whose_copies_would_be_alike_is_refused_by_name() {
    let scene = Scene::new();
    fs::write(
        scene.package().join("boot/config-6.1-x"),
        "# CONFIG_VMGENID is not set\nCONFIG_VMGENID=m\n",
    )
    .unwrap();
    let refused = scene.make().unwrap_err().to_string();
    assert!(
        refused.contains("6.1-x") && refused.contains("CONFIG_VMGENID"),
        "{refused}"
    );
    assert!(!scene.0.path().join("out").exists());
}

#[test]
fn two_kernels_are_one_too_many() {
    let scene = Scene::new();
    fs::write(scene.package().join("boot/vmlinuz-6.2-x"), "kernel").unwrap();
    assert!(matches!(scene.make(), Err(BundleError::Kernels { found: 2, .. })));
}
