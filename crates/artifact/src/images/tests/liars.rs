//! What registries may do to us, and what they may not make us do.
use super::house::{Liar, answer};
use super::*;

fn manifest_of(picture: &Picture) -> impl Fn(&str) -> Vec<u8> + Send + Sync + 'static {
    let picture = picture.clone();
    move |head: &str| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        if path.contains("/manifests/") {
            return answer("200 OK", "", &picture.manifest);
        }
        let named = |bytes: &[u8]| path.ends_with(&Digest::of(bytes).to_string());
        picture.blobs().find(|blob| named(blob)).map_or_else(
            || answer("404 Not Found", "", b"{}"),
            |blob| answer("200 OK", "", blob),
        )
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[tokio::test]
async fn a_registry_without_a_name_in_the_policy_has_a_public_address() {
    let liar = Liar::start(|_| answer("200 OK", "", b"{}")).await;
    let house = House::new(&[]);
    for host in [
        liar.address.to_string(),
        format!("localhost:{}", liar.address.port()),
        "10.0.0.1".to_owned(),
        "169.254.169.254:80".to_owned(),
        "[::1]:5000".to_owned(),
    ] {
        match house.images.resolve(&format!("{host}/a:b"), None).await {
            Err(PullError::Private { host: found, .. }) => assert_eq!(found, host),
            other => panic!("{host}: {other:?}"),
        }
    }
    assert!(liar.heads().is_empty(), "nothing was connected to");
    let denied = House::with(Policy {
        others: crate::Access::Deny,
        ..Policy::default()
    });
    assert!(matches!(
        denied.images.resolve("ubuntu", None).await,
        Err(PullError::Denied { .. })
    ));
}

#[tokio::test]
async fn a_registry_cannot_send_us_to_a_private_address() {
    let inside = Liar::start(|_| answer("200 OK", "", b"secret")).await;
    let to = inside.address;
    for location in [
        format!("http://{to}/x"),
        format!("https://{to}/x"),
        format!("https://u:p@{to}/x"),
        "ftp://x/".to_owned(),
        "x".to_owned(),
    ] {
        let picture = two();
        let (manifest, place) = (picture.manifest.clone(), location.clone());
        let liar = Liar::start(move |head| {
            if head.contains("/manifests/") {
                answer("200 OK", "", &manifest)
            } else {
                answer("307 Temporary Redirect", &format!("location: {place}\r\n"), b"")
            }
        })
        .await;
        let house = House::new(&[liar.address]);
        let error = house
            .images
            .pull(&format!("{}/a:b", liar.address), None, None)
            .await
            .unwrap_err();
        assert!(
            matches!(error, PullError::Private { .. } | PullError::Odd { .. }),
            "{location}: {error:?}"
        );
    }
    // A token's place too.
    let liar = Liar::start(move |_| {
        answer(
            "401 Unauthorized",
            &format!("www-authenticate: Bearer realm=\"http://{to}/token\"\r\n"),
            b"",
        )
    })
    .await;
    let house = House::new(&[liar.address]);
    let error = house
        .images
        .resolve(&format!("{}/a:b", liar.address), None)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Odd { .. }), "{error:?}");
    assert!(inside.heads().is_empty(), "{:?}", inside.heads());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_the_policy_names_is_gone_to_without_the_password() {
    if !is_root() {
        return;
    }
    let picture = two();
    let blobs = Liar::start(manifest_of(&picture)).await;
    let (manifest, to) = (picture.manifest.clone(), blobs.address);
    let liar = Liar::start(move |head| {
        if !head.to_ascii_lowercase().contains("authorization: basic") {
            return answer("401 Unauthorized", "www-authenticate: Basic realm=\"x\"\r\n", b"");
        }
        let path = head.split(' ').nth(1).unwrap_or_default();
        if path.contains("/manifests/") {
            answer("200 OK", "", &manifest)
        } else {
            answer(
                "307 Temporary Redirect",
                &format!("location: http://{to}{path}\r\n"),
                b"",
            )
        }
    })
    .await;
    let mut policy = policy(&[liar.address]);
    policy
        .registries
        .get_mut(&liar.address.to_string())
        .unwrap()
        .leads_to = vec![format!("http://{to}")];
    let house = House::with(policy);
    house
        .images
        .pull(&format!("{}/a:b", liar.address), Some(&password()), None)
        .await
        .unwrap();
    let heads = blobs.heads();
    assert_eq!(heads.len(), 3);
    assert!(
        heads
            .iter()
            .all(|head| !head.to_ascii_lowercase().contains("authorization")),
        "{heads:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_fetched_with_the_password_and_shown_alone() {
    if !is_root() {
        return;
    }
    let picture = two();
    let serve = manifest_of(&picture);
    let own = std::sync::Arc::new(std::sync::OnceLock::new());
    let place = std::sync::Arc::clone(&own);
    let liar = Liar::start(move |head| {
        let lower = head.to_ascii_lowercase();
        let address: std::net::SocketAddr = *place.get().unwrap();
        if head.starts_with("GET /token?") {
            assert!(lower.contains("authorization: basic"), "{head}");
            assert!(head.contains("service=s") && head.contains("scope=repository%3Ateam%2Fa%3Apull"), "{head}");
            return answer("200 OK", "", br#"{"access_token": "t0k"}"#);
        }
        if lower.contains("authorization: bearer t0k") {
            return serve(head);
        }
        assert!(!lower.contains("authorization"), "{head}");
        answer("401 Unauthorized", &format!("www-authenticate: Bearer realm=\"http://{address}/token\",service=\"s\",scope=\"repository:team/a:pull\"\r\n"), b"")
    })
    .await;
    own.set(liar.address).unwrap();
    let house = House::new(&[liar.address]);
    house
        .images
        .pull(&format!("{}/team/a:b", liar.address), Some(&password()), None)
        .await
        .unwrap();
    assert_eq!(
        liar.heads()
            .iter()
            .filter(|head| head.starts_with("GET /token"))
            .count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_those_that_were_promised_are_no_layer() {
    if !is_root() {
        return;
    }
    let (right, wrong) = (two(), own(&[Tar::new().file("evil", b"").end()]));
    // Another layer of the same length as promised cannot be had, so the promise is broken by one bit.
    let mut flipped = right.layers[0].0.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let serve = manifest_of(&right);
    let name = Digest::of(&right.layers[0].0).to_string();
    let liar = Liar::start(move |head| {
        if head.contains(&name) {
            answer("200 OK", "", &flipped)
        } else {
            serve(head)
        }
    })
    .await;
    let house = House::new(&[liar.address]);
    let error = house
        .images
        .pull(&format!("{}/a:b", liar.address), None, None)
        .await
        .unwrap_err();
    assert!(
        matches!(error, PullError::Layer { .. } | PullError::Digest { .. }),
        "{error:?}"
    );
    assert!(house.layers().iter().all(|name| *name == right.layers[1].2.hex()));
    // A configuration that promises other layers.
    let mut lying = right.clone();
    lying.layers[0].2 = wrong.layers[0].2;
    let lying = Picture {
        config: String::from_utf8(right.config.clone())
            .unwrap()
            .replace(&right.layers[0].2.hex(), &wrong.layers[0].2.hex())
            .into_bytes(),
        ..lying
    };
    let manifest = String::from_utf8(right.manifest.clone())
        .unwrap()
        .replace(&Digest::of(&right.config).hex(), &Digest::of(&lying.config).hex());
    let lying = Picture {
        manifest: manifest.into_bytes(),
        ..lying
    };
    let liar = Liar::start(manifest_of(&lying)).await;
    let house = House::new(&[liar.address]);
    let error = house
        .images
        .pull(&format!("{}/a:b", liar.address), None, None)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Digest { .. }), "{error:?}");
    // A manifest under another's digest.
    let error = house
        .images
        .resolve(&format!("{}/a@{}", liar.address, right.digest()), None)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Digest { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_with_wrong_bytes_is_passed_over() {
    if !is_root() {
        return;
    }
    let right = two();
    let good = Liar::start(manifest_of(&right)).await;
    let serve = manifest_of(&right);
    let mut flipped = right.layers[1].0.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let name = Digest::of(&right.layers[1].0).to_string();
    let bad = Liar::start(move |head| {
        if head.contains(&name) {
            answer("200 OK", "", &flipped)
        } else {
            serve(head)
        }
    })
    .await;
    let mut policy = policy(&[good.address]);
    policy
        .registries
        .get_mut(&good.address.to_string())
        .unwrap()
        .mirrors = vec![bad.address.to_string()];
    let house = House::with(policy);
    house
        .images
        .pull(&format!("{}/a:b", good.address), None, None)
        .await
        .unwrap();
    assert_eq!(
        good.heads().len(),
        1,
        "only that layer is asked of the registry itself"
    );
}

#[tokio::test]
async fn answers_without_end_are_not_read_to_their_end() {
    for said in [
        answer("200 OK", "", &vec![b' '; 5 << 20]),
        [
            b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec(),
            vec![b' '; 5 << 20],
        ]
        .concat(),
    ] {
        let liar = Liar::start(move |_| said.clone()).await;
        let house = House::new(&[liar.address]);
        let error = house
            .images
            .resolve(&format!("{}/a:b", liar.address), None)
            .await
            .unwrap_err();
        assert!(matches!(error, PullError::TooLarge { .. }), "{error:?}");
    }
    let liar = Liar::start(|_| answer("302 Found", "location: /v2/again\r\n", b"")).await;
    let house = House::new(&[liar.address]);
    let error = house
        .images
        .resolve(&format!("{}/a:b", liar.address), None)
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Odd { .. }), "{error:?}");
    assert!(liar.heads().len() < 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_busy_is_asked_again_and_one_that_forbids_is_not() {
    let picture = two();
    let serve = manifest_of(&picture);
    let count = std::sync::atomic::AtomicUsize::new(0);
    let liar = Liar::start(move |head| match count.fetch_add(1, Ordering::SeqCst) {
        0 => answer("503 Service Unavailable", "", b""),
        1 => answer("429 Too Many Requests", "retry-after: 0\r\n", b""),
        _ => serve(head),
    })
    .await;
    let house = House::new(&[liar.address]);
    assert_eq!(
        house
            .images
            .resolve(&format!("{}/a:b", liar.address), None)
            .await
            .unwrap(),
        picture.digest()
    );
    assert_eq!(liar.heads().len(), 3);
    let limited = Liar::start(|_| {
        answer(
            "429 Too Many Requests",
            "retry-after: 3600\r\n",
            br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#,
        )
    })
    .await;
    let house = House::new(&[limited.address]);
    let error = house
        .images
        .resolve(&format!("{}/a:b", limited.address), None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("slow down"), "{error}");
    assert_eq!((error.kind(), limited.heads().len()), (model::Kind::Exhausted, 1));
    let forbids = Liar::start(|_| {
        answer(
            "403 Forbidden",
            "",
            br#"{"errors":[{"code":"DENIED","message":"not you"}]}"#,
        )
    })
    .await;
    let house = House::new(&[forbids.address]);
    let error = house
        .images
        .resolve(&format!("{}/a:b", forbids.address), None)
        .await
        .unwrap_err();
    assert!(
        matches!(error, PullError::Unauthorized { .. }) && error.to_string().contains("not you"),
        "{error}"
    );
    assert_eq!(forbids.heads().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_knows_no_ranges_is_read_again_up_to_where_it_broke() {
    if !is_root() {
        return;
    }
    let picture = own(&[Tar::new().file("big", &random(200_000)).end()]);
    let serve = manifest_of(&picture);
    let name = Digest::of(&picture.layers[0].0).to_string();
    let first = std::sync::atomic::AtomicBool::new(true);
    let liar = Liar::start(move |head| {
        let mut said = serve(head);
        if head.contains(&name) && first.swap(false, Ordering::SeqCst) {
            said.truncate(100_000);
        }
        said
    })
    .await;
    let house = House::new(&[liar.address]);
    house
        .images
        .pull(&format!("{}/a:b", liar.address), None, None)
        .await
        .unwrap();
    assert!(
        liar.heads()
            .iter()
            .any(|head| head.to_ascii_lowercase().contains("range: bytes="))
    );
}

#[tokio::test]
async fn a_key_of_amazons_becomes_the_password_of_its_registry() {
    let ecr = Liar::start(|head| {
        let lower = head.to_ascii_lowercase();
        assert!(
            head.starts_with("POST / HTTP/1.1")
                && lower.contains("x-amz-target: amazonec2containerregistry_v20150921.getauthorizationtoken"),
            "{head}"
        );
        assert!(
            lower.contains("authorization: aws4-hmac-sha256 credential=akiaiosfodnn7example/"),
            "{head}"
        );
        // AWS:pass
        answer(
            "200 OK",
            "",
            br#"{"authorizationData":[{"authorizationToken":"QVdTOnBhc3M=","expiresAt":1.5}]}"#,
        )
    })
    .await;
    let picture = two();
    let serve = manifest_of(&picture);
    let liar = Liar::start(move |head| {
        if head.contains("Basic QVdTOnBhc3M=") {
            serve(head)
        } else {
            answer(
                "401 Unauthorized",
                "www-authenticate: Basic realm=\"ecr\"\r\n",
                b"",
            )
        }
    })
    .await;
    let house = House::with(Policy {
        ecr_endpoint: Some(format!("http://{}", ecr.address)),
        ..policy(&[liar.address])
    });
    let aws = |region: &str| RegistryCredentials::Aws {
        access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
        secret_access_key: Secret::new("secret".to_owned()),
        region: region.to_owned(),
    };
    let name = format!("{}/a:b", liar.address);
    assert_eq!(
        house
            .images
            .resolve(&name, Some(&aws("eu-central-1")))
            .await
            .unwrap(),
        picture.digest()
    );
    for region in ["", "evil.com/", "EU"] {
        assert!(matches!(
            house.images.resolve(&name, Some(&aws(region))).await,
            Err(PullError::Credentials(_))
        ));
    }
}

#[tokio::test]
async fn a_key_file_of_googles_is_a_password_and_anything_else_is_refused() {
    let picture = two();
    let serve = manifest_of(&picture);
    let liar = Liar::start(move |head| {
        // _json_key:
        if head.contains("Basic X2pzb25fa2V5O") {
            serve(head)
        } else {
            answer(
                "401 Unauthorized",
                "www-authenticate: Basic realm=\"gcr\"\r\n",
                b"",
            )
        }
    })
    .await;
    let house = House::new(&[liar.address]);
    let name = format!("{}/a:b", liar.address);
    let gcp = |text: &str| RegistryCredentials::Gcp {
        service_account: Secret::new(text.to_owned()),
    };
    let key = gcp(r#"{"type": "service_account", "client_email": "a@b", "private_key": "x"}"#);
    assert_eq!(
        house.images.resolve(&name, Some(&key)).await.unwrap(),
        picture.digest()
    );
    for text in ["", "{}", "key"] {
        assert!(matches!(
            house.images.resolve(&name, Some(&gcp(text))).await,
            Err(PullError::Credentials(_))
        ));
    }
}
