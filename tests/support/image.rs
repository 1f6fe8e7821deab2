//! An image of the tenants' own with another program in place of Hoodie; removed when it is dropped.

use super::installation::docker;
use super::unique;

pub struct Image(pub String);

impl Image {
    /// One that runs this program of Node's. The word stands in the image's name.
    pub async fn that_runs(word: &str, program: &str) -> Self {
        let name = format!("{}-{word}", unique());
        let context = tempfile::tempdir().unwrap();
        std::fs::write(context.path().join("program.js"), program).unwrap();
        let dockerfile = "FROM haas/hoodie:28.2.10\nCOPY program.js /app/program.js\n\
                          ENTRYPOINT [\"node\", \"/app/program.js\"]\nCMD []\n";
        std::fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
        docker(&["build", "-q", "-t", &name, &context.path().display().to_string()]).await;
        Self(name)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        std::process::Command::new("docker").args(["rmi", "-f", &self.0]).output().ok();
    }
}
