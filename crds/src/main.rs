//! Prints the CustomResourceDefinition of `CdcPipeline` as YAML, made from the Rust types.

fn main() -> Result<(), serde_yaml::Error> {
    print!("{}", serde_yaml::to_string(&penstock_crds::crd::definition())?);
    Ok(())
}
