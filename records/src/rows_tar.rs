//! `rows.tar`: the compressed files of a campaign folder in one.
//!
//! A plain tar, which every tar program unpacks, of exactly the members of [`Member`] in their order.
//! Owner, mode and time are fixed: the same members make the same bytes. It may come from anywhere
//! when it is read, so everything else is refused by name: other names, links, folders, extensions
//! of tar, a member that is missing, comes twice or is too large.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::ops::RangeInclusive;
use std::path::Path;

use lzma_rust2::{XzOptions, XzReader, XzWriter};
use tar::{Archive, Builder, Entries, Entry, EntryType, Header};

use crate::RecordError;

pub const ROWS: &str = "rows.tar";

/// No member of a campaign on record has more than 1 MiB.
const MAX_MEMBER_MIB: u64 = 256;
/// What a member unpacks to; without a limit, a few bytes would fill the memory.
const MAX_UNPACKED_MIB: u64 = 2048;
/// A dictionary is at most as large as the member, in powers of two between these.
const DICTIONARY_BYTES: RangeInclusive<usize> = 4096..=64 << 20;
/// For the largest dictionary and the decoder's tables.
const MAX_DECODER_KIB: u32 = 80 << 10;
const MODE: u32 = 0o644;
/// 1 January 2000: a few programs do not take a time of 0.
const MTIME_S: u64 = 946_684_800;
const BLOCK_BYTES: u64 = 512;
/// Blocks of zeros at the end of a tar.
const N_END_BLOCKS: u64 = 2;

/// A compressed file in `rows.tar`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Member {
    Starts,
    Requests,
    Times,
    Files,
}

impl Member {
    /// In the order of the archive.
    pub const ALL: [Self; 4] = [Self::Starts, Self::Requests, Self::Times, Self::Files];

    pub fn name(self) -> &'static str {
        match self {
            Self::Starts => "starts.jsonl.xz",
            Self::Requests => "requests.jsonl.xz",
            Self::Times => "times.xz",
            Self::Files => "files.jsonl.xz",
        }
    }
}

/// The archive of compressed members, given in the order of [`Member::ALL`].
///
/// ```
/// use records::rows_tar::archive;
///
/// let members = [b"a", b"b", b"c", b"d"].map(|member| member.to_vec());
/// assert_eq!(archive(&members)?, archive(&members)?);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
///
/// Those of the crate `tar`; the names and sizes of these members fit its headers.
pub fn archive(members: &[Vec<u8>; 4]) -> io::Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for (member, bytes) in Member::ALL.into_iter().zip(members) {
        builder.append(&header(member.name(), bytes.len())?, bytes.as_slice())?;
    }
    builder.into_inner()
}

fn header(name: &str, n_bytes: usize) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(n_bytes as u64);
    header.set_mode(MODE);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MTIME_S);
    header.set_cksum();
    Ok(header)
}

/// All members as they are stored, compressed.
///
/// # Errors
///
/// [`RecordError::Io`] if the file cannot be opened, [`RecordError::Malformed`] if it is not an
/// archive that [`archive`] makes, or a member is larger than 256 MiB.
pub fn read(path: &Path) -> Result<[Vec<u8>; 4], RecordError> {
    let file = File::open(path).map_err(|source| RecordError::io(path, source))?;
    read_all(file).map_err(|problem| RecordError::malformed(path, problem))
}

/// What a member unpacks to. The members after it are not looked at.
///
/// # Errors
///
/// [`RecordError::Io`] if the file cannot be opened; [`RecordError::Malformed`] if it is not an
/// archive that [`archive`] makes, up to this member, or the member is larger than 256 MiB, not
/// compressed by xz, or unpacks to more than 2 GiB.
pub fn unpack(path: &Path, member: Member) -> Result<Vec<u8>, RecordError> {
    let file = File::open(path).map_err(|source| RecordError::io(path, source))?;
    read_one(file, member)
        .and_then(|packed| {
            decompress(&packed, MAX_UNPACKED_MIB << 20)
                .map_err(|problem| format!("{}: {problem}", member.name()))
        })
        .map_err(|problem| RecordError::malformed(path, problem))
}

/// A member's content, compressed by xz. The same content makes the same bytes.
///
/// # Errors
///
/// Those of the crate `lzma-rust2`, which compression in memory has not.
pub fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut options = XzOptions::with_preset(9);
    let wanted = bytes.len().next_power_of_two();
    let (least, most) = DICTIONARY_BYTES.into_inner();
    options.lzma_options.dict_size = wanted.clamp(least, most) as u32;
    // Text and planes of bytes are not aligned to words.
    options.lzma_options.pb = 0;
    options.lzma_options.nice_len = 273;
    let mut writer = XzWriter::new(Vec::new(), options)?;
    writer.write_all(bytes)?;
    writer.finish()
}

fn decompress(packed: &[u8], max_bytes: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    XzReader::new_mem_limit(packed, false, MAX_DECODER_KIB)
        .take(max_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > max_bytes {
        return Err(format!("it unpacks to more than {max_bytes} bytes"));
    }
    Ok(bytes)
}

fn read_one(source: impl Read + Seek, wanted: Member) -> Result<Vec<u8>, String> {
    let mut archive = Archive::new(source);
    let mut entries = raw_entries(&mut archive)?;
    for index in 0..wanted as usize {
        next_member(&mut entries, index)?;
    }
    content(&mut next_member(&mut entries, wanted as usize)?)
}

/// Goes through the whole archive.
fn read_all(mut source: impl Read + Seek) -> Result<[Vec<u8>; 4], String> {
    let n_bytes = source.seek(SeekFrom::End(0)).map_err(text)?;
    source.rewind().map_err(text)?;
    let mut archive = Archive::new(source);
    let mut entries = raw_entries(&mut archive)?;
    let mut members = Member::ALL.map(|_| Vec::new());
    let mut end = 0;
    for (index, bytes) in members.iter_mut().enumerate() {
        let mut entry = next_member(&mut entries, index)?;
        *bytes = content(&mut entry)?;
        end = entry.raw_file_position() + entry.size().next_multiple_of(BLOCK_BYTES);
    }
    if let Some(entry) = entries.next().transpose().map_err(text)? {
        check_entry(&entry, &Member::ALL, None)?;
    }
    let n_needed = end + N_END_BLOCKS * BLOCK_BYTES;
    if n_bytes != n_needed {
        return Err(format!(
            "it has {n_bytes} bytes; its members make {n_needed}"
        ));
    }
    Ok(members)
}

fn text(error: io::Error) -> String {
    error.to_string()
}

/// Raw: what would rename, link or stretch the next member is a member itself, and refused.
fn raw_entries<R: Read + Seek>(archive: &mut Archive<R>) -> Result<Entries<'_, R>, String> {
    let entries = archive.entries_with_seek().map_err(text)?;
    Ok(entries.raw(true))
}

fn next_member<'a, R: Read>(
    entries: &mut Entries<'a, R>,
    index: usize,
) -> Result<Entry<'a, R>, String> {
    let (before, member) = (&Member::ALL[..index], Member::ALL[index]);
    let entry = entries.next().transpose().map_err(text)?;
    let entry = entry.ok_or_else(|| format!("it ends before {}", member.name()))?;
    check_entry(&entry, before, Some(member))?;
    Ok(entry)
}

fn content(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(text)?;
    if bytes.len() as u64 == entry.size() {
        Ok(bytes)
    } else {
        let name = entry.path_bytes();
        Err(format!("{} is cut off", name.escape_ascii()))
    }
}

/// `expected`: the member at this place; `None` after the last.
fn check_entry<R: Read>(
    entry: &Entry<'_, R>,
    before: &[Member],
    expected: Option<Member>,
) -> Result<(), String> {
    let path = entry.path_bytes();
    let name = path.escape_ascii();
    let Some(member) = Member::ALL
        .into_iter()
        .find(|member| member.name().as_bytes() == &*path)
    else {
        return Err(format!("`{name}` is no member of a campaign"));
    };
    if before.contains(&member) {
        return Err(format!("{name} comes twice"));
    }
    if let Some(expected) = expected.filter(|expected| *expected != member) {
        return Err(format!("{name} is in the place of {}", expected.name()));
    }
    let kind = entry.header().entry_type();
    if kind != EntryType::Regular {
        return Err(format!("{name} is no file, but {kind:?}"));
    }
    let n_bytes = entry.size();
    if n_bytes > MAX_MEMBER_MIB << 20 {
        return Err(format!(
            "{name} has {n_bytes} bytes; at most {MAX_MEMBER_MIB} MiB are read"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const SIZES: [usize; 4] = [5, 0, 512, 700];

    fn members() -> [Vec<u8>; 4] {
        SIZES.map(|n_bytes| vec![n_bytes as u8; n_bytes])
    }

    fn refusal(bytes: Vec<u8>) -> String {
        read_all(Cursor::new(bytes)).expect_err("refused")
    }

    /// An archive of these names and kinds, which no writer needs to allow.
    fn of(entries: &[(&str, EntryType)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, kind) in entries {
            let mut header = header("x", 3).expect("a header");
            header.as_old_mut().name = [0; 100];
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_link_name("elsewhere").expect("a link");
            header.set_cksum();
            builder.append(&header, b"abc".as_slice()).expect("added");
        }
        builder.into_inner().expect("ended")
    }

    fn regular(names: &[&'static str]) -> Vec<(&'static str, EntryType)> {
        names
            .iter()
            .map(|name| (*name, EntryType::Regular))
            .collect()
    }

    #[test]
    fn members_come_back_and_the_same_members_make_the_same_bytes() {
        let bytes = archive(&members()).expect("an archive");
        assert_eq!(archive(&members()).expect("an archive"), bytes);
        assert_eq!(read_all(Cursor::new(&bytes)), Ok(members()));
        for (member, content) in Member::ALL.into_iter().zip(members()) {
            let found = read_one(Cursor::new(&bytes), member);
            assert_eq!(found, Ok(content), "{}", member.name());
        }
        let mut plain = Archive::new(bytes.as_slice());
        for (entry, member) in plain.entries().expect("readable").zip(Member::ALL) {
            let entry = entry.expect("an entry");
            let header = entry.header();
            assert_eq!(entry.path_bytes(), member.name().as_bytes());
            assert_eq!(header.mtime().expect("a time"), MTIME_S);
            assert_eq!(header.mode().expect("a mode"), MODE);
            assert_eq!(header.uid().expect("an owner"), 0);
            assert_eq!(header.gid().expect("a group"), 0);
        }
    }

    #[test]
    fn names_that_are_no_members_are_refused_by_name() {
        for name in ["../x", "/etc/passwd", "./starts.jsonl.xz", "other", ""] {
            let bytes = of(&regular(&[name]));
            let problem = format!("`{name}` is no member of a campaign");
            let of_one = read_one(Cursor::new(&bytes), Member::Starts);
            assert_eq!(of_one.as_ref(), Err(&problem));
            assert_eq!(refusal(bytes), problem);
        }
        let names = Member::ALL.map(Member::name);
        let fifth = [names.as_slice(), &["../x"]].concat();
        let problem = refusal(of(&regular(&fifth)));
        assert_eq!(problem, "`../x` is no member of a campaign");
    }

    #[test]
    fn members_that_are_missing_double_or_out_of_order_are_refused_by_name() {
        let [starts, requests, times, files] = Member::ALL.map(Member::name);
        for (names, wanted) in [
            (vec![], "it ends before starts.jsonl.xz"),
            (vec![starts, requests], "it ends before times.xz"),
            (
                vec![requests, times, files],
                "requests.jsonl.xz is in the place of starts.jsonl.xz",
            ),
            (vec![starts, starts], "starts.jsonl.xz comes twice"),
            (
                vec![starts, requests, times, files, times],
                "times.xz comes twice",
            ),
        ] {
            assert_eq!(refusal(of(&regular(&names))), wanted);
        }
    }

    #[test]
    fn links_folders_and_extensions_are_refused() {
        let name = Member::Starts.name();
        for kind in [
            EntryType::Link,
            EntryType::Symlink,
            EntryType::Directory,
            EntryType::Fifo,
            EntryType::GNUSparse,
            EntryType::GNULongName,
            EntryType::XHeader,
        ] {
            let problem = refusal(of(&[(name, kind)]));
            assert_eq!(problem, format!("{name} is no file, but {kind:?}"));
        }
    }

    #[test]
    fn what_is_cut_off_appended_or_overwritten_is_refused() {
        let whole = archive(&members()).expect("an archive");
        for n_bytes in 0..whole.len() {
            refusal(whole[..n_bytes].to_vec());
        }
        // In the last member, which is the fourth header's.
        let cut = whole.len() - 2 * 512 - 1024 + 699;
        assert_eq!(refusal(whole[..cut].to_vec()), "files.jsonl.xz is cut off");
        let starts = read_one(Cursor::new(&whole[..cut]), Member::Starts);
        assert_eq!(starts.as_ref(), Ok(&members()[0]), "it is before the cut");
        let longer = [whole.as_slice(), &[0; 512]].concat();
        assert!(refusal(longer).contains("its members make"));
        let mut broken = whole;
        broken[0] = b'S';
        assert_eq!(refusal(broken), "archive header checksum mismatch");
    }

    #[test]
    fn sizes_are_limited() {
        let mut large = header(Member::Starts.name(), 0).expect("a header");
        for n_bytes in [(MAX_MEMBER_MIB << 20) + 1, u64::MAX] {
            large.set_size(n_bytes);
            large.set_cksum();
            let problem = refusal(large.as_bytes().to_vec());
            let wanted = format!("starts.jsonl.xz has {n_bytes} bytes; at most 256 MiB are read");
            assert!(problem == wanted || problem == "size overflow", "{problem}");
        }
        let packed = compress(&[7; 100]).expect("packed");
        assert_eq!(decompress(&packed, 100), Ok(vec![7; 100]));
        let problem = decompress(&packed, 99).expect_err("refused");
        assert_eq!(problem, "it unpacks to more than 99 bytes");
        assert!(decompress(&packed[..packed.len() - 2], 100).is_err());
    }
}
