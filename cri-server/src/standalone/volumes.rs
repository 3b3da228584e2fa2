//! Volumes of a pod: made before its first container, outliving each, removed with the pod's directory.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, PodSpec};
use nix::mount::MsFlags;
use thiserror::Error;
use vaina_sys::mount;

use super::{convert::Paths, quantity::Quantity};
use crate::error::{Classify, Kind};

/// Any user of the pod's containers writes there.
const MODE: u32 = 0o777;
const SET_GID: u32 = 0o2000;

/// Makes or checks every volume of the pod.
pub(super) fn make(spec: &PodSpec, paths: &Paths) -> Result<(), VolumeError> {
    let group = spec.security_context.as_ref().and_then(|context| context.fs_group);
    for volume in spec.volumes.iter().flatten() {
        if let Some(source) = &volume.empty_dir {
            let path = paths.volume(&volume.name);
            empty_dir(source, &path, group)
                .map_err(|source| VolumeError::EmptyDir { volume: volume.name.clone(), source })?;
        }
        if let Some(source) = &volume.host_path {
            host_path(source).map_err(|source| match source {
                HostPathError::Io(source) => VolumeError::HostPath { volume: volume.name.clone(), source },
                HostPathError::Type(path, wanted) => {
                    VolumeError::HostPathType { volume: volume.name.clone(), path, wanted }
                }
            })?;
        }
    }
    Ok(())
}

/// Why a volume is not there.
#[derive(Debug, Error)]
pub(super) enum VolumeError {
    /// An emptyDir.
    #[error("make emptyDir volume {volume}")]
    EmptyDir {
        /// Its name.
        volume: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A hostPath that should have been made.
    #[error("make hostPath volume {volume}")]
    HostPath {
        /// Its name.
        volume: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A hostPath that is something else.
    #[error("check hostPath volume {volume}: {} is not {wanted}", path.display())]
    HostPathType {
        /// Its name.
        volume: String,
        /// The path on the host.
        path: PathBuf,
        /// What its type asks for.
        wanted: &'static str,
    },
}

impl Classify for VolumeError {
    fn kind(&self) -> Kind {
        match self {
            Self::EmptyDir { .. } | Self::HostPath { .. } => Kind::Internal,
            Self::HostPathType { .. } => Kind::FailedPrecondition,
        }
    }
}

fn empty_dir(source: &EmptyDirVolumeSource, path: &Path, group: Option<i64>) -> io::Result<()> {
    DirBuilder::new().recursive(true).create(path)?;
    if source.medium.as_deref() == Some("Memory") {
        let limit = source.size_limit.as_ref().and_then(|limit| Quantity::try_from(limit).ok());
        let size = match limit.filter(|limit| !limit.is_zero()) {
            Some(limit) => format!("size={},", limit.value()),
            None => String::new(),
        };
        mount::filesystem("tmpfs", "tmpfs", path, MsFlags::empty(), &format!("{size}mode=0777"))?;
    }
    let mut mode = MODE;
    if let Some(group) = group.and_then(|group| u32::try_from(group).ok()) {
        std::os::unix::fs::chown(path, None, Some(group))?;
        mode |= SET_GID;
    }
    // The umask has had its say at mkdir.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

enum HostPathError {
    Io(io::Error),
    Type(PathBuf, &'static str),
}

impl From<io::Error> for HostPathError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// <https://kubernetes.io/docs/concepts/storage/volumes/#hostpath-volume-types>
fn host_path(source: &HostPathVolumeSource) -> Result<(), HostPathError> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or("");
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        }
        "FileOrCreate" if !path.exists() => {
            File::options().create(true).append(true).open(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
        }
        _ => {}
    }
    let (wanted, is): (_, fn(&fs::FileType) -> bool) = match kind {
        "Directory" | "DirectoryOrCreate" => ("a directory", fs::FileType::is_dir),
        "File" | "FileOrCreate" => ("a file", fs::FileType::is_file),
        "Socket" => ("a socket", |kind| kind.is_socket()),
        "CharDevice" => ("a character device", |kind| kind.is_char_device()),
        "BlockDevice" => ("a block device", |kind| kind.is_block_device()),
        // Nothing is asked for: what is not there the runtime makes a directory.
        _ => return Ok(()),
    };
    match fs::metadata(path) {
        Ok(metadata) if is(&metadata.file_type()) => Ok(()),
        Ok(_) => Err(HostPathError::Type(path.to_owned(), wanted)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(HostPathError::Type(path.to_owned(), wanted)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(volumes: &str) -> PodSpec {
        serde_saphyr::from_str(&format!("{{containers: [], volumes: [{volumes}], securityContext: {{fsGroup: 2000}}}}"))
            .unwrap()
    }

    fn paths(dir: &Path) -> Paths {
        Paths { pod: dir.join("pod"), logs: dir.join("logs") }
    }

    #[test]
    fn host_paths_are_made_or_checked() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("dir")).unwrap();
        File::create(at("file")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (name, kind, is_right) in [
            ("dir", "", true),
            ("none", "", true),
            ("dir", "Directory", true),
            ("file", "Directory", false),
            ("none", "Directory", false),
            ("new/deep", "DirectoryOrCreate", true),
            ("file", "DirectoryOrCreate", false),
            ("file", "File", true),
            ("dir", "File", false),
            ("new-file", "FileOrCreate", true),
            ("none/new-file", "FileOrCreate", false),
            ("socket", "Socket", true),
            ("file", "Socket", false),
            ("/dev/null", "CharDevice", true),
            ("/dev/null", "BlockDevice", false),
        ] {
            let path = at(name).display().to_string();
            let spec = spec(&format!("{{name: v, hostPath: {{path: {path}, type: \"{kind}\"}}}}"));
            assert_eq!(make(&spec, &paths(dir.path())).is_ok(), is_right, "{name} as {kind}");
        }
        assert!(at("new/deep").is_dir() && at("new-file").is_file());
    }

    mod root {
        use std::os::unix::fs::MetadataExt as _;

        use super::*;

        #[test]
        fn empty_dirs_belong_to_the_group_and_are_writable() {
            let dir = tempfile::tempdir().unwrap();
            let paths = paths(dir.path());
            let spec = spec("{name: disk, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}");
            make(&spec, &paths).unwrap();
            for name in ["disk", "memory"] {
                let metadata = fs::metadata(paths.volume(name)).unwrap();
                assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o2777, 2000), "{name}");
            }
            let full = fs::write(paths.volume("memory").join("big"), vec![0; 2 << 20]).unwrap_err();
            assert_eq!(full.kind(), io::ErrorKind::StorageFull);
            mount::detach(&paths.volume("memory")).unwrap();
            assert!(fs::read_dir(paths.volume("memory")).unwrap().next().is_none());
        }
    }
}
