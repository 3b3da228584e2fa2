use std::time::Instant;
use vaina_cri_server::{image::{ImageConfig, ImageStore, PullRequest}, state::Store};
fn main() {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    let reference = std::env::args().nth(2).unwrap();
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let store = ImageStore::open(ImageConfig::new(dir.join("images")), Store::open(&dir.join("state.db")).unwrap()).await.unwrap();
        let t = Instant::now();
        let image = if reference.starts_with('/') { store.import(reference.as_ref(), None).await.unwrap().remove(0) } else {
            store.pull(PullRequest { reference, auth: None }).await.unwrap() };
        println!("{:?} {} layers {} bytes", t.elapsed(), image.layers.len(), image.size);
    });
}
