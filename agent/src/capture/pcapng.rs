//! Told packets as a pcapng file (IETF draft-ietf-opsawg-pcapng), readable in Wireshark and tcpdump.
//!
//! One interface per device. Every packet has its fate as a comment and its direction in the flags word; packets that could not be told
//! are in the drop count of the next one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, PcapError};

use super::report::CaptureReport;
use super::words;

/// Bits 0 and 1 of the flags word.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Frames with comments in a file being written.
pub struct FrameFile<W: Write> {
    file: PcapNgWriter<W>,
    interfaces: BTreeMap<String, u32>,
}

/// A capture file being written.
pub(super) struct CaptureFile<W: Write>(FrameFile<W>);

fn into_io(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

fn bytes(text: &str) -> io::Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

impl<W: Write> FrameFile<W> {
    /// Begins a file with its section header.
    pub fn new(file: W) -> io::Result<Self> {
        let application = format!("margay {}", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            options: vec![SectionHeaderOption::UserApplication(Cow::Owned(application))],
            ..SectionHeaderBlock::default()
        };
        let file = PcapNgWriter::with_section_header(file, section).map_err(into_io)?;
        Ok(Self { file, interfaces: BTreeMap::new() })
    }

    fn interface(&mut self, name: &str) -> io::Result<u32> {
        if let Some(known) = self.interfaces.get(name) {
            return Ok(*known);
        }
        let number = self.interfaces.len() as u32;
        let options = vec![
            InterfaceDescriptionOption::IfName(Cow::Owned(name.to_owned())),
            // Nanoseconds.
            InterfaceDescriptionOption::IfTsResol(9),
        ];
        let block = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options };
        self.file.write_pcapng_block(block).map_err(into_io)?;
        self.interfaces.insert(name.to_owned(), number);
        Ok(number)
    }

    /// Adds a frame that came from device `port`; `time` is since 1970.
    pub fn frame(&mut self, port: &str, time: Duration, frame: &[u8], comment: &str) -> io::Result<()> {
        let options =
            vec![EnhancedPacketOption::Comment(Cow::Borrowed(comment)), EnhancedPacketOption::Flags(INBOUND)];
        self.block(port, time, frame.len() as u32, frame, options)
    }

    fn block(
        &mut self,
        port: &str,
        timestamp: Duration,
        original_len: u32,
        data: &[u8],
        options: Vec<EnhancedPacketOption<'_>>,
    ) -> io::Result<()> {
        let interface_id = self.interface(port)?;
        let data = Cow::Borrowed(data);
        let block = EnhancedPacketBlock { interface_id, timestamp, original_len, data, options };
        self.file.write_pcapng_block(block).map_err(into_io)?;
        Ok(())
    }

    /// Hands everything over to the file, so that a reader of it sees whole packets.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.get_mut().flush()
    }
}

impl<W: Write> CaptureFile<W> {
    /// Begins a file with its section header.
    pub(super) fn new(file: W) -> io::Result<Self> {
        FrameFile::new(file).map(Self)
    }

    /// Adds a packet as it arrived, and as it left where that is known.
    pub(super) fn add(&mut self, report: &CaptureReport) -> io::Result<()> {
        let comment = words::comment(report);
        self.packet(report, &report.port, &report.bytes, report.length, INBOUND, &comment)?;
        if let Some(sent) = &report.sent {
            self.packet(report, &sent.port, &sent.bytes, sent.length, OUTBOUND, "as it left")?;
        }
        Ok(())
    }

    fn packet(
        &mut self,
        report: &CaptureReport,
        port: &str,
        data: &str,
        length: u32,
        direction: u32,
        comment: &str,
    ) -> io::Result<()> {
        let mut options = vec![
            EnhancedPacketOption::Comment(Cow::Borrowed(comment)),
            EnhancedPacketOption::Flags(direction),
        ];
        if report.lost_before > 0 && direction == INBOUND {
            options.push(EnhancedPacketOption::DropCount(report.lost_before));
        }
        self.0.block(port, Duration::from_nanos(report.time_ns), length, &bytes(data)?, options)
    }

    /// As [`FrameFile::flush`].
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;
    use crate::capture::report::SentReport;

    #[test]
    fn a_reader_finds_devices_packets_and_comments() {
        let mut written = Vec::new();
        let mut file = CaptureFile::new(&mut written).unwrap();
        let report = CaptureReport {
            time_ns: 1_700_000_000_123_456_789,
            port: "mgya".to_owned(),
            length: 900,
            bytes: STANDARD.encode([1, 2, 3, 4, 5]),
            fate: "forwarded".to_owned(),
            sent: Some(SentReport { port: "eth0".to_owned(), length: 901, bytes: STANDARD.encode([9; 4]) }),
            lost_before: 7,
            ..CaptureReport::default()
        };
        file.add(&report).unwrap();
        file.add(&CaptureReport { sent: None, lost_before: 0, ..report }).unwrap();
        file.flush().unwrap();
        drop(file);

        let mut reader = PcapNgReader::new(&written[..]).unwrap();
        let (mut names, mut packets) = (Vec::new(), Vec::new());
        while let Some(block) = reader.next_block() {
            match block.unwrap().into_owned() {
                Block::InterfaceDescription(block) => names.push(format!("{:?}", block.options)),
                Block::EnhancedPacket(block) => packets.push(block),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(names.len(), 2, "a device is described once");
        assert!(names[0].contains("mgya") && names[1].contains("eth0"));
        assert_eq!(packets.iter().map(|packet| packet.interface_id).collect::<Vec<_>>(), [0, 1, 0]);
        assert_eq!((&*packets[0].data, packets[0].original_len), (&[1, 2, 3, 4, 5][..], 900));
        assert_eq!(packets[0].timestamp, Duration::from_nanos(1_700_000_000_123_456_789));
        let options = format!("{:?}", packets[0].options);
        assert!(
            options.contains("forwarded") && options.contains("DropCount(7)") && options.contains("Flags(1)")
        );
        assert!(format!("{:?}", packets[1].options).contains("Flags(2)"));
    }

    #[test]
    fn bytes_that_are_no_base64_are_an_error() {
        let mut file = CaptureFile::new(Vec::new()).unwrap();
        assert!(file.add(&CaptureReport { bytes: "§".to_owned(), ..CaptureReport::default() }).is_err());
    }
}
