//! `vaina image import|ls|pull|rm`: the image commands for people, over the daemon's socket.
//!
//! They speak to a daemon and to nothing else: two owners of one store would be one too many. Where none runs, the
//! caller of [`run`] starts one inside this process and passes a channel to that.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read as _, Write},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use clap::Subcommand;
use rustix::fs::{Mode, OFlags};
use thiserror::Error;
use tonic::{Status, transport::Channel};
use vaina_proto::{
    cri::{
        AuthConfig, Image, ImageSpec, ImageStatusRequest, ListImagesRequest, PullImageRequest, RemoveImageRequest,
        image_service_client::ImageServiceClient,
    },
    images::{ImportRequest, images_client::ImagesClient},
};

use super::{Reference, ReferenceError};

/// Commands on images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Import the images of an archive: an OCI layout in a tar or the output of `docker save`, also compressed
    Import {
        /// The archive; `-` is standard input
        file: PathBuf,
        /// Name of the image, instead of what the archive says
        #[arg(long, value_name = "REF")]
        name: Option<String>,
    },
    /// List the images
    #[command(alias = "list")]
    Ls {
        /// Only ids
        #[arg(short, long)]
        quiet: bool,
        /// Whole ids and digests too
        #[arg(long)]
        digests: bool,
    },
    /// Pull an image from its registry
    Pull {
        /// The image, as in a pod manifest: `busybox`, `registry:5000/app:1.2`, `app@sha256:…`
        reference: String,
        /// User at the registry
        #[arg(short, long, requires = "password_stdin")]
        username: Option<String>,
        /// Read the password from standard input
        #[arg(long, requires = "username")]
        password_stdin: bool,
    },
    /// Remove names of images, or by id whole images
    #[command(alias = "remove")]
    Rm {
        /// Names or ids
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// Why a command did not do its work.
#[derive(Debug, Error)]
pub enum ImageCommandError {
    /// The archive.
    #[error("open archive {}", .path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// An archive from a pipe, which must be a file to be read twice.
    #[error("store archive from standard input")]
    Spool(#[source] io::Error),
    /// The password.
    #[error("read password from standard input")]
    Password(#[source] io::Error),
    /// A name.
    #[error(transparent)]
    Reference(ReferenceError),
    /// The daemon said no.
    #[error("{verb} {what}: {}", .status.message())]
    Daemon {
        /// What was asked.
        verb: &'static str,
        /// Of what.
        what: String,
        /// The answer, whose words are all there is to say: not a source, which would be printed again.
        status: Box<Status>,
    },
    /// Nothing of that name.
    #[error("no image {0:?}")]
    Missing(String),
    /// Our own output.
    #[error("print")]
    Print(#[source] io::Error),
}

/// Does one command over `channel` and prints for people to `out`.
pub async fn run(command: ImageCommand, channel: Channel, out: &mut impl Write) -> Result<(), ImageCommandError> {
    match command {
        ImageCommand::Import { file, name } => import(&file, name, channel, out).await,
        ImageCommand::Ls { quiet, digests } => {
            let images = list(channel).await?;
            let text = if quiet { ids(&images) } else { table(&images, digests) };
            print(out, &text)
        }
        ImageCommand::Pull { reference, username, password_stdin: _ } => {
            let auth = username.map(credentials).transpose()?;
            pull(reference, auth, channel, out).await
        }
        ImageCommand::Rm { images } => {
            for image in images {
                remove(image, channel.clone(), out).await?;
            }
            Ok(())
        }
    }
}

async fn import(
    path: &Path,
    name: Option<String>,
    channel: Channel,
    out: &mut impl Write,
) -> Result<(), ImageCommandError> {
    let name = match name {
        Some(name) => name.parse::<Reference>().map_err(ImageCommandError::Reference)?.to_string(),
        None => String::new(),
    };
    let archive = if path == Path::new("-") { standard_input()? } else { open(path)? };
    let request = ImportRequest { descriptor: archive.as_raw_fd(), name };
    let answer = ImagesClient::new(channel).import(request).await.map_err(failed("import", path.display()))?;
    for image in answer.into_inner().images {
        let names = match image.repo_tags.as_slice() {
            [] => "without a name (give it one with --name)".to_owned(),
            names => names.join(", "),
        };
        print(out, &format!("{}  {names}  {}\n", short(&image.id), size(image.size)))?;
    }
    Ok(())
}

fn open(path: &Path) -> Result<File, ImageCommandError> {
    File::open(path).map_err(|source| ImageCommandError::Open { path: path.to_owned(), source })
}

/// Standard input itself when it is a file, else a nameless file with all that comes from it.
fn standard_input() -> Result<File, ImageCommandError> {
    let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from).map_err(ImageCommandError::Spool)?;
    if stdin.metadata().is_ok_and(|stat| stat.is_file()) {
        return Ok(stdin);
    }
    let spool = || -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let fd: OwnedFd = rustix::fs::open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)?;
        let mut spool = File::from(fd);
        io::copy(&mut &stdin, &mut spool)?;
        Ok(spool)
    };
    spool().map_err(ImageCommandError::Spool)
}

fn credentials(username: String) -> Result<AuthConfig, ImageCommandError> {
    let mut password = String::new();
    if io::stdin().is_terminal() {
        eprint!("Password: ");
    }
    io::stdin().read_to_string(&mut password).map_err(ImageCommandError::Password)?;
    let password = password.trim_end_matches(['\r', '\n']).to_owned();
    Ok(AuthConfig { username, password, ..AuthConfig::default() })
}

async fn pull(
    reference: String,
    auth: Option<AuthConfig>,
    channel: Channel,
    out: &mut impl Write,
) -> Result<(), ImageCommandError> {
    let mut client = ImageServiceClient::new(channel);
    let spec = ImageSpec { image: reference.clone(), ..ImageSpec::default() };
    let request = PullImageRequest { image: Some(spec), auth, ..PullImageRequest::default() };
    let answer = client.pull_image(request).await.map_err(failed("pull", &reference))?.into_inner();
    let image = status(&mut client, &answer.image_ref).await?.ok_or(ImageCommandError::Missing(reference))?;
    let name = image.repo_tags.first().or(image.repo_digests.first()).map_or("", String::as_str);
    print(out, &format!("{}  {name}  {}\n", short(&image.id), size(image.size)))
}

async fn remove(image: String, channel: Channel, out: &mut impl Write) -> Result<(), ImageCommandError> {
    let mut client = ImageServiceClient::new(channel);
    // The CRI's removal of what is not there succeeds; a person wants to know of the slip.
    let before = status(&mut client, &image).await?.ok_or_else(|| ImageCommandError::Missing(image.clone()))?;
    let spec = ImageSpec { image: image.clone(), ..ImageSpec::default() };
    client.remove_image(RemoveImageRequest { image: Some(spec) }).await.map_err(failed("remove", &image))?;
    match status(&mut client, &before.id).await? {
        Some(_) => print(out, &format!("untagged {image}\n")),
        None => print(out, &format!("removed {}  {}\n", short(&before.id), size(before.size))),
    }
}

async fn status(client: &mut ImageServiceClient<Channel>, image: &str) -> Result<Option<Image>, ImageCommandError> {
    let spec = ImageSpec { image: image.to_owned(), ..ImageSpec::default() };
    let request = ImageStatusRequest { image: Some(spec), ..ImageStatusRequest::default() };
    Ok(client.image_status(request).await.map_err(failed("look up", image))?.into_inner().image)
}

async fn list(channel: Channel) -> Result<Vec<Image>, ImageCommandError> {
    let mut client = ImageServiceClient::new(channel);
    let answer = client.list_images(ListImagesRequest::default()).await.map_err(failed("list", "images"))?;
    Ok(answer.into_inner().images)
}

fn failed(verb: &'static str, what: impl ToString) -> impl FnOnce(Status) -> ImageCommandError {
    let what = what.to_string();
    move |status| ImageCommandError::Daemon { verb, what, status: Box::new(status) }
}

fn print(out: &mut impl Write, text: &str) -> Result<(), ImageCommandError> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(ImageCommandError::Print)
}

fn ids(images: &[Image]) -> String {
    images.iter().map(|image| format!("{}\n", image.id)).collect()
}

/// One line for each name, columns as wide as they must be.
fn table(images: &[Image], digests: bool) -> String {
    let mut rows = vec![["NAME".to_owned(), "IMAGE ID".to_owned(), "SIZE".to_owned()]];
    let mut lines: Vec<_> = images
        .iter()
        .flat_map(|image| {
            let mut names = image.repo_tags.clone();
            if digests || names.is_empty() {
                names.extend(image.repo_digests.iter().cloned());
            }
            if names.is_empty() {
                names.push("<none>".to_owned());
            }
            let id = if digests { image.id.clone() } else { short(&image.id).to_owned() };
            let size = size(image.size);
            names.into_iter().map(move |name| [name, id.clone(), size.clone()])
        })
        .collect();
    lines.sort();
    rows.extend(lines);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths = [width(0), width(1), width(2)];
    rows.iter()
        .map(|[name, id, size]| format!("{name:<0$}  {id:<1$}  {size:>2$}\n", widths[0], widths[1], widths[2]))
        .collect()
}

/// As everybody shortens ids.
fn short(id: &str) -> &str {
    let hex = id.split_once(':').map_or(id, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}

/// Bytes in decimal units, three digits.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let mut unit = 0;
    // In tenths of the unit, so that no float rounds.
    let mut tenths = bytes.div_ceil(100);
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths = tenths.div_ceil(1000);
        unit += 1;
    }
    if tenths >= 1000 || tenths.is_multiple_of(10) {
        format!("{} {}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 kB"),
            (1, "0.1 kB"),
            (1_500, "1.5 kB"),
            (999_900, "999 kB"),
            (1_000_000, "1 MB"),
            (5_250_000, "5.3 MB"),
            (283_000_000, "283 MB"),
            (1_234_000_000, "1.3 GB"),
            (u64::MAX, "18446744 TB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn tables() {
        let images = [
            Image {
                id: format!("sha256:{}", "a".repeat(64)),
                repo_tags: vec!["docker.io/library/b:2".to_owned(), "docker.io/library/a:1".to_owned()],
                repo_digests: vec!["docker.io/library/a@sha256:1".to_owned()],
                size: 4_200_000,
                ..Image::default()
            },
            Image { id: "sha256:bb".to_owned(), size: 10, ..Image::default() },
        ];
        let expected = "\
NAME                   IMAGE ID        SIZE
<none>                 bb            0.1 kB
docker.io/library/a:1  aaaaaaaaaaaa  4.2 MB
docker.io/library/b:2  aaaaaaaaaaaa  4.2 MB
";
        assert_eq!(table(&images, false), expected);
        assert_eq!(table(&images, true).lines().count(), 5);
        assert_eq!(ids(&images).lines().count(), 2);
    }
}
