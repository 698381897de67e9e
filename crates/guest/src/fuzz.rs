//! What holds for any bytes; fuzzers and tests ask the same.
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use crate::boot::Settings;
use crate::line::escape::{Decoder, Event, FLAG, Nonce, encode};
use crate::line::{ANSWER_BYTES_MAX, Answer, Header, Hello, Nothing, Order, Reason, Resume, Usage, mux};
use crate::module;

/// A line of a host's, or an agent's: what is understood is understood again, and what is refused is told in one line.
///
/// # Panics
/// Where that does not hold.
pub fn line(data: &[u8]) {
    match Header::parse(data) {
        Ok(header) => {
            if let Header::Agent(Order::Resume(resume)) = &header
                && let Ok(entropy) = resume.entropy()
            {
                assert!((Resume::ENTROPY_BYTES_MIN..=Resume::ENTROPY_BYTES_MAX).contains(&entropy.len()));
                assert!(!format!("{resume:?}").contains(&resume.entropy));
            }
            let line = header.to_line();
            assert_eq!(Header::parse(&line[..line.len() - 1]), Ok(header));
        }
        Err(wrong) => {
            let line = Answer::<Nothing>::refused(Reason::Failed, wrong).to_line();
            assert!(line.len() <= ANSWER_BYTES_MAX, "{}", line.len());
        }
    }
    answer::<Nothing>(data);
    answer::<Hello>(data);
    answer::<Usage>(data);
}

fn answer<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(data: &[u8]) {
    let Ok(answer) = Answer::<T>::parse(data) else {
        return;
    };
    if let Answer::Done(done) = &answer {
        assert!(done.ok);
    }
    let line = answer.to_line();
    assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
    assert_eq!(Answer::parse(&line).unwrap(), answer);
}

/// The first byte says in pieces of which length the rest arrives. However it arrives, the same is read; after any of it a
/// greeting is understood; and whatever is sent comes as it was.
///
/// # Panics
/// Where that does not hold.
pub fn escape(data: &[u8]) {
    let Some((&cut, wire)) = data.split_first() else {
        return;
    };
    let cut = usize::from(cut).max(1);
    let read = decode(wire, cut);
    assert_eq!(read, decode(wire, wire.len().max(1)));
    assert!(read.iter().map(|(bytes, _)| bytes.len()).sum::<usize>() <= wire.len());

    let nonce = Nonce([cut.to_le_bytes()[0]; 16]);
    let mut greeted = wire.to_vec();
    greeted.extend(nonce.greeting());
    encode(wire, &mut greeted);
    let read = decode(&greeted, cut);
    let [.., (_, Some(Event::Over)), (_, Some(begins)), (bytes, None)] = &read[..] else {
        panic!("{read:?}");
    };
    assert_eq!((*begins, &bytes[..]), (Event::Begins(nonce), wire));
    assert!(!greeted[greeted.len() - bytes.len()..].contains(&FLAG));
}

/// What was read before each event, and after the last.
fn decode(wire: &[u8], cut: usize) -> Vec<(Vec<u8>, Option<Event>)> {
    let (mut decoder, mut bytes, mut read) = (Decoder::default(), Vec::new(), Vec::new());
    for mut piece in wire.chunks(cut) {
        while let Some(event) = decoder.next(&mut piece, &mut bytes) {
            read.push((std::mem::take(&mut bytes), Some(event)));
        }
        assert!(piece.is_empty());
    }
    read.push((bytes, None));
    read
}

/// What a guest says in a conversation of many streams: it ends with what it said, and everybody who waits hears of it.
///
/// # Panics
/// Where that does not hold.
pub fn mux(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime without devices").block_on(async {
        let (opens, asked) = mpsc::channel(2);
        let waiting = [(); 2].map(|()| {
            let (opened, stream) = oneshot::channel();
            opens.try_send(opened).expect("there is room for two");
            stream
        });
        let heard = tokio::io::join(data, tokio::io::sink());
        let ended = mux::open_for(heard, asked).await;
        assert!(ended.is_err(), "somebody could still ask");
        for stream in waiting {
            // Opened before its end, or told of it.
            let _ = stream.await;
        }
        assert!(opens.is_closed());
    });
}

/// A kernel module: the names that it needs are names, and no more than is in it.
///
/// # Panics
/// Where that does not hold.
pub fn module(data: &[u8]) {
    if let Some(needs) = module::needs(data) {
        assert!(needs.iter().map(String::len).sum::<usize>() <= data.len());
        let is_name = |name: &String| !name.is_empty() && !name.contains([',', '-', '\0']);
        assert!(needs.iter().all(is_name), "{needs:?}");
    }
}

/// A kernel's command line: the settings on it are told so that they are understood again.
///
/// # Panics
/// Where that does not hold.
pub fn boot(data: &[u8]) {
    let Ok(settings) = Settings::parse(&String::from_utf8_lossy(data)) else {
        return;
    };
    let told = settings
        .to_command_line()
        .expect("what was understood can be told");
    assert_eq!(Settings::parse(&format!("quiet {told} panic=-1")), Ok(settings));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Rule = fn(&[u8]);

    const RULES: [(&str, Rule); 5] = [
        ("line", line),
        ("escape", escape),
        ("mux", mux),
        ("module", module),
        ("boot", boot),
    ];

    #[test]
    fn the_rules_hold_for_every_seed() {
        for (name, rule) in RULES {
            let dir = format!("{}/../../fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
            let seeds = std::fs::read_dir(dir).unwrap();
            let asked = seeds.map(|seed| rule(&std::fs::read(seed.unwrap().path()).unwrap()));
            assert!(asked.count() > 5, "{name}");
        }
    }

    proptest! {
        #[test]
        fn the_rules_hold_for_any_bytes(data in prop::collection::vec(any::<u8>(), 0..1000)) {
            for (_, rule) in RULES {
                rule(&data);
            }
        }

        #[test]
        fn the_rules_hold_for_what_is_nearly_understood(
            words in prop::collection::vec("(atoll\\.)?(hostname|machine_id|line|root|address|gateway|nameservers)=[a-z0-9./,]{0,34}", 0..8),
            pairs in prop::collection::vec(("(to|do|ok|error|reason|port|graceMs|entropy)", "(\"(envd|port|agent|resume|hello|closed|.{0,20})\"|true|false|[0-9]{1,7})"), 0..5),
            change in (0_usize..400, any::<u8>()),
        ) {
            boot(words.join(" ").as_bytes());
            let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
            line(format!("{{{}}}", pairs.join(",")).as_bytes());
            let mut elf = module::tests::module("a-b,c");
            let (at, byte) = change;
            if let Some(there) = elf.get_mut(at) {
                *there = byte;
            }
            module(&elf);
        }
    }
}
