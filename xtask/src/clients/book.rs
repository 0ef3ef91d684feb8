//! The text from which llama-benchy cuts its prompts. It downloads one over HTTP, so the prompts of
//! the workloads are served on the loopback interface.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use anyhow::{Context, Result, bail};

pub struct Book {
    url: String,
}

impl Book {
    /// Serves all `.jsonl` files of a folder as one text, as long as this process lives.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut files: Vec<_> = fs::read_dir(folder)
            .with_context(|| folder.display().to_string())?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|ending| ending == "jsonl"))
            .collect();
        files.sort();
        let mut text = String::new();
        for file in &files {
            text += &fs::read_to_string(file).with_context(|| file.display().to_string())?;
        }
        if text.is_empty() {
            bail!("{} has no text", folder.display());
        }
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("a port for the book")?;
        let url = format!("http://{}/book.txt", listener.local_addr()?);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Err(error) = answer(stream, &text) {
                    eprintln!("the book was not read: {error}");
                }
            }
        });
        Ok(Self { url })
    }

    pub fn url(&self) -> &str {
        &self.url
    }
}

fn answer(mut stream: TcpStream, text: &str) -> std::io::Result<()> {
    let mut head = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while head.read_line(&mut line)? > 2 {
        line.clear();
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{text}",
        text.len()
    )
}
