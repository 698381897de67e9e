mod in_a_directory {
    use std::sync::Arc;

    use super::super::Stored;

    async fn store() -> (tempfile::TempDir, Arc<Stored>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Stored::in_directory(&dir.path().join("blobs")).unwrap();
        (dir, Arc::new(store))
    }

    ports::blob_contract!(store());

    #[test]
    fn blobs_leave_room_to_others() {
        let gib = 1 << 30;
        for (free, total, expected) in [
            (gib, 1000 * gib, true),
            (gib - 1, 1000 * gib, false),
            (gib / 10, gib, true),
            (gib / 10 - 1, gib, false),
            (0, 0, true),
        ] {
            assert_eq!(
                super::super::is_enough(free, total),
                expected,
                "{free} of {total}"
            );
        }
    }
}

/// Against a server of S3's protocol on loopback, which checks signatures and keeps files.
mod in_a_bucket {
    use std::sync::Arc;

    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::server::conn::auto::Builder;
    use model::Secret;
    use ports::blobs::{BlobError, Blobs as _};
    use s3s::auth::SimpleAuth;
    use s3s::service::S3ServiceBuilder;
    use tokio::net::TcpListener;
    use tokio::task::AbortHandle;

    use super::super::{Bucket, Stored};

    const BUCKET: &str = "atoll";

    struct Server {
        _files: tempfile::TempDir,
        task: AbortHandle,
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    async fn serve() -> (Server, Bucket) {
        let files = tempfile::tempdir().unwrap();
        std::fs::create_dir(files.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(files.path()).unwrap());
        service.set_auth(SimpleAuth::from_single("key", "hidden"));
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let _ = Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        let server = Server {
            _files: files,
            task: task.abort_handle(),
        };
        let bucket = Bucket {
            name: BUCKET.to_owned(),
            region: "us-east-1".to_owned(),
            endpoint: Some(format!("http://{address}")),
            prefix: "/some/place/".to_owned(),
            credentials: Some(("key".to_owned(), Secret::new("hidden".to_owned()))),
        };
        (server, bucket)
    }

    async fn store() -> (Server, Arc<Stored>) {
        let (server, bucket) = serve().await;
        (server, Arc::new(Stored::in_bucket(&bucket).unwrap()))
    }

    // All laws but two: this server keeps each object in a file of its name, so it trips over a name that is a directory, and
    // over one that is longer than a file's may be with what it adds. S3 itself does neither.
    ports::blob_contract! { @laws store();
        what_is_put_is_got,
        a_put_takes_the_place_of_what_was_there,
        a_blob_of_many_mib_is_got_as_it_was_put,
        a_part_is_cut_at_the_end,
        a_put_that_breaks_off_changes_nothing,
        a_put_that_is_given_up_changes_nothing,
        of_many_puts_one_stands_whole,
        who_has_begun_to_read_goes_on,
        a_list_goes_by_whole_parts_in_the_order_of_bytes,
        a_removed_blob_is_gone,
        a_text_that_is_no_name_is_refused,
    }

    #[tokio::test]
    async fn who_does_not_know_the_secret_is_refused() {
        let (_server, bucket) = serve().await;
        let wrong = Bucket {
            credentials: Some(("key".to_owned(), Secret::new("guessed".to_owned()))),
            ..bucket
        };
        let store = Stored::in_bucket(&wrong).unwrap();
        assert!(matches!(store.find("a").await, Err(BlobError::Away(_))));
    }
}
