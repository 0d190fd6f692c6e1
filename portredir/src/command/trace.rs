//! `portredir trace`: what becomes of packets, as they come.

use std::fs::File;
use std::io::{self, BufWriter};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use portredir_common::map::trace::Record;

use super::{count, say, try_print};
use crate::cli::TraceArgs;
use crate::controller::event_loop::Signals;
use crate::controller::tracing::{Source, source};
use crate::observe::trace::filter::Filter;
use crate::observe::trace::pcap::Capture;
use crate::observe::trace::{Context, Line, interface_name};

/// The time between two looks at the ring buffer.
const LOOK: Duration = Duration::from_millis(20);

/// The time between two looks at the redirect, at whose end the trace ends.
const RENEW: Duration = Duration::from_millis(250);

/// `portredir trace`.
///
/// # Errors
///
/// Nothing is active, another process traces, or a filter is none.
pub async fn trace(args: &TraceArgs) -> anyhow::Result<()> {
    let filter = Filter::parse(&args.words)?;
    let mut source = source()?;
    filter.check(source.rules())?;
    let capture = args.pcap.as_ref().map(|path| {
        let file = File::create(path).and_then(|file| Capture::new(BufWriter::new(file)));
        file.with_context(|| format!("write {}", path.display()))
    });
    let mut view = View {
        context: Context::new(source.rules().to_vec()),
        filter,
        json: args.json,
        capture: capture.transpose()?,
        left: args.count,
        told: 0,
    };
    let mut signals = Signals::new()?;
    if !source.silent.is_empty() {
        say(&format!(
            "not shown: packets of {}, whose programs are of an older version; to replace them: \
             portredir up",
            source.silent.join(", ")
        ));
    }
    say("tracing; press Ctrl-C to stop");
    let result = follow(&mut view, &mut source, &mut signals).await;
    drop(source);
    if let Some(capture) = &mut view.capture {
        capture.flush().context("write the capture file")?;
    }
    match result {
        Err(error) if is_closed(&error) => Ok(()),
        result => result,
    }
}

/// Whether the reader of standard output has gone, such as `head`.
fn is_closed(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

async fn follow(view: &mut View, source: &mut Source, signals: &mut Signals) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(LOOK);
    let mut renewed = Instant::now();
    loop {
        let is_stopped = tokio::select! {
            _ = ticks.tick() => false,
            _ = signals.next() => true,
        };
        for record in source.tracer.take_records() {
            view.show(&record)?;
            if view.left == Some(0) {
                break;
            }
        }
        let lost = source.tracer.take_lost()?;
        if lost > 0 {
            let packets = count(usize::try_from(lost)?, "packet");
            say(&format!("{packets} not shown: too many at once"));
        }
        if is_stopped || view.left == Some(0) {
            say(&count(view.told, "line"));
            return Ok(());
        }
        if renewed.elapsed() >= RENEW {
            renewed = Instant::now();
            if !source.renew()? {
                say("the redirect has ended");
                return Ok(());
            }
            view.context = Context::new(source.rules().to_vec());
        }
    }
}

/// The lines as they are shown.
struct View {
    context: Context,
    filter: Filter,
    json: bool,
    capture: Option<Capture<BufWriter<File>>>,
    /// The number of lines until the end, if there is one.
    left: Option<u64>,
    told: usize,
}

impl View {
    fn show(&mut self, record: &Record) -> anyhow::Result<()> {
        let interface = interface_name(record.head().ifindex);
        let line = self.context.line(record, interface);
        let Some(line) = line.filter(|line| self.filter.admits(line)) else {
            return Ok(());
        };
        if let (Some(capture), Record::Packet(packet)) = (&mut self.capture, record) {
            let written = capture.write(packet, &line).and_then(|()| capture.flush());
            written.context("write the capture file")?;
        }
        self.told += 1;
        self.left = self.left.map(|left| left.saturating_sub(1));
        try_print(&self.text(&line)?)?;
        Ok(())
    }

    fn text(&self, line: &Line) -> Result<String, serde_json::Error> {
        if self.json {
            return Ok(serde_json::to_string(line)? + "\n");
        }
        Ok(format!("{line}\n"))
    }
}
