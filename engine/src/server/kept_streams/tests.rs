use serde_json::json;

use super::*;

fn event() -> SentEvent {
    SentEvent::of_chunk(&json!({"text": "x"}), false)
}

#[tokio::test]
async fn bytes_are_bounded_and_the_first_that_ended_leaves_first() {
    let store = Arc::new(KeptStreams::new(KeptStreamLimits {
        bytes: 10 * event().n_bytes(),
        ..KeptStreamLimits::default()
    }));
    let keys = SentKeys::default();
    let open = |id: &str| store.open(id, SentKeys::default()).expect("room").0;
    let resume = |id: &str, after| store.resume(id, &keys, Some(after), "after");
    let write = |reader: &Reader, events: std::ops::Range<u64>| {
        for _ in events {
            assert!(reader.stream.push(event()));
            let kept = store.lock();
            let n_bytes: usize = kept.streams.values().map(|stream| stream.n_bytes).sum();
            assert_eq!(n_bytes, kept.n_bytes);
            assert!(n_bytes <= store.limits.bytes);
        }
    };
    let [a, b, mut c] = ["a", "b", "c"].map(open);
    for reader in [&a, &b, &c] {
        write(reader, 0..3);
    }
    b.stream.end();
    a.stream.end();
    write(&c, 3..6);
    assert!(resume("b", 0).is_err() && resume("a", 0).is_ok());
    write(&c, 6..9);
    assert!(resume("a", 0).is_err());
    // It is alone now, and its own first events leave.
    write(&c, 9..15);
    let error = resume("c", 3).expect_err("gone");
    assert_eq!(error.code, Code::StreamNotFound);
    assert!(
        error.message.contains("event 4") && error.message.contains("number 5"),
        "{error}"
    );
    assert!(c.next().await.is_none(), "it has missed some");
    let mut rest = resume("c", 4).expect("there");
    for _ in 5..15 {
        assert!(rest.next().await.is_some());
    }
    // Beside another that runs and fills the rest, an event is passed over.
    let d = open("d");
    write(&d, 0..1);
    assert!(resume("d", 0).is_ok(), "after the end is where it goes on");
    let again = open("c");
    assert!(
        !c.stream.push(event()) && rest.next().await.is_none(),
        "it was replaced"
    );
    again.stream.end();
    assert!(store.remove("c", &keys) && store.remove("d", &keys));
    let kept = store.lock();
    assert_eq!((kept.n_bytes, kept.ended.len()), (0, 0));
}
