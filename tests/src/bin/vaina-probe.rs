//! What tests run inside containers where busybox falls short: System V IPC, POSIX shared memory and semaphores, signals, orphans and
//! memory. One subcommand each; output on stdout, flushed line by line; an error exits 1 and says why on stderr.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener, UdpSocket},
    process::{Command, ExitCode},
    str::FromStr,
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{
        mman,
        signal::{SigSet, Signal},
        stat::Mode,
    },
    unistd,
};
use vaina_sys::{
    answers,
    semaphore::Semaphore,
    sysvipc::{self, Key},
};

const USAGE: &str = "probe sem-create KEY VALUE | sem-value KEY | sem-remove KEY
      | seg-create KEY TEXT | seg-read KEY | seg-remove KEY      (System V)
      | shm-create NAME TEXT | shm-read NAME                     (POSIX)
      | psem-create NAME VALUE | psem-wait NAME | psem-post NAME (POSIX)
      | signals [SIGNAL=CODE]    print each signal; exit with CODE after SIGNAL
      | orphan SECONDS           leave a process behind whose parent is gone, and wait too
      | allocate MIB             touch that much memory, then wait for a signal
      | write OUT ERR COUNT      COUNT times one line to each of stdout and stderr
      | lines COUNT              COUNT lines of 100 bytes and a last one, as fast as they are taken
      | effective-uid            say whom it runs as, which a setuid bit changes
      | answers CALL…            what the kernel answers to each
      | pause                    wait to be ended
      | serve PORT               say who asks, to each that connects (TCP) or sends (UDP)
      | echo PORT                send back what comes, to each that connects
      | exit CODE";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<ExitCode> {
    match arguments {
        ["sem-create", key, value] => sysvipc::semaphore_create(parse_key(key)?, value.parse()?)?,
        ["sem-value", key] => say(&sysvipc::semaphore_value(parse_key(key)?)?.to_string())?,
        ["sem-remove", key] => sysvipc::semaphore_remove(parse_key(key)?)?,
        ["seg-create", key, text] => sysvipc::segment_create(parse_key(key)?, text.as_bytes())?,
        ["seg-read", key] => say(&String::from_utf8(sysvipc::segment_read(parse_key(key)?)?)?)?,
        ["seg-remove", key] => sysvipc::segment_remove(parse_key(key)?)?,
        ["shm-create", name, text] => {
            let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
            let object = mman::shm_open(*name, flags, Mode::from_bits_truncate(0o666)).context("shm_open")?;
            File::from(object).write_all(text.as_bytes())?;
        }
        ["shm-read", name] => {
            let object = mman::shm_open(*name, OFlag::O_RDONLY, Mode::empty()).context("shm_open")?;
            let mut text = String::new();
            File::from(object).read_to_string(&mut text)?;
            say(&text)?;
        }
        ["psem-create", name, value] => drop(Semaphore::create(&CString::new(*name)?, value.parse()?)?),
        ["psem-wait", name] => Semaphore::open(&CString::new(*name)?)?.wait()?,
        ["psem-post", name] => Semaphore::open(&CString::new(*name)?)?.post()?,
        ["signals"] => return signals(None),
        ["signals", end] => {
            let (signal, code) = end.split_once('=').context("SIGNAL=CODE")?;
            return signals(Some((Signal::from_str(signal)?, code.parse()?)));
        }
        ["orphan", seconds] => {
            // A shell between us and the sleeper, which ends at once.
            let status = Command::new("/bin/sh").args(["-c", &format!("sleep {seconds} & echo orphan $!")]).status()?;
            say(&format!("shell ended: {status}"))?;
            return signals(Some((Signal::SIGTERM, 0)));
        }
        ["allocate", mebibytes] => {
            let memory = vec![1_u8; mebibytes.parse::<usize>()? << 20];
            say(&format!("allocated {}", memory.len() >> 20))?;
            return signals(Some((Signal::SIGTERM, 0)));
        }
        ["write", out, err, count] => {
            for _ in 0..count.parse()? {
                say(out)?;
                writeln!(io::stderr(), "{err}")?;
            }
        }
        ["lines", count] => lines(count.parse()?)?,
        ["effective-uid"] => say(&format!("Effective uid: {}", unistd::geteuid()))?,
        ["answers", calls @ ..] => {
            for call in calls {
                let answer =
                    answers::answer(call).with_context(|| format!("{call} is not one of the harmless calls"))?;
                let word = match answer.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw) {
                    None => "ok".to_owned(),
                    Some(errno) => format!("{errno:?}"),
                };
                say(&format!("{call} {word}"))?;
            }
        }
        ["pause"] => loop {
            unistd::pause();
        },
        ["serve", port] => return serve(port.parse()?),
        ["echo", port] => return echo(port.parse()?),
        ["exit", code] => return Ok(ExitCode::from(code.parse::<u8>()?)),
        _ => bail!("usage: {USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn parse_key(text: &str) -> Result<Key> {
    Ok(Key(text.parse().context("KEY")?))
}

fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// In pieces of 64 KiB, as programs write that care for speed.
fn lines(count: usize) -> Result<()> {
    let mut out = io::BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let line = [&[b'x'; 99][..], b"\n"].concat();
    for _ in 0..count {
        out.write_all(&line)?;
    }
    out.write_all(b"the last line\n")?;
    Ok(out.flush()?)
}

/// Answers with the address that it is asked from, on all addresses of both protocols.
fn serve(port: u16) -> Result<ExitCode> {
    let datagrams = UdpSocket::bind(("0.0.0.0", port)).context("bind UDP")?;
    let listener = TcpListener::bind(("0.0.0.0", port)).context("bind TCP")?;
    say("serving")?;
    thread::spawn(move || -> io::Result<()> {
        let mut buffer = [0; 1500];
        loop {
            let (_, from) = datagrams.recv_from(&mut buffer)?;
            datagrams.send_to(from.ip().to_string().as_bytes(), from)?;
        }
    });
    loop {
        let (mut stream, from) = listener.accept().context("accept")?;
        // Whoever asked may be gone.
        let _ = stream.write_all(from.ip().to_string().as_bytes());
    }
}

/// Sends back what each connection brings, all at once.
fn echo(port: u16) -> Result<ExitCode> {
    let listener = TcpListener::bind(("127.0.0.1", port)).context("bind TCP")?;
    say("echoing")?;
    loop {
        let (mut from, _) = listener.accept().context("accept")?;
        thread::spawn(move || -> io::Result<()> {
            let mut to = from.try_clone()?;
            io::copy(&mut from, &mut to)?;
            to.shutdown(Shutdown::Write)
        });
    }
}

/// Waits for signals instead of handling them, so that as PID 1 none is lost and none ends us.
fn signals(end: Option<(Signal, u8)>) -> Result<ExitCode> {
    let mut set = SigSet::all();
    set.remove(Signal::SIGCHLD);
    set.thread_block().context("block signals")?;
    say(&format!("waiting as {}", unistd::getpid()))?;
    loop {
        let signal = set.wait().context("wait for a signal")?;
        say(signal.as_str())?;
        if let Some((last, code)) = end
            && last == signal
        {
            return Ok(ExitCode::from(code));
        }
    }
}
